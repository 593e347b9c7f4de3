//! The form of planned graphs.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use crate::cluster::{Cluster, Graph};
use crate::same::{TABLES, with_tables};

const QUERY: &str =
    "SELECT l.k, count(*) AS n FROM l JOIN r ON l.k = r.k GROUP BY l.k ORDER BY l.k";

async fn planned(cluster: &Cluster, width: usize) -> Graph {
    let options = "SET oxidask.stages = 'always'; SET oxidask.broadcast_bytes = 0;";
    let text = format!("{TABLES} {options} SET oxidask.width = {width}; {QUERY}");
    Graph::decode(&cluster.plan(&text).await.unwrap())
}

#[tokio::test]
async fn tasks_of_a_stage_share_a_body_a_group_and_a_priority() {
    let cluster = with_tables();
    let graph = planned(&cluster, 4).await;
    let keys: HashSet<_> = graph.tasks.iter().map(|task| &task.key).collect();
    assert_eq!(keys.len(), graph.tasks.len());
    assert_eq!(graph.tasks[0].key, "query-1.1.0");
    let stages = graph.stages();
    assert_eq!(stages.len(), graph.bodies.len());
    assert!(stages[0].starts_with("query-1: scan "), "{stages:?}");
    assert_eq!(
        stages.iter().collect::<HashSet<_>>().len(),
        stages.len(),
        "{stages:?}"
    );
    for task in &graph.tasks {
        assert_eq!(stages[task.body], task.group);
        assert_eq!(task.priority as usize, task.body, "later stages go first");
    }
    assert!(graph.outputs.len() == 1 && graph.outputs[0] as usize == graph.tasks.len() - 1);
}

#[tokio::test]
async fn a_wide_graph_comes_in_chunks_and_frees_what_it_has_read() {
    let cluster = with_tables();
    let graph = planned(&cluster, 600).await;
    assert!(graph.chunks > 1, "{} chunks", graph.chunks);
    let small = planned(&cluster, 6).await;
    let tables = cluster.run(&small).await.unwrap();
    assert_eq!(tables.len(), 1);
    let report = cluster.report.lock().unwrap().clone();
    assert_eq!((report.runs, report.recomputed), (small.tasks.len(), 0));
    assert!(report.freed >= small.tasks.len() - 1, "{}", report.freed);
    assert!(!report.statistics.is_empty());
}

#[tokio::test]
async fn a_cancelled_task_ends_at_once() {
    let cluster = with_tables();
    let text = format!(
        "{TABLES} SET oxidask.stages = 'always'; SET oxidask.width = 2; \
         SELECT count(*) AS n FROM l a, l b, l c, l d WHERE a.v + b.v + c.v + d.v = 7"
    );
    let graph = Graph::decode(&cluster.plan(&text).await.unwrap());
    let cancelled = cluster.cancelled.clone();
    tokio::spawn(async move {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        cancelled.cancel();
    });
    let started = std::time::Instant::now();
    let error = cluster.run(&graph).await.unwrap_err();
    assert!(
        error.diagnostic.message.contains("cancelled"),
        "{}",
        error.diagnostic
    );
    assert!(started.elapsed().as_secs() < 5);
    assert!(!cluster.was_cut.load(Ordering::Relaxed));
}
