//! What a case is, and running all of them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::kubectl::Kubectl;
use crate::process::failure;
use crate::report::Report;
use crate::settings::Settings;
use crate::{Outcome, cases, dump, namespace, say};

/// One behaviour.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    /// The name of its file.
    pub(crate) name: &'static str,
    /// The behaviour, in a line.
    pub(crate) about: &'static str,
    /// The steps.
    pub(crate) run: fn(&Context) -> Outcome,
}

/// What a case has to work with.
#[derive(Debug)]
pub(crate) struct Context {
    /// `kubectl` in a namespace of the case's own.
    pub(crate) kubectl: Kubectl,
    /// The arguments of this program.
    pub(crate) settings: Settings,
}

/// Runs the cases that the filter names. Whether all of them passed.
pub(crate) fn run_all(settings: &Settings) -> Outcome<bool> {
    let wanted = |case: &&Case| {
        let mut parts = settings.filter.split(',');
        parts.any(|part| case.name.contains(part))
    };
    let together: Vec<&Case> = cases::SIDE_BY_SIDE.iter().filter(wanted).collect();
    let alone: Vec<&Case> = cases::ALONE.iter().filter(wanted).collect();
    if together.is_empty() && alone.is_empty() {
        return Err(failure(format!(
            "no case has one of `{}` in its name",
            settings.filter
        )));
    }
    let start = Instant::now();
    let report = Report::new();
    let namespaces = Mutex::new(Vec::new());
    side_by_side(settings, &together, &report, &namespaces);
    for case in alone {
        run_one(settings, case, &report, &namespaces);
    }
    let namespaces = namespaces.into_inner().unwrap_or_default();
    let gone = namespace::wait_gone(settings, &namespaces);
    if let Err(error) = &gone {
        report.failed("namespaces", start.elapsed(), error, None);
    }
    say!(
        "cases and their namespaces: {} s",
        start.elapsed().as_secs()
    );
    Ok(report.close())
}

fn side_by_side(
    settings: &Settings,
    cases: &[&Case],
    report: &Report,
    namespaces: &Mutex<Vec<String>>,
) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..settings.jobs.min(cases.len()) {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    run_one(settings, case, report, namespaces);
                }
            });
        }
    });
}

fn run_one(settings: &Settings, case: &Case, report: &Report, namespaces: &Mutex<Vec<String>>) {
    let start = Instant::now();
    let kubectl = match namespace::create(settings, case.name) {
        Ok(kubectl) => kubectl,
        Err(error) => return report.failed(case.name, start.elapsed(), &error, None),
    };
    if let Ok(mut namespaces) = namespaces.lock() {
        namespaces.push(kubectl.namespace().to_owned());
    }
    let context = Context {
        kubectl,
        settings: settings.clone(),
    };
    // A defect of one case must not end the others.
    let outcome = catch_unwind(AssertUnwindSafe(|| (case.run)(&context)))
        .unwrap_or_else(|_| Err(failure("the case itself panicked")));
    match outcome {
        Ok(()) => report.passed(case.name, start.elapsed()),
        Err(error) => {
            let seconds = start.elapsed();
            let kept = dump::keep(&context, case.name);
            report.failed(case.name, seconds, &error, Some(&kept));
        }
    }
    namespace::delete(&context.kubectl);
}
