//! Many small files, so that a scan has as many parts.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array};
use arrow::record_batch::RecordBatch;
use oxidask_tpch::{Answer, Kind as Column};

use super::{Random, answer, write_parquet};
use crate::Failure;

/// Files of the full set.
pub(crate) const FILES: u32 = 10_000;
const ROWS: i64 = 100;

/// Writes the files and gives the number of rows and their sum.
pub(super) fn write(folder: &Path, files: u32) -> Result<Answer, Failure> {
    std::fs::create_dir_all(folder)?;
    let mut random = Random(10);
    let (mut rows, mut total) = (0, 0);
    for file in 0..files {
        let values = (0..ROWS).map(|_| i64::try_from(random.below(1_000)));
        let values = values.collect::<Result<Vec<_>, _>>()?;
        rows += ROWS;
        total += values.iter().sum::<i64>();
        let batch =
            RecordBatch::try_from_iter([("v", Arc::new(Int64Array::from(values)) as ArrayRef)]);
        write_parquet(
            &folder.join(format!("part-{file:05}.parquet")),
            std::iter::once(Ok(batch?)),
        )?;
    }
    let row = [rows.to_string(), total.to_string()];
    Ok(answer([Column::Number, Column::Number], vec![row]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_has_its_rows() {
        let folder = tempfile::tempdir().unwrap();
        let answer = write(folder.path(), 3).unwrap();
        assert_eq!(answer.rows[0][0].as_deref(), Some("300"));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
    }
}
