//! Writes by many tasks: what is there in the end, whatever was killed, repeated or lost.

use std::path::Path;

use oxidask_diagnostic::Code;
use oxidask_exec::{Body, Executor, TaskError};
use oxidask_proto::wire;
use oxidask_store::{Payload, PayloadKind};
use prost::Message;

use crate::cluster::{Cluster, Graph};

const ALWAYS: &str = "SET oxidask.stages = 'always'; SET oxidask.width = 3;\n";

/// All files below a folder, hidden ones too, relative and sorted.
pub(crate) fn files(folder: &Path) -> Vec<String> {
    fn walk(folder: &Path, root: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, root, found);
            } else {
                let name = path.strip_prefix(root).unwrap();
                found.push(name.to_str().unwrap().to_owned());
            }
        }
    }
    let mut found = Vec::new();
    walk(folder, folder, &mut found);
    found.sort();
    found
}

/// Three files of ten rows each.
fn with_input() -> Cluster {
    let cluster = Cluster::new();
    for file in 0..3 {
        let lines = (0..10).map(|row| format!("{},{}", file * 10 + row, row % 2));
        let rows = lines.collect::<Vec<_>>().join("\n");
        cluster.file(&format!("in/{file}.csv"), format!("id,half\n{rows}"));
    }
    cluster
}

const TABLE: &str = "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION 'in/';\n";

async fn copied(cluster: &Cluster, copy: &str) -> Result<Vec<Payload>, TaskError> {
    let planned = cluster.plan(&format!("{ALWAYS}{TABLE}{copy}")).await?;
    assert_eq!(planned.kind, PayloadKind::Graph, "{copy}");
    cluster.run(&Graph::decode(&planned)).await
}

/// The rows of an output: their number, the sum of the ids.
async fn sums(cluster: &Cluster, location: &str, format: &str) -> String {
    let text = format!(
        "CREATE EXTERNAL TABLE o STORED AS {format} LOCATION '{location}';
         SELECT concat(count(*), ' ', sum(CAST(id AS BIGINT))) AS s FROM o"
    );
    let (_, rows) = cluster.batches(&text).await.unwrap();
    let column = datafusion::arrow::array::AsArray::as_string::<i32>(rows[0].column(0)).clone();
    column.value(0).to_owned()
}

#[tokio::test]
async fn every_format_is_written_by_many_tasks() {
    let cluster = with_input();
    for format in ["PARQUET", "CSV", "JSON"] {
        let ending = format.to_lowercase();
        let target = format!("out-{ending}/");
        let copy = format!("COPY t TO '{target}' STORED AS {format} PARTITIONED BY (half)");
        let results = copied(&cluster, &copy).await.unwrap();
        assert_eq!(results[0].kind, PayloadKind::Value);
        assert_eq!(results[0].parts.concat(), b"30");
        let expected: Vec<_> = [0, 1]
            .into_iter()
            .flat_map(|half| (0..3).map(move |part| (half, part)))
            .map(|(half, part)| format!("half={half}/part-0000{part}.{ending}"))
            .collect();
        assert_eq!(files(&cluster.base_dir.join(&target)), expected);
        assert_eq!(sums(&cluster, &target, format).await, "30 435");
    }
    let copy = "COPY t TO 'plain' STORED AS CSV OPTIONS ('compression' 'gzip')";
    copied(&cluster, copy).await.unwrap();
    assert_eq!(
        files(&cluster.base_dir.join("plain")),
        [
            "part-00000.csv.gz",
            "part-00001.csv.gz",
            "part-00002.csv.gz"
        ]
    );
    assert_eq!(sums(&cluster, "plain/", "CSV").await, "30 435");
    let hidden = files(&cluster.base_dir)
        .into_iter()
        .filter(|name| name.starts_with('.'));
    assert_eq!(hidden.collect::<Vec<_>>(), Vec::<String>::new());
}

#[tokio::test]
async fn one_file_has_one_writer_and_an_order_is_kept() {
    let cluster = with_input();
    let planned = format!("{ALWAYS}{TABLE}COPY (SELECT id FROM t ORDER BY id DESC) TO 'o.csv'");
    let graph = Graph::decode(&cluster.plan(&planned).await.unwrap());
    let results = cluster.run(&graph).await.unwrap();
    assert_eq!(results[0].parts.concat(), b"30");
    let text = std::fs::read_to_string(cluster.base_dir.join("o.csv")).unwrap();
    let ids: Vec<u32> = text
        .lines()
        .skip(1)
        .map(|line| line.parse().unwrap())
        .collect();
    assert_eq!(ids, (0..30).rev().collect::<Vec<_>>());
    copied(&cluster, "COPY t TO 'p.json'").await.unwrap();
    assert_eq!(sums(&cluster, "p.json", "JSON").await, "30 435");
}

#[tokio::test]
async fn tasks_that_run_again_are_not_seen_twice() {
    let mut cluster = with_input();
    let planned = cluster
        .plan(&format!("{ALWAYS}{TABLE}COPY (SELECT half, sum(id) AS id FROM t GROUP BY half) TO 'o/' STORED AS CSV"))
        .await
        .unwrap();
    let graph = Graph::decode(&planned);
    // The writers once more, as attempts whose reports were lost.
    let writers: Vec<_> = graph.tasks.iter().rev().skip(1).take(3).collect();
    assert!(
        writers
            .iter()
            .all(|task| task.group != graph.tasks[0].group)
    );
    cluster.loses = 400;
    for _ in 0..2 {
        // Again after the commit, too, whose report was lost.
        let results = cluster.run(&graph).await.unwrap();
        assert_eq!(results[0].parts.concat(), b"2");
        assert_eq!(sums(&cluster, "o/", "CSV").await, "2 435");
        let out = files(&cluster.base_dir.join("o"));
        assert!(
            out.iter().all(|name| name.starts_with("part-0000")),
            "{out:?}"
        );
        let others = files(&cluster.base_dir).into_iter();
        assert_eq!(others.filter(|name| name.starts_with('.')).count(), 0);
    }
}

#[tokio::test]
async fn one_task_that_runs_again_knows_its_output() {
    let cluster = with_input();
    let text = format!(
        "{TABLE}COPY t TO 'o.csv'; COPY (SELECT id + 1 AS id FROM t) TO 'p/' STORED AS PARQUET"
    );
    let statements = oxidask_exec_frame::script::parse(&text, "q.sql").unwrap();
    let tasks = oxidask_exec_frame::script::to_graph(&statements, "q.sql", cluster.size).unwrap();
    for task in &tasks {
        for _ in 0..2 {
            // The first attempt's report is lost.
            let program = cluster.executor.prepare(&task.body).unwrap();
            let result = program.run(Vec::new(), cluster.context(&task.key)).await;
            let result = result.unwrap_or_else(|error| panic!("{}", error.diagnostic));
            assert_eq!(result.parts.concat(), b"30");
        }
    }
    assert_eq!(sums(&cluster, "o.csv", "CSV").await, "30 435");
    // Another run of the same text is another write.
    let error = cluster.plan(&text).await.unwrap_err().diagnostic;
    assert_eq!(error.code, Code::DataUnwritable);
    assert!(
        error.message.contains("already exists"),
        "{}",
        error.message
    );
}

#[tokio::test]
async fn what_is_there_is_kept_or_replaced() {
    let cluster = with_input();
    copied(&cluster, "COPY t TO 'o/' STORED AS CSV")
        .await
        .unwrap();
    let again = copied(&cluster, "COPY t TO 'o/' STORED AS CSV")
        .await
        .unwrap_err();
    assert_eq!(again.diagnostic.code, Code::DataUnwritable);
    assert!(again.diagnostic.message.contains("already exists"));
    // The new output is made of the old one.
    let replace = "CREATE EXTERNAL TABLE o STORED AS CSV LOCATION 'o/';
        COPY (SELECT id * 2 AS id FROM o WHERE id < 20) TO 'o/' STORED AS CSV
        OPTIONS ('overwrite' 'true')";
    copied(&cluster, replace).await.unwrap();
    assert_eq!(sums(&cluster, "o/", "CSV").await, "20 380");
    // Files that a failed write leaves alone.
    let failing = "COPY (SELECT 1 / (id - 25) AS id FROM t) TO 'o/' STORED AS CSV
        OPTIONS ('overwrite' 'true')";
    let error = copied(&cluster, failing).await.unwrap_err();
    assert_eq!(
        error.diagnostic.code,
        Code::QueryFailed,
        "{}",
        error.diagnostic
    );
    assert_eq!(sums(&cluster, "o/", "CSV").await, "20 380");
    let left = files(&cluster.base_dir)
        .into_iter()
        .filter(|name| name.starts_with('.'));
    assert_eq!(left.collect::<Vec<_>>(), Vec::<String>::new());
}

#[tokio::test]
async fn an_output_without_rows_has_its_columns() {
    let cluster = with_input();
    let copy = "COPY (SELECT id FROM t WHERE id < 0) TO 'o/' STORED AS PARQUET";
    let results = copied(&cluster, copy).await.unwrap();
    assert_eq!(results[0].parts.concat(), b"0");
    assert_eq!(files(&cluster.base_dir.join("o")), ["part-00000.parquet"]);
    let copy = "COPY (SELECT id FROM t WHERE id = 25) TO 'p/' STORED AS PARQUET";
    copied(&cluster, copy).await.unwrap();
    assert_eq!(files(&cluster.base_dir.join("p")).len(), 1);
    assert_eq!(sums(&cluster, "p/", "PARQUET").await, "1 25");
}

#[tokio::test]
async fn a_missing_value_names_no_folder() {
    let cluster = Cluster::new();
    cluster.file("in/a.csv", "id,half\n1,\n2,1\n");
    for settings in ["", ALWAYS] {
        let text = format!("{settings}{TABLE}COPY t TO 'o/' STORED AS CSV PARTITIONED BY (half)");
        let error = match cluster.plan(&text).await {
            Ok(planned) => cluster.run(&Graph::decode(&planned)).await.unwrap_err(),
            Err(error) => error,
        };
        let message = error.diagnostic.message;
        assert!(message.contains("no value in `half`"), "{message}");
        assert_eq!(files(&cluster.base_dir), ["in/a.csv"]);
    }
}

#[tokio::test]
async fn parts_on_storage_that_the_commit_does_not_see_are_told() {
    let cluster = with_input();
    let planned = cluster
        .plan(&format!("{ALWAYS}{TABLE}COPY t TO 'o/' STORED AS CSV"))
        .await;
    let graph = Graph::decode(&planned.unwrap());
    let (commit, writers) = graph.tasks.split_last().unwrap();
    let mut parts = Vec::new();
    for task in writers {
        let program = cluster
            .executor
            .prepare(&Body::decode(&graph.bodies[task.body]).unwrap());
        let mut context = cluster.context(&task.key);
        context.part = task.part;
        parts.push(program.unwrap().run(Vec::new(), context).await.unwrap());
    }
    // As if one of them had been written on another machine's disk.
    let staging = std::fs::read_dir(&cluster.base_dir)
        .unwrap()
        .find_map(|entry| {
            let path = entry.unwrap().path();
            path.file_name()?
                .to_str()?
                .starts_with(".o.")
                .then_some(path)
        });
    let room = std::fs::read_dir(staging.unwrap())
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    std::fs::remove_dir_all(room).unwrap();
    let body = Body::decode(&graph.bodies[commit.body]).unwrap();
    let program = cluster.executor.prepare(&body).unwrap();
    let error = program
        .run(parts, cluster.context(&commit.key))
        .await
        .unwrap_err();
    assert_eq!(error.diagnostic.code, Code::DataUnwritable);
    assert!(!error.is_retryable);
    let told = error.diagnostic.to_string();
    assert!(told.contains("storage that this worker sees"), "{told}");
    assert!(
        error.diagnostic.hint.contains("object store"),
        "{}",
        error.diagnostic.hint
    );
    assert_eq!(
        files(&cluster.base_dir),
        ["in/0.csv", "in/1.csv", "in/2.csv"]
    );
}

#[tokio::test]
async fn what_a_cancelled_write_has_made_can_be_discarded() {
    let cluster = with_input();
    let planned = cluster
        .plan(&format!("{ALWAYS}{TABLE}COPY t TO 'o/' STORED AS CSV"))
        .await;
    let planned = planned.unwrap();
    let graph = Graph::decode(&planned);
    // The other two and the commit never run.
    let task = &graph.tasks[0];
    let program = cluster
        .executor
        .prepare(&Body::decode(&graph.bodies[task.body]).unwrap());
    program
        .unwrap()
        .run(Vec::new(), cluster.context(&task.key))
        .await
        .unwrap();
    assert_eq!(files(&cluster.base_dir).len(), 4);
    let planned = wire::PlannedGraph::decode(planned.parts.concat().as_slice()).unwrap();
    let bodies: Vec<_> = planned
        .chunks
        .iter()
        .flat_map(|chunk| chunk.new_bodies.clone())
        .collect();
    oxidask_exec_frame::discard(&bodies);
    assert_eq!(
        files(&cluster.base_dir),
        ["in/0.csv", "in/1.csv", "in/2.csv"]
    );
    assert_eq!(std::fs::read_dir(&cluster.base_dir).unwrap().count(), 1);
}

#[tokio::test]
async fn files_that_vanish_or_change_after_planning_are_told() {
    for format in ["CSV", "PARQUET", "JSON"] {
        let cluster = with_input();
        let ending = format.to_lowercase();
        let copy = format!("COPY t TO 'x/' STORED AS {format}");
        copied(&cluster, &copy).await.unwrap();
        let table = format!("CREATE EXTERNAL TABLE x STORED AS {format} LOCATION 'x/';\n");
        let query = format!("{ALWAYS}{table}SELECT sum(id) AS s FROM x");
        let planned = cluster.plan(&query).await.unwrap();
        let file = cluster.base_dir.join(format!("x/part-00001.{ending}"));
        let content = std::fs::read(&file).unwrap();
        cluster.run(&Graph::decode(&planned)).await.unwrap();
        // Longer, then of the same length, then gone.
        std::fs::write(&file, [content.clone(), content.clone()].concat()).unwrap();
        let changed = cluster.run(&Graph::decode(&planned)).await.unwrap_err();
        std::fs::write(&file, &content).unwrap();
        let touched = cluster.run(&Graph::decode(&planned)).await.unwrap_err();
        std::fs::remove_file(&file).unwrap();
        let vanished = cluster.run(&Graph::decode(&planned)).await.unwrap_err();
        for (error, word) in [
            (changed, "bytes and has"),
            (touched, "written again"),
            (vanished, "vanished"),
        ] {
            let diagnostic = error.diagnostic;
            assert_eq!(diagnostic.code, Code::DataChanged, "{format}: {diagnostic}");
            let message = &diagnostic.message;
            assert!(
                message.contains(word) && message.contains("part-00001"),
                "{message}"
            );
            assert!(
                diagnostic.hint.contains("run it again"),
                "{}",
                diagnostic.hint
            );
            assert!(!error.is_retryable);
        }
    }
}
