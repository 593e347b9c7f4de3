//! Bytes of files that a task holds while it reads them, in the worker's account.
//!
//! The engine reads the columns of a whole row group at once and counts none of it. Here it is
//! counted, before it is read, so that the worker makes room in time; and given back with the bytes.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use object_store::Result;
use oxidask_exec::Memory;

use crate::memory::Taken;

/// Smaller pieces are not worth the counting.
const COUNTED_BYTES_MIN: u64 = 64 * 1024;

/// The account that reads are counted in.
#[derive(Debug, Clone)]
pub(crate) struct ReadMemory(Arc<dyn Memory>);

/// Bytes that are counted as long as anybody has a part of them.
struct Counted {
    bytes: Bytes,
    _taken: Taken,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl ReadMemory {
    /// Counts in this account.
    pub(crate) fn new(memory: Arc<dyn Memory>) -> Self {
        Self(memory)
    }

    fn take(&self, bytes: u64) -> Taken {
        let mut taken = Taken::new(Arc::clone(&self.0));
        taken.grow(bytes);
        taken
    }

    /// Counts what a read of these ranges gives.
    pub(crate) async fn counted(
        &self,
        ranges: &[Range<u64>],
        read: impl Future<Output = Result<Vec<Bytes>>>,
    ) -> Result<Vec<Bytes>> {
        let asked = ranges
            .iter()
            .map(|range| range.end.saturating_sub(range.start))
            .sum();
        if asked < COUNTED_BYTES_MIN {
            return read.await;
        }
        let ahead = self.take(asked);
        let pieces = read.await?;
        let counted = pieces.into_iter().map(|bytes| {
            let taken = self.take(bytes.len() as u64);
            Bytes::from_owner(Counted {
                bytes,
                _taken: taken,
            })
        });
        let counted = counted.collect();
        drop(ahead);
        Ok(counted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oxidask_exec::OwnMemory;

    #[tokio::test]
    async fn bytes_count_until_their_last_part_is_gone() {
        let memory: Arc<dyn Memory> = Arc::new(OwnMemory::new(0));
        let reads = ReadMemory::new(Arc::clone(&memory));
        let ranges = [0..60_000, 80_000..100_000];
        let during = Arc::clone(&memory);
        let read = async move {
            assert_eq!(during.taken_bytes(), 80_000, "counted before it is read");
            Ok(vec![vec![1; 60_000].into(), vec![2; 20_000].into()])
        };
        let mut pieces = reads.counted(&ranges, read).await.unwrap();
        assert_eq!(memory.taken_bytes(), 80_000);
        let part = pieces[0].slice(5..9);
        pieces.clear();
        assert_eq!((part.len(), memory.taken_bytes()), (4, 60_000));
        drop(part);
        assert_eq!(memory.taken_bytes(), 0);
        let broken = async {
            Err(object_store::Error::NotImplemented {
                operation: String::new(),
                implementer: String::new(),
            })
        };
        assert!(reads.counted(&ranges, broken).await.is_err());
        assert_eq!(memory.taken_bytes(), 0);
    }
}
