//! One pair of files, joined piece by piece.
//!
//! One side is cut into pieces that fit; each is joined with all rows of the other side. A row of
//! the side that is cut meets everything that it may match, so it can come out by itself: the side
//! whose rows do so is the one that is cut. For a full join both are, one after the other.

use std::sync::Arc;

use datafusion::arrow::array::{RecordBatch, RecordBatchOptions, new_null_array};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::utils::memory::RecordBatchMemoryCounter;
use datafusion::common::{JoinType, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::joins::{HashJoinExec, PartitionMode};
use futures::{StreamExt, TryStreamExt, stream};

use super::leaves::LeafExec;
use super::{Parts, Rows, is_refusal};

/// A piece has at most this part of what was read before memory ran out: the join needs more than
/// the rows themselves.
const PIECE_DIVISOR: usize = 3;

/// Pieces are not made smaller than this.
const PIECE_BYTES_MIN: usize = 64 * 1024;

/// Joins what two files hold. Both sides must be readable several times.
pub(super) fn join(
    parts: &Arc<Parts>,
    partition: usize,
    context: &Arc<TaskContext>,
) -> Result<Rows> {
    let kept = parts.build.kept_bytes(parts.build_partition(partition));
    // What was read so far is in the file as well.
    drop(parts.build.take(parts.build_partition(partition))?);
    let budget = (kept / PIECE_DIVISOR).max(PIECE_BYTES_MIN);
    let passes: Vec<Result<Rows>> = passes(*parts.join.join_type())
        .iter()
        .map(|(cut, join_type, does_pad)| {
            let does_pad = *does_pad;
            let join = parts.join.builder().with_fetch(None).with_type(*join_type);
            // Rows that are filled up are cut to the columns afterwards.
            let join = if does_pad {
                join.with_projection(None)
            } else {
                join
            };
            let pass = Pass {
                join: join.reset_state().build()?,
                cut: *cut,
                context: Arc::clone(context),
            };
            let (parts, rows) = (Arc::clone(parts), pass.rows(budget)?);
            Ok(rows
                .map(move |batch| complete(&parts.join, &batch?, does_pad))
                .boxed())
        })
        .collect();
    let passes: Result<Vec<Rows>> = passes.into_iter().collect();
    Ok(stream::iter(passes?).flatten().boxed())
}

/// Which side is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    Build,
    Probe,
}

/// Which side is cut for which join, and whether columns of the other one are filled with nulls.
fn passes(join_type: JoinType) -> Vec<(Cut, JoinType, bool)> {
    match join_type {
        JoinType::Inner
        | JoinType::Left
        | JoinType::LeftSemi
        | JoinType::LeftAnti
        | JoinType::LeftMark => vec![(Cut::Build, join_type, false)],
        JoinType::Right | JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => {
            vec![(Cut::Probe, join_type, false)]
        }
        JoinType::Full => vec![
            (Cut::Build, JoinType::Left, false),
            (Cut::Probe, JoinType::RightAnti, true),
        ],
    }
}

/// Gives rows the columns of the join.
fn complete(join: &HashJoinExec, batch: &RecordBatch, does_pad: bool) -> Result<RecordBatch> {
    let rows = batch.num_rows();
    let mut columns = batch.columns().to_vec();
    if does_pad {
        let build = join.left().schema();
        let nulls = build
            .fields()
            .iter()
            .map(|field| new_null_array(field.data_type(), rows));
        columns = nulls.chain(columns).collect();
        if let Some(projection) = &join.projection {
            let projected = projection.iter().filter_map(|at| columns.get(*at).cloned());
            columns = projected.collect();
        }
    }
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(RecordBatch::try_new_with_options(
        join.schema(),
        columns,
        &options,
    )?)
}

/// One way through one of the sides.
struct Pass {
    join: HashJoinExec,
    cut: Cut,
    context: Arc<TaskContext>,
}

/// Where a pass is.
struct Progress {
    pass: Pass,
    rest: SendableRecordBatchStream,
    budget: usize,
    /// Pieces that were read; the last one is next.
    pieces: Vec<Vec<RecordBatch>>,
    piece: Vec<RecordBatch>,
    joined: Option<SendableRecordBatchStream>,
    has_given: bool,
}

impl Pass {
    fn cut_side(&self) -> &Arc<dyn ExecutionPlan> {
        match self.cut {
            Cut::Build => self.join.left(),
            Cut::Probe => self.join.right(),
        }
    }

    fn rows(self, budget: usize) -> Result<Rows> {
        let progress = Progress {
            rest: self.cut_side().execute(0, Arc::clone(&self.context))?,
            pass: self,
            budget,
            pieces: Vec::new(),
            piece: Vec::new(),
            joined: None,
            has_given: false,
        };
        let step = |mut progress: Progress| async move {
            let batch = progress.next().await?;
            Ok(batch.map(|batch| (batch, progress)))
        };
        Ok(stream::try_unfold(progress, step).boxed())
    }

    /// A piece as the build side, with all rows of the other side.
    fn join_piece(&self, piece: Vec<RecordBatch>) -> Result<SendableRecordBatchStream> {
        let schema: SchemaRef = self.cut_side().schema();
        let piece: Arc<dyn ExecutionPlan> = Arc::new(LeafExec::batches(schema, piece));
        let (left, right) = (Arc::clone(self.join.left()), Arc::clone(self.join.right()));
        let inputs = match self.cut {
            Cut::Build => vec![piece, right],
            Cut::Probe => vec![left, piece],
        };
        let mode = PartitionMode::CollectLeft;
        let join = self
            .join
            .builder()
            .reset_state()
            .with_new_children(inputs)?;
        let join = join.with_partition_mode(mode).build()?;
        let plan: Arc<dyn ExecutionPlan> = match self.cut {
            Cut::Build => Arc::new(join),
            Cut::Probe => join.swap_inputs(mode)?,
        };
        plan.execute(0, Arc::clone(&self.context))
    }
}

impl Progress {
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            let Some(joined) = &mut self.joined else {
                let read = self.pieces.pop();
                let Some(piece) = (match read {
                    Some(piece) => Some(piece),
                    None => self.read_piece().await?,
                }) else {
                    return Ok(None);
                };
                self.joined = Some(self.pass.join_piece(piece.clone())?);
                (self.piece, self.has_given) = (piece, false);
                continue;
            };
            match joined.next().await {
                Some(Ok(batch)) => {
                    self.has_given = true;
                    return Ok(Some(batch));
                }
                Some(Err(error)) if is_refusal(&error) && self.can_halve() => self.halve(),
                Some(Err(error)) => return Err(error),
                None => {
                    self.joined = None;
                    self.piece.clear();
                }
            }
        }
    }

    fn can_halve(&self) -> bool {
        !self.has_given && self.piece.len() > 1
    }

    fn halve(&mut self) {
        self.joined = None;
        self.budget = (self.budget / 2).max(PIECE_BYTES_MIN);
        let mut first = std::mem::take(&mut self.piece);
        let second = first.split_off(first.len() / 2);
        self.pieces.extend([second, first]);
    }

    async fn read_piece(&mut self) -> Result<Option<Vec<RecordBatch>>> {
        let (mut piece, mut counter) = (Vec::new(), RecordBatchMemoryCounter::new());
        while counter.memory_usage() < self.budget {
            let Some(batch) = self.rest.try_next().await? else {
                break;
            };
            counter.count_batch(&batch);
            piece.push(batch);
        }
        Ok((!piece.is_empty()).then_some(piece))
    }
}
