//! Every type of join, with build sides that all tasks read and with both sides spread.

use crate::same::{Cut, same, with_tables};

const MODES: [&str; 2] = [
    "SET oxidask.broadcast_bytes = 1000000000",
    "SET oxidask.broadcast_bytes = 0",
];

async fn in_both_modes(queries: &[&str]) {
    let cluster = with_tables();
    for mode in MODES {
        for query in queries {
            same(&cluster, query, mode, Cut::Always).await;
        }
    }
}

#[tokio::test]
async fn inner_and_outer_joins_by_keys() {
    in_both_modes(&[
        "SELECT l.k, v, w, t, s FROM l JOIN r ON l.k = r.k",
        "SELECT l.k, v, w, t FROM l LEFT JOIN r ON l.k = r.k",
        "SELECT r.k, v, w, t FROM l RIGHT JOIN r ON l.k = r.k",
        "SELECT l.k, r.k AS rk, v, w FROM l FULL JOIN r ON l.k = r.k",
        "SELECT r.k, v, w FROM r LEFT JOIN l ON l.k = r.k",
        "SELECT l.k, r.k AS rk, v, w FROM r FULL JOIN l ON l.k = r.k AND v > w",
        "SELECT l.k, v, w FROM l LEFT JOIN r ON l.k = r.k AND v < w AND t <> 'x'",
        "SELECT l.k, v, w FROM l JOIN r ON l.k = r.k AND v < w",
        "SELECT l.k, v, w FROM l LEFT JOIN empty ON l.k = empty.k",
        "SELECT l.k, v, w FROM empty RIGHT JOIN l ON l.k = empty.k",
        "SELECT l.k, v, w FROM empty FULL JOIN l ON l.k = empty.k",
        "SELECT l.k, v, w FROM l JOIN empty ON l.k = empty.k",
        "SELECT l.k, v, w FROM l JOIN r ON l.k IS NOT DISTINCT FROM r.k",
    ])
    .await;
}

#[tokio::test]
async fn semi_anti_and_mark_joins() {
    in_both_modes(&[
        "SELECT * FROM l LEFT SEMI JOIN r ON l.k = r.k",
        "SELECT * FROM l LEFT ANTI JOIN r ON l.k = r.k",
        "SELECT * FROM l RIGHT SEMI JOIN r ON l.k = r.k",
        "SELECT * FROM l RIGHT ANTI JOIN r ON l.k = r.k",
        "SELECT * FROM r LEFT SEMI JOIN l ON l.k = r.k",
        "SELECT * FROM r LEFT ANTI JOIN l ON l.k = r.k AND v > w",
        "SELECT k, v FROM l WHERE EXISTS (SELECT 1 FROM r WHERE r.k = l.k AND w > v)",
        "SELECT k, v FROM l WHERE NOT EXISTS (SELECT 1 FROM r WHERE r.k = l.k)",
        "SELECT k, v FROM l WHERE k IN (SELECT k FROM r) OR v > 250",
        "SELECT k, w FROM r WHERE EXISTS (SELECT 1 FROM l WHERE r.k = l.k) OR w < 30",
        "SELECT k, w FROM r WHERE NOT EXISTS (SELECT 1 FROM l WHERE r.k = l.k) AND w < 300",
        "SELECT k, v FROM l WHERE EXISTS (SELECT 1 FROM empty WHERE empty.k = l.k)",
        "SELECT k, v FROM l WHERE NOT EXISTS (SELECT 1 FROM empty WHERE empty.k = l.k)",
    ])
    .await;
}

#[tokio::test]
async fn trap_10_not_in_with_and_without_nulls() {
    in_both_modes(&[
        "SELECT k, v FROM l WHERE k NOT IN (SELECT k FROM full_keys)",
        "SELECT k, v FROM l WHERE k NOT IN (SELECT k FROM null_keys)",
        "SELECT k, v FROM l WHERE k NOT IN (SELECT k FROM r)",
        "SELECT k, v FROM l WHERE k NOT IN (SELECT k FROM r WHERE k IS NOT NULL)",
        "SELECT k, v FROM l WHERE k NOT IN (SELECT k FROM empty)",
        "SELECT count(*) AS n FROM r WHERE k NOT IN (SELECT k FROM l WHERE k > 20)",
    ])
    .await;
}

#[tokio::test]
async fn trap_9_joins_by_conditions() {
    in_both_modes(&[
        "SELECT l.k, v, w FROM l JOIN r ON v < w AND l.k > 30",
        "SELECT l.k, v, w FROM l LEFT JOIN r ON v * 2 < w AND w < 40",
        "SELECT l.k, v, w FROM l RIGHT JOIN r ON v * 2 < w AND v > 150",
        "SELECT l.k, v, w FROM l FULL JOIN r ON v * 2 < w AND v > 150 AND w > 340",
        "SELECT l.k, v FROM l LEFT SEMI JOIN r ON v * 7 < w",
        "SELECT l.k, v FROM l LEFT ANTI JOIN r ON v * 7 < w",
        "SELECT r.k, w FROM l RIGHT SEMI JOIN r ON v * 7 < w",
        "SELECT r.k, w FROM l RIGHT ANTI JOIN r ON v * 7 < w",
        "SELECT k, v FROM l WHERE EXISTS (SELECT 1 FROM r WHERE w > v * 7) OR v = 299",
        "SELECT l.k, v, f.k AS fk FROM l CROSS JOIN full_keys f",
        "SELECT count(*) AS n FROM l, r, full_keys",
        "SELECT count(*) AS n FROM l CROSS JOIN empty",
        "SELECT l.k, v, w FROM l FULL JOIN empty ON v < w",
    ])
    .await;
}

#[tokio::test]
async fn sort_merge_joins_and_joins_of_joins() {
    let cluster = with_tables();
    let merge = "SET datafusion.optimizer.prefer_hash_join = false";
    for query in [
        "SELECT l.k, v, w FROM l JOIN r ON l.k = r.k",
        "SELECT l.k, r.k AS rk, v, w FROM l FULL JOIN r ON l.k = r.k",
        "SELECT a.k, b.v, c.w FROM l a JOIN l b ON a.v = b.v JOIN r c ON b.k = c.k",
        "SELECT a.k, count(*) AS n FROM l a JOIN r ON a.k = r.k LEFT JOIN l c ON c.k = r.k \
         GROUP BY a.k ORDER BY 1",
    ] {
        same(&cluster, query, merge, Cut::Always).await;
        same(&cluster, query, MODES[1], Cut::Always).await;
        same(&cluster, query, MODES[0], Cut::Always).await;
    }
}
