//! Taking over what dask-kubernetes made.
//!
//! Owns what is taken off its objects, the finalizers of its framework, which would keep an object
//! for ever once that operator is gone, and the notes that it left on each; and how its objects
//! become ours without a change. Its definitions must have been replaced by ours before.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::objects::template_mark;
use super::{ADOPTED, TEMPLATE_HASH};
use crate::build::labels::APPLIED_HASH;
use crate::{MetadataChange, Object, ObjectKind, hash};

/// Finalizers and annotations of dask-kubernetes' framework start so.
const LEFT_BEHIND: &str = "kopf.zalando.org/";

/// Takes off what dask-kubernetes left behind. `None` if there is nothing.
pub fn strip(kind: ObjectKind, metadata: &ObjectMeta) -> Option<MetadataChange> {
    let finalizers = metadata.finalizers.as_deref().unwrap_or_default();
    let is_left = |text: &&String| text.starts_with(LEFT_BEHIND);
    let kept: Vec<String> = finalizers
        .iter()
        .filter(|it| !is_left(it))
        .cloned()
        .collect();
    let notes = metadata.annotations.iter().flat_map(BTreeMap::keys);
    let annotations: BTreeMap<_, _> = notes
        .filter(is_left)
        .map(|key| (key.clone(), None))
        .collect();
    let is_shorter = kept.len() < finalizers.len();
    (is_shorter || !annotations.is_empty()).then(|| MetadataChange {
        finalizers: is_shorter.then_some(kept),
        annotations,
        ..MetadataChange::new(kind, metadata)
    })
}

/// The note that makes an object ours as it is: later changes of the manifest are carried out,
/// what differs today stays. `None` if it is ours already.
pub(super) fn adopt(object: &Object, there: &ObjectMeta) -> Option<MetadataChange> {
    if hash::applied_mark(there).is_some() {
        return None;
    }
    let marked = hash::unless_applied(object.clone(), None)?;
    let mark = hash::applied_mark(marked.metadata())?.to_owned();
    let mut adopted =
        strip(object.kind(), there).unwrap_or_else(|| MetadataChange::new(object.kind(), there));
    // A Deployment is known by its pods, so that a label which is handed down changes nothing.
    let template = template_mark(marked.metadata());
    let name = template.unwrap_or(mark.as_str()).to_owned();
    let pods = template.map(|hash| (TEMPLATE_HASH.to_owned(), Some(hash.to_owned())));
    adopted.annotations.extend(pods);
    let notes = [(APPLIED_HASH, mark), (ADOPTED, name)];
    let notes = notes.map(|(key, value)| (key.to_owned(), Some(value)));
    adopted.annotations.extend(notes);
    Some(adopted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_other_operator_left_goes() {
        let mut metadata = ObjectMeta {
            name: Some("a".to_owned()),
            finalizers: Some(vec![
                "kopf.zalando.org/KopfFinalizerMarker".to_owned(),
                "example.com/mine".to_owned(),
            ]),
            annotations: Some(
                [
                    ("kopf.zalando.org/last-handled-configuration", "{}"),
                    ("note", "kept"),
                ]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            ),
            ..ObjectMeta::default()
        };
        let change = strip(ObjectKind::Cluster, &metadata).unwrap();
        assert_eq!(change.finalizers, Some(vec!["example.com/mine".to_owned()]));
        let keys: Vec<&String> = change.annotations.keys().collect();
        assert_eq!(keys, ["kopf.zalando.org/last-handled-configuration"]);
        metadata.finalizers = change.finalizers;
        metadata.annotations = None;
        assert_eq!(strip(ObjectKind::Cluster, &metadata), None);
    }
}
