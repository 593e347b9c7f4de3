//! The list of codes: one line each, with the name, the title and the hint.

use std::fmt;
use std::str::FromStr;

macro_rules! codes {
    ($($variant:ident = $number:literal, $title:literal, $hint:literal;)*) => {
        /// A stable error code. Codes are added, never renumbered; the docs hold a page for each.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code {
            $(#[doc = $title] $variant,)*
        }

        impl Code {
            /// Every code, in order of its number.
            pub const ALL: &'static [Code] = &[$(Code::$variant,)*];

            /// The number behind `OX`.
            pub fn number(self) -> u16 {
                match self { $(Code::$variant => $number,)* }
            }

            /// What the code means, in one line.
            pub fn title(self) -> &'static str {
                match self { $(Code::$variant => $title,)* }
            }

            /// What to do when an error says nothing more precise.
            pub fn hint(self) -> &'static str {
                match self { $(Code::$variant => $hint,)* }
            }
        }
    };
}

codes! {
    // Manifests and clusters.
    ManifestUnreadable = 101, "the file cannot be read",
        "check the path and that the file is UTF-8 text below the size limit";
    ManifestSyntax = 102, "the manifest is not valid YAML",
        "check the indentation and the quotes at the place that is named";
    ManifestKind = 103, "the manifest is not of the kind that this command runs",
        "use `apiVersion: kubernetes.dask.org/v1` and one object of kind DaskJob or DaskCluster";
    ManifestField = 104, "the manifest has an unknown field",
        "correct the field's name, or remove it";
    ManifestValue = 105, "a field of the manifest has a value that is not allowed",
        "correct the value at the path that is named";
    ManifestWork = 106, "a job says its work in not exactly one way",
        "give exactly one of sql, graph, script or job, from exactly one source";
    WorkUnavailable = 107, "the work cannot be run here",
        "run the manifest on a cluster with `kubectl apply`";
    ClusterStart = 110, "the local cluster could not be started",
        "look at the messages above; is a port in use, or the disk full?";
    WorkersKeepDying = 111, "worker processes ended again and again",
        "look for the last lines of the workers above; is there enough memory?";
    SchedulerEnded = 112, "the scheduler ended",
        "run the job again; if it ends again, run with `--log-level debug`";
    SchedulerUnreachable = 113, "the scheduler cannot be reached",
        "check the address, that the cluster is up, and the certificates in --tls-dir";
    Interrupted = 114, "the run was interrupted",
        "start it again when you are ready";
    OutputFailed = 115, "the output cannot be written",
        "check the disk and the program that reads the output";
    // Graphs and SQL.
    GraphSyntax = 201, "a line of the graph is not a task",
        "each line is one JSON object with `key` and `op`; see the page on graph files";
    KeyDuplicate = 202, "a key is defined twice",
        "give each task a key of its own";
    InputUndefined = 203, "a task reads a key that no line defines",
        "define the key, or correct its name";
    GraphCycle = 204, "tasks wait for each other in a circle",
        "remove one of the inputs that close the circle";
    OperationUnknown = 205, "an operation or one of its arguments is unknown or wrong",
        "see the page on graph files for the operations and their arguments";
    LimitPassed = 206, "a limit is passed",
        "split the work into smaller parts";
    Unplaceable = 207, "no worker offers what a task asks for",
        "add a worker group that offers it, or correct the task's resources or workers";
    TaskFailed = 208, "a task failed",
        "the message says why; `retries` tries a task again";
    CommandFailed = 210, "the program of an exec task failed",
        "the last lines of its standard error are above; run it by hand in the same folder";
    TaskTimeout = 211, "a task took longer than its limit",
        "raise timeoutSeconds, or make the task smaller";
    SqlSyntax = 220, "the SQL text is not valid",
        "correct the statement at the place that is named";
    SqlPlan = 221, "the SQL statement names something that does not exist or does not fit",
        "check the names of tables, columns and functions, and their types";
    SqlUnsupported = 222, "the SQL statement is not supported",
        "use CREATE EXTERNAL TABLE, CREATE VIEW, queries and COPY … TO";
    DataUnreadable = 223, "data cannot be read",
        "check that the location exists and that its content fits the format";
    DataUnwritable = 224, "data cannot be written",
        "check the folder, its permissions and the free space; an existing output is never overwritten";
    QueryFailed = 225, "a query failed while it ran",
        "the message says why; check the values that the expression meets";
    DataChanged = 226, "data changed while a query was at work",
        "run it again; do not write to the files of a query before it is done";
    // Workers and data.
    MemoryExceeded = 301, "a result does not fit into the worker's memory",
        "raise the worker's memory limit, or make the task's result smaller";
    TaskPanicked = 302, "a task panicked",
        "this is a defect of the operation; please report it with the message";
    TaskKilledWorkers = 303, "a task was running each time its worker died",
        "look at the workers' last lines; does the task need more memory?";
    ResultUnavailable = 304, "a result is not available",
        "it was released or its graph has ended; run the work again";
    WorkerDisk = 305, "a worker cannot use its disk",
        "free some space, or give the worker another working folder";
    PeerTooSlow = 306, "a peer did not read what it was sent",
        "the connection was closed to keep memory bounded; read faster or ask for less";
    WorkerRefused = 307, "a worker was refused by the scheduler",
        "give each worker a name of its own, or wait until the old one has gone";
    ProtocolMismatch = 308, "two programs do not speak the same protocol",
        "upgrade in this order: operator, scheduler, workers; and the clients with them";
    GraphCancelled = 309, "the graph was cancelled",
        "submit it again if this was not intended";
    SpillDamaged = 310, "a result that a worker had moved to its disk is damaged",
        "the result is computed again by itself; check the disk of the worker";
    // TLS and identity.
    CertificateFiles = 401, "the certificate files cannot be used",
        "the folder of --tls-dir needs ca.crt, tls.crt and tls.key of this cluster";
    CertificateRejected = 402, "a certificate was rejected",
        "use a valid certificate from this cluster's authority";
    IdentityRejected = 403, "a peer is not who it should be",
        "use the certificates of this cluster and of the right role";
    CallForbidden = 404, "the role of the caller does not allow this call",
        "use the certificate of a role that may do this; see the page on identities";
    // The operator.
    NotOperated = 501, "the operator does not operate this yet",
        "leave the field out, or use a later version";
    ObjectName = 502, "a name does not fit",
        "make the object again with a shorter name of lower-case letters, digits and `-`";
    PodTemplate = 503, "a part of a pod or Service cannot be used",
        "give the field at the path that is named the form that Kubernetes gives it";
    ObjectTaken = 504, "an object of the same name belongs to somebody else",
        "delete that object if nobody needs it, or use another name";
    PodCannotStart = 505, "a pod cannot start",
        "look at the pod with `kubectl describe pod`; the operator goes on by itself";
    RunnerFailed = 506, "the runner of a job failed",
        "read its log with `kubectl logs JOB-runner`";
    RunnerLost = 507, "the runner of a job was lost too often",
        "look for nodes that go away or evict pods, then create the job again";
    // The operator.
    OperatorRefused = 520, "the API server refused a request of the operator",
        "give the operator's service account the rights that the chart lists: upgrade the release with `rbac.create=true`";
    CustomResourcesMissing = 521, "the custom resources are not installed",
        "install the chart `oxidask-crds`, or run `oxidask-operator crds | kubectl apply --server-side -f -`";
    ApiServerUnreachable = 522, "the API server cannot be reached or does not answer",
        "check that the API server runs and that network policies let the operator's pod reach it";
    OperatorConfiguration = 523, "the operator cannot start as it is configured",
        "check the flags, the environment and, outside a cluster, the kubeconfig";
    ObjectRejected = 524, "the API server rejected an object of the operator",
        "look at the message: a quota, an admission policy or a value in the pod template of the manifest is the usual cause";
    ObjectUnreadable = 525, "an object of ours cannot be read",
        "correct the object at the place that the message names";
    OperatorCertificates = 526, "the certificates of a cluster cannot be made",
        "look at the Secret that is named; deleting it makes the operator create it again";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OX{:03}", self.number())
    }
}

/// The text is not one of the codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownCode;

impl FromStr for Code {
    type Err = UnknownCode;

    fn from_str(text: &str) -> Result<Self, UnknownCode> {
        let number = text
            .strip_prefix("OX")
            .and_then(|digits| digits.parse::<u16>().ok());
        let number = number.ok_or(UnknownCode)?;
        let found = Self::ALL.iter().find(|code| code.number() == number);
        found.copied().ok_or(UnknownCode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_and_ordered_and_parse_back() {
        assert!(Code::ALL.is_sorted_by(|a, b| a.number() < b.number()));
        for code in Code::ALL {
            assert_eq!(code.to_string().parse(), Ok(*code));
        }
        assert_eq!("OX999".parse::<Code>(), Err(UnknownCode));
        assert_eq!("203".parse::<Code>(), Err(UnknownCode));
    }
}
