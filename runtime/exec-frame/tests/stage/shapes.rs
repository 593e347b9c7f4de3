//! Queries of many shapes.

use std::fmt::Write as _;

use oxidask_store::PayloadKind;

use crate::same::{Cut, TABLES, rows, same, with_tables};

async fn all(queries: &[&str], cut: Cut) {
    let cluster = with_tables();
    for query in queries {
        same(&cluster, query, "SELECT 1", cut).await;
    }
}

#[tokio::test]
async fn aggregates() {
    all(
        &[
            "SELECT k, count(*) AS n, sum(v) AS sv, min(s) AS s FROM l GROUP BY k ORDER BY 1",
            "SELECT count(*) AS n, sum(v) AS sv, max(s) AS s, avg(v) AS a FROM l",
            "SELECT count(*) AS n, sum(w) AS sw, max(t) AS t FROM empty",
            "SELECT k, sum(w) AS sw FROM empty GROUP BY k",
            "SELECT DISTINCT k, s FROM l",
            "SELECT count(DISTINCT s) AS n, count(DISTINCT k) AS m FROM l",
            "SELECT k, count(DISTINCT s) AS n, sum(DISTINCT v) AS d FROM l GROUP BY k",
            "SELECT k, s, sum(v) AS sv FROM l GROUP BY GROUPING SETS ((k), (s), ())",
            "SELECT k, s, sum(v) AS sv, grouping(k) AS g FROM l GROUP BY ROLLUP (k, s)",
            "SELECT k % 3 AS a, s, sum(v) AS sv FROM l GROUP BY CUBE (k % 3, s)",
            "SELECT s, median(v) AS m, approx_distinct(k) AS d FROM l GROUP BY s",
            "SELECT k, array_agg(v ORDER BY v DESC) AS vs FROM l GROUP BY k",
            "SELECT k, first_value(v ORDER BY v) AS f, last_value(s ORDER BY v) AS s FROM l GROUP BY k",
            "SELECT k, sum(v) FILTER (WHERE v % 2 = 0) AS even FROM l GROUP BY k HAVING sum(v) > 500",
            "SELECT max(n) AS m FROM (SELECT k, count(*) AS n FROM l GROUP BY k)",
            "SELECT string_agg(s, ';' ORDER BY v) AS texts FROM l WHERE k = 3",
        ],
        Cut::Always,
    )
    .await;
}

#[tokio::test]
async fn orders_and_limits() {
    all(
        &[
            "SELECT v, k, s FROM l ORDER BY 1 DESC",
            "SELECT v, k FROM l ORDER BY 1 LIMIT 7",
            "SELECT v, k FROM l ORDER BY 1 DESC LIMIT 7 OFFSET 5",
            "SELECT v FROM l ORDER BY 1 OFFSET 290",
            "SELECT count(*) AS n FROM (SELECT * FROM l LIMIT 17)",
            "SELECT count(*) AS n FROM (SELECT * FROM l LIMIT 17 OFFSET 290)",
            "SELECT count(*) AS n FROM (SELECT * FROM l LIMIT 0)",
            "SELECT k, v FROM (SELECT * FROM l ORDER BY v LIMIT 10) ORDER BY 1 NULLS FIRST, 2",
            "SELECT k, n FROM (SELECT k, count(*) AS n FROM l GROUP BY k) ORDER BY 1 LIMIT 3",
            "SELECT k, w FROM empty ORDER BY 1 LIMIT 3",
        ],
        Cut::Always,
    )
    .await;
}

#[tokio::test]
async fn sets_and_unions() {
    all(
        &[
            "SELECT k FROM l UNION ALL SELECT k FROM r",
            "SELECT k FROM l UNION SELECT k FROM r",
            "SELECT k FROM l INTERSECT SELECT k FROM r",
            "SELECT k FROM l EXCEPT SELECT k FROM r",
            "SELECT k, count(*) AS n FROM (SELECT k FROM l UNION ALL SELECT k FROM r \
             UNION ALL SELECT k FROM full_keys UNION ALL SELECT k FROM empty) GROUP BY k ORDER BY 1",
            "SELECT k, n FROM (SELECT k, count(*) AS n FROM l GROUP BY k \
             UNION ALL SELECT k, count(*) AS n FROM r GROUP BY k)",
            "SELECT k, sum(n) AS n FROM (SELECT k, count(*) AS n FROM l GROUP BY k \
             UNION ALL SELECT k, sum(w) AS n FROM r GROUP BY k) GROUP BY k ORDER BY 1",
            "SELECT l.k, x.w FROM l JOIN (SELECT k, w FROM r UNION ALL SELECT k, 5 AS w FROM full_keys) x \
             ON l.k = x.k",
            "SELECT v FROM l UNION ALL SELECT 1 UNION ALL SELECT NULL",
            "SELECT * FROM (SELECT v FROM l ORDER BY v LIMIT 3) UNION ALL SELECT max(w) FROM r",
            "SELECT k, v FROM l WHERE v < 5 UNION ALL (SELECT l.k, w FROM l JOIN r ON l.k = r.k) \
             UNION ALL (SELECT k, w FROM r ORDER BY w LIMIT 2)",
        ],
        Cut::Always,
    )
    .await;
}

#[tokio::test]
async fn windows() {
    all(
        &[
            "SELECT v, row_number() OVER (PARTITION BY k ORDER BY v) AS n FROM l",
            "SELECT v, sum(v) OVER (PARTITION BY s) AS n, rank() OVER (PARTITION BY k ORDER BY v) AS q FROM l",
            "SELECT v, lag(v, 2) OVER (ORDER BY v) AS p FROM l ORDER BY 1",
            "SELECT v, avg(v) OVER (PARTITION BY k ORDER BY v ROWS BETWEEN 2 PRECEDING AND 1 FOLLOWING) AS a FROM l",
            "SELECT * FROM (SELECT k, v, row_number() OVER (PARTITION BY k ORDER BY v DESC) AS n FROM l) WHERE n <= 2",
            "SELECT k, sum(sum(v)) OVER (ORDER BY k) AS run FROM l GROUP BY k ORDER BY 1",
            "SELECT k, w, max(w) OVER () AS m FROM empty",
        ],
        Cut::Always,
    )
    .await;
}

#[tokio::test]
async fn trap_3_scalar_subqueries_in_every_place() {
    all(
        &[
            "SELECT k, v, (SELECT max(w) FROM r) AS m FROM l",
            "SELECT k, v FROM l WHERE v > (SELECT avg(w) FROM r)",
            "SELECT k, sum(v) AS s FROM l GROUP BY k HAVING sum(v) > (SELECT avg(v) * 5 FROM l)",
            "SELECT k, sum(v + (SELECT min(w) FROM r)) AS s FROM l GROUP BY k",
            "SELECT k, v FROM l ORDER BY 1 + (SELECT min(v) FROM l), v",
            "SELECT l.k, v, w FROM l JOIN r ON l.k = r.k AND v < (SELECT max(w) FROM r) / 2",
            "SELECT CASE WHEN v > (SELECT avg(v) FROM l) THEN 'high' ELSE 'low' END AS c, \
             count(*) AS n FROM l GROUP BY 1",
            "SELECT v FROM l WHERE v > (SELECT max(w) FROM empty)",
            "SELECT (SELECT max(w) FROM r) - (SELECT min(v) FROM l) AS d",
            "SELECT k, v FROM l WHERE v > (SELECT avg(w) FROM r WHERE w < (SELECT max(v) FROM l))",
            "SELECT v, (SELECT max(w) FROM r WHERE r.k = l.k) AS m FROM l",
            "SELECT k, n FROM (SELECT k, count(*) AS n FROM l WHERE v > (SELECT min(w) FROM r) GROUP BY k) \
             WHERE n > (SELECT 2)",
            "SELECT v FROM l WHERE v > (SELECT avg(w) FROM r) UNION ALL \
             SELECT w FROM r WHERE w > (SELECT avg(v) FROM l)",
            "SELECT k FROM l GROUP BY k HAVING count(*) > ALL (SELECT 1)",
        ],
        Cut::Maybe,
    )
    .await;
    all(
        &[
            "SELECT k, v FROM l WHERE v > (SELECT avg(w) FROM r)",
            "SELECT k, sum(v) AS s FROM l GROUP BY k HAVING sum(v) > (SELECT avg(v) * 5 FROM l)",
        ],
        Cut::Always,
    )
    .await;
}

#[tokio::test]
async fn a_subquery_of_many_rows_fails_everywhere() {
    let cluster = with_tables();
    for stages in ["never", "always"] {
        let text = format!(
            "{TABLES} SET oxidask.stages = '{stages}'; SET oxidask.width = 4; \
             SELECT k FROM l WHERE v > (SELECT w FROM r)"
        );
        let error = cluster.tables(&text).await.unwrap_err();
        let message = &error.diagnostic.message;
        assert!(message.contains("more than one row"), "{message}");
        assert!(message.starts_with("statement "), "{message}");
    }
}

#[tokio::test]
async fn the_rest() {
    all(
        &[
            "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 20) \
             SELECT i FROM n ORDER BY 1",
            "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 40) \
             SELECT n.i, count(v) AS c FROM n LEFT JOIN l ON l.k = n.i GROUP BY n.i ORDER BY 1",
            "VALUES (1, 'a'), (2, 'b'), (NULL, 'c')",
            "SELECT l.k, x.b FROM l JOIN (VALUES (1, 'a'), (2, 'b')) AS x (a, b) ON l.k = x.a",
            "SELECT k, unnest(range(0, k % 4)) AS u FROM l",
            "SELECT u, count(*) AS n FROM (SELECT unnest([k, k + 1]) AS u FROM l) GROUP BY u ORDER BY 1",
            "SELECT count(*) AS n FROM generate_series(1, 1000)",
            "SELECT l.k, g.value FROM l JOIN generate_series(1, 10) AS g ON l.k = g.value",
            "SELECT 1 AS one",
            "SELECT 1 AS one WHERE false",
            "SELECT named_struct('a', k, 'b', s) AS st, [v, v + 1] AS li FROM l",
            "SELECT st['a'] AS a, count(*) AS n FROM (SELECT named_struct('a', k) AS st FROM l) GROUP BY st['a']",
            "SELECT a.v FROM l a, l b WHERE a.k = b.k AND a.v = b.v",
            "SELECT v, date_part('year', to_timestamp(v * 10000000)) AS y FROM l",
            "SELECT arrow_cast(s, 'Dictionary(Int32, Utf8)') AS d, count(*) AS n FROM l GROUP BY 1",
            "SELECT d, max(v) AS m FROM (SELECT arrow_cast(s, 'Dictionary(Int32, Utf8)') AS d, v FROM l) \
             GROUP BY d ORDER BY 1",
        ],
        Cut::Maybe,
    )
    .await;
}

#[tokio::test]
async fn deep_expressions_never_fail() {
    let cluster = with_tables();
    for depth in [20, 200, 400] {
        let sum = vec!["v"; depth].join(" + ");
        let nested =
            (0..depth.min(40)).fold("v".to_owned(), |inner, n| format!("abs({inner} - {n})"));
        let or = (0..depth).fold(String::from("v = 0"), |mut text, n| {
            let _ = write!(text, " OR v = {n}");
            text
        });
        same(
            &cluster,
            &format!("SELECT sum({sum}) AS x FROM l"),
            "SELECT 1",
            Cut::Maybe,
        )
        .await;
        same(
            &cluster,
            &format!("SELECT k, max({nested}) AS x FROM l GROUP BY k"),
            "SELECT 1",
            Cut::Maybe,
        )
        .await;
        same(
            &cluster,
            &format!("SELECT count(*) AS n FROM l WHERE {or}"),
            "SELECT 1",
            Cut::Maybe,
        )
        .await;
    }
}

#[tokio::test]
async fn a_file_of_10_000_columns() {
    let cluster = with_tables();
    let names: Vec<String> = (0..10_000).map(|n| format!("c{n}")).collect();
    let mut text = names.join(",");
    for row in 0..3 {
        text.push('\n');
        text.push_str(
            &(0..10_000)
                .map(|n| (n + row).to_string())
                .collect::<Vec<_>>()
                .join(","),
        );
    }
    cluster.file("wide.csv", text + "\n");
    let table = "CREATE EXTERNAL TABLE wide STORED AS CSV LOCATION 'wide.csv'";
    let never = format!("{table}; SET oxidask.stages = 'never';");
    let always = format!("{table}; SET oxidask.stages = 'always'; SET oxidask.width = 2;");
    for query in [
        "SELECT c9999 % 2 AS a, sum(c5000) AS s FROM wide GROUP BY 1",
        "SELECT c1, c9998 FROM wide ORDER BY c0",
    ] {
        let mut expected = rows(&cluster.tables(&format!("{never} {query}")).await.unwrap());
        let mut got = rows(&cluster.tables(&format!("{always} {query}")).await.unwrap());
        expected.sort();
        got.sort();
        assert_eq!(got, expected);
    }
}

#[tokio::test]
async fn options_are_checked() {
    let cluster = with_tables();
    for (text, expected) in [
        (
            "SET oxidask.stages = 'sometimes'",
            "`oxidask.stages` is `auto`, `always` or `never`",
        ),
        (
            "SET oxidask.width = 'many'",
            "`oxidask.width` is a number of tasks",
        ),
        (
            "SET oxidask.width = 1000000000",
            "`oxidask.width` is at most",
        ),
        ("SET oxidask.widht = 3", "`oxidask.width` is"),
        (
            "SET oxidask.broadcast_bytes = -1",
            "`oxidask.broadcast_bytes` is a number of bytes",
        ),
    ] {
        let error = cluster
            .plan(&format!("{text}; SELECT 1"))
            .await
            .unwrap_err();
        let message = &error.diagnostic.message;
        assert!(message.contains(expected), "{message}");
    }
    let shown = cluster
        .plan("SET oxidask.width = 7; SHOW oxidask.width")
        .await
        .unwrap();
    assert_eq!(shown.kind, PayloadKind::Table);
    assert!(rows(&[shown])[0].contains('7'));
}
