//! What fields say to each other, as rules that the API server checks itself.
//!
//! Owns the rules and their messages; each names the field and what is expected. They refuse what a
//! local run refuses, and nothing speaks of object names: an object with a bad name is admitted and
//! gets the phase `Error`, because clients of dask-kubernetes look for that.

use serde_json::{Value, json};

use crate::validate::{MEMORY_BYTES_MIN, THREADS_MAX};

/// The rules of a type, or of one of its fields when one is named.
pub(crate) fn all() -> Vec<(&'static str, &'static str, Value)> {
    let mut rules = vec![
        ("ClusterSpec", "", json!([dask_has_pods()])),
        ("WorkerGroup", "name", json!([group_name()])),
        ("Autoscale", "", json!([autoscale_bounds()])),
        ("AutoscalerSpec", "", json!([autoscaler_bounds()])),
        ("UpdateStrategy", "", update_strategy()),
        ("Resources", "", json!([requests_below_limits()])),
        ("Resources", "limits", amounts("limits")),
        ("Resources", "requests", amounts("requests")),
        ("JobSpec", "", job()),
        ("Tls", "", json!([one_source_of_certificates()])),
        (
            "Sql",
            "",
            sources("sql", "statements", "has(self.statements)"),
        ),
        ("Graph", "", sources("graph", "tasks", HAS_TASKS)),
        (
            "Script",
            "",
            sources("script", "source", "has(self.source)"),
        ),
    ];
    for worker in ["Worker", "WorkerGroup"] {
        rules.push((worker, "taskResources", json!([amounts_have_names()])));
    }
    rules
}

/// `tasks` has no type, so it is no field for the compiler; at run time it is one.
const HAS_TASKS: &str = "has(dyn(self).tasks)";

fn dask_has_pods() -> Value {
    json!({
        "rule": "!has(self.runtime) || self.runtime != 'Dask' || has(self.worker.spec)",
        "message": "runtime is `Dask`, which runs pods as `worker.spec` gives them, but there is \
                    none",
        "fieldPath": ".runtime",
        "reason": "FieldValueInvalid",
    })
}

fn one_source_of_certificates() -> Value {
    json!({
        "rule": "!has(self.caSecretRef) || !has(self.issuerRef)",
        "message": "give `caSecretRef` or `issuerRef`, not both",
    })
}

fn group_name() -> Value {
    json!({
        "rule": "self != 'default'",
        "message": "name is `default`, which names `spec.worker`",
    })
}

fn autoscale_bounds() -> Value {
    json!({
        "rule": "!has(self.minimum) || self.minimum <= self.maximum",
        "message": "autoscale has a minimum above its maximum",
        "fieldPath": ".minimum",
    })
}

/// Clients of dask-kubernetes write null for "no bound", which the compiler takes for a number.
fn autoscaler_bounds() -> Value {
    json!({
        "rule": "!has(self.minimum) || !has(self.maximum) || dyn(self.minimum) == null || \
                 dyn(self.maximum) == null || self.minimum <= self.maximum",
        "message": "the autoscaler has a minimum above its maximum",
        "fieldPath": ".minimum",
    })
}

/// Numbers or percentages, and not a roll that may neither add a pod nor miss one.
fn update_strategy() -> Value {
    let amount = |field: &str| {
        json!({
            "rule": format!(
                "!has(self.{field}) || (type(self.{field}) == int ? self.{field} >= 0 : \
                 string(self.{field}).matches('^[0-9]+%$'))"
            ),
            "message": format!("{field} must be a number, 0 or more, or a percentage such as `25%`"),
            "fieldPath": format!(".{field}"),
        })
    };
    let is_nothing = |field: &str| format!("string(self.{field}) in ['0', '0%']");
    json!([
        amount("maxSurge"),
        amount("maxUnavailable"),
        {
            "rule": format!(
                "!has(self.maxSurge) || !({}) || (has(self.maxUnavailable) && !({}))",
                is_nothing("maxSurge"),
                is_nothing("maxUnavailable")
            ),
            "message": "maxSurge is 0, so maxUnavailable must be 1 or more: no pod could be replaced",
            "fieldPath": ".maxUnavailable",
        },
    ])
}

fn amounts_have_names() -> Value {
    json!({
        "rule": "self.all(name, size(name) > 0)",
        "message": "taskResources has an amount without a name",
    })
}

/// The amount in a rule; what is no quantity is left to the schema's own message.
fn amount(value: &str) -> (String, String) {
    (
        format!("!isQuantity(string({value}))"),
        format!("quantity(string({value}))"),
    )
}

fn requests_below_limits() -> Value {
    let (no_request, request) = amount("self.requests[name]");
    let (no_limit, limit) = amount("self.limits[name]");
    json!({
        "rule": format!(
            "!has(self.requests) || !has(self.limits) || self.requests.all(name, \
             !(name in self.limits) || {no_request} || {no_limit} || \
             !{request}.isGreaterThan({limit}))"
        ),
        "message": "resources has a request above the limit of the same name",
        "fieldPath": ".requests",
    })
}

/// A worker needs some memory and can use only so many cores.
fn amounts(block: &str) -> Value {
    let (no_cpu, cpu) = amount("self['cpu']");
    let (no_memory, memory) = amount("self['memory']");
    json!([
        {
            "rule": format!(
                "!('cpu' in self) || {no_cpu} || ({cpu}.isGreaterThan(quantity('0')) && \
                 !{cpu}.isGreaterThan(quantity('{THREADS_MAX}')))"
            ),
            "message": format!("{block}.cpu must be from `1m` to `{THREADS_MAX}` cores"),
        },
        {
            "rule": format!(
                "!('memory' in self) || {no_memory} || !{memory}.isLessThan(quantity('{}Mi'))",
                MEMORY_BYTES_MIN >> 20
            ),
            "message": format!(
                "{block}.memory is less than `1Mi`; `m` means a thousandth, `M` a million"
            ),
        },
    ])
}

fn job() -> Value {
    let mut rules = vec![
        json!({
            "rule": "[has(self.sql), has(self.graph), has(self.script), has(self.job)]\
                     .filter(is_given, is_given).size() == 1",
            "message": "give exactly one kind of work: one of `sql`, `graph`, `script` and `job`",
        }),
        json!({
            "rule": "has(self.job) || !has(self.cluster.spec.runtime) || \
                     self.cluster.spec.runtime != 'Dask'",
            "message": "runtime is `Dask`, which cannot run work of kind `sql`, `graph` or \
                        `script`",
            "fieldPath": ".cluster.spec.runtime",
        }),
        json!({
            "rule": "has(self.schedule) || !(has(self.timeZone) || has(self.concurrencyPolicy) || \
                     has(self.startingDeadlineSeconds) || has(self.successfulJobsHistoryLimit) || \
                     has(self.failedJobsHistoryLimit))",
            "message": "timeZone, concurrencyPolicy, startingDeadlineSeconds and the history limits \
                        need `schedule`",
        }),
        json!({
            "rule": "has(self.schedule) == has(oldSelf.schedule)",
            "message": "a job cannot become a schedule, nor a schedule a job; make a new job",
        }),
    ];
    for kind in ["sql", "graph", "script", "job"] {
        rules.push(json!({
            "rule": format!(
                "has(self.schedule) || has(self.{kind}) == has(oldSelf.{kind}) && \
                 (!has(self.{kind}) || self.{kind} == oldSelf.{kind})"
            ),
            "message": format!(
                "the work of a job cannot be changed, and `{kind}` was; make a new job"
            ),
        }));
    }
    json!(rules)
}

/// Exactly one source, and none that only the command line can read.
fn sources(kind: &str, inline: &str, has_inline: &str) -> Value {
    json!([
        {
            "rule": "!has(self.file)",
            "message": format!(
                "file is read by local runs only; put the text into `{inline}`, or into a \
                 ConfigMap that `configMapKeyRef` names"
            ),
            "fieldPath": ".file",
        },
        {
            "rule": format!("has(self.file) || {has_inline} != has(self.configMapKeyRef)"),
            "message": format!(
                "give exactly one source of `{kind}`: `{inline}` or `configMapKeyRef`"
            ),
        },
    ])
}
