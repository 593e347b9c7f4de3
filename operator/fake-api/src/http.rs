//! The HTTP side: connections, calls, faults, answers.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::discovery;
use crate::error::{Refused, reason};
use crate::fake::Shared;
use crate::faults::{Call, Verb, What};
use crate::kinds::KINDS;
use crate::request::{self, Query, Target};
use crate::selector::Selector;
use crate::store::{Key, Stored};
use crate::verbs::{PatchKind, Writer};
use crate::watch::{self, Subject};

/// Bytes of a request's body.
const BODY_BYTES_MAX: usize = 8 << 20;
/// Objects of a page that names no limit.
const PAGE_MAX: usize = usize::MAX;

pub(crate) type Body = UnsyncBoxBody<Bytes, Dropped>;

/// The connection ends without an answer.
#[derive(Debug, thiserror::Error)]
#[error("the connection is dropped")]
pub(crate) struct Dropped;

/// Takes connections until the task is ended.
pub(crate) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    connections.spawn(connection(stream, Arc::clone(&shared)));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| answer(Arc::clone(&shared), request));
    // An error here is a connection that a fault or a client ended.
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

struct Asked {
    target: Target,
    verb: Verb,
    query: Query,
    media: String,
    is_partial: bool,
    manager: String,
    body: Bytes,
}

async fn answer(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Dropped> {
    let (head, body) = request.into_parts();
    let Some(target) = request::target(head.uri.path()) else {
        return Ok(match discovery::answer(head.uri.path()) {
            Some(found) => json_answer(StatusCode::OK, &found),
            None => refusal(&Refused::new(StatusCode::NOT_FOUND, "no such path")),
        });
    };
    let header = |name| {
        let value = head.headers.get(name).and_then(|it| it.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    let query = Query::parse(head.uri.query().unwrap_or_default());
    let media = header(CONTENT_TYPE);
    let is_apply = media.starts_with("application/apply-patch");
    let verb = request::verb(&head.method, &target, query.is_true("watch"), is_apply);
    let body = Limited::new(body, BODY_BYTES_MAX).collect().await;
    let body = body.map_err(|_| Dropped)?.to_bytes();
    let agent = header(USER_AGENT);
    let manager = match query.get("fieldManager") {
        "" => agent.split('/').next().unwrap_or_default().to_owned(),
        named => named.to_owned(),
    };
    let asked = Asked {
        target,
        verb,
        query,
        media,
        is_partial: header(ACCEPT).contains("as=PartialObjectMetadata"),
        manager,
        body,
    };
    let fault = note(&shared, &asked);
    let mut is_lost = false;
    let mut twist = None;
    match fault {
        Some(What::Drop) => return Err(Dropped),
        Some(What::LoseAnswer) => is_lost = true,
        Some(What::Delay(time)) => tokio::time::sleep(time).await,
        Some(What::Status {
            code,
            retry_after_seconds,
        }) => return Ok(fault_answer(code, retry_after_seconds)),
        other => twist = other,
    }
    let answered = handle(&shared, &asked, twist);
    // What the call made due.
    if asked.verb.is_write() {
        shared.work.notify_one();
    }
    match answered {
        _ if is_lost => Err(Dropped),
        Ok(response) => Ok(response),
        Err(refused) => Ok(refusal(&refused)),
    }
}

/// Counts the call, and asks whether it fails.
fn note(shared: &Shared, asked: &Asked) -> Option<What> {
    let kind = KINDS[asked.target.kind].name;
    // The name of what is created stands in the body.
    let created = (asked.verb == Verb::Create)
        .then(|| read(&asked.body).ok())
        .flatten()
        .and_then(|body| body["metadata"]["name"].as_str().map(str::to_owned));
    let name = asked.target.name.clone().or(created).unwrap_or_default();
    let call = Call {
        verb: asked.verb,
        kind,
        name: &name,
    };
    let mut store = shared.lock();
    let counted = (asked.verb, kind, asked.target.subresource.clone());
    *store.calls.entry(counted).or_default() += 1;
    store.faults.strike(call)
}

fn handle(shared: &Shared, asked: &Asked, twist: Option<What>) -> Result<Response<Body>, Refused> {
    let target = &asked.target;
    let key = Key {
        kind: target.kind,
        namespace: target.namespace.clone().unwrap_or_default(),
        name: target.name.clone().unwrap_or_default(),
    };
    if target.subresource == "scale" {
        return scale(shared, asked, &key);
    }
    let writer = Writer {
        manager: &asked.manager,
        subresource: match target.subresource.as_str() {
            "status" => "status",
            _ => "",
        },
        is_forced: asked.query.is_true("force"),
    };
    match asked.verb {
        Verb::Get => {
            let found = shared.lock().get(&key).cloned();
            let plural = KINDS[key.kind].plural;
            let found = found.ok_or_else(|| Refused::not_found(plural, &key.name))?;
            Ok(object(StatusCode::OK, &found, asked.is_partial))
        }
        Verb::List => list(shared, asked),
        Verb::Watch => {
            let subject = Subject {
                kind: target.kind,
                namespace: target.namespace.clone(),
                selector: selector(&asked.query)?,
                is_partial: asked.is_partial,
            };
            let body = watch::begin(shared, subject, &asked.query, twist)?;
            Ok(respond(StatusCode::OK, body))
        }
        Verb::Create => {
            let body = read(&asked.body)?;
            let name = body["metadata"]["name"].as_str().unwrap_or_default();
            let key = Key {
                name: name.to_owned(),
                ..key
            };
            let created = shared.lock().create(key, body, writer)?;
            Ok(object(StatusCode::CREATED, &created, asked.is_partial))
        }
        Verb::Update => {
            let body = read(&asked.body)?;
            let updated = shared.lock().update(&key, body, writer)?;
            Ok(object(StatusCode::OK, &updated, asked.is_partial))
        }
        Verb::Patch | Verb::Apply => {
            let body = read(&asked.body)?;
            let how = patch_kind(&asked.media)?;
            let (patched, code) = shared.lock().patch(&key, &body, how, writer)?;
            Ok(object(code, &patched, asked.is_partial))
        }
        Verb::Delete => delete(shared, asked, &key),
        Verb::DeleteCollection => delete_collection(shared, asked),
        Verb::Other => Err(Refused::new(StatusCode::METHOD_NOT_ALLOWED, "not served")),
    }
}

fn delete(shared: &Shared, asked: &Asked, key: &Key) -> Result<Response<Body>, Refused> {
    let options = options(&asked.body)?;
    // An eviction carries them inside.
    let options = options.get("deleteOptions").cloned().unwrap_or(options);
    let mut store = shared.lock();
    let left = store.delete(key, &options)?;
    let is_gone = store.get(key).is_none_or(|it| it.uid() != left.uid());
    drop(store);
    if is_gone {
        return Ok(json_answer(StatusCode::OK, &success(left.uid())));
    }
    Ok(object(StatusCode::OK, &left, asked.is_partial))
}

fn delete_collection(shared: &Shared, asked: &Asked) -> Result<Response<Body>, Refused> {
    let options = options(&asked.body)?;
    let selector = selector(&asked.query)?;
    let (kind, namespace) = (asked.target.kind, asked.target.namespace.as_deref());
    let mut store = shared.lock();
    let (found, _) = store.list(kind, namespace, &selector, (None, PAGE_MAX));
    for object in found {
        let metadata = |name: &str| object.metadata(name).unwrap_or_default().to_owned();
        let key = Key {
            kind,
            namespace: metadata("namespace"),
            name: metadata("name"),
        };
        store.delete(&key, &options)?;
    }
    Ok(json_answer(StatusCode::OK, &success("")))
}

fn success(uid: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
        "details": {"uid": uid},
    })
}

fn options(body: &Bytes) -> Result<Value, Refused> {
    if body.is_empty() {
        Ok(json!({}))
    } else {
        read(body)
    }
}

fn list(shared: &Shared, asked: &Asked) -> Result<Response<Body>, Refused> {
    let (target, query) = (&asked.target, &asked.query);
    let selector = selector(query)?;
    let after = query.get("continue").split_once('/');
    let limit = query.number("limit").filter(|limit| *limit > 0);
    let limit = limit
        .and_then(|it| usize::try_from(it).ok())
        .unwrap_or(PAGE_MAX);
    let store = shared.lock();
    let namespace = target.namespace.as_deref();
    let (objects, more) = store.list(target.kind, namespace, &selector, (after, limit));
    let version = store.version;
    drop(store);
    let kind = &KINDS[target.kind];
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if let Some((namespace, name)) = more {
        metadata["continue"] = json!(format!("{namespace}/{name}"));
    }
    let (name, api_version) = if asked.is_partial {
        (
            "PartialObjectMetadataList".to_owned(),
            "meta.k8s.io/v1".to_owned(),
        )
    } else {
        (format!("{}List", kind.name), kind.api_version())
    };
    let head = json!({"kind": name, "apiVersion": api_version, "metadata": metadata}).to_string();
    let mut body = head.into_bytes();
    body.pop();
    body.extend_from_slice(b",\"items\":[");
    for (index, object) in objects.iter().enumerate() {
        if index > 0 {
            body.push(b',');
        }
        body.extend_from_slice(&object.bytes(asked.is_partial));
    }
    body.extend_from_slice(b"]}");
    Ok(respond(StatusCode::OK, full(Bytes::from(body))))
}

fn scale(shared: &Shared, asked: &Asked, key: &Key) -> Result<Response<Body>, Refused> {
    let kind = &KINDS[key.kind];
    let missing = || Refused::not_found(kind.plural, &key.name);
    let path = kind.scale.ok_or_else(missing)?;
    let mut store = shared.lock();
    let mut found = store.get(key).cloned().ok_or_else(missing)?;
    if asked.verb.is_write() {
        let body = read(&asked.body)?;
        let mut patch = json!({"replicas": body["spec"]["replicas"]});
        if let [outer, inner] = path {
            patch = json!({*outer: {*inner: body["spec"]["replicas"]}});
        }
        let mut patch = json!({"spec": patch});
        if let Some(version) = body["metadata"]["resourceVersion"].as_str() {
            patch["metadata"] = json!({"resourceVersion": version});
        }
        let writer = Writer {
            manager: &asked.manager,
            subresource: "",
            is_forced: false,
        };
        found = store.patch(key, &patch, PatchKind::Merge, writer)?.0;
    }
    drop(store);
    let mut replicas = &found.value["spec"];
    for part in path {
        replicas = &replicas[*part];
    }
    let scale = json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": key.name, "namespace": key.namespace, "uid": found.uid(),
            "resourceVersion": found.version.to_string(),
        },
        "spec": {"replicas": replicas},
        "status": {
            "replicas": found.value["status"]["replicas"],
            "selector": found.value["status"]["selector"],
        },
    });
    Ok(json_answer(StatusCode::OK, &scale))
}

fn selector(query: &Query) -> Result<Selector, Refused> {
    Selector::parse(query.get("labelSelector"), query.get("fieldSelector"))
}

fn patch_kind(media: &str) -> Result<PatchKind, Refused> {
    Ok(match media.split(';').next().unwrap_or_default().trim() {
        "application/merge-patch+json" => PatchKind::Merge,
        "application/json-patch+json" => PatchKind::Json,
        "application/strategic-merge-patch+json" => PatchKind::Strategic,
        media if media.starts_with("application/apply-patch") => PatchKind::Apply,
        _ => {
            let code = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return Err(Refused::new(code, "this kind of patch is not known"));
        }
    })
}

fn read(body: &Bytes) -> Result<Value, Refused> {
    serde_json::from_slice(body).map_err(|error| Refused::bad(error.to_string()))
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes)
        .map_err(|never| match never {})
        .boxed_unsync()
}

fn respond(code: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    let json = hyper::header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

fn object(code: StatusCode, object: &Stored, is_partial: bool) -> Response<Body> {
    respond(code, full(object.bytes(is_partial)))
}

fn json_answer(code: StatusCode, body: &Value) -> Response<Body> {
    respond(code, full(Bytes::from(body.to_string())))
}

fn refusal(refused: &Refused) -> Response<Body> {
    let mut response = json_answer(refused.code, &refused.status());
    if let Some(seconds) = refused.retry_after_seconds {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

fn fault_answer(code: u16, retry_after_seconds: Option<u32>) -> Response<Body> {
    let code = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut refused = Refused::new(code, format!("a fault on demand: {}", reason(code)));
    refused.retry_after_seconds = retry_after_seconds;
    refusal(&refused)
}
