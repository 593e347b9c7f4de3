//! The files as they come out: rows of every table, types, row groups, and what a second call does.
#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::fs::File;
use std::path::Path;
use std::sync::Mutex;

use arrow::array::{Array, Decimal128Array, RecordBatch};
use arrow::datatypes::DataType;
use oxidask_tpch::{Answer, TABLES, TpchError, create_tables, generate};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

const SCALE: f64 = 0.01;

fn read(file: &Path) -> Vec<RecordBatch> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(file).unwrap()).unwrap();
    reader.build().unwrap().collect::<Result<_, _>>().unwrap()
}

fn table(folder: &Path, table: &str) -> Vec<RecordBatch> {
    let mut files: Vec<_> = std::fs::read_dir(folder.join(table))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files.iter().flat_map(|file| read(file)).collect()
}

fn rows(batches: &[RecordBatch]) -> usize {
    batches.iter().map(RecordBatch::num_rows).sum()
}

#[test]
fn every_table_is_whole_however_many_files_hold_it() {
    let temporary = tempfile::tempdir().unwrap();
    let (one, three) = (temporary.path().join("one"), temporary.path().join("three"));
    generate(&one, SCALE, 1, |_| ()).unwrap();
    let seen = Mutex::new(Vec::new());
    generate(&three, SCALE, 3, |step| seen.lock().unwrap().push(step)).unwrap();
    let seen = seen.into_inner().unwrap();
    assert_eq!((seen.len(), seen[0].files_total), (20, 20));
    assert!(seen.iter().any(|step| step.files_done == 20));
    let expected = [60_175, 15_000, 8_000, 2_000, 1_500, 100, 25, 5];
    for (name, expected) in TABLES.iter().zip(expected) {
        let (left, right) = (table(&one, name), table(&three, name));
        assert_eq!((rows(&left), rows(&right)), (expected, expected), "{name}");
        let schema = left[0].schema();
        let left = Answer::from_batches(&schema, &left).unwrap();
        assert_eq!(
            left,
            Answer::from_batches(&schema, &right).unwrap(),
            "{name}"
        );
    }
    let files = std::fs::read_dir(three.join("lineitem")).unwrap().count();
    assert_eq!(
        (
            files,
            std::fs::read_dir(three.join("region")).unwrap().count()
        ),
        (3, 1)
    );
    let left_behind = std::fs::read_dir(temporary.path()).unwrap().count();
    assert_eq!(left_behind, 2);
}

#[test]
fn money_is_decimal_and_days_are_dates() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().join("data");
    generate(&folder, SCALE, 1, |_| ()).unwrap();
    let lineitem = table(&folder, "lineitem");
    let schema = lineitem[0].schema();
    let of = |name: &str| schema.field_with_name(name).unwrap().data_type().clone();
    assert_eq!(of("l_extendedprice"), DataType::Decimal128(15, 2));
    assert_eq!(of("l_shipdate"), DataType::Date32);
    assert_eq!(of("l_orderkey"), DataType::Int64);
    // The first row that dbgen makes at this scale.
    let prices = lineitem[0].column_by_name("l_quantity").unwrap();
    let prices = prices.as_any().downcast_ref::<Decimal128Array>().unwrap();
    assert_eq!((prices.value(0), prices.null_count()), (1_700, 0));
    let file = folder.join("lineitem/part-0.parquet");
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(file).unwrap()).unwrap();
    let column = reader.metadata().row_group(0).column(5);
    assert_eq!(column.compression().to_string(), "SNAPPY");
}

#[test]
fn a_second_call_changes_nothing_and_other_data_are_not_touched() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().join("data");
    generate(&folder, 0.001, 2, |_| ()).unwrap();
    let file = folder.join("orders/part-1.parquet");
    let before = std::fs::metadata(&file).unwrap().modified().unwrap();
    let steps = Mutex::new(0);
    generate(&folder, 0.001, 2, |_| *steps.lock().unwrap() += 1).unwrap();
    assert_eq!(*steps.lock().unwrap(), 0);
    assert_eq!(
        std::fs::metadata(&file).unwrap().modified().unwrap(),
        before
    );
    let found = generate(&folder, 0.002, 2, |_| ());
    assert!(
        matches!(found, Err(TpchError::OtherData { .. })),
        "{found:?}"
    );
    let foreign = temporary.path().join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("precious"), "x").unwrap();
    let found = generate(&foreign, 0.001, 1, |_| ());
    assert!(
        matches!(found, Err(TpchError::OtherData { .. })),
        "{found:?}"
    );
    assert!(foreign.join("precious").exists());
}

#[test]
fn two_calls_at_once_both_succeed() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().join("data");
    std::thread::scope(|scope| {
        let calls: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| generate(&folder, 0.001, 2, |_| ())))
            .collect();
        for call in calls {
            call.join().unwrap().unwrap();
        }
    });
    assert_eq!(rows(&table(&folder, "customer")), 150);
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 1);
}

#[test]
fn nonsense_is_refused_and_tables_are_named() {
    let temporary = tempfile::tempdir().unwrap();
    for (scale, files) in [(0.0, 1), (-1.0, 1), (f64::NAN, 1), (1.0, 0)] {
        let found = generate(&temporary.path().join("data"), scale, files, |_| ());
        assert!(
            matches!(found, Err(TpchError::Arguments { .. })),
            "{found:?}"
        );
    }
    let statements = create_tables(Path::new("/it's/here"));
    assert_eq!(statements.lines().count(), TABLES.len());
    let first =
        "CREATE EXTERNAL TABLE lineitem STORED AS PARQUET LOCATION '/it''s/here/lineitem/';";
    assert_eq!(statements.lines().next(), Some(first));
}
