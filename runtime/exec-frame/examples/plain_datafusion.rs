//! Plain `DataFusion` in one process, to be measured beside a cluster that uses it.
//!
//! Reads requests from standard input, one JSON object a line, and answers each with one line:
//! the seconds from the text to the collected rows, and the rows. Owns nothing of ours: default
//! settings, and as many partitions and threads as the first argument says.

use std::io::{BufRead, Write};
use std::time::Instant;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::prelude::{SessionConfig, SessionContext};
use oxidask_tpch::Answer;
use serde::{Deserialize, Serialize};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Failure = Box<dyn std::error::Error>;

/// What to do.
#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Request {
    /// Runs definitions in the session that later queries use.
    Open { definitions: Vec<String> },
    /// Runs one query in that session.
    Query { sql: String },
    /// Runs statements in a session of their own; the answer is that of the last.
    Script { statements: Vec<String> },
}

#[derive(Serialize)]
struct Reply {
    seconds: f64,
    #[serde(flatten)]
    answer: Answer,
}

#[derive(Serialize)]
struct Refusal {
    error: String,
}

fn main() -> Result<(), Failure> {
    let threads = std::env::args()
        .nth(1)
        .map_or(Ok(2), |count| count.parse::<usize>())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()?;
    let session = session(threads);
    for line in std::io::stdin().lock().lines() {
        let answered = serve(&runtime, &session, threads, &line?);
        let text = match answered {
            Ok(reply) => serde_json::to_string(&reply)?,
            Err(error) => serde_json::to_string(&Refusal {
                error: error.to_string(),
            })?,
        };
        writeln!(std::io::stdout().lock(), "{text}")?;
    }
    Ok(())
}

fn session(threads: usize) -> SessionContext {
    SessionContext::new_with_config(SessionConfig::new().with_target_partitions(threads))
}

fn serve(
    runtime: &tokio::runtime::Runtime,
    session_of_queries: &SessionContext,
    threads: usize,
    line: &str,
) -> Result<Reply, Failure> {
    let request: Request = serde_json::from_str(line)?;
    let start = Instant::now();
    let (schema, batches) = runtime.block_on(async {
        match request {
            Request::Open { definitions } => all(session_of_queries.clone(), definitions).await,
            Request::Query { sql } => all(session_of_queries.clone(), vec![sql]).await,
            Request::Script { statements } => all(session(threads), statements).await,
        }
    })?;
    let seconds = start.elapsed().as_secs_f64();
    let answer = Answer::from_batches(&schema, &batches)?;
    Ok(Reply { seconds, answer })
}

/// Runs statements one after the other on the runtime's threads. The rows are those of the last.
async fn all(
    session: SessionContext,
    statements: Vec<String>,
) -> Result<(SchemaRef, Vec<RecordBatch>), Failure> {
    let work = async move {
        let mut last = (
            SchemaRef::new(datafusion::arrow::datatypes::Schema::empty()),
            Vec::new(),
        );
        for statement in statements {
            let frame = session.sql(&statement).await?;
            let schema = SchemaRef::clone(frame.schema().inner());
            last = (schema, frame.collect().await?);
        }
        Ok::<_, datafusion::error::DataFusionError>(last)
    };
    Ok(tokio::spawn(work).await??)
}
