//! The mark by which an applied object is known again.
//!
//! Owns the hash over the desired form and its annotation. An object that is there with the same
//! mark is not applied again.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::Object;
use crate::build::labels::{APPLIED_HASH, annotation};

/// Hex digits of a mark.
const MARK_DIGITS: usize = 16;

/// The first digits of a digest.
pub(crate) fn hex(digest: &[u8], digits: usize) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let nibbles = digest.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    nibbles.take(digits).map(digit).collect()
}

/// The mark of the desired form.
fn mark(object: &Object) -> String {
    mark_of(&object.to_value())
}

/// The mark of an object that has no type of ours.
pub(crate) fn mark_of(object: &Value) -> String {
    hex(&Sha256::digest(object.to_string().as_bytes()), MARK_DIGITS)
}

/// The object with its mark.
pub(crate) fn marked(mut object: Object) -> Object {
    let mark = mark(&object);
    let annotations = object.metadata_mut().annotations.get_or_insert_default();
    annotations.insert(APPLIED_HASH.to_owned(), mark);
    object
}

/// Whether the observed object carries the mark of this form.
pub(crate) fn is_applied(object: &Object, observed: &ObjectMeta) -> bool {
    applied_mark(observed) == Some(mark(object).as_str())
}

/// The object with its mark, unless the observed one carries the same.
pub(crate) fn unless_applied(object: Object, observed: Option<&ObjectMeta>) -> Option<Object> {
    let is_applied = observed.is_some_and(|observed| is_applied(&object, observed));
    (!is_applied).then(|| marked(object))
}

/// The mark that an observed object carries.
pub(crate) fn applied_mark(observed: &ObjectMeta) -> Option<&str> {
    annotation(observed.annotations.as_ref(), APPLIED_HASH)
}
