//! Operations that make slices and read them while they run.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use oxidask_exec::{Body, Executor, Piece, PieceRequest, Program, TaskContext, TaskError, WHOLE};
use oxidask_store::{Payload, PayloadKind};

/// `slices`: some slices of some length, whose bytes depend on seed and slice.
/// `gather`: slice `part` of all streamed inputs, one after the other, in pages.
pub(crate) struct Streaming;

enum StreamingProgram {
    Slices {
        count: u32,
        len: usize,
        seed: u64,
    },
    Gather {
        page_bytes: u64,
        /// Between two pages.
        pause: Duration,
        is_whole: bool,
        consumes: bool,
        /// Takes this much memory and never gives it back.
        takes_bytes: u64,
        /// Only the number of bytes.
        counts: bool,
        panics: bool,
        /// So many of the last inputs are not read.
        skips: u32,
    },
}

/// What a slice of a seed holds.
pub(crate) fn slice_content(seed: u64, slice: u32, len: usize) -> Vec<u8> {
    let mut state = (seed << 20) + u64::from(slice) * 2 + 1;
    let mut content = Vec::with_capacity(len + 8);
    while content.len() < len {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        content.extend_from_slice(&state.to_le_bytes());
    }
    content.truncate(len);
    content
}

impl Executor for Streaming {
    fn operations(&self) -> &'static [&'static str] {
        &["slices", "gather"]
    }

    fn prepare(&self, body: &Body) -> Result<Arc<dyn Program>, TaskError> {
        let number = |name: &str| {
            let value = body.args.get(name).and_then(serde_json::Value::as_u64);
            value.unwrap_or_default()
        };
        Ok(Arc::new(match body.op.as_str() {
            "slices" => StreamingProgram::Slices {
                count: u32::try_from(number("count")).unwrap(),
                len: usize::try_from(number("len")).unwrap(),
                seed: number("seed"),
            },
            _ => StreamingProgram::Gather {
                page_bytes: match number("page") {
                    0 => u64::MAX,
                    bytes => bytes,
                },
                pause: Duration::from_millis(number("pause_ms")),
                is_whole: number("whole") == 1,
                consumes: number("consume") == 1,
                takes_bytes: number("take"),
                counts: number("counts") == 1,
                panics: number("panic") == 1,
                skips: u32::try_from(number("skip")).unwrap(),
            },
        }))
    }
}

impl Program for StreamingProgram {
    fn run(
        self: Arc<Self>,
        given: Vec<Payload>,
        context: TaskContext,
    ) -> BoxFuture<'static, Result<Payload, TaskError>> {
        async move {
            match *self {
                Self::Slices { count, len, seed } => {
                    let slices = (0..count)
                        .map(|slice| vec![Bytes::from(slice_content(seed, slice, len))])
                        .collect();
                    Ok(Payload::from_slices(slices))
                }
                Self::Gather {
                    page_bytes,
                    pause,
                    is_whole,
                    consumes,
                    takes_bytes,
                    counts,
                    panics,
                    skips,
                } => {
                    context.memory.grow(takes_bytes);
                    assert!(!panics, "as it was told");
                    let slice = if is_whole { WHOLE } else { context.part };
                    let count = context.streams.count() - skips;
                    let read = gather(&context, count, slice, page_bytes, pause).await?;
                    if consumes {
                        for input in 0..count {
                            context.streams.consumed(input, slice);
                        }
                    }
                    let given = given.into_iter().flat_map(|payload| payload.parts);
                    let parts: Vec<_> = read.into_iter().flatten().chain(given).collect();
                    if counts {
                        let bytes: usize = parts.iter().map(Bytes::len).sum();
                        return Ok(Payload::new(PayloadKind::Value, bytes.to_string()));
                    }
                    Ok(Payload {
                        kind: PayloadKind::Bytes,
                        parts,
                    })
                }
            }
        }
        .boxed()
    }
}

/// One slice of the first inputs, by input.
async fn gather(
    context: &TaskContext,
    count: u32,
    slice: u32,
    page_bytes: u64,
    pause: Duration,
) -> Result<Vec<Vec<Bytes>>, TaskError> {
    let mut read = vec![Vec::new(); count as usize];
    let mut open: Vec<(u32, u64)> = (0..count).map(|input| (input, 0)).collect();
    while !open.is_empty() {
        let requests = open.iter().map(|(input, offset)| PieceRequest {
            input: *input,
            slice,
            offset: *offset,
            bytes_max: page_bytes,
        });
        let pieces = context.streams.read(requests.collect()).await?;
        assert_eq!(pieces.len(), open.len());
        let has_come = pieces.iter().any(|piece| !piece.parts.is_empty());
        let mut left = Vec::new();
        for ((input, offset), Piece { slice_bytes, parts }) in open.into_iter().zip(pieces) {
            let bytes: u64 = parts.iter().map(|part| part.len() as u64).sum();
            assert!(bytes <= page_bytes);
            read[input as usize].extend(parts);
            if offset + bytes < slice_bytes {
                left.push((input, offset + bytes));
            }
        }
        assert!(left.is_empty() || has_come, "no progress");
        open = left;
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }
    Ok(read)
}
