//! A durable log of opaque records.
//!
//! Owns segments, checksums, group commit, snapshots and recovery. Never looks into a record, never
//! decides what is worth a record, never uses tokio: a thread of its own writes.
//!
//! Invariants: a record whose commit succeeded is read again after any crash, in order; nothing is
//! read that was not appended; no error removes or changes what was durable; older segments are
//! removed only after a snapshot that replaces them is durable.
//!
//! # Use
//!
//! ```
//! use oxidask_journal::{Folder, Incarnation, Recovered, Schema, Settings};
//! # fn main() -> Result<(), oxidask_journal::JournalError> {
//! # let folder = tempfile::tempdir().unwrap();
//! # let folder = folder.path();
//! let settings = Settings::new(Schema { current: 1, oldest: 1 });
//! let random = Incarnation(0x5eed);
//! let mut recovered = Recovered::open(Folder::new(folder), settings, random, None)?;
//! while let Some(record) = recovered.next_record()? {
//!     // Rebuild the state: first from the snapshot, then from what followed it.
//!     let _ = (record.kind, record.payload);
//! }
//! let mut writer = recovered.start()?; // a new epoch, durable
//! writer.append(7, &[b"a record ", b"in parts"])?;
//! writer.commit()?; // now it is durable
//! # Ok(())
//! # }
//! ```
//!
//! # Format
//!
//! All numbers are little-endian. A segment is a file `journal-{incarnation}-{number}.log`:
//! incarnation as 32 hexadecimal digits, number as 20 decimal digits. Numbers only grow and may have
//! gaps. `journal.lock` is locked (`flock`) by the process that has the folder. Other files are
//! ignored.
//!
//! | offset | bytes | header of a segment |
//! |---|---|---|
//! | 0 | 8 | `oxjournl` |
//! | 8 | 4 | format version |
//! | 12 | 4 | role: 1 tail, 2 snapshot |
//! | 16 | 16 | incarnation |
//! | 32 | 8 | epoch; each start of a writer has a larger one |
//! | 40 | 8 | number |
//! | 48 | 8 | tail: the number of the tail segment before it, 0 if none; snapshot: of the tail segment after it |
//! | 56 | 8 | tail: how many bytes of the segment before it count |
//! | 64 | 8 | sequence number of the first record after it |
//! | 72 | 4 | version of the caller's records |
//! | 76 | 4 | CRC32 of bytes 0 to 75 |
//!
//! Frames follow without padding.
//!
//! | offset | bytes | frame |
//! |---|---|---|
//! | 0 | 4 | length of the payload, at most 64 MiB |
//! | 4 | 1 | class: 1 record, 2 commit mark, 3 end of a snapshot |
//! | 5 | 1 | 0 |
//! | 6 | 2 | kind, the caller's |
//! | 8 | 4 | CRC32 of: incarnation (16 bytes), in a snapshot its number (8), place (8), bytes 0 to 7, payload |
//! | 12 | | payload |
//!
//! The place of a record is its sequence number, or from 1 in a snapshot, so that even a good record
//! does not fit where another should be; that of marks and ends is 0.
//!
//! Each commit is one write that begins with a mark: `oxcommit`, the segment's number, the frame's
//! own offset, the sequence number of the next record (8 bytes each). A mark is written only when
//! everything before it is durable. So a broken frame with a mark behind it is damage, and one
//! without is a torn write. An end has the same payload, with the number of records of the snapshot
//! instead of the sequence number, and is the last frame of its file.
//!
//! # Recovery
//!
//! The newest complete snapshot counts, then the chain of tail segments from the one that it names
//! to the newest. Only the end of the newest may be torn: it is cut by the header of the next
//! segment, which says how much of it counts; the file itself is not changed. A file that is not
//! longer than a header and has no valid one is a creation that a crash has interrupted, and holds
//! nothing. What may have been read from the page cache only is written and synced again before the
//! new epoch begins. What a snapshot has replaced is removed last.

mod committer;
mod disk;
mod error;
mod format;
mod frames;
mod memory;
mod recovered;
mod sealed;
mod segment;
mod snapshot;
mod survey;
mod writer;

pub use committer::{Committer, CommitterSettings, Progress, Records, Target};
pub use disk::{Disk, DiskFile, Folder};
pub use error::{Damage, JournalError};
pub use format::{
    FORMAT, FORMAT_OLDEST, FRAME_HEAD_BYTES, HEADER_BYTES, Incarnation, RECORD_BYTES_MAX,
};
pub use memory::{MemoryDisk, MemoryFile};
pub use recovered::{Origin, Record, Recovered};
pub use sealed::{Sealed, SealedSegment};
pub use snapshot::SnapshotSummary;
pub use survey::CutTail;
pub use writer::{BUFFER_BYTES_MAX, SEGMENT_BYTES, Schema, Settings, Writer};
