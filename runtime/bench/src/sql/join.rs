//! A join whose build side is four times the memory of a worker.

use oxidask_tpch::{Order, Strictness, compare};

use super::engine::{Engine, Request};
use super::figures::{LimitedRun, Section};
use super::tpch::one_line;
use super::{Bench, DataKind, THREADS, data, made, say};
use crate::Failure;
use crate::cluster::Shape;

const BY_CATEGORY: Order = Order {
    columns: &[0],
    limit: None,
};
const QUERY: &str = "SELECT p.category, count(*) AS pairs, sum(p.amount) AS amount, \
                     max(b.payload) AS payload, max(p.note) AS note \
                     FROM probe p JOIN build b ON p.key = b.key \
                     GROUP BY p.category ORDER BY p.category";

/// Runs the join without a limit, with the limit, and in plain `DataFusion` without a limit.
pub(super) async fn measure(bench: &Bench<'_>) -> Result<Section, Failure> {
    let memory_bytes = bench.arguments.memory_mib << 20;
    let folder = made(DataKind::Join {
        memory_mib: bench.arguments.memory_mib,
    })?;
    let expected = data::expected(&folder)?;
    let table = |name: &str| {
        let location = folder.join(name);
        let location = location.to_string_lossy();
        format!("CREATE EXTERNAL TABLE {name} STORED AS PARQUET LOCATION '{location}/'")
    };
    let statements = vec![table("build"), table("probe"), QUERY.to_owned()];
    let request = Request::Script { statements };
    let mut runs = Vec::new();
    let mut faults = Vec::new();
    for (name, limit_bytes) in [
        ("datafusion", None),
        ("oxidask, no limit", None),
        ("oxidask, limited", Some(memory_bytes)),
    ] {
        let shape = Shape {
            workers: THREADS,
            memory_bytes: limit_bytes,
            ..Shape::default()
        };
        let mut engine = match name {
            "datafusion" => bench.plain(THREADS)?,
            _ => Engine::Ours(Box::new(bench.ours(shape, &bench.settings).await?)),
        };
        // The client holds a few rows; it has no limit.
        engine.watch_services(&bench.sampler, name);
        let outcome = engine.ask(&request).await.and_then(|timed| {
            compare(BY_CATEGORY, &expected, &timed.answer, Strictness::Exact)?;
            Ok(timed.seconds)
        });
        runs.push(LimitedRun {
            name,
            limit_bytes,
            seconds: outcome.as_ref().ok().copied(),
            peak_bytes: bench.sampler.peak(name).process_bytes,
        });
        if let Err(error) = outcome {
            faults.push(format!("{name}: {}", one_line(&error.to_string())));
        }
        engine.end().await;
        say(&format!("join: {name} is done"));
    }
    Ok(Section {
        name: "join",
        title: format!(
            "A join with a build side of {} MiB; limit of each of 2 workers: {} MiB",
            4 * bench.arguments.memory_mib,
            bench.arguments.memory_mib
        ),
        header: LimitedRun::header(),
        rows: runs.iter().map(LimitedRun::row).collect(),
        figures: runs.iter().map(LimitedRun::figures).collect(),
        faults,
    })
}
