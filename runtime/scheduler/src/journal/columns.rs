//! Lists of tasks in few bytes.
//!
//! Owns the layout of the records that name many tasks: entry after entry, each a task and some
//! numbers, where a task is written as its distance from the one before, and its graph and its
//! worker only where they change. Reused, it allocates nothing. Never knows what the numbers mean.
//!
//! An entry begins with a number whose lowest bit says whether graph and worker follow, and whose
//! other bits are the distance (zigzag). Numbers have seven bits a byte, the lowest first.

use oxidask_core::{GraphId, TaskIndex, TaskRef, WorkerId};

/// Bytes of a number at most.
const NUMBER_BYTES_MAX: usize = 10;

/// A list that grows.
#[derive(Debug, Default)]
pub(crate) struct Columns {
    bytes: Vec<u8>,
    at: Option<(GraphId, WorkerId)>,
    previous: u32,
}

impl Columns {
    /// Begins an entry; its numbers follow.
    pub(crate) fn task(&mut self, worker: WorkerId, task: TaskRef) {
        let at = (task.graph, worker);
        let is_switch = self.at != Some(at);
        if is_switch {
            self.previous = 0;
        }
        let distance = i64::from(task.task.0) - i64::from(self.previous);
        let zigzag = (distance << 1) ^ (distance >> 63);
        self.number(zigzag.cast_unsigned() << 1 | u64::from(is_switch));
        if is_switch {
            self.number(u64::from(task.graph.0));
            self.number(u64::from(worker.0));
            self.at = Some(at);
        }
        self.previous = task.task.0;
    }

    /// Adds a number to the entry.
    pub(crate) fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.bytes.push(low_bits(number) | 0x80);
            number >>= 7;
        }
        self.bytes.push(low_bits(number));
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.at = None;
        self.previous = 0;
    }
}

fn low_bits(number: u64) -> u8 {
    u8::try_from(number & 0x7f).unwrap_or_default()
}

/// Reads what [`Columns`] has written.
#[derive(Debug)]
pub(crate) struct ColumnsReader<'a> {
    rest: &'a [u8],
    at: Option<(GraphId, WorkerId)>,
    previous: u32,
}

/// The bytes are not such a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

impl<'a> ColumnsReader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            at: None,
            previous: 0,
        }
    }

    /// The next entry's worker and task, nothing after the last one. Its numbers must be read next.
    pub(crate) fn task(&mut self) -> Result<Option<(WorkerId, TaskRef)>, Malformed> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let head = self.number()?;
        if head & 1 == 1 {
            let graph = GraphId(self.small()?);
            let worker = WorkerId(self.small()?);
            self.at = Some((graph, worker));
            self.previous = 0;
        }
        let (graph, worker) = self.at.ok_or(Malformed)?;
        let zigzag = head >> 1;
        let distance = (zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed();
        let task = i64::from(self.previous)
            .checked_add(distance)
            .and_then(|task| u32::try_from(task).ok())
            .ok_or(Malformed)?;
        self.previous = task;
        let task = TaskIndex(task);
        Ok(Some((worker, TaskRef { graph, task })))
    }

    /// The next number of the entry.
    pub(crate) fn number(&mut self) -> Result<u64, Malformed> {
        let mut number = 0_u64;
        for position in 0..NUMBER_BYTES_MAX {
            let (byte, rest) = self.rest.split_first().ok_or(Malformed)?;
            self.rest = rest;
            let bits = u64::from(byte & 0x7f);
            let shift = 7 * u32::try_from(position).unwrap_or_default();
            if bits << shift >> shift != bits {
                return Err(Malformed);
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Malformed)
    }

    fn small(&mut self) -> Result<u32, Malformed> {
        u32::try_from(self.number()?).map_err(|_| Malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(graph: u32, task: u32) -> TaskRef {
        TaskRef {
            graph: GraphId(graph),
            task: TaskIndex(task),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let entries = [
            (1, task(1, 0), 0),
            (1, task(1, u32::MAX), u64::MAX),
            (1, task(1, 0), 1 << 63),
            (2, task(1, 7), 127),
            (2, task(u32::MAX, 8), 128),
            (u32::MAX, task(3, 6), 300),
        ];
        let mut columns = Columns::default();
        for _ in 0..2 {
            columns.clear();
            assert!(columns.is_empty());
            for (worker, task, number) in entries {
                columns.task(WorkerId(worker), task);
                columns.number(number);
            }
        }
        let mut reader = ColumnsReader::new(columns.bytes());
        for (worker, task, number) in entries {
            assert_eq!(reader.task(), Ok(Some((WorkerId(worker), task))));
            assert_eq!(reader.number(), Ok(number));
        }
        assert_eq!(reader.task(), Ok(None));
        let bytes = columns.bytes();
        for end in 0..bytes.len() {
            let mut reader = ColumnsReader::new(&bytes[..end]);
            while let Ok(Some(_)) = reader.task() {
                if reader.number().is_err() {
                    break;
                }
            }
        }
    }

    #[test]
    fn neighbours_take_a_byte_and_noise_is_refused() {
        let mut columns = Columns::default();
        for number in 0..1000 {
            columns.task(WorkerId(3), task(1, number));
        }
        assert!(columns.bytes().len() < 1_010);
        let refused: [&[u8]; 3] = [&[0], &[0xff; 11], &[3, 1]];
        for bytes in refused {
            assert_eq!(ColumnsReader::new(bytes).task(), Err(Malformed));
        }
    }
}
