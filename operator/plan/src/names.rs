//! Names that follow from a cluster's, a group's or a job's name.
//!
//! Owns every such name and the check that they fit. Invariant: after the check, each name of a
//! pod, a Service or a group and each label value is a DNS label of at most 63 bytes.

use oxidask_operator_api::CLUSTER_NAME_BYTES_MAX;
use sha2::{Digest, Sha256};

use crate::PlanError;
use oxidask_identity::Role;

/// Bytes of a DNS label and of a label's value.
pub const LABEL_BYTES_MAX: usize = 63;

/// The group of `spec.worker`.
pub const DEFAULT_GROUP: &str = "default";

/// Hex digits that tell the pods of a group apart.
const POD_DIGITS: usize = 10;

/// Bytes that the minute of a run takes in its name, with the dash; enough until the year 3871.
const MINUTE_BYTES: usize = 10;

/// The port of a scheduler's Service for workers and clients.
pub const COMM_PORT: i32 = 8786;

/// Of the Service and the Deployment of a scheduler.
pub fn scheduler(cluster: &str) -> String {
    format!("{cluster}-scheduler")
}

/// The scheduler's host, as pods in any namespace resolve it.
pub fn scheduler_host(cluster: &str, namespace: &str) -> String {
    format!("{cluster}-scheduler.{namespace}.svc")
}

/// Where workers and clients find the scheduler.
pub fn scheduler_address(cluster: &str, namespace: &str) -> String {
    format!(
        "oxidask://{}:{COMM_PORT}",
        scheduler_host(cluster, namespace)
    )
}

/// Of the claim for the volume of a scheduler's journal.
pub fn journal_claim(cluster: &str) -> String {
    format!("{cluster}-journal")
}

/// The names that foreign tools look for in the scheduler's certificate.
pub fn scheduler_dns_names(cluster: &str, namespace: &str) -> Vec<String> {
    let name = scheduler(cluster);
    vec![
        name.clone(),
        format!("{name}.{namespace}"),
        format!("{name}.{namespace}.svc"),
    ]
}

/// Of the `DaskWorkerGroup` of a group.
pub fn group(cluster: &str, group: &str) -> String {
    format!("{cluster}-{group}")
}

/// The name of a group within its cluster. A group that a user made need not start with the
/// cluster's name.
pub fn short_group<'a>(cluster: &str, group: &'a str) -> &'a str {
    let short = group
        .strip_prefix(cluster)
        .and_then(|rest| rest.strip_prefix('-'))
        .filter(|short| !short.is_empty());
    short.unwrap_or(group)
}

/// Of the Secret with the authority of a cluster; never mounted.
pub fn authority_secret(cluster: &str) -> String {
    format!("{cluster}-ca")
}

/// Of the Secret with a role's certificate.
pub fn certificate_secret(cluster: &str, role: Role) -> String {
    format!("{cluster}-tls-{role}")
}

/// Of the Secret with the tokens of the scheduler's HTTP port.
pub fn http_token_secret(cluster: &str) -> String {
    format!("{cluster}-http-token")
}

/// Of the network policy of a cluster.
pub fn network_policy(cluster: &str) -> String {
    format!("{cluster}-dask")
}

/// Of the pod that submits the work of a job.
pub fn runner(job: &str) -> String {
    format!("{job}-runner")
}

/// Of the `ConfigMap` with the work of a job.
pub fn work(job: &str) -> String {
    format!("{job}-work")
}

/// Candidate `index` for a worker pod of the group. The digits follow from the group's UID, so
/// that two groups whose long names are cut alike differ, and planning twice gives the same names.
pub fn worker_pod(group: &str, group_uid: &str, index: u64) -> String {
    const MIDDLE: &str = "-worker-";
    let mut hasher = Sha256::new();
    hasher.update(group_uid.as_bytes());
    hasher.update(b"/");
    hasher.update(index.to_be_bytes());
    let digits = crate::hash::hex(&hasher.finalize(), POD_DIGITS);
    let room = LABEL_BYTES_MAX - MIDDLE.len() - POD_DIGITS;
    let start = group.get(..room).unwrap_or(group).trim_end_matches('-');
    format!("{start}{MIDDLE}{digits}")
}

/// Checks the name of a cluster or a job.
pub fn check(what: &'static str, name: &str) -> Result<(), PlanError> {
    check_bytes(what, name, CLUSTER_NAME_BYTES_MAX)
}

/// Checks the name of a job with a schedule: its runs have longer ones.
pub fn check_schedule(name: &str) -> Result<(), PlanError> {
    check_bytes("schedule", name, CLUSTER_NAME_BYTES_MAX - MINUTE_BYTES)
}

/// Checks the name of a `DaskWorkerGroup`.
pub fn check_group(name: &str) -> Result<(), PlanError> {
    check_bytes("worker group", name, LABEL_BYTES_MAX)
}

fn check_bytes(what: &'static str, name: &str, bytes_max: usize) -> Result<(), PlanError> {
    let failed = |problem: String| PlanError::Name {
        what,
        name: name.to_owned(),
        problem,
    };
    if name.len() > bytes_max {
        let problem = format!("has {} bytes, but at most {bytes_max} fit", name.len());
        return Err(failed(problem));
    }
    if !name
        .bytes()
        .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    {
        let problem = "has characters other than lower-case letters, digits and `-`";
        return Err(failed(problem.to_owned()));
    }
    if name.is_empty() || name.starts_with('-') || name.ends_with('-') {
        let problem = "does not start and end with a letter or a digit";
        return Err(failed(problem.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_fit() {
        for name in ["a", "0", "a-b", &"x".repeat(53)] {
            assert!(check("cluster", name).is_ok(), "{name}");
        }
        for name in ["", "-a", "a-", "a.b", "A", "a_b", "ä", &"x".repeat(54)] {
            assert!(check("cluster", name).is_err(), "{name}");
        }
    }

    #[test]
    fn pod_names_are_cut_and_stay_apart() {
        let long = "x".repeat(63);
        let name = worker_pod(&long, "u", 0);
        assert_eq!(name.len(), 63);
        assert_ne!(name, worker_pod(&long, "u", 1));
        assert_ne!(name, worker_pod(&long, "v", 0));
        assert_eq!(name, worker_pod(&long, "u", 0));
        let dashed = format!("{}-{}", "x".repeat(44), "y".repeat(10));
        assert!(!worker_pod(&dashed, "u", 0).contains("--"));
        assert!(worker_pod("a-default", "u", 0).starts_with("a-default-worker-"));
    }

    #[test]
    fn short_names() {
        assert_eq!(short_group("a", "a-default"), "default");
        assert_eq!(short_group("a", "ab-default"), "ab-default");
        assert_eq!(short_group("a", "a-"), "a-");
    }
}
