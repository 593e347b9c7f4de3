//! Writes: creating, updating, patching, applying and deleting, as an API server does them.

use std::sync::Arc;

use hyper::StatusCode;
use serde_json::{Value, json};

use crate::apply::{self, Applier};
use crate::clock;
use crate::error::Refused;
use crate::kinds::{KINDS, Kind, PODS};
use crate::life::Due;
use crate::patch;
use crate::store::{Key, Store, Stored};

/// Bytes of a label's value and of a Service's name.
const LABEL_BYTES_MAX: usize = 63;
/// Bytes of any other name.
const NAME_BYTES_MAX: usize = 253;

/// Who writes, and to which part.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Writer<'a> {
    pub(crate) manager: &'a str,
    /// `status` or nothing.
    pub(crate) subresource: &'a str,
    pub(crate) is_forced: bool,
}

/// How a patch is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PatchKind {
    Apply,
    Merge,
    Json,
    Strategic,
}

type Written = Result<Arc<Stored>, Refused>;

impl Store {
    pub(crate) fn create(&mut self, mut key: Key, body: Value, writer: Writer<'_>) -> Written {
        let kind = &KINDS[key.kind];
        if key.name.is_empty() {
            let start = body["metadata"]["generateName"]
                .as_str()
                .unwrap_or_default();
            key.name = format!("{start}{:05x}", self.number());
        }
        if self.get(&key).is_some() {
            let text = format!("{} \"{}\" already exists", kind.plural, key.name);
            let mut refused = Refused::conflict(text);
            refused.reason = "AlreadyExists";
            return Err(refused);
        }
        let nothing = json!({"apiVersion": kind.api_version(), "kind": kind.name});
        let mut new = body;
        drop_status(kind, &mut new, None);
        self.stamp(&key, &mut new);
        apply::own_changes(&nothing, &mut new, (writer.manager, ""), kind.is_custom());
        self.born(&key, new)
    }

    pub(crate) fn update(&mut self, key: &Key, body: Value, writer: Writer<'_>) -> Written {
        let old = self.found(key)?;
        precondition(&old, &body)?;
        let kind = &KINDS[key.kind];
        let mut new = if writer.subresource == "status" {
            let mut new = old.value.clone();
            new["status"] = body.get("status").cloned().unwrap_or_default();
            new
        } else {
            let mut new = body;
            drop_status(kind, &mut new, Some(&old.value));
            restore(&old.value, &mut new);
            new
        };
        let origin = (writer.manager, writer.subresource);
        apply::own_changes(&old.value, &mut new, origin, kind.is_custom());
        self.finish(key, &old, new)
    }

    pub(crate) fn patch(
        &mut self,
        key: &Key,
        body: &Value,
        how: PatchKind,
        writer: Writer<'_>,
    ) -> Result<(Arc<Stored>, StatusCode), Refused> {
        if how == PatchKind::Apply {
            return self.apply(key, body, writer);
        }
        let old = self.found(key)?;
        let kind = &KINDS[key.kind];
        if how != PatchKind::Json {
            precondition(&old, body)?;
        }
        let mut new = old.value.clone();
        match how {
            PatchKind::Json => patch::json(&mut new, body)?,
            PatchKind::Strategic => apply::merge(&mut new, body, "", kind.is_custom()),
            PatchKind::Merge | PatchKind::Apply => patch::merge(&mut new, body),
        }
        if writer.subresource == "status" {
            let status = new.get("status").cloned();
            new = old.value.clone();
            new["status"] = status.unwrap_or_default();
        } else {
            drop_status(kind, &mut new, Some(&old.value));
        }
        restore(&old.value, &mut new);
        let origin = (writer.manager, writer.subresource);
        apply::own_changes(&old.value, &mut new, origin, kind.is_custom());
        Ok((self.finish(key, &old, new)?, StatusCode::OK))
    }

    fn apply(
        &mut self,
        key: &Key,
        body: &Value,
        writer: Writer<'_>,
    ) -> Result<(Arc<Stored>, StatusCode), Refused> {
        let kind = &KINDS[key.kind];
        let part = apply::applied_part(body, writer.subresource, kind.has_status);
        let applier = Applier {
            manager: writer.manager,
            subresource: writer.subresource,
            is_forced: writer.is_forced,
            is_custom: kind.is_custom(),
        };
        if let Some(old) = self.get(key).cloned() {
            precondition(&old, body)?;
            let mut new = old.value.clone();
            apply::apply(&mut new, &part, applier)?;
            return Ok((self.finish(key, &old, new)?, StatusCode::OK));
        }
        if !writer.subresource.is_empty() {
            return Err(Refused::not_found(kind.plural, &key.name));
        }
        let metadata = &body["metadata"];
        if metadata["uid"].is_string() || metadata["resourceVersion"].is_string() {
            return Err(Refused::conflict("the object has been deleted"));
        }
        let mut new = json!({"apiVersion": kind.api_version(), "kind": kind.name});
        new["metadata"] = json!({});
        self.stamp(key, &mut new);
        apply::apply(&mut new, &part, applier)?;
        Ok((self.born(key, new)?, StatusCode::CREATED))
    }

    /// Deletes an object: at once, or as soon as finalizers and the kubelet are done. What is left
    /// of it is given back.
    pub(crate) fn delete(&mut self, key: &Key, options: &Value) -> Written {
        let old = self.found(key)?;
        precondition(&old, &json!({"metadata": options["preconditions"]}))?;
        let has_finalizers = has_finalizers(&old.value);
        let at_once = options["gracePeriodSeconds"] == 0;
        let is_running = key.kind == PODS
            && self.options.kubelet.is_some()
            && !at_once
            && old.value["spec"]["nodeName"].is_string();
        if !has_finalizers && !is_running {
            let gone = self.remove(key);
            return gone.ok_or_else(|| Refused::not_found(KINDS[key.kind].plural, &key.name));
        }
        if old.is_ending() {
            return Ok(old);
        }
        let mut new = old.value.clone();
        new["metadata"]["deletionTimestamp"] = json!(clock::now());
        let grace = &old.value["spec"]["terminationGracePeriodSeconds"];
        let grace = if is_running {
            grace.as_u64().unwrap_or(30)
        } else {
            0
        };
        new["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        if let Some(generation) = new["metadata"]["generation"].as_u64() {
            new["metadata"]["generation"] = json!(generation + 1);
        }
        Ok(self.put(key, new))
    }

    fn found(&self, key: &Key) -> Written {
        let found = self.get(key).cloned();
        found.ok_or_else(|| Refused::not_found(KINDS[key.kind].plural, &key.name))
    }

    /// The server's own metadata of a new object.
    fn stamp(&mut self, key: &Key, new: &mut Value) {
        let kind = &KINDS[key.kind];
        let uid = self.number();
        new["apiVersion"] = json!(kind.api_version());
        new["kind"] = json!(kind.name);
        let metadata = &mut new["metadata"];
        metadata["name"] = json!(key.name);
        if kind.is_namespaced {
            metadata["namespace"] = json!(key.namespace);
        }
        let seed = self.options.seed & 0xffff_ffff;
        metadata["uid"] = json!(format!("{seed:08x}-0000-4000-8000-{uid:012x}"));
        metadata["creationTimestamp"] = json!(clock::now());
        if kind.has_generation() {
            metadata["generation"] = json!(1);
        }
    }

    fn born(&mut self, key: &Key, mut new: Value) -> Written {
        check(key, &new)?;
        match KINDS[key.kind].name {
            "Pod" => {
                new["status"] = json!({"phase": "Pending"});
                if new["spec"]["restartPolicy"].is_null() {
                    new["spec"]["restartPolicy"] = json!("Always");
                }
            }
            "Service" if new["spec"]["clusterIP"].is_null() => {
                let number = self.number();
                let address = format!("10.96.{}.{}", number / 250 % 250, number % 250 + 1);
                new["spec"]["clusterIP"] = json!(address);
            }
            "PersistentVolumeClaim" => new["status"] = json!({"phase": "Pending"}),
            _ => {}
        }
        let stored = self.put(key, new);
        let owners = crate::store::owners(&stored);
        if !owners.is_empty() && !owners.iter().any(|uid| self.has_uid(uid)) {
            let uid = stored.uid().to_owned();
            self.schedule(self.options.collect_after, Due::Orphan(key.clone(), uid));
        }
        Ok(stored)
    }

    /// Stores a change, unless it is none; an object that was only kept by finalizers goes.
    fn finish(&mut self, key: &Key, old: &Arc<Stored>, mut new: Value) -> Written {
        check(key, &new)?;
        if same(&old.value, &new) {
            return Ok(Arc::clone(old));
        }
        if KINDS[key.kind].has_generation() && specs_differ(&old.value, &new) {
            let generation = old.value["metadata"]["generation"].as_u64().unwrap_or(0);
            new["metadata"]["generation"] = json!(generation + 1);
        }
        let is_released = old.is_ending() && has_finalizers(&old.value) && !has_finalizers(&new);
        let stored = self.put(key, new);
        if is_released {
            self.remove(key);
        }
        Ok(stored)
    }
}

fn has_finalizers(object: &Value) -> bool {
    let finalizers = object["metadata"]["finalizers"].as_array();
    finalizers.is_some_and(|it| !it.is_empty())
}

/// Equal but for the times at which fields were set.
fn same(old: &Value, new: &Value) -> bool {
    if old == new {
        return true;
    }
    let parts = [
        "spec",
        "status",
        "data",
        "stringData",
        "type",
        "immutable",
        "metadata",
    ];
    let is_known = |object: &Value| {
        object.as_object().is_some_and(|map| {
            map.keys()
                .all(|key| key == "apiVersion" || key == "kind" || parts.contains(&key.as_str()))
        })
    };
    if !is_known(old) || !is_known(new) || parts[..6].iter().any(|it| old[*it] != new[*it]) {
        return false;
    }
    let bare = |object: &Value| {
        let mut metadata = object["metadata"].clone();
        for entry in metadata["managedFields"]
            .as_array_mut()
            .into_iter()
            .flatten()
        {
            entry["time"] = Value::Null;
        }
        metadata
    };
    bare(old) == bare(new)
}

fn specs_differ(old: &Value, new: &Value) -> bool {
    old["spec"] != new["spec"]
}

/// The status belongs to its subresource.
fn drop_status(kind: &Kind, new: &mut Value, old: Option<&Value>) {
    if !kind.has_status {
        return;
    }
    let Some(map) = new.as_object_mut() else {
        return;
    };
    match old.and_then(|old| old.get("status")) {
        Some(status) => map.insert("status".to_owned(), status.clone()),
        None => map.shift_remove("status"),
    };
}

/// What a client cannot change.
fn restore(old: &Value, new: &mut Value) {
    for name in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "managedFields",
        "resourceVersion",
    ] {
        match old["metadata"].get(name) {
            Some(value) => new["metadata"][name] = value.clone(),
            None => {
                if let Some(metadata) = new["metadata"].as_object_mut() {
                    metadata.shift_remove(name);
                }
            }
        }
    }
    new["apiVersion"] = old["apiVersion"].clone();
    new["kind"] = old["kind"].clone();
}

/// A UID or a version that is named must be the stored one.
fn precondition(old: &Stored, body: &Value) -> Result<(), Refused> {
    let metadata = &body["metadata"];
    if let Some(uid) = metadata["uid"].as_str()
        && uid != old.uid()
    {
        let text = format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            old.uid()
        );
        return Err(Refused::conflict(text));
    }
    match metadata["resourceVersion"].as_str() {
        Some("" | "0") | None => Ok(()),
        Some(version) if version == old.version.to_string() => Ok(()),
        Some(_) => Err(Refused::conflict(
            "the object has been modified; please apply your changes to the latest version and try again",
        )),
    }
}

fn check(key: &Key, object: &Value) -> Result<(), Refused> {
    let limit = match KINDS[key.kind].name {
        "Service" => LABEL_BYTES_MAX,
        _ => NAME_BYTES_MAX,
    };
    if key.name.len() > limit {
        let text = format!(
            "metadata.name: Invalid value: \"{}\": must be no more than {limit} bytes",
            key.name
        );
        return Err(Refused::invalid(text));
    }
    let labels = object["metadata"]["labels"].as_object();
    for (label, value) in labels.into_iter().flatten() {
        if value
            .as_str()
            .is_none_or(|value| value.len() > LABEL_BYTES_MAX)
        {
            let text = format!("metadata.labels: Invalid value of `{label}`: {value}");
            return Err(Refused::invalid(text));
        }
    }
    Ok(())
}
