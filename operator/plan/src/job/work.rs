//! Which work a job has.
//!
//! Owns what of it is operated.

use oxidask_operator_api::{JobSpec, Runtime};

use crate::PlanError;

/// Exactly one kind of work, and one that is operated.
pub(crate) fn check_work(spec: &JobSpec) -> Result<(), PlanError> {
    let kinds = [
        ("sql", spec.sql.is_some()),
        ("graph", spec.graph.is_some()),
        ("script", spec.script.is_some()),
        ("job", spec.job.is_some()),
    ];
    let given: Vec<&str> = kinds
        .iter()
        .filter(|(_, is)| *is)
        .map(|(kind, _)| *kind)
        .collect();
    let (work, file) = match given.as_slice() {
        ["sql"] => ("sql", spec.sql.as_ref().and_then(|sql| sql.file.as_ref())),
        ["graph"] => (
            "graph",
            spec.graph.as_ref().and_then(|graph| graph.file.as_ref()),
        ),
        ["script"] => (
            "script",
            spec.script.as_ref().and_then(|script| script.file.as_ref()),
        ),
        ["job"] => return Ok(()),
        kinds => return Err(PlanError::Work { count: kinds.len() }),
    };
    if file.is_some() {
        return Err(PlanError::WorkFile { work });
    }
    if spec.cluster.spec.runtime == Some(Runtime::Dask) {
        return Err(PlanError::RuntimeOfWork { work });
    }
    Ok(())
}
