//! Bad manifests are refused by the API server, with field and rule in the message.

use serde_json::{Value, json};

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{A_WHILE, API_VERSION};
use crate::process::failure;

pub(crate) const CASE: Case = Case {
    name: "bad_manifests",
    about: "the API server refuses them and names field and rule",
    run,
};

/// A manifest with one mistake, and words that the refusal must have: the field, then the rule.
struct Mistake {
    kind: &'static str,
    spec: Value,
    words: &'static [&'static str],
}

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    let mistakes: Vec<Mistake> = clusters().into_iter().chain(jobs()).collect();
    let mut wrong = Vec::new();
    for Mistake { kind, spec, words } in mistakes {
        let manifest = json!({
            "apiVersion": API_VERSION, "kind": kind, "metadata": {"name": "bad"}, "spec": spec,
        });
        let refusal = kubectl.apply_refused(&manifest.to_string());
        check(&mut wrong, &manifest, refusal, words);
    }
    // Work does not change once it is there.
    kubectl.apply(&A_WHILE.job("j"))?;
    let changed = crate::dask::job("j", 2, &json!({"tasks": [{"key": "a", "op": "noop"}]}));
    let refusal = kubectl.apply_refused(&changed);
    check(
        &mut wrong,
        &json!(changed),
        refusal,
        &["spec: ", "cannot be changed", "`graph`"],
    );
    if wrong.is_empty() {
        return Ok(());
    }
    Err(failure(wrong.join("\n")))
}

fn check(wrong: &mut Vec<String>, manifest: &Value, refusal: Outcome<String>, words: &[&str]) {
    let text = match refusal {
        Ok(text) => text,
        Err(error) => {
            wrong.push(format!("{error}\n  {manifest}"));
            return;
        }
    };
    for word in words {
        if !text.to_lowercase().contains(&word.to_lowercase()) {
            wrong.push(format!("no `{word}` in `{}`\n  {manifest}", text.trim()));
        }
    }
}

fn cluster(spec: Value, words: &'static [&'static str]) -> Mistake {
    Mistake {
        kind: "DaskCluster",
        spec,
        words,
    }
}

fn clusters() -> Vec<Mistake> {
    let limits = |limits: Value| json!({"worker": {"resources": {"limits": limits}}});
    vec![
        cluster(
            json!({"worker": {"replicas": -1}}),
            &["spec.worker.replicas", "greater than or equal to 0"],
        ),
        cluster(
            json!({"worker": {"replicas": "two"}}),
            &["spec.worker.replicas", "integer"],
        ),
        cluster(
            json!({"worker": {"replicas": 1, "thread": 2}}),
            &["unknown field", "spec.worker.thread"],
        ),
        cluster(
            json!({"worker": {"threads": 0}}),
            &["spec.worker.threads", "greater than or equal to 1"],
        ),
        cluster(
            json!({"runtime": "Go", "worker": {}}),
            &["spec.runtime", "supported values", "Rust"],
        ),
        cluster(
            json!({"runtime": "Dask", "worker": {}}),
            &["spec.runtime", "there is none"],
        ),
        cluster(
            json!({"worker": {"autoscale": {"minimum": 5, "maximum": 2}}}),
            &["spec.worker.autoscale.minimum", "above its maximum"],
        ),
        cluster(
            limits(json!({"memory": "lots"})),
            &["spec.worker.resources.limits.memory", "should match"],
        ),
        cluster(
            limits(json!({"memory": "100m"})),
            &["spec.worker.resources.limits", "less than `1Mi`"],
        ),
        cluster(
            json!({"worker": {}, "workerGroups": [{"name": "default"}]}),
            &["spec.workerGroups[0].name", "names `spec.worker`"],
        ),
        cluster(
            json!({"worker": {}, "workerGroups": [{"name": "a"}, {"name": "a"}]}),
            &["spec.workerGroups[1]", "duplicate"],
        ),
    ]
}

fn jobs() -> Vec<Mistake> {
    let sql = json!({"statements": "SELECT 1"});
    let from_map = json!({"name": "a", "key": "b"});
    let job = |work: Value, words| {
        let mut spec = json!({"cluster": {"spec": {"worker": {"replicas": 1}}}});
        if let (Some(spec), Value::Object(work)) = (spec.as_object_mut(), work) {
            spec.extend(work);
        }
        Mistake {
            kind: "DaskJob",
            spec,
            words,
        }
    };
    vec![
        job(json!({}), &["spec: ", "exactly one kind of work"]),
        job(
            json!({"sql": sql, "graph": {"tasks": [{"key": "a", "op": "noop"}]}}),
            &["spec: ", "exactly one kind of work"],
        ),
        job(
            json!({"sql": {}}),
            &["spec.sql: ", "exactly one source of `sql`"],
        ),
        job(
            json!({"sql": {"statements": "SELECT 1", "configMapKeyRef": from_map}}),
            &["spec.sql: ", "exactly one source of `sql`"],
        ),
        job(
            json!({"sql": {"file": "q.sql"}}),
            &["spec.sql.file", "local runs only"],
        ),
        job(
            json!({"sql": {"configMapKeyRef": {"name": "a"}}}),
            &["spec.sql.configMapKeyRef.key", "required"],
        ),
        job(
            json!({"cluster": {"spec": {"runtime": "Dask", "worker": worker_pod()}}, "sql": sql}),
            &["spec.cluster.spec.runtime", "cannot run work of kind `sql`"],
        ),
    ]
}

fn worker_pod() -> Value {
    json!({"spec": {"containers": [{"name": "worker", "image": "docker.io/a/b:1"}]}})
}
