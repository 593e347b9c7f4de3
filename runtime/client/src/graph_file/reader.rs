//! Reads the lines of a file, or the items of a list, into a builder.

use std::io::{BufRead, Read};
use std::sync::Arc;

use oxidask_exec::{catalogue, encode_into};
use serde_json::{Map, Value};

use super::builder::{Columns, Origin, item};
use super::error::{GraphFileError, Place, shown};
use super::line::{self, Line, Text};
use super::{BODY_BYTES_MAX, GraphPlan, LINE_BYTES_MAX, TaskOptions};

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

impl GraphPlan {
    /// Reads a graph file. `origin` names it in messages; `outputs` are wanted results that are
    /// named outside of it.
    pub fn read(
        mut reader: impl BufRead,
        origin: &str,
        outputs: Option<&[String]>,
    ) -> Result<Self, GraphFileError> {
        let origin: Arc<str> = origin.into();
        let mut lines = Reader::new(Origin::Lines(Arc::clone(&origin)), outputs)?;
        let mut buffer = Vec::new();
        let mut number: u32 = 0;
        loop {
            buffer.clear();
            number = number.saturating_add(1);
            let place = |column| Place::Line {
                origin: Arc::clone(&origin),
                line: number,
                column,
            };
            let read = (&mut reader)
                .take(LINE_BYTES_MAX as u64 + 1)
                .read_until(b'\n', &mut buffer)
                .map_err(|source| GraphFileError::Unreadable {
                    origin: Arc::clone(&origin),
                    source,
                })?;
            if read == 0 {
                return lines.columns.finish();
            }
            if read > LINE_BYTES_MAX {
                return Err(GraphFileError::Limit {
                    place: place(None),
                    what: "bytes in a line",
                    limit: LINE_BYTES_MAX,
                });
            }
            if number == 1 && buffer.starts_with(BYTE_ORDER_MARK) {
                return Err(GraphFileError::ByteOrderMark { place: place(None) });
            }
            let text = std::str::from_utf8(&buffer).map_err(|error| GraphFileError::NotUtf8 {
                place: place(Some(error.valid_up_to() + 1)),
            })?;
            if !text.trim_ascii().is_empty() {
                let line = line::parse(text, place)?;
                lines.add(line, number)?;
            }
        }
    }

    /// Reads the text of a graph file.
    pub fn parse(
        text: &str,
        origin: &str,
        outputs: Option<&[String]>,
    ) -> Result<Self, GraphFileError> {
        Self::read(text.as_bytes(), origin, outputs)
    }

    /// Reads a list of task objects, such as `graph.tasks` of a manifest.
    pub fn from_values(
        tasks: &[Value],
        origin: &str,
        outputs: Option<&[String]>,
    ) -> Result<Self, GraphFileError> {
        Self::from_placed_values(tasks, &[], origin, outputs)
    }

    /// Reads a list of task objects of which it is known where each of them stands.
    pub fn from_placed_values(
        tasks: &[Value],
        places: &[Arc<str>],
        origin: &str,
        outputs: Option<&[String]>,
    ) -> Result<Self, GraphFileError> {
        let origin: Arc<str> = origin.into();
        let items = Origin::Items(Arc::clone(&origin), places.to_vec());
        let mut lines = Reader::new(items, outputs)?;
        for (index, task) in (0..).zip(tasks) {
            let line = line::from_value(task, || item(&origin, places, index))?;
            lines.add(line, index)?;
        }
        lines.columns.finish()
    }
}

/// What is known while reading.
struct Reader {
    columns: Columns,
    is_at_start: bool,
    encoded: Vec<u8>,
    no_args: Map<String, Value>,
    inputs: Vec<u32>,
}

impl Reader {
    fn new(origin: Origin, outputs: Option<&[String]>) -> Result<Self, GraphFileError> {
        let mut columns = Columns::new(origin);
        if let Some(outputs) = outputs {
            columns.want_keys(outputs.iter().map(String::as_str), None)?;
        }
        Ok(Self {
            columns,
            is_at_start: true,
            encoded: Vec::new(),
            no_args: Map::new(),
            inputs: Vec::new(),
        })
    }

    /// Takes one line or item; `number` is its line or index.
    fn add(&mut self, line: Line<'_>, number: u32) -> Result<(), GraphFileError> {
        let is_first = std::mem::replace(&mut self.is_at_start, false);
        if line.outputs.is_some() {
            return self.add_outputs(&line, number, is_first);
        }
        let missing = |field| GraphFileError::MissingField {
            place: self.place(number),
            field,
        };
        let Some(Text(key)) = &line.key else {
            return Err(missing("key"));
        };
        let Some(Text(op)) = &line.op else {
            return Err(missing("op"));
        };
        let body = self.body(op, line.args.as_ref(), number)?;
        self.columns
            .check_inputs_count(line.inputs.as_ref().map_or(0, Vec::len), number)?;
        self.inputs.clear();
        for Text(input) in line.inputs.iter().flatten() {
            self.inputs.push(self.columns.name(input, number)?);
        }
        let options = TaskOptions {
            priority: line.priority.unwrap_or_default(),
            retries: line.retries.unwrap_or_default(),
            resources: line.resources.map(Vec::from_iter).unwrap_or_default(),
            workers: line.workers.unwrap_or_default(),
        };
        self.columns.add(key, body, &self.inputs, options, number)?;
        Ok(())
    }

    fn add_outputs(
        &mut self,
        line: &Line<'_>,
        number: u32,
        is_first: bool,
    ) -> Result<(), GraphFileError> {
        let wrong = |problem: &str| {
            Err(GraphFileError::WrongLine {
                place: self.place(number),
                problem: problem.to_owned(),
            })
        };
        if !line.has_only_outputs() {
            return wrong("`outputs` stands on a line of its own, before all tasks");
        }
        if !is_first {
            return wrong("only the first line may name outputs");
        }
        if self.columns.has_outputs() {
            return wrong("outputs are named here and in the manifest");
        }
        let outputs = line.outputs.iter().flatten().map(|Text(key)| key.as_ref());
        self.columns.want_keys(outputs, Some(number))
    }

    /// The number of the body; only a new one has to be checked.
    fn body(
        &mut self,
        op: &str,
        args: Option<&Map<String, Value>>,
        number: u32,
    ) -> Result<u32, GraphFileError> {
        let args = args.unwrap_or(&self.no_args);
        self.encoded.clear();
        encode_into(op, args, &mut self.encoded);
        if self.encoded.len() > BODY_BYTES_MAX {
            return Err(GraphFileError::Limit {
                place: self.place(number),
                what: "bytes in a task's operation and arguments",
                limit: BODY_BYTES_MAX,
            });
        }
        let (body, is_new) = self.columns.body(&self.encoded, catalogue::slots, op);
        if is_new {
            catalogue::check(op, args).map_err(|source| GraphFileError::Operation {
                place: self.place(number),
                source,
            })?;
        }
        Ok(body)
    }

    fn place(&self, number: u32) -> Place {
        self.columns.place(Some(number))
    }
}

/// A wanted result that is named twice would have to be printed twice.
pub(super) fn output_repeated(place: Place, output: &str) -> GraphFileError {
    GraphFileError::WrongLine {
        place,
        problem: format!("the output `{}` is named twice", shown(output)),
    }
}
