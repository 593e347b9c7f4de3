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
    GraphForgotten = 311, "the scheduler does not know a graph any more",
        "run the work again; keep the scheduler's journal on a volume that outlives its pod";
    MemoryRanOut = 312, "a task was ended because the memory of its worker ran out",
        "give the workers more memory, let fewer tasks run at a time (threads), or make the task smaller";
    // The journal.
    JournalLocked = 320, "the journal is in use by another process",
        "end the other scheduler, or give this one a folder of its own";
    JournalDamaged = 321, "the journal is damaged",
        "restore the folder from a copy, or move it away to start without its graphs";
    JournalMissing = 322, "a part of the journal is missing",
        "put the file back, or move the folder away to start without its graphs";
    JournalFormat = 323, "the journal was written by a version that this one does not read",
        "start the version that wrote it, or one between the two";
    JournalForeign = 324, "the journal belongs to another cluster",
        "give each cluster a folder of its own";
    JournalDiskFull = 325, "the disk of the journal is full",
        "free some space or enlarge the volume; the scheduler goes on by itself";
    JournalUnusable = 326, "the journal cannot be read or written",
        "check the folder, its permissions and the disk";
    JournalBehind = 327, "the journal cannot keep up",
        "wait, or give the journal a faster disk";
    // Futures of clients of Dask.
    SubmissionRefused = 340, "tasks or a client of Dask are refused",
        "correct what the message names; smaller parts by several calls of `submit` pass limits";
    RequirementsExhausted = 341, "tasks of Dask clients ask for too many different things",
        "use fewer different combinations of `workers=` and `resources=`, or release the futures";
    QuestionRefused = 342, "the scheduler does not answer this operation of Dask",
        "use an operation that the page on coming from Dask names, or update both sides";
    QuestionTimedOut = 343, "the scheduler did not answer in time",
        "ask again with a longer timeout";
    // Futures of clients of Dask.
    UploadLost = 344, "a value that a client gave is lost",
        "scatter it again: nothing else can make it";
    CoordinationUnreadable = 345, "a question of a client cannot be read",
        "use the client package of the same version as the cluster";
    CoordinationFull = 346, "clients coordinate by more than the scheduler holds",
        "give names, queues and variables back that nobody needs; scatter large values and share their futures";
    WorkerCommandFailed = 347, "a worker did not carry out a command",
        "see what the message names; a worker that died or was too slow can be asked again";
    UploadRefused = 348, "no worker takes a value that a client gave",
        "give the workers more memory, add workers, or scatter it in smaller parts";
    // Python.
    PythonDied = 349, "the process that ran a task of Python ended",
        "look at the last lines that it printed; is there a library in it that crashes, or too little memory?";
    PythonStart = 350, "Python cannot be started on a worker",
        "give the workers an image with Python 3.11 or later, dask and this package, or name the program in OXIDASK_PYTHON";
    PythonValue = 351, "the result of a task of Python cannot be sent",
        "return data, not something that is bound to its process, such as an open file, a lock or a generator";
    ClusterNotFound = 352, "no cluster was found",
        "start one with `oxidask up` or oxidask.LocalCluster(), set OXIDASK_SCHEDULER and OXIDASK_TLS_DIR, or name one on Kubernetes";
    VersionsDiffer = 353, "client and workers have versions that do not fit",
        "give the workers an image with the same Python and packages as the client";
    ScriptFailed = 354, "the Python program failed",
        "its own messages stand above";
    PythonMissing = 355, "there is no Python that can run this",
        "install Python 3.11 or later with the packages dask, distributed and oxidask, or name another one with --python; in pods, give the workers an image that has Python and dask";
    // TLS and identity.
    CertificateFiles = 401, "the certificate files cannot be used",
        "the folder of --tls-dir needs ca.crt, tls.crt and tls.key of this cluster";
    CertificateRejected = 402, "a certificate was rejected",
        "use a valid certificate from this cluster's authority";
    IdentityRejected = 403, "a peer is not who it should be",
        "use the certificates of this cluster and of the right role";
    CallForbidden = 404, "the role of the caller does not allow this call",
        "use the certificate of a role that may do this; see the page on identities";
    TokenRejected = 405, "the HTTP port wants another token",
        "send the header `Authorization: Bearer TOKEN` with the token of this cluster";
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
    ScheduleInvalid = 527, "a schedule cannot be followed",
        "give `schedule` as five fields such as `0 3 * * mon-fri`, and `timeZone` by its name such as `Europe/Berlin`";
    AuthoritySecret = 530, "a Secret holds no usable authority",
        "give `tls.crt` a certificate that may issue others (`CA:TRUE`) and `tls.key` its key, both PEM; or leave `spec.tls.caSecretRef` out, and the operator makes an authority";
    RotationWaits = 531, "a rotation of the authority waits for a pod",
        "look whether that pod works; a pod that does not say which certificates it uses has to be replaced";
    IssuerMissing = 532, "cert-manager is not installed",
        "install cert-manager, or leave `spec.tls.issuerRef` out";
    IssuerFailed = 533, "cert-manager has not issued a certificate",
        "look at the Certificate with `kubectl describe certificate`; the issuer has to be one that gives `ca.crt` and allows URI names";
    DriftKept = 534, "somebody changes an object of the operator again and again",
        "find who changes it, usually an admission webhook or another controller, and exempt the object; the operator tries again after an hour";
    // The runtime Dask.
    DaskImage = 540, "a pod of the runtime Dask has no image",
        "give `image`, or an `image` in the pod spec's container";
    DaskNotDrained = 541, "a Dask worker was deleted before it was drained",
        "give more time with the annotation `kubernetes.dask.org/drain-deadline-seconds`, or leave a worker that can take its results";
    ForeignDefinitions = 546, "the custom resources are installed, but not ours",
        "install the chart `oxidask-crds`, or run `oxidask-operator crds | kubectl apply --server-side --force-conflicts -f -`; objects that exist stay as they are";
    QuotaExceeded = 547, "a quota has no room for an object of the operator",
        "raise the quota of the namespace, or ask for fewer or smaller workers; nothing else is needed";
    NotLeading = 548, "this replica of the operator does not hold the lease",
        "another replica works; if none does, look whether the operator may read and write its lease";
    TelemetryMissing = 549, "the operator does not hear a cluster's scheduler",
        "look at the scheduler's pod, and let network policies admit the operator to its port 8786";
    // The number of workers.
    RollStopped = 550, "a rolling change of the workers has stopped",
        "correct the image or the pod fields; workers of the earlier template go on meanwhile";
    SchedulerSilent = 551, "the scheduler is silent, so the number of workers stays as it is",
        "look at the scheduler's pod; scaling goes on by itself once it answers";
    AutoscalerConflict = 552, "two autoscalers name the same cluster",
        "delete one of them; the older one decides";
    ScalingWithoutEffect = 553, "more workers would not help",
        "see what the message names: pods that cannot start, a quota, or workers that have nothing to do";
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
