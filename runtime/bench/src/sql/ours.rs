//! Our cluster as an engine: statements become graphs, and what they plan becomes graphs too.
//!
//! Owns nothing that the command does not do as well: a statement is a task; if its result is a
//! graph, that is run in its place. It stays connected, so that a query is measured and not the
//! start of a program.

use std::io::Cursor;
use std::path::Path;
use std::time::Instant;

use arrow::datatypes::{Schema, SchemaRef};
use arrow::ipc::reader::StreamReader;
use arrow::record_batch::RecordBatch;
use futures::StreamExt;
use oxidask_client::graph_file::{GraphPlan, GraphPlanBuilder};
use oxidask_client::{Client, GraphRun, PlannedGraph};
use oxidask_exec::Body;
use oxidask_store::{Payload, PayloadKind};
use oxidask_tpch::Answer;
use serde_json::json;

use super::engine::{Request, Timed};
use crate::Failure;
use crate::cluster::{Cluster, Shape};
use crate::loads::until_done;

/// A cluster that stays up, with the tables it was told of.
#[derive(Debug)]
pub(crate) struct Ours {
    pub(crate) cluster: Cluster,
    pub(crate) client: Client,
    /// Statements before every other: options.
    settings: Vec<String>,
    /// Tables for queries.
    definitions: Vec<String>,
    /// Of the worker that has least.
    memory_bytes: u64,
    /// Graphs that were ever submitted; each has a name of its own.
    graphs: u64,
}

impl Ours {
    /// Starts the cluster.
    pub(crate) async fn start(
        oxidask: &Path,
        shape: Shape,
        settings: &[String],
    ) -> Result<Self, Failure> {
        let (cluster, client) = Cluster::start(oxidask, shape).await?;
        let workers = client.status().await?.workers;
        let memory_bytes = workers.iter().map(|worker| worker.memory_bytes).min();
        Ok(Self {
            cluster,
            client,
            memory_bytes: memory_bytes.unwrap_or(u64::MAX),
            settings: settings.to_vec(),
            definitions: Vec::new(),
            graphs: 0,
        })
    }

    /// Replaces the options before every statement.
    pub(crate) fn set(&mut self, settings: Vec<String>) {
        self.settings = settings;
    }

    pub(crate) fn processes(&self) -> Vec<u32> {
        self.cluster.processes()
    }

    pub(crate) async fn ask(&mut self, request: &Request) -> Result<Timed, Failure> {
        match request {
            Request::Open { definitions, .. } => {
                self.definitions.clone_from(definitions);
                let answer = Answer::from_batches(&Schema::empty(), &[])?;
                Ok(Timed {
                    seconds: 0.0,
                    answer,
                })
            }
            Request::Query { sql, .. } => {
                let mut statements = self.definitions.clone();
                statements.push(sql.trim().trim_end_matches(';').to_owned());
                self.script(&statements).await
            }
            Request::Script { statements } => self.script(statements).await,
            Request::Csv { input, output } => {
                self.script(&super::csv::statements(input, output)).await
            }
        }
    }

    /// Runs statements one after the other. The rows are those of the last query.
    async fn script(&mut self, statements: &[String]) -> Result<Timed, Failure> {
        let start = Instant::now();
        let mut preamble = self.settings.clone();
        let mut last = (SchemaRef::new(Schema::empty()), Vec::new());
        for statement in statements {
            if is_definition(statement) {
                preamble.push(statement.clone());
                continue;
            }
            let results = self.statement(&preamble, statement).await?;
            if results
                .iter()
                .all(|result| result.kind == PayloadKind::Table)
            {
                last = decode(&results)?;
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        let answer = Answer::from_batches(&last.0, &last.1)?;
        Ok(Timed { seconds, answer })
    }

    /// Runs one query or write, whatever becomes of it.
    async fn statement(
        &mut self,
        preamble: &[String],
        statement: &str,
    ) -> Result<Vec<Payload>, Failure> {
        let Shape {
            workers, threads, ..
        } = self.cluster.shape();
        let placed = |(index, sql): (usize, &String)| json!({"number": index + 1, "line": index + 1, "sql": sql});
        let preamble: Vec<_> = preamble.iter().enumerate().map(placed).collect();
        let number = preamble.len() + 1;
        let body = Body::new("statement")
            .with("origin", "bench")
            .with(
                "cluster",
                json!({
                    "workers": workers,
                    "slots": workers * threads,
                    "memory_bytes": self.memory_bytes,
                }),
            )
            .with("preamble", preamble)
            .with(
                "statement",
                json!({"number": number, "line": number, "sql": statement}),
            );
        let mut builder = GraphPlanBuilder::new("bench");
        builder.task("statement", &body, &[])?;
        let results = self.graph(&builder.finish()?).await?;
        match results.first() {
            Some(result) if result.kind == PayloadKind::Graph => {
                let planned = PlannedGraph::from_payload(result)?;
                let outputs = planned.outputs().to_vec();
                let name = self.next_name();
                let run = self
                    .client
                    .submit_chunks(&name, planned.into_chunks())
                    .await?;
                results_of(run, outputs).await
            }
            _ => Ok(results),
        }
    }

    /// Runs a graph and gives its results.
    pub(crate) async fn graph(&mut self, plan: &GraphPlan) -> Result<Vec<Payload>, Failure> {
        let name = self.next_name();
        let run = self.client.submit(&name, plan).await?;
        results_of(run, plan.outputs().to_vec()).await
    }

    fn next_name(&mut self) -> String {
        self.graphs += 1;
        format!("bench-{}", self.graphs)
    }
}

fn is_definition(statement: &str) -> bool {
    let word = statement.split_whitespace().next().unwrap_or_default();
    ["CREATE", "SET"]
        .iter()
        .any(|name| word.eq_ignore_ascii_case(name))
}

/// Waits for the end of a graph and fetches its results. Nothing of it stays at the scheduler.
async fn results_of(mut run: GraphRun, outputs: Vec<u32>) -> Result<Vec<Payload>, Failure> {
    let results = wait_and_fetch(&mut run, outputs).await;
    if results.is_err() {
        run.cancel();
    }
    tokio::spawn(run.close());
    results
}

async fn wait_and_fetch(run: &mut GraphRun, outputs: Vec<u32>) -> Result<Vec<Payload>, Failure> {
    until_done(run).await?;
    let wanted = outputs.len();
    let mut results = Vec::with_capacity(wanted);
    let mut fetched = run.fetch(outputs);
    while let Some((_, result)) = fetched.next().await {
        results.push(result?);
    }
    if results.len() != wanted {
        return Err(format!("{} results of {wanted} came", results.len()).into());
    }
    Ok(results)
}

fn contiguous(payload: &Payload) -> Vec<u8> {
    let parts: Vec<&[u8]> = payload.parts.iter().map(AsRef::as_ref).collect();
    parts.concat()
}

/// The batches of all tables, in order.
fn decode(results: &[Payload]) -> Result<(SchemaRef, Vec<RecordBatch>), Failure> {
    let mut schema = SchemaRef::new(Schema::empty());
    let mut batches = Vec::new();
    for result in results {
        let reader = StreamReader::try_new(Cursor::new(contiguous(result)), None)?;
        schema = reader.schema();
        for batch in reader {
            batches.push(batch?);
        }
    }
    Ok((schema, batches))
}
