//! Times that people wait for, measured with the tools that people use.
//!
//! Nothing else should run meanwhile. Images are present after the first, unmeasured run.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::kubectl::Kubectl;
use crate::process::failure;
use crate::settings::Settings;
use crate::{Outcome, dask, namespace, say};

/// Measures and prints all figures.
pub(crate) fn measure(settings: &Settings) -> Outcome {
    let kubectl = namespace::create(settings, "figures")?;
    let measured = measure_in(settings, &kubectl);
    namespace::delete(&kubectl);
    measured?;
    namespace::wait_gone(settings, &[kubectl.namespace().to_owned()])
}

fn measure_in(settings: &Settings, kubectl: &Kubectl) -> Outcome {
    let mut ready = Vec::new();
    let mut first = Vec::new();
    let mut over = Vec::new();
    for run in 0..=settings.runs {
        let cluster = cluster_ready(kubectl, &format!("cluster-{run}"))?;
        let job = job_times(kubectl, &format!("job-{run}"))?;
        // The first run makes the images and caches warm.
        if run > 0 {
            ready.push(cluster);
            first.push(job.first_result);
            over.push(job.successful);
        }
    }
    say!("seconds, median of {} runs, least and most:", settings.runs);
    line("apply of a cluster of 2 workers to Ready", ready);
    line("apply of a job of 2 workers to its first task's end", first);
    line("apply of that job to Successful", over);
    Ok(())
}

/// From the start of `kubectl apply` to the end of `kubectl wait`.
fn cluster_ready(kubectl: &Kubectl, name: &str) -> Outcome<Duration> {
    let start = Instant::now();
    dask::start_cluster(kubectl, name, 2)?;
    let took = start.elapsed();
    let object = format!("daskcluster/{name}");
    kubectl.run_long(
        &["delete", &object, "--cascade=foreground"],
        dask::GONE_SECONDS_MAX,
    )?;
    Ok(took)
}

struct JobTimes {
    /// To the line in the runner's log with the result of its only task, which is later than that
    /// task's start.
    first_result: Duration,
    /// To the end of `kubectl wait` for the job's status.
    successful: Duration,
}

fn job_times(kubectl: &Kubectl, name: &str) -> Outcome<JobTimes> {
    let tasks = json!({"tasks": [{"key": "first", "op": "value", "args": {"value": 1}}]});
    let manifest = dask::job(name, 2, &tasks);
    let (start, clock) = (Instant::now(), SystemTime::now());
    kubectl.apply(&manifest)?;
    let object = format!("daskjob/{name}");
    let state = "--for=jsonpath={.status.jobStatus}=Successful";
    kubectl.run_long(&["wait", state, &object], dask::JOB_SECONDS_MAX)?;
    let successful = start.elapsed();
    let log = kubectl.run(&["logs", "--timestamps", &format!("{name}-runner")])?;
    let line = log
        .lines()
        .find(|line| line.contains("\"first\""))
        .ok_or_else(|| failure(format!("no result in the log:\n{log}")))?;
    let printed = line.split_whitespace().next().and_then(since_1970);
    let printed = printed.ok_or_else(|| failure(format!("no time in `{line}`")))?;
    let applied = clock.duration_since(UNIX_EPOCH)?;
    dask::wait_only_job_left(kubectl, name)?;
    Ok(JobTimes {
        first_result: printed.saturating_sub(applied),
        successful,
    })
}

fn line(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |index: usize| times.get(index).map_or(0.0, Duration::as_secs_f64);
    let last = times.len().saturating_sub(1);
    say!(
        "  {what:<54} {:>6.2}  ({:.2} to {:.2})",
        at(last / 2),
        at(0),
        at(last)
    );
}

/// A time such as `2026-01-02T03:04:05.678Z` or with `+00:00`, as kubelets write it.
fn since_1970(text: &str) -> Option<Duration> {
    let (date, time) = text.split_once('T')?;
    let time = time
        .strip_suffix('Z')
        .or_else(|| time.strip_suffix("+00:00"))?;
    let mut date = date.splitn(3, '-').map(str::parse::<u64>);
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    let mut parts = time.splitn(3, ':');
    let hours: u64 = parts.next()?.parse().ok()?;
    let minutes: u64 = parts.next()?.parse().ok()?;
    let seconds: f64 = parts.next()?.parse().ok()?;
    // Years that begin in March put the odd day at the end.
    let (year, month) = if month < 3 {
        (year - 1, month + 9)
    } else {
        (year, month - 3)
    };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day;
    let days = days.checked_sub(719_469)?;
    let whole = Duration::from_secs((days * 24 + hours) * 3_600 + minutes * 60);
    Some(whole + Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:00:01+00:00", 951_825_601),
            ("2026-11-21T16:17:31Z", 1_795_277_851),
        ] {
            assert_eq!(
                since_1970(text),
                Some(Duration::from_secs(seconds)),
                "{text}"
            );
        }
        let fraction = since_1970("1970-01-01T00:00:01.25Z");
        assert_eq!(fraction, Some(Duration::from_millis(1_250)));
        assert_eq!(since_1970("yesterday"), None);
    }
}
