//! Bodies that have been understood.
//!
//! Owns the shared bodies of each graph and the programs made of them; a body is understood when it
//! is first used, once. Everything of a graph goes when the graph is forgotten.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_exec::{Executor, Program, Registry, TaskError};
use oxidask_store::{KeyMap, ResultKey};

use crate::run::panicked;
use oxidask_worker_machine::BodyRef;

type Prepared = Result<Arc<dyn Program>, TaskError>;

/// The programs of a worker.
pub(crate) struct Programs {
    registry: Registry,
    /// By graph and number of the body.
    shared: KeyMap<Shared>,
}

enum Shared {
    Body(Bytes),
    Program(Prepared),
}

impl Programs {
    pub(crate) fn new(executors: Vec<Arc<dyn Executor>>) -> Self {
        Self {
            registry: Registry::new(executors),
            shared: KeyMap::default(),
        }
    }

    /// Keeps a shared body. Its bytes are copied: they are a part of a larger message.
    pub(crate) fn add(&mut self, graph: u32, body: u32, content: &[u8]) {
        let body = ResultKey::new(graph, body);
        if !self.shared.contains(body) {
            self.shared
                .insert(body, Shared::Body(Bytes::copy_from_slice(content)));
        }
    }

    /// The program behind a body.
    pub(crate) fn get(&mut self, graph: u32, body: &BodyRef) -> Prepared {
        let number = match body {
            BodyRef::Inline(content) => return prepare(&self.registry, content),
            BodyRef::Shared(number) => *number,
        };
        match self.shared.get_mut(ResultKey::new(graph, number)) {
            Some(Shared::Program(program)) => program.clone(),
            Some(entry) => {
                let Shared::Body(content) = entry else {
                    return Err(absent(graph, number));
                };
                let program = prepare(&self.registry, content);
                *entry = Shared::Program(program.clone());
                program
            }
            None => Err(absent(graph, number)),
        }
    }

    /// Drops all bodies but those of these graphs. For when a scheduler sends what it uses anew.
    pub(crate) fn keep_only(&mut self, graphs: &BTreeSet<u32>) {
        let known: BTreeSet<u32> = self.shared.iter().map(|(body, _)| body.graph()).collect();
        for graph in known.difference(graphs) {
            self.forget(*graph);
        }
    }

    /// Drops everything of a graph.
    pub(crate) fn forget(&mut self, graph: u32) {
        drop(self.shared.remove_graph(graph));
    }
}

fn prepare(registry: &Registry, content: &[u8]) -> Prepared {
    let prepared = catch_unwind(AssertUnwindSafe(|| registry.prepare(content)));
    let mut outcome = prepared.unwrap_or_else(|panic| Err(panicked(panic.as_ref())));
    if let Err(error) = &mut outcome {
        error.is_retryable = false;
    }
    outcome
}

fn absent(graph: u32, body: u32) -> TaskError {
    let message = format!("body `{body}` of graph `{graph}` never reached this worker");
    TaskError::permanent(Diagnostic::new(Code::TaskFailed, message))
}
