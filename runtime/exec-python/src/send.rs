//! What a task is sent: its frame and the files beside it.
//!
//! Owns the choice of how a value travels: in the frame if it is small, as the file in which it lies
//! already, or in one new file with all others.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use bytes::Bytes;
use oxidask_exec::TaskContext;
use oxidask_store::Payload;

use crate::frame::{
    FILES_MAX, HEADER_LENGTH_BYTES, INLINE, INLINE_BYTES_MAX, INLINE_SUM_BYTES_MAX, Writer,
    to_child,
};
use crate::line::PACKET_BYTES_MAX;
use crate::segment::{ALIGNMENT_BYTES, Segment, Segments};

/// More is written on a thread that may block.
const WRITE_HERE_BYTES_MAX: u64 = 1 << 20;

/// A file that travels, and what keeps it.
#[derive(Debug)]
pub(crate) enum Shared {
    Mapped(Arc<Segment>),
    Written(OwnedFd),
}

impl AsFd for Shared {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Mapped(segment) => segment.file.as_fd(),
            Self::Written(file) => file.as_fd(),
        }
    }
}

/// A frame and its files.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) frame: Vec<u8>,
    pub(crate) files: Vec<Shared>,
}

impl Message {
    /// Whether it can wait in line.
    pub(crate) fn fits_line(&self) -> bool {
        self.files.is_empty() && self.packet().len() <= PACKET_BYTES_MAX
    }

    /// The frame as it stands in line.
    pub(crate) fn packet(&self) -> &[u8] {
        &self.frame[HEADER_LENGTH_BYTES..]
    }

    /// The files in groups that fit beside one frame; the last goes with the frame itself.
    pub(crate) fn file_groups(&self) -> impl Iterator<Item = Vec<BorrowedFd<'_>>> {
        self.files
            .chunks(FILES_MAX)
            .map(|group| group.iter().map(AsFd::as_fd).collect())
    }
}

/// Where a value will be found.
#[derive(Debug, Clone, Copy)]
struct Placed {
    file: u32,
    offset: u64,
    length: u64,
}

/// Values that travel together.
struct Parcel<'a> {
    segments: &'a Segments,
    files: Vec<Shared>,
    /// What goes to a new file, and how long that is so far.
    written: Vec<Vec<Bytes>>,
    written_bytes: u64,
    inline_bytes: u64,
    placed: Vec<Placed>,
}

/// Stands for the new file until its number is known.
const NEW_FILE: u32 = INLINE - 1;

impl<'a> Parcel<'a> {
    fn new(segments: &'a Segments) -> Self {
        Self {
            segments,
            files: Vec::new(),
            written: Vec::new(),
            written_bytes: 0,
            inline_bytes: 0,
            placed: Vec::new(),
        }
    }

    fn add(&mut self, parts: &[Bytes]) {
        let length: u64 = parts.iter().map(|part| part.len() as u64).sum();
        let (mut file, mut offset) = (INLINE, 0);
        let fits = self.inline_bytes + length <= INLINE_SUM_BYTES_MAX;
        if length <= INLINE_BYTES_MAX && fits {
            self.inline_bytes += length;
        } else if let Some((segment, start)) = self.mapped(parts) {
            file = u32::try_from(self.files.len()).unwrap_or(NEW_FILE);
            offset = start;
            self.files.push(Shared::Mapped(segment));
        } else {
            (file, offset) = (NEW_FILE, self.written_bytes);
            self.written_bytes += length.next_multiple_of(ALIGNMENT_BYTES);
            self.written.push(parts.to_vec());
        }
        self.placed.push(Placed {
            file,
            offset,
            length,
        });
    }

    fn mapped(&self, parts: &[Bytes]) -> Option<(Arc<Segment>, u64)> {
        let mut parts = parts.iter().filter(|part| !part.is_empty());
        let (only, None) = (parts.next()?, parts.next()) else {
            return None;
        };
        self.segments.find(only)
    }

    fn numbers(&mut self) {
        let number = u32::try_from(self.files.len()).unwrap_or(NEW_FILE);
        for placed in &mut self.placed {
            if placed.file == NEW_FILE {
                placed.file = number;
            }
        }
    }
}

async fn write(
    segments: &Arc<Segments>,
    values: Vec<Vec<Bytes>>,
    length: u64,
) -> io::Result<OwnedFd> {
    if length <= WRITE_HERE_BYTES_MAX {
        return segments.write(&values);
    }
    let segments = Arc::clone(segments);
    let written = tokio::task::spawn_blocking(move || segments.write(&values));
    written.await.map_err(io::Error::other)?
}

/// The frame of a task.
pub(crate) async fn task(
    segments: &Arc<Segments>,
    (run, table): (u64, u32),
    inputs: Vec<Payload>,
    context: &TaskContext,
) -> io::Result<Message> {
    let arguments = [context.arguments.clone()];
    let mut parcel = Parcel::new(segments);
    parcel.add(&arguments);
    for input in &inputs {
        parcel.add(&input.parts);
    }
    parcel.numbers();
    let (mut files, placed) = (parcel.files, parcel.placed);
    if !parcel.written.is_empty() {
        let file = write(segments, parcel.written, parcel.written_bytes).await?;
        files.push(Shared::Written(file));
    }
    let mut writer = Writer::new(to_child::TASK);
    writer
        .u64(run)
        .u32(context.graph)
        .u32(context.attempt)
        .u32(table);
    writer
        .u32(number(files.len())?)
        .u32(number(context.key.len())?);
    let Some((first, rest)) = placed.split_first() else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    put_place(&mut writer, *first);
    writer.u32(number(inputs.len())?);
    writer.raw(context.key.as_bytes());
    put_inline(&mut writer, *first, &arguments);
    for (input, placed) in inputs.iter().zip(rest) {
        writer.byte(input.kind as u8);
        put_place(&mut writer, *placed);
        put_inline(&mut writer, *placed, &input.parts);
    }
    let frame = writer.finish();
    Ok(Message { frame, files })
}

/// The frame of a table.
pub(crate) async fn table(
    segments: &Arc<Segments>,
    table: u32,
    content: &Bytes,
) -> io::Result<Message> {
    let mut writer = Writer::new(to_child::TABLE);
    writer.u32(table);
    one(segments, writer, content, true).await
}

/// The frame of a command.
pub(crate) async fn command(
    segments: &Arc<Segments>,
    request: u64,
    content: &Bytes,
) -> io::Result<Message> {
    let mut writer = Writer::new(to_child::COMMAND);
    writer.u64(request);
    one(segments, writer, content, false).await
}

/// One value in the frame or in a file of its own.
async fn one(
    segments: &Arc<Segments>,
    mut writer: Writer,
    content: &Bytes,
    has_offset: bool,
) -> io::Result<Message> {
    let length = content.len() as u64;
    let is_inline = length <= INLINE_BYTES_MAX;
    writer.u32(if is_inline { INLINE } else { 0 });
    if has_offset {
        writer.u64(0);
    }
    writer.u64(length);
    let mut files = Vec::new();
    if is_inline {
        writer.raw(content);
    } else {
        let file = write(segments, vec![vec![content.clone()]], length).await?;
        files.push(Shared::Written(file));
    }
    let frame = writer.finish();
    Ok(Message { frame, files })
}

fn put_place(writer: &mut Writer, placed: Placed) {
    writer
        .u32(placed.file)
        .u64(placed.offset)
        .u64(placed.length);
}

fn put_inline(writer: &mut Writer, placed: Placed, parts: &[Bytes]) {
    if placed.file == INLINE {
        for part in parts {
            writer.raw(part);
        }
    }
}

fn number(count: usize) -> io::Result<u32> {
    u32::try_from(count).map_err(io::Error::other)
}
