//! Our own routes: the state of the cluster, why tasks wait, spans, logs.

use std::sync::Arc;

use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use oxidask_core::{GraphId, WorkerId};
use oxidask_proto::wire;
use serde_json::{Value, json};

use super::Site;
use super::answer::{Answer, Json, Refusal, excerpt};
use super::json;
use super::query::Query;
use crate::look::{Snapshot, TARGET_SECONDS};
use crate::main_loop::MainLoop;
use crate::spans::{Span, SpanFilter};

/// Spans in one answer, unless another number is asked for.
const SPANS_DEFAULT: usize = 1_000;
/// Spans in one answer at most.
const SPANS_MAX: usize = 10_000;
/// Log lines in one answer at most.
const LINES_MAX: u32 = 10_000;

type Shared = State<Arc<Site>>;

/// `GET /api/v1/status`
pub(crate) async fn status(State(site): Shared) -> Answer {
    let snapshot = site.looker.snapshot().await?;
    let is_ready = !site.looker.metrics().is_recovering();
    Ok(Json(status_of(&snapshot, is_ready)))
}

fn status_of(snapshot: &Snapshot, is_ready: bool) -> Value {
    let cluster = &snapshot.cluster;
    let tasks = snapshot.tasks.iter();
    let tasks: serde_json::Map<String, Value> = tasks
        .map(|(state, count)| (state.to_string(), (*count).into()))
        .collect();
    json!({
        "scheduler": {
            "build": snapshot.hello.build,
            "incarnation": format!("{:016x}", snapshot.hello.incarnation),
            "epoch": snapshot.hello.epoch,
            "uptime_seconds": snapshot.uptime.as_secs_f64(),
            "is_ready": is_ready,
        },
        "workers": cluster.workers,
        "slots": cluster.slots,
        "clients": snapshot.clients,
        "graphs": snapshot.graphs.len(),
        "tasks": tasks,
        "running": cluster.running,
        "ready": cluster.ready,
        "parked": cluster.parked,
        "parked_reason": cluster.parked_reason,
        "recomputed": snapshot.recomputed,
        "held_bytes": cluster.held_bytes,
        "memory_bytes": cluster.memory_bytes,
        "backlog_seconds": std::time::Duration::from_micros(cluster.backlog_micros).as_secs_f64(),
        "desired_workers": snapshot.desired_workers(),
        "idle_since": snapshot.idle_since(),
    })
}

/// `GET /api/v1/workers`
pub(crate) async fn workers(State(site): Shared) -> Answer {
    let workers = site.looker.look(|main_loop| main_loop.worker_statuses());
    let workers: Vec<Value> = workers.await?.iter().map(json::worker).collect();
    Ok(Json(json!({"workers": workers})))
}

/// `GET /api/v1/graphs`
pub(crate) async fn graphs(State(site): Shared) -> Answer {
    let graphs = site.looker.look(|main_loop| main_loop.core.graphs());
    let graphs: Vec<Value> = graphs.await?.iter().map(json::graph).collect();
    Ok(Json(json!({"graphs": graphs})))
}

/// `GET /api/v1/graphs/{name}`
pub(crate) async fn graph(State(site): Shared, Path(name): Path<String>) -> Answer {
    let asked = name.clone();
    let looking = site.looker.look(move |main_loop| {
        let graphs = main_loop.core.graphs();
        let graph = graphs.into_iter().find(|graph| *graph.name == *asked)?;
        let progress = main_loop.core.progress(graph.graph)?;
        Some(json::graph_with_groups(&graph, &progress))
    });
    match looking.await? {
        Some(graph) => Ok(Json(graph)),
        None => Err(no_graph(&name)),
    }
}

fn no_graph(name: &str) -> Refusal {
    let message = format!("there is no graph `{}`", excerpt(name));
    Refusal::new(StatusCode::NOT_FOUND, message)
        .with_hint("graphs that are there: /api/v1/graphs; one that was closed is gone")
}

/// `GET /api/v1/tasks/{key}`
pub(crate) async fn task(
    State(site): Shared,
    Path(key): Path<String>,
    RawQuery(query): RawQuery,
) -> Answer {
    let mut query = Query::read(query.as_deref());
    let request = wire::ExplainRequest {
        graph: query.text("graph"),
        key: key.clone(),
    };
    query.end("graph")?;
    let explained = site
        .looker
        .look(move |main_loop| main_loop.explain(&request));
    let tasks: Vec<Value> = explained.await?.tasks.iter().map(json::task).collect();
    if tasks.is_empty() {
        let message = format!("no graph has a task `{}`", excerpt(&key));
        return Err(Refusal::new(StatusCode::NOT_FOUND, message)
            .with_hint("keys with / or other special characters are written with percent signs"));
    }
    Ok(Json(json!({"tasks": tasks})))
}

/// `GET /api/v1/backlog`
pub(crate) async fn backlog(State(site): Shared, RawQuery(query): RawQuery) -> Answer {
    let mut query = Query::read(query.as_deref());
    let target = query.number("target_seconds")?.unwrap_or(TARGET_SECONDS);
    query.end("target_seconds")?;
    let told = site
        .looker
        .look(move |main_loop| main_loop.telemetry(target));
    Ok(Json(json::backlog(&told.await?)))
}

/// `GET /api/v1/spans`
pub(crate) async fn spans(State(site): Shared, RawQuery(query): RawQuery) -> Answer {
    let mut query = Query::read(query.as_deref());
    let limit = query
        .number("limit")?
        .unwrap_or(SPANS_DEFAULT)
        .min(SPANS_MAX);
    let since = query.number("since")?.unwrap_or(0);
    let (graph, worker) = (query.text("graph"), query.text("worker"));
    query.end("graph, worker, since, limit")?;
    let looking = site.looker.look(move |main_loop| {
        let filter = SpanFilter {
            graph: find_graph(main_loop, &graph),
            worker: find_worker(main_loop, &worker),
            since,
            limit,
        };
        spans_of(main_loop, &filter)
    });
    Ok(Json(looking.await?))
}

/// A name that nobody has fits no span.
fn find_graph(main_loop: &MainLoop, name: &str) -> Option<GraphId> {
    if name.is_empty() {
        return None;
    }
    let graphs = main_loop.core.graphs();
    let found = graphs.into_iter().find(|graph| *graph.name == *name);
    Some(found.map_or(GraphId(u32::MAX), |graph| graph.graph))
}

fn find_worker(main_loop: &MainLoop, name: &str) -> Option<WorkerId> {
    if name.is_empty() {
        return None;
    }
    let mut workers = main_loop.core.workers().into_iter();
    let found = workers.find(|worker| worker.name == name);
    Some(found.map_or(WorkerId(u32::MAX), |worker| worker.worker))
}

fn spans_of(main_loop: &MainLoop, filter: &SpanFilter) -> Value {
    let spans = &main_loop.watch.spans;
    let graphs = main_loop.core.graphs();
    let workers = main_loop.core.workers();
    let read = spans.read(filter).into_iter().map(|span: Span| {
        let graph = graphs.iter().find(|graph| graph.graph == span.task.graph);
        let worker = workers.iter().find(|worker| worker.worker == span.worker);
        json!({
            "number": span.number,
            "graph": graph.map(|graph| &*graph.name),
            "key": main_loop.core.key(span.task),
            "group": *span.group,
            "worker": worker.map(|worker| &worker.name),
            "worker_number": span.worker.0,
            "attempt": span.attempt,
            "start_micros": span.end_micros.saturating_sub(span.duration_micros),
            "duration_micros": span.duration_micros,
            "end": span.end.name(),
        })
    });
    let read: Vec<Value> = read.collect();
    json!({"spans": read, "next": spans.next()})
}

/// `GET /api/v1/logs`
#[allow(clippy::unused_async, reason = "the form of handlers")]
pub(crate) async fn logs(State(site): Shared, RawQuery(query): RawQuery) -> Answer {
    let mut query = Query::read(query.as_deref());
    let request = wire::LogsRequest {
        graph: query.text("graph"),
        key: query.text("key"),
        worker: query.text("worker"),
        lines: query.number("lines")?.unwrap_or(0).min(LINES_MAX),
        is_followed: false,
    };
    query.end("graph, key, worker, lines")?;
    let (lines, dropped) = site.looker.shared().logs.read(&request);
    let lines: Vec<Value> = lines.iter().map(|line| json::line(line)).collect();
    Ok(Json(json!({"lines": lines, "dropped": dropped})))
}
