//! A small object store that speaks S3 over HTTP, in this process, with its objects in memory.
//! It knows one bucket and one access key, and refuses others with the answers that S3 gives.

#![allow(clippy::unwrap_used, reason = "this is part of tests")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::thread;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::Response;

pub(crate) const BUCKET: &str = "lake";
pub(crate) const ACCESS_KEY: &str = "AKIATESTACCESSKEY";
pub(crate) const SECRET_KEY: &str = "s3cr3t-that-nobody-may-see";
const MODIFIED: &str = "Sat, 01 Jun 2024 00:00:00 GMT";

#[derive(Default)]
struct Objects {
    whole: BTreeMap<String, Vec<u8>>,
    uploads: BTreeMap<String, BTreeMap<u32, Vec<u8>>>,
    completed: usize,
    begun: usize,
}

type Shared = Arc<Mutex<Objects>>;

/// Serves as long as the test process lives.
pub(crate) struct ObjectStore {
    pub(crate) endpoint: String,
    objects: Shared,
}

impl ObjectStore {
    pub(crate) fn start() -> Self {
        let objects = Shared::default();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        listener.set_nonblocking(true).unwrap();
        let state = Arc::clone(&objects);
        thread::spawn(move || {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            let runtime = builder.enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let router = axum::Router::new().fallback(answer).with_state(state);
                axum::serve(listener, router).await.unwrap();
            });
        });
        Self { endpoint, objects }
    }

    pub(crate) fn put(&self, key: &str, bytes: impl Into<Vec<u8>>) {
        let mut objects = self.objects.lock().unwrap();
        objects.whole.insert(key.to_owned(), bytes.into());
    }

    pub(crate) fn object(&self, key: &str) -> Option<Vec<u8>> {
        self.objects.lock().unwrap().whole.get(key).cloned()
    }

    /// The keys that begin with a prefix.
    pub(crate) fn keys(&self, prefix: &str) -> Vec<String> {
        let objects = self.objects.lock().unwrap();
        let keys = objects.whole.keys();
        keys.filter(|key| key.starts_with(prefix))
            .cloned()
            .collect()
    }

    /// Uploads in parts that were completed, and that are still open.
    pub(crate) fn uploads(&self) -> (usize, usize) {
        let objects = self.objects.lock().unwrap();
        (objects.completed, objects.uploads.len())
    }
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next().unwrap(), rest.next().unwrap()];
            let digits = std::str::from_utf8(&digits).unwrap();
            bytes.push(u8::from_str_radix(digits, 16).unwrap());
        } else {
            bytes.push(if byte == b'+' { b' ' } else { byte });
        }
    }
    String::from_utf8(bytes).unwrap()
}

fn response(status: StatusCode, body: impl Into<Body>) -> Response {
    let builder = Response::builder().status(status);
    let builder = builder
        .header("etag", "\"e\"")
        .header("last-modified", MODIFIED);
    builder.body(body.into()).unwrap()
}

fn refused(status: StatusCode, code: &str, sentence: &str) -> Response {
    // As S3 does, the answer holds the access key.
    let body = format!(
        "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{sentence}</Message>\
         <AWSAccessKeyId>{ACCESS_KEY}</AWSAccessKeyId></Error>"
    );
    response(status, body)
}

async fn answer(State(objects): State<Shared>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap();
    let query: BTreeMap<String, String> = head
        .uri
        .query()
        .unwrap_or_default()
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (decoded(name), decoded(value)))
        .collect();
    let path = decoded(&head.uri.path()[1..]);
    let (bucket, key) = path.split_once('/').unwrap_or((&path, ""));
    let signed = head.headers.get("authorization");
    let signed = signed.map_or("", |value| value.to_str().unwrap());
    if !signed.contains(&format!("Credential={ACCESS_KEY}/")) {
        let sentence = "The access key does not exist in our records.";
        return refused(StatusCode::FORBIDDEN, "InvalidAccessKeyId", sentence);
    }
    if bucket != BUCKET {
        let sentence = "The specified bucket does not exist";
        return refused(StatusCode::NOT_FOUND, "NoSuchBucket", sentence);
    }
    let mut objects = objects.lock().unwrap();
    match head.method {
        Method::GET if key.is_empty() => list(&objects, &query),
        Method::GET | Method::HEAD => get(&objects, key, &head.headers),
        method => change(&mut objects, &method, key, &query, &body),
    }
}

/// What a request that is not a question does.
fn change(
    objects: &mut Objects,
    method: &Method,
    key: &str,
    query: &BTreeMap<String, String>,
    body: &[u8],
) -> Response {
    let has = |name: &str| query.contains_key(name);
    match *method {
        Method::PUT if has("uploadId") => {
            let number = query["partNumber"].parse().unwrap();
            let upload = objects.uploads.get_mut(&query["uploadId"]).unwrap();
            upload.insert(number, body.to_vec());
            response(StatusCode::OK, "")
        }
        Method::PUT => {
            objects.whole.insert(key.to_owned(), body.to_vec());
            response(StatusCode::OK, "")
        }
        Method::POST if has("uploads") => {
            objects.begun += 1;
            let id = format!("upload-{}", objects.begun);
            objects.uploads.insert(id.clone(), BTreeMap::new());
            let body = format!(
                "<InitiateMultipartUploadResult><UploadId>{id}</UploadId>\
                 </InitiateMultipartUploadResult>"
            );
            response(StatusCode::OK, body)
        }
        Method::POST if has("uploadId") => {
            let Some(parts) = objects.uploads.remove(&query["uploadId"]) else {
                let sentence = "The specified upload does not exist.";
                return refused(StatusCode::NOT_FOUND, "NoSuchUpload", sentence);
            };
            let whole = parts.into_values().flatten().collect();
            objects.whole.insert(key.to_owned(), whole);
            objects.completed += 1;
            let body = "<CompleteMultipartUploadResult><ETag>e</ETag>\
                 </CompleteMultipartUploadResult>";
            response(StatusCode::OK, body)
        }
        Method::POST if has("delete") => {
            let text = std::str::from_utf8(body).unwrap();
            let mut done = String::new();
            for rest in text.split("<Key>").skip(1) {
                let key = rest.split("</Key>").next().unwrap();
                objects.whole.remove(key);
                write!(done, "<Deleted><Key>{key}</Key></Deleted>").unwrap();
            }
            response(
                StatusCode::OK,
                format!("<DeleteResult>{done}</DeleteResult>"),
            )
        }
        Method::DELETE => {
            match query.get("uploadId") {
                Some(id) => drop(objects.uploads.remove(id)),
                None => drop(objects.whole.remove(key)),
            }
            response(StatusCode::NO_CONTENT, "")
        }
        _ => refused(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", "no"),
    }
}

fn get(objects: &Objects, key: &str, headers: &HeaderMap) -> Response {
    let Some(bytes) = objects.whole.get(key) else {
        return refused(
            StatusCode::NOT_FOUND,
            "NoSuchKey",
            "The key does not exist.",
        );
    };
    let Some(range) = headers.get("range") else {
        return response(StatusCode::OK, bytes.clone());
    };
    let range = range.to_str().unwrap().strip_prefix("bytes=").unwrap();
    let (first, last) = range.split_once('-').unwrap();
    let total = bytes.len();
    let (first, end): (usize, usize) = match (first, last) {
        ("", count) => (total.saturating_sub(count.parse().unwrap()), total),
        (first, "") => (first.parse().unwrap(), total),
        (first, last) => {
            let last: usize = last.parse().unwrap();
            (first.parse().unwrap(), total.min(last + 1))
        }
    };
    let mut part = response(StatusCode::PARTIAL_CONTENT, bytes[first..end].to_vec());
    let range = format!("bytes {first}-{}/{total}", end - 1);
    part.headers_mut()
        .insert("content-range", range.parse().unwrap());
    part
}

/// Two keys a page, so that a listing has several.
fn list(objects: &Objects, query: &BTreeMap<String, String>) -> Response {
    let text = |name: &str| query.get(name).map_or("", String::as_str);
    let (prefix, delimiter) = (text("prefix"), text("delimiter"));
    let after = text("continuation-token").max(text("start-after"));
    let mut entries = BTreeMap::new();
    for (key, bytes) in &objects.whole {
        let Some(rest) = key.strip_prefix(prefix) else {
            continue;
        };
        let folder = rest.split_once(delimiter).filter(|_| !delimiter.is_empty());
        match folder {
            Some((folder, _)) => entries.insert(format!("{prefix}{folder}{delimiter}"), None),
            None => entries.insert(key.clone(), Some(bytes.len())),
        };
    }
    let mut rest = entries.into_iter().filter(|(key, _)| key.as_str() > after);
    let mut body = String::from("<ListBucketResult>");
    let mut last = String::new();
    for (key, size) in rest.by_ref().take(2) {
        match size {
            Some(size) => write!(
                body,
                "<Contents><Key>{key}</Key><Size>{size}</Size><ETag>\"e\"</ETag>\
                 <LastModified>2024-06-01T00:00:00.000Z</LastModified></Contents>"
            ),
            None => write!(
                body,
                "<CommonPrefixes><Prefix>{key}</Prefix></CommonPrefixes>"
            ),
        }
        .unwrap();
        last = key;
    }
    if rest.next().is_some() {
        write!(
            body,
            "<NextContinuationToken>{last}</NextContinuationToken>"
        )
        .unwrap();
    }
    body.push_str("</ListBucketResult>");
    response(StatusCode::OK, body)
}
