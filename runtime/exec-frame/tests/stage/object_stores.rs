//! Writes of many tasks to an object store, and secrets that stay in the environment.
//!
//! Credentials are known to a process by its environment only, so these tests run in a process of
//! their own, which the outer test starts with an environment and a store.

use std::process::Command;

use oxidask_diagnostic::Code;
use oxidask_exec::{Body, Executor};
use oxidask_store::{Payload, PayloadKind};

use crate::cluster::{Cluster, Graph};
use crate::store::{ACCESS_KEY, ObjectStore, SECRET_KEY};

const ALWAYS: &str = "SET oxidask.stages = 'always'; SET oxidask.width = 3;\n";
const INNER: &str = "OXIDASK_TEST_WITH_STORE";

/// Runs a test of this file in a process with credentials. Nothing it says may hold a secret.
fn with_store(store: &ObjectStore, test: &str) {
    let ran = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("object_stores::{test}"), "--nocapture"])
        .env(INNER, "1")
        .env("AWS_ENDPOINT", &store.endpoint)
        .env("AWS_ALLOW_HTTP", "true")
        .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        .env("RUST_LOG", "debug")
        .output()
        .unwrap();
    let said = [ran.stdout, ran.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(ran.status.success(), "{test}:\n{said}");
    assert!(said.contains("1 passed"), "{said}");
    assert!(
        !said.contains(ACCESS_KEY) && !said.contains(SECRET_KEY),
        "{said}"
    );
}

fn is_inner() -> bool {
    std::env::var(INNER).is_ok()
}

fn without_secrets(what: &str, payload: &Payload) {
    let bytes = payload.parts.concat();
    for secret in [ACCESS_KEY, SECRET_KEY] {
        let found = bytes
            .windows(secret.len())
            .any(|window| window == secret.as_bytes());
        assert!(!found, "a secret in {what}");
    }
}

fn with_input() -> Cluster {
    let cluster = Cluster::new();
    for file in 0..3 {
        let lines = (0..10).map(|row| format!("{},{}", file * 10 + row, row % 2));
        let rows = lines.collect::<Vec<_>>().join("\n");
        cluster.file(&format!("in/{file}.csv"), format!("id,half\n{rows}"));
    }
    cluster
}

async fn graph(cluster: &Cluster, text: &str) -> Graph {
    let table = "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION 'in/';\n";
    let planned = match cluster.plan(&format!("{ALWAYS}{table}{text}")).await {
        Ok(planned) => planned,
        Err(error) => panic!("{}", error.diagnostic),
    };
    assert_eq!(planned.kind, PayloadKind::Graph, "{text}");
    without_secrets("a plan", &planned);
    Graph::decode(&planned)
}

async fn count(cluster: &Cluster, format: &str) -> String {
    let text = format!(
        "CREATE EXTERNAL TABLE o STORED AS {format} LOCATION 's3://lake/out/';
         SELECT concat(count(*), ' ', sum(CAST(id AS BIGINT))) AS s FROM o"
    );
    let (_, rows) = cluster.batches(&text).await.unwrap();
    let column = datafusion::arrow::array::AsArray::as_string::<i32>(rows[0].column(0)).clone();
    column.value(0).to_owned()
}

#[test]
fn a_store_is_written_by_many_tasks() {
    let store = ObjectStore::start();
    with_store(&store, "writes_in_parts");
    let keys = store.keys("out/");
    let expected = [0, 1].into_iter().flat_map(|half| {
        (0..3).map(move |part| format!("out/half={half}/part-0000{part}.parquet"))
    });
    assert_eq!(keys, expected.collect::<Vec<_>>());
}

#[tokio::test]
async fn writes_in_parts() {
    if !is_inner() {
        return;
    }
    let mut cluster = with_input();
    let copy = "COPY t TO 's3://lake/out/' STORED AS PARQUET PARTITIONED BY (half)";
    let graph = graph(&cluster, copy).await;
    let (commit, writers) = graph.tasks.split_last().unwrap();
    let mut parts = Vec::new();
    for attempt in 0..2 {
        // The first attempts' reports are lost.
        parts.clear();
        for task in writers {
            let program = cluster
                .executor
                .prepare(&Body::decode(&graph.bodies[task.body]).unwrap());
            let mut context = cluster.context(&task.key);
            context.part = task.part;
            let part = program.unwrap().run(Vec::new(), context).await.unwrap();
            without_secrets("a part", &part);
            parts.push(part);
        }
        let looked = cluster
            .plan("CREATE EXTERNAL TABLE o STORED AS PARQUET LOCATION 's3://lake/out/'; SELECT 1")
            .await;
        let error = looked.unwrap_err().diagnostic;
        assert_eq!(
            error.code,
            Code::DataUnreadable,
            "seen before the commit, {attempt}"
        );
    }
    for _ in 0..2 {
        // Again, because the first report was lost.
        let body = Body::decode(&graph.bodies[commit.body]).unwrap();
        let program = cluster.executor.prepare(&body).unwrap();
        let result = program
            .run(parts.clone(), cluster.context(&commit.key))
            .await;
        let result = result.unwrap_or_else(|error| panic!("{}", error.diagnostic));
        assert_eq!(result.parts.concat(), b"30");
        assert_eq!(count(&cluster, "PARQUET").await, "30 435");
    }
    // Everything again, with results that are lost in between.
    cluster.loses = 500;
    let results = cluster.run(&graph).await.unwrap();
    assert_eq!(results[0].parts.concat(), b"30");
    assert_eq!(count(&cluster, "PARQUET").await, "30 435");
}

#[test]
fn a_store_keeps_what_it_has() {
    let store = ObjectStore::start();
    store.put("out/part-00000.csv", "id\n1\n");
    with_store(&store, "keeps_and_replaces");
    assert_eq!(
        store.keys("out/"),
        [
            "out/part-00000.csv",
            "out/part-00001.csv",
            "out/part-00002.csv"
        ]
    );
}

#[tokio::test]
async fn keeps_and_replaces() {
    if !is_inner() {
        return;
    }
    let cluster = with_input();
    let table = "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION 'in/';\n";
    let copy = "COPY t TO 's3://lake/out/' STORED AS CSV";
    let refused = cluster
        .plan(&format!("{table}{copy}"))
        .await
        .unwrap_err()
        .diagnostic;
    assert_eq!(refused.code, Code::DataUnwritable);
    assert!(refused.message.contains("already exists"), "{refused}");
    let reading = "CREATE EXTERNAL TABLE o STORED AS CSV LOCATION 's3://lake/out/';
        SELECT sum(id) AS s FROM o";
    let planned_before = graph(&cluster, reading).await;
    let failing = "COPY (SELECT 1 / (id - 5) AS id FROM t) TO 's3://lake/out/' STORED AS CSV
        OPTIONS ('overwrite' 'true')";
    let failed = cluster
        .run(&graph(&cluster, failing).await)
        .await
        .unwrap_err()
        .diagnostic;
    assert_eq!(failed.code, Code::QueryFailed, "{failed}");
    assert_eq!(count(&cluster, "CSV").await, "1 1");
    let replace = format!("{copy} OPTIONS ('overwrite' 'true')");
    cluster.run(&graph(&cluster, &replace).await).await.unwrap();
    assert_eq!(count(&cluster, "CSV").await, "30 435");
    // A query that was planned over the old objects does not read the new ones.
    let changed = cluster.run(&planned_before).await.unwrap_err().diagnostic;
    assert_eq!(changed.code, Code::DataChanged, "{changed}");
    assert!(
        changed.message.contains("s3://lake/out/part-00000.csv"),
        "{changed}"
    );
}
