//! All queries of TPC-H, at several widths, against one task.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use oxidask_tpch::{Answer, Strictness, compare, create_tables, generate, order, queries};

use crate::cluster::Cluster;

static FOLDER: OnceLock<PathBuf> = OnceLock::new();

/// The tables at a hundredth of the usual scale.
fn folder() -> &'static PathBuf {
    FOLDER.get_or_init(|| {
        let folder =
            std::env::temp_dir().join(format!("oxidask-stage-tpch-{}", std::process::id()));
        generate(&folder, 0.01, 2, |_| {}).unwrap();
        folder
    })
}

async fn answer(cluster: &Cluster, number: u32, text: &str, options: &str) -> Answer {
    let tables = create_tables(folder());
    let text = format!("{tables}\n{options}\n{text}");
    match cluster.batches(&text).await {
        Ok((schema, rows)) => Answer::from_batches(&schema, &rows).unwrap(),
        Err(error) => panic!("query {number}: {}", error.diagnostic),
    }
}

async fn all_equal(width: usize, seed: u64, loses: u64) {
    all_equal_on(Cluster::new(), width, seed, loses).await;
}

async fn all_equal_on(mut cluster: Cluster, width: usize, seed: u64, loses: u64) {
    let plain = Cluster::new();
    cluster.seed = seed;
    cluster.loses = loses;
    cluster.answer_bytes = 20_000 * seed;
    let options = format!("SET oxidask.stages = 'always'; SET oxidask.width = {width};");
    let mut whole = Vec::new();
    for (number, text) in queries() {
        let expected = answer(&plain, number, text, "SET oxidask.stages = 'never';").await;
        let got = answer(&cluster, number, text, &options).await;
        if !cluster.was_cut.load(Ordering::Relaxed) {
            whole.push(number);
        }
        if let Err(difference) = compare(order(number), &expected, &got, Strictness::Exact) {
            panic!("query {number} at width {width}: {difference}");
        }
    }
    assert!(whole.is_empty(), "one task: {whole:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_22_at_width_1() {
    all_equal(1, 1, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_22_at_width_2() {
    all_equal(2, 2, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_22_at_width_8_while_results_are_lost() {
    all_equal(8, 3, 100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_22_at_width_64() {
    all_equal(64, 4, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_12_an_attempt_that_is_repeated_gives_the_same() {
    let mut cluster = Cluster::new();
    cluster.twice = true;
    all_equal_on(cluster, 3, 5, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_22_as_they_are_decided() {
    let (plain, cluster) = (Cluster::new(), Cluster::new());
    for (number, text) in queries() {
        let expected = answer(&plain, number, text, "SET oxidask.stages = 'never';").await;
        let got = answer(&cluster, number, text, "").await;
        // A hundredth of the usual scale is not worth stages.
        assert!(!cluster.was_cut.load(Ordering::Relaxed), "query {number}");
        compare(order(number), &expected, &got, Strictness::Exact).unwrap();
    }
}
