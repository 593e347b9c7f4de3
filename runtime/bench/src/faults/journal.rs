//! What the journal costs: the same load with it and without it, in turns.

use std::path::Path;
use std::time::Instant;

use super::Figure;
use crate::Failure;
use crate::cluster::{Cluster, Services, Shape};
use crate::loads::{independent, until_done};
use crate::sql::figures::median;

const TASKS: usize = 100_000;
/// Graphs on each cluster; the first is not counted.
const GRAPHS: u32 = 5;

pub(super) async fn measure(oxidask: &Path, runs: u32) -> Result<Vec<Figure>, Failure> {
    let (mut costs, mut rates) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        let without = seconds(oxidask, false).await?;
        let with = seconds(oxidask, true).await?;
        costs.push((1.0 - without / with) * 100.0);
        #[allow(clippy::cast_precision_loss, reason = "a count of tasks")]
        rates.push(TASKS as f64 / with);
    }
    Ok(vec![Figure {
        what: "journal, 100,000 `noop` tasks: throughput that it costs",
        must: "20 %",
        unit: "%",
        values: costs,
        note: format!("{:.0} tasks a second with it", median(&rates)),
    }])
}

/// Seconds of the middle graph.
async fn seconds(oxidask: &Path, has_journal: bool) -> Result<f64, Failure> {
    let services = Services {
        has_journal,
        has_http: false,
    };
    let (_cluster, client) = Cluster::start_with(oxidask, Shape::default(), services).await?;
    let plan = independent(TASKS)?;
    let mut all = Vec::new();
    for graph in 0..=GRAPHS {
        let start = Instant::now();
        let mut run = client.submit(&format!("graph-{graph}"), &plan).await?;
        until_done(&mut run).await?;
        if graph > 0 {
            all.push(start.elapsed().as_secs_f64());
        }
        run.close().await;
    }
    Ok(median(&all))
}
