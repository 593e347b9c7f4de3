//! Who owns what.
//!
//! Owns the making and the reading of owner references. Invariant: an object counts as ours only
//! if the UID of its owner is ours; a name or a label proves nothing.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use oxidask_operator_api::API_VERSION;

use crate::{ObjectKind, PlanError};

/// A reference to the owner. Its deletion does not wait for its children.
pub(crate) fn reference(kind: &str, owner: &ObjectMeta) -> OwnerReference {
    OwnerReference {
        api_version: API_VERSION.to_owned(),
        kind: kind.to_owned(),
        name: owner.name.clone().unwrap_or_default(),
        uid: owner.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The metadata that every object of ours starts from.
pub(crate) fn metadata(name: String, kind: &str, owner: &ObjectMeta) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: owner.namespace.clone(),
        owner_references: Some(vec![reference(kind, owner)]),
        ..ObjectMeta::default()
    }
}

/// Whether the object belongs to the owner.
pub(crate) fn owns(owner: &ObjectMeta, object: &ObjectMeta) -> bool {
    let Some(uid) = owner.uid.as_deref().filter(|uid| !uid.is_empty()) else {
        return false;
    };
    let references = object.owner_references.iter().flatten();
    references.into_iter().any(|reference| reference.uid == uid)
}

/// Whether any controller owns the object.
pub(crate) fn has_controller(object: &ObjectMeta) -> bool {
    let mut references = object.owner_references.iter().flatten();
    references.any(|reference| reference.controller == Some(true))
}

/// Refuses an object of our name that is not ours.
pub(crate) fn refuse_foreign(
    owner: &ObjectMeta,
    kind: ObjectKind,
    object: Option<&ObjectMeta>,
) -> Result<(), PlanError> {
    match object {
        Some(object) if !owns(owner, object) => Err(PlanError::Taken {
            kind,
            name: object.name.clone().unwrap_or_default(),
        }),
        _ => Ok(()),
    }
}

/// Whether the object is kept by that finalizer.
pub(crate) fn has_finalizer(object: &ObjectMeta, finalizer: &str) -> bool {
    object.finalizers.iter().flatten().any(|it| it == finalizer)
}

/// Whether the object is being deleted.
pub(crate) fn is_terminating(object: &ObjectMeta) -> bool {
    object.deletion_timestamp.is_some()
}
