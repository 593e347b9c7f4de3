//! What an error of the API server means.
//!
//! Owns the classification by status code, reason and cause; texts are looked at only where a code
//! has two meanings (403 is said by authorisation and by admission alike).

use kube::core::Status;
use kube::runtime::watcher;

use crate::error::OperatorError;

const NAMESPACE_TERMINATING: &str = "NamespaceTerminating";
const FIELD_CONFLICT: &str = "FieldManagerConflict";

/// The error of a request, with what was tried.
pub(crate) fn request_error(what: String, error: kube::Error) -> OperatorError {
    match error {
        kube::Error::Api(status) => status_error(what, &status),
        source => OperatorError::Request {
            what,
            source: Box::new(source),
        },
    }
}

/// The error of a watch.
pub(crate) fn watch_error(what: String, error: watcher::Error) -> OperatorError {
    match error {
        watcher::Error::InitialListFailed(source)
        | watcher::Error::WatchStartFailed(source)
        | watcher::Error::WatchFailed(source) => match source {
            // A list of a kind has no object that could be missing: it is the kind.
            kube::Error::Api(status) if status.code == 404 => OperatorError::KindMissing { what },
            source => request_error(what, source),
        },
        watcher::Error::WatchError(status) => status_error(what, &status),
        watcher::Error::NoResourceVersion => OperatorError::Unavailable {
            what,
            message: "the API server's answer has no resource version".to_owned(),
        },
    }
}

fn status_error(what: String, status: &Status) -> OperatorError {
    let message = if status.message.is_empty() {
        format!("status {} {}", status.code, status.reason)
    } else {
        status.message.clone()
    };
    let has_cause = |reason: &str| {
        let mut causes = status.details.iter().flat_map(|details| &details.causes);
        causes.any(|cause| cause.reason == reason)
    };
    match status.code {
        _ if has_cause(NAMESPACE_TERMINATING) => OperatorError::NamespaceEnding { what, message },
        // Somebody else's object has the name; trying again would not help.
        409 if has_cause(FIELD_CONFLICT) => OperatorError::Rejected { what, message },
        // Some servers say 500 for this.
        _ if is_unknown_field(&message) => OperatorError::Schema { what, message },
        404 | 410 => OperatorError::Gone { what, message },
        409 => OperatorError::Conflict { what, message },
        401 => OperatorError::Refused { what, message },
        403 if is_authorisation(&message) => OperatorError::Refused { what, message },
        403 if is_quota(&message) => OperatorError::Quota { what, message },
        400 | 403 | 405 | 406 | 413 | 415 | 422 => OperatorError::Rejected { what, message },
        _ => OperatorError::Unavailable { what, message },
    }
}

/// `User "x" cannot patch resource "pods" …` is authorisation; quotas and policies speak otherwise.
fn is_authorisation(message: &str) -> bool {
    message.contains(" cannot ")
}

/// `pods "b" is forbidden: exceeded quota: small, …`, also while a quota counts what it has.
fn is_quota(message: &str) -> bool {
    message.contains("exceeded quota") || message.contains("failed quota")
}

/// A field that the server does not know: it stays unknown, unless the definition was replaced just
/// now, which servers take up a little later.
fn is_unknown_field(message: &str) -> bool {
    message.contains("field not declared in schema") || message.contains("strict decoding error")
}

#[cfg(test)]
mod tests {
    use kube::core::response::StatusDetails;

    use super::*;
    use crate::error::Class;

    fn status(code: u16, message: &str) -> Status {
        let mut status = Status::failure(message, "");
        status.code = code;
        status
    }

    fn because(reason: &str) -> StatusDetails {
        let details = serde_json::json!({"causes": [{"reason": reason}]});
        serde_json::from_value(details).unwrap()
    }

    fn classify(status: Status) -> OperatorError {
        request_error(
            "Pod `a/b` cannot be applied".to_owned(),
            kube::Error::Api(Box::new(status)),
        )
    }

    #[test]
    fn codes_have_classes() {
        for (code, class) in [
            (409, Class::Conflict),
            (429, Class::Transient),
            (500, Class::Transient),
            (503, Class::Transient),
            (404, Class::Gone),
            (422, Class::Rejected),
        ] {
            assert_eq!(classify(status(code, "x")).class(), class, "{code}");
        }
    }

    #[test]
    fn missing_rights_differ_from_quotas_and_policies() {
        let rights = "pods is forbidden: User \"system:serviceaccount:a:b\" cannot patch resource";
        assert!(matches!(
            classify(status(403, rights)),
            OperatorError::Refused { .. }
        ));
        let quota = "pods \"b\" is forbidden: exceeded quota: small, requested: pods=1";
        assert!(matches!(
            classify(status(403, quota)),
            OperatorError::Quota { .. }
        ));
        let policy = "admission webhook \"policy.example\" denied the request: no";
        assert_eq!(classify(status(403, policy)).class(), Class::Rejected);
    }

    #[test]
    fn a_field_that_the_server_does_not_know_is_no_outage() {
        let message =
            "failed to create typed patch object: .spec.foo: field not declared in schema";
        assert_eq!(classify(status(500, message)).class(), Class::Later);
        let message =
            "Pod in version \"v1\" cannot be handled: strict decoding error: unknown field";
        assert_eq!(classify(status(400, message)).class(), Class::Later);
    }

    #[test]
    fn causes_say_more_than_codes() {
        let mut ending = status(403, "namespace a is being terminated");
        ending.details = Some(because(NAMESPACE_TERMINATING));
        assert_eq!(classify(ending).class(), Class::Ending);
        let mut foreign = status(409, "Apply failed with 1 conflict");
        foreign.details = Some(because(FIELD_CONFLICT));
        assert_eq!(classify(foreign).class(), Class::Rejected);
    }

    #[test]
    fn a_kind_that_is_missing_is_said() {
        let error = kube::Error::Api(Box::new(status(404, "not found")));
        let error = watch_error("x".to_owned(), watcher::Error::InitialListFailed(error));
        assert!(matches!(error, OperatorError::KindMissing { .. }));
    }
}
