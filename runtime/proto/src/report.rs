//! Reports of workers about attempts <-> the core's reports.

use std::sync::Arc;

use oxidask_core::{Attempt, TaskRef, TaskReport, WorkerId};
use oxidask_diagnostic::Diagnostic;

use crate::error::ProtoError;
use crate::wire::report::Outcome;
use crate::{ids, wire};

/// A report as the core takes it: task, attempt, what happened.
pub type AttemptReport = (TaskRef, Attempt, TaskReport);

/// A report as a worker sends it.
pub fn to_wire((task, attempt, report): AttemptReport) -> wire::Report {
    let outcome = match report {
        TaskReport::Started => Outcome::Started(wire::Empty {}),
        TaskReport::Finished {
            bytes,
            duration_micros,
            rows,
        } => Outcome::Finished(wire::Finished {
            bytes,
            duration_micros,
            rows,
        }),
        TaskReport::Failed {
            error,
            is_retryable,
        } => {
            let fault = Some(wire::Fault::from(Arc::unwrap_or_clone(error)));
            Outcome::Failed(wire::Failed {
                fault,
                is_retryable,
            })
        }
        TaskReport::InputsLost { lost } => {
            let lost = lost.into_iter().map(|(task, worker)| wire::LostInput {
                task: Some(task.into()),
                worker: worker.0,
            });
            Outcome::InputsLost(wire::InputsLost {
                lost: lost.collect(),
            })
        }
        TaskReport::Retracted => Outcome::Retracted(wire::Empty {}),
        TaskReport::Seceded => Outcome::Seceded(wire::Empty {}),
        TaskReport::Rejoined => Outcome::Rejoined(wire::Empty {}),
    };
    wire::Report {
        task: Some(task.into()),
        epoch: attempt.epoch,
        attempt: attempt.number,
        outcome: Some(outcome),
    }
}

/// A report as the core takes it.
pub fn from_wire(report: wire::Report) -> Result<AttemptReport, ProtoError> {
    let missing = |field| ProtoError::FieldMissing {
        message: "Report",
        field,
    };
    let task = ids::task(report.task, "Report")?;
    let attempt = Attempt {
        epoch: report.epoch,
        number: report.attempt,
    };
    let report = match report.outcome.ok_or_else(|| missing("outcome"))? {
        Outcome::Started(wire::Empty {}) => TaskReport::Started,
        Outcome::Finished(wire::Finished {
            bytes,
            duration_micros,
            rows,
        }) => TaskReport::Finished {
            bytes,
            duration_micros,
            rows,
        },
        Outcome::Failed(failed) => {
            let fault = failed.fault.ok_or_else(|| missing("fault"))?;
            let error = Arc::new(Diagnostic::from(fault));
            TaskReport::Failed {
                error,
                is_retryable: failed.is_retryable,
            }
        }
        Outcome::InputsLost(inputs) => {
            let convert = |lost: wire::LostInput| {
                Ok((ids::task(lost.task, "LostInput")?, WorkerId(lost.worker)))
            };
            let lost = inputs
                .lost
                .into_iter()
                .map(convert)
                .collect::<Result<_, ProtoError>>()?;
            TaskReport::InputsLost { lost }
        }
        Outcome::Retracted(wire::Empty {}) => TaskReport::Retracted,
        Outcome::Seceded(wire::Empty {}) => TaskReport::Seceded,
        Outcome::Rejoined(wire::Empty {}) => TaskReport::Rejoined,
    };
    Ok((task, attempt, report))
}

/// A batch of reports, in order.
pub fn batch_from_wire(reports: Vec<wire::Report>) -> Result<Vec<AttemptReport>, ProtoError> {
    reports.into_iter().map(from_wire).collect()
}

#[cfg(test)]
mod tests {
    use oxidask_core::{GraphId, TaskIndex};
    use oxidask_diagnostic::Code;
    use prost::Message;

    use super::*;

    #[test]
    fn every_report_comes_back() {
        let task = TaskRef {
            graph: GraphId(1),
            task: TaskIndex(2),
        };
        let error = Arc::new(Diagnostic::new(Code::TaskFailed, "no").with_cause("because"));
        let lost = vec![(
            TaskRef {
                task: TaskIndex(9),
                ..task
            },
            WorkerId(4),
        )];
        for report in [
            TaskReport::Started,
            TaskReport::Finished {
                bytes: u64::MAX,
                duration_micros: 5,
                rows: 7,
            },
            TaskReport::Failed {
                error: Arc::clone(&error),
                is_retryable: true,
            },
            TaskReport::Failed {
                error,
                is_retryable: false,
            },
            TaskReport::InputsLost { lost },
            TaskReport::Retracted,
        ] {
            let whole = (
                task,
                Attempt {
                    epoch: 1,
                    number: 2,
                },
                report,
            );
            let bytes = to_wire(whole.clone()).encode_to_vec();
            assert_eq!(
                from_wire(wire::Report::decode(&bytes[..]).unwrap()),
                Ok(whole)
            );
        }
    }

    #[test]
    fn incomplete_reports_are_refused() {
        let task = Some(wire::TaskId { graph: 1, task: 2 });
        let failed = Outcome::Failed(wire::Failed {
            fault: None,
            is_retryable: true,
        });
        for report in [
            wire::Report::default(),
            wire::Report {
                task,
                ..wire::Report::default()
            },
            wire::Report {
                task,
                outcome: Some(failed),
                ..wire::Report::default()
            },
        ] {
            assert!(matches!(
                from_wire(report),
                Err(ProtoError::FieldMissing { .. })
            ));
        }
    }
}
