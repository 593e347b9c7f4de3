//! Results on their way to a function of Python.

use std::sync::Arc;

use bytes::Bytes;
use oxidask_client::futures::{FetchSink, LargeSink};
use oxidask_diagnostic::{Code, Diagnostic};
use pyo3::prelude::*;

use crate::callback::{attached, call, fault};
use crate::memory;

/// Bytes of parts that are written at once: each time costs the interpreter's lock, and what was
/// read just now is still in the processor's cache.
const WRITE_BYTES: usize = 1 << 20;

/// Hands results to a function of Python.
pub(crate) struct Results {
    callback: Arc<Py<PyAny>>,
}

/// A large result that arrives.
struct Large {
    callback: Arc<Py<PyAny>>,
    index: usize,
    kind: u32,
    /// Where it is put, or why there is no room.
    memory: Result<Py<PyAny>, String>,
    written: usize,
    parts: Vec<Bytes>,
    part_bytes: usize,
}

impl Results {
    pub(crate) fn new(callback: Py<PyAny>) -> Self {
        let callback = Arc::new(callback);
        Self { callback }
    }
}

impl Large {
    fn write(&mut self, py: Python<'_>) {
        let parts = std::mem::take(&mut self.parts);
        self.part_bytes = 0;
        for part in parts {
            let Ok(memory) = &self.memory else {
                return;
            };
            if let Err(error) = memory::fill(memory.bind(py), self.written, &part) {
                self.memory = Err(error.to_string());
            }
            self.written += part.len();
        }
    }
}

impl FetchSink for Results {
    fn whole(&self, results: Vec<(usize, u32, Bytes)>) {
        attached(|py| {
            for (index, kind, data) in results {
                match memory::filled(py, &data) {
                    Ok(memory) => call(py, &self.callback, (index, kind, memory)),
                    Err(error) => no_room(py, &self.callback, index, &error.to_string()),
                }
            }
        });
    }

    fn start(&self, index: usize, kind: u32, bytes: u64) -> Box<dyn LargeSink> {
        let reserved = attached(|py| {
            let bytes = usize::try_from(bytes)?;
            memory::reserved(py, bytes).map(Bound::unbind)
        });
        let memory = match reserved {
            Some(Ok(memory)) => Ok(memory),
            Some(Err(error)) => Err(error.to_string()),
            None => Err("the interpreter ends".to_owned()),
        };
        Box::new(Large {
            callback: Arc::clone(&self.callback),
            index,
            kind,
            memory,
            written: 0,
            parts: Vec::new(),
            part_bytes: 0,
        })
    }

    fn fault(&self, index: usize, why: Diagnostic) {
        let nothing: Option<u32> = None;
        attached(|py| call(py, &self.callback, (index, nothing, fault(&why))));
    }
}

impl LargeSink for Large {
    fn part(&mut self, data: Bytes) {
        if self.memory.is_err() {
            return;
        }
        self.part_bytes += data.len();
        self.parts.push(data);
        if self.part_bytes >= WRITE_BYTES {
            attached(|py| self.write(py));
        }
    }

    fn end(mut self: Box<Self>) {
        attached(|py| {
            self.write(py);
            match &self.memory {
                Ok(memory) => call(py, &self.callback, (self.index, self.kind, memory)),
                Err(text) => no_room(py, &self.callback, self.index, text),
            }
        });
    }
}

fn no_room(py: Python<'_>, callback: &Py<PyAny>, index: usize, text: &str) {
    let message = format!("a result does not fit into the memory of the client: {text}");
    let why = Diagnostic::new(Code::ResultUnavailable, message)
        .with_hint("gather less at a time, or reduce the result on the cluster first");
    let nothing: Option<u32> = None;
    call(py, callback, (index, nothing, fault(&why)));
}
