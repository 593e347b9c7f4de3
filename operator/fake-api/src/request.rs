//! Reads what is asked for from a method, a path and a query.

use std::collections::HashMap;

use hyper::Method;

use crate::faults::Verb;
use crate::kinds;

/// What a path names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) kind: usize,
    pub(crate) namespace: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) subresource: String,
}

/// The object, collection or subresource of a path; none if it is not one of a known kind.
pub(crate) fn target(path: &str) -> Option<Target> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return None,
    };
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if rest.first().is_some_and(|it| *it != "status") => {
            (Some((*namespace).to_owned()), rest)
        }
        rest => (None, rest),
    };
    let (plural, rest) = rest.split_first()?;
    Some(Target {
        kind: kinds::find(group, version, plural)?,
        namespace,
        name: rest.first().map(|name| (*name).to_owned()),
        subresource: rest.get(1).map(|it| (*it).to_owned()).unwrap_or_default(),
    })
}

/// What the call does.
pub(crate) fn verb(method: &Method, target: &Target, is_watch: bool, is_apply: bool) -> Verb {
    match *method {
        Method::GET if target.name.is_some() => Verb::Get,
        Method::GET if is_watch => Verb::Watch,
        Method::GET => Verb::List,
        Method::POST if target.subresource == "eviction" => Verb::Delete,
        Method::POST => Verb::Create,
        Method::PUT => Verb::Update,
        Method::PATCH if is_apply => Verb::Apply,
        Method::PATCH => Verb::Patch,
        Method::DELETE if target.name.is_some() => Verb::Delete,
        Method::DELETE => Verb::DeleteCollection,
        _ => Verb::Other,
    }
}

/// The pairs of a query.
#[derive(Debug, Default)]
pub(crate) struct Query(HashMap<String, String>);

impl Query {
    pub(crate) fn parse(query: &str) -> Self {
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let pairs = pairs.map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(key), decoded(value))
        });
        Self(pairs.collect())
    }

    pub(crate) fn get(&self, key: &str) -> &str {
        self.0.get(key).map(String::as_str).unwrap_or_default()
    }

    pub(crate) fn is_true(&self, key: &str) -> bool {
        matches!(self.get(key), "true" | "1")
    }

    pub(crate) fn number(&self, key: &str) -> Option<u64> {
        self.get(key).parse().ok()
    }
}

fn decoded(text: &str) -> String {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        match byte {
            b'+' => decoded.push(b' '),
            b'%' => {
                let digits = [bytes.next(), bytes.next()].map(|it| it.unwrap_or(b'0'));
                let digits = String::from_utf8_lossy(&digits).into_owned();
                decoded.push(u8::from_str_radix(&digits, 16).unwrap_or(b'?'));
            }
            byte => decoded.push(byte),
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_objects_and_collections() {
        let pod = target("/api/v1/namespaces/n/pods/p/status").unwrap();
        assert_eq!(pod.kind, kinds::PODS);
        assert_eq!(pod.namespace.as_deref(), Some("n"));
        assert_eq!(pod.name.as_deref(), Some("p"));
        assert_eq!(pod.subresource, "status");
        let all = target("/apis/kubernetes.dask.org/v1/daskclusters").unwrap();
        assert_eq!((all.namespace, all.name), (None, None));
        let namespace = target("/api/v1/namespaces/n").unwrap();
        assert_eq!(namespace.name.as_deref(), Some("n"));
        assert_eq!(target("/version"), None);
        assert_eq!(target("/api/v1/unknown"), None);
    }

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse("labelSelector=a+in+%28b%2Cc%29&watch=1&limit=500");
        assert_eq!(query.get("labelSelector"), "a in (b,c)");
        assert!(query.is_true("watch") && !query.is_true("force"));
        assert_eq!(query.number("limit"), Some(500));
    }
}
