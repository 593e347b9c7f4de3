//! The eight tables: their names, how their rows are made, how long their row groups are.

use arrow::record_batch::RecordBatchReader;
use tpchgen::generators::{
    CustomerGenerator, LineItemGenerator, NationGenerator, OrderGenerator, PartGenerator,
    PartSuppGenerator, RegionGenerator, SupplierGenerator,
};
use tpchgen_arrow::{
    CustomerArrow, LineItemArrow, NationArrow, OrderArrow, PartArrow, PartSuppArrow, RegionArrow,
    SupplierArrow,
};

/// The tables, the longest first.
pub const TABLES: [&str; 8] = [
    "lineitem", "orders", "partsupp", "part", "customer", "supplier", "nation", "region",
];

/// The size at which `tpchgen-cli` ends a row group.
const ROW_GROUP_BYTES: usize = 7 << 20;
/// Rows of a batch on its way to the file.
const BATCH_ROWS: usize = 8_192;

/// Iterator over a table's batches.
pub(crate) type Batches = Box<dyn RecordBatchReader>;

/// Tables of a fixed number of rows, at any scale, stand in one file.
pub(crate) fn is_fixed(table: &str) -> bool {
    matches!(table, "nation" | "region")
}

/// Rows of a row group, by the average size of a row in a file.
pub(crate) fn row_group_rows(table: &str) -> usize {
    let row_bytes = match table {
        "lineitem" => 64,
        "orders" => 75,
        "partsupp" => 141,
        "part" => 70,
        "customer" => 168,
        _ => 160,
    };
    ROW_GROUP_BYTES / row_bytes
}

/// One of `parts` equal pieces of a table, counted from 1.
pub(crate) fn batches(table: &str, scale: f64, part: i32, parts: i32) -> Option<Batches> {
    let batches: Batches = match table {
        "lineitem" => {
            let rows = LineItemGenerator::new(scale, part, parts);
            Box::new(LineItemArrow::new(rows).with_batch_size(BATCH_ROWS))
        }
        "orders" => {
            let rows = OrderGenerator::new(scale, part, parts);
            Box::new(OrderArrow::new(rows).with_batch_size(BATCH_ROWS))
        }
        "partsupp" => {
            let rows = PartSuppGenerator::new(scale, part, parts);
            Box::new(PartSuppArrow::new(rows).with_batch_size(BATCH_ROWS))
        }
        "part" => {
            let rows = PartGenerator::new(scale, part, parts);
            Box::new(PartArrow::new(rows).with_batch_size(BATCH_ROWS))
        }
        "customer" => {
            let rows = CustomerGenerator::new(scale, part, parts);
            Box::new(CustomerArrow::new(rows).with_batch_size(BATCH_ROWS))
        }
        "supplier" => {
            let rows = SupplierGenerator::new(scale, part, parts);
            Box::new(SupplierArrow::new(rows).with_batch_size(BATCH_ROWS))
        }
        "nation" => Box::new(NationArrow::new(NationGenerator::new(scale, part, parts))),
        "region" => Box::new(RegionArrow::new(RegionGenerator::new(scale, part, parts))),
        _ => return None,
    };
    Some(batches)
}
