//! The same query in one task and as stages of several widths.

use std::sync::atomic::Ordering;

use oxidask_exec::TaskError;
use oxidask_exec_frame::render;
use oxidask_store::Payload;

use crate::cluster::Cluster;

/// Whether a query must become stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// At every width.
    Always,
    /// It may stay in one task.
    Maybe,
}

/// Rows as JSON, in order.
pub(crate) fn rows(tables: &[Payload]) -> Vec<String> {
    let mut text = Vec::new();
    for table in tables {
        render::json_lines(table, &mut text).unwrap();
    }
    let text = String::from_utf8(text).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// Small tables with doubles, NULLs and long texts, and an empty one.
pub(crate) fn with_tables() -> Cluster {
    let cluster = Cluster::new();
    let (mut left, mut right) = (String::from("k,v,s\n"), String::from("k,w,t\n"));
    for row in 0..300_u32 {
        let key = |modulus: u32, null: u32| match row % modulus {
            key if key == null => String::new(),
            key => key.to_string(),
        };
        let text = format!(
            "a text that is longer than twelve bytes: number {}",
            row % 23
        );
        left.push_str(&format!("{},{},{text}\n", key(41, 7), row));
        if row < 120 {
            right.push_str(&format!("{},{},{}\n", key(53, 11), row * 3, row % 9));
        }
    }
    cluster.file("l/0.csv", &left);
    cluster.file("r/0.csv", &right);
    cluster.file("r/1.csv", "k,w,t\n1000,1,x\n3,2,y\n");
    cluster.file("full.csv", "k\n1\n2\n3\n");
    cluster.file("nulls.csv", "k\n1\n\"\"\n3\n");
    cluster.file("empty.csv", "k,w,t\n");
    cluster
}

pub(crate) const TABLES: &str = "
    CREATE EXTERNAL TABLE l (k INT, v BIGINT, s VARCHAR) STORED AS CSV LOCATION 'l/';
    CREATE EXTERNAL TABLE r (k INT, w BIGINT, t VARCHAR) STORED AS CSV LOCATION 'r/';
    CREATE EXTERNAL TABLE full_keys (k INT) STORED AS CSV LOCATION 'full.csv';
    CREATE EXTERNAL TABLE null_keys (k INT) STORED AS CSV LOCATION 'nulls.csv';
    CREATE EXTERNAL TABLE empty (k INT, w BIGINT, t VARCHAR) STORED AS CSV LOCATION 'empty.csv';
";

/// Runs the query in one task and as stages and compares the rows, in order if it has one.
pub(crate) async fn same(cluster: &Cluster, query: &str, options: &str, cut: Cut) {
    let ran = |result: Result<Vec<Payload>, TaskError>| match result {
        Ok(tables) => rows(&tables),
        Err(error) => panic!("{query} {options}: {}", error.diagnostic),
    };
    let is_ordered = query.contains("ORDER BY 1");
    let never = format!("{TABLES} {options}; SET oxidask.stages = 'never'; {query}");
    let mut expected = ran(cluster.tables(&never).await);
    if !is_ordered {
        expected.sort();
    }
    for width in [1, 2, 8] {
        let text = format!(
            "{TABLES} {options}; SET oxidask.stages = 'always'; SET oxidask.width = {width}; {query}"
        );
        let mut got = ran(cluster.tables(&text).await);
        if !is_ordered {
            got.sort();
        }
        assert_eq!(got, expected, "width {width}: {query} {options}");
        if cut == Cut::Always && !cluster.was_cut.load(Ordering::Relaxed) {
            let why = text.replace(query, &format!("EXPLAIN {query}"));
            let why = rows(&cluster.tables(&why).await.unwrap()).join("\n");
            panic!("width {width}, one task: {query}\n{why}");
        }
    }
}
