//! `bytes`: a pseudo-random buffer.
//!
//! The content is the `SplitMix64` sequence: word `i`, from 0 on, is `mix(seed + (i + 1) * GAMMA)`
//! in little-endian order, where `GAMMA` is `0x9E3779B97F4A7C15`; the last word is cut. So each
//! word can be computed alone, and other programs can check a part of a buffer.

use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_store::{Payload, PayloadKind};

use super::{Compute, SMALL_BYTES, cancelled};
use crate::catalogue::BytesArguments;
use crate::{TaskContext, TaskError};

const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;
const WORD_BYTES: usize = 8;

/// Written at once; between two steps a cancelled attempt ends.
const STEP_BYTES: usize = 1 << 20;

/// Made in the processor's nearest cache before it is copied to where it stays.
const BLOCK_BYTES: usize = 8 * 1024;

/// Makes a buffer of a length from a seed.
pub(crate) struct PseudoRandom {
    len_bytes: u64,
    seed: u64,
}

impl PseudoRandom {
    pub(crate) fn new(arguments: &BytesArguments) -> Self {
        Self {
            len_bytes: arguments.len,
            seed: arguments.seed,
        }
    }
}

impl Compute for PseudoRandom {
    fn reads_inputs(&self) -> bool {
        false
    }

    fn work_bytes(&self, _: &[Payload]) -> u64 {
        self.len_bytes
    }

    fn compute(&self, _: &[Payload], context: &TaskContext) -> Result<Payload, TaskError> {
        let too_large = || {
            TaskError::permanent(Diagnostic::new(
                Code::MemoryExceeded,
                format!(
                    "`bytes` was asked for {} bytes, but the worker has {} bytes of memory",
                    self.len_bytes, context.memory_bytes
                ),
            ))
        };
        if self.len_bytes > context.memory_bytes {
            return Err(too_large());
        }
        let len = usize::try_from(self.len_bytes).map_err(|_| too_large())?;
        if self.len_bytes >= SMALL_BYTES {
            // Until the worker holds it as a result.
            context.memory.grow(self.len_bytes);
        }
        let mut buffer = Vec::new();
        buffer.try_reserve_exact(len).map_err(|_| too_large())?;
        let mut state = self.seed;
        let mut block = [0_u8; BLOCK_BYTES];
        while buffer.len() < len {
            if context.cancelled.is_cancelled() {
                return Err(cancelled());
            }
            let step_end = len.min(buffer.len() + STEP_BYTES);
            while buffer.len() < step_end {
                state = fill(&mut block, state);
                let wanted = BLOCK_BYTES.min(step_end - buffer.len());
                buffer.extend_from_slice(&block[..wanted]);
            }
        }
        Ok(Payload::new(PayloadKind::Bytes, buffer))
    }
}

/// Fills a block and gives the state behind it.
fn fill(block: &mut [u8; BLOCK_BYTES], mut state: u64) -> u64 {
    for word in block.chunks_exact_mut(WORD_BYTES) {
        state = state.wrapping_add(GAMMA);
        word.copy_from_slice(&mix(state).to_le_bytes());
    }
    state
}

fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Body;
    use crate::operations::contiguous;
    use crate::operations::testing::{context, run, run_with};

    async fn buffer(len: u64, seed: u64) -> Vec<u8> {
        let body = Body::new("bytes").with("len", len).with("seed", seed);
        let result = run(body, &[]).await.unwrap();
        assert_eq!(result.kind, PayloadKind::Bytes);
        contiguous(&result).to_vec()
    }

    #[tokio::test]
    async fn is_the_documented_sequence() {
        let words: Vec<u64> = buffer(24, 0)
            .await
            .chunks(8)
            .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
            .collect();
        // The published first words of SplitMix64 with seed 0.
        assert_eq!(
            words,
            [
                0xE220_A839_7B1D_CDAF,
                0x6E78_9E6A_A1B9_65F4,
                0x06C4_5D18_8009_454F
            ]
        );
    }

    #[tokio::test]
    async fn has_any_length_and_depends_on_the_seed() {
        let long = buffer(3 * (1 << 20) + 13, 7).await;
        assert_eq!(long.len(), 3 * (1 << 20) + 13);
        for len in [
            0,
            1,
            7,
            8,
            9,
            BLOCK_BYTES,
            BLOCK_BYTES + 1,
            STEP_BYTES,
            STEP_BYTES + 5,
        ] {
            assert_eq!(buffer(len as u64, 7).await, long[..len]);
        }
        assert_ne!(buffer(64, 8).await, long[..64]);
        assert_eq!(buffer(16, u64::MAX).await, buffer(16, u64::MAX).await);
        assert_ne!(&long[..BLOCK_BYTES], &long[BLOCK_BYTES..2 * BLOCK_BYTES]);
    }

    #[tokio::test]
    async fn refuses_more_than_the_worker_has() {
        for len in [1_u64 << 41, u64::MAX] {
            let error = run(Body::new("bytes").with("len", len), &[])
                .await
                .unwrap_err();
            assert_eq!(error.diagnostic.code, Code::MemoryExceeded);
            assert!(!error.is_retryable);
        }
    }

    #[tokio::test]
    async fn ends_when_cancelled() {
        let context = context();
        context.cancelled.cancel();
        let body = Body::new("bytes").with("len", 1_u64 << 34);
        let error = run_with(body, vec![], context).await.unwrap_err();
        assert_eq!(error.diagnostic.code, Code::GraphCancelled);
    }
}
