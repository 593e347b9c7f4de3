//! Values that clients gave: kept until the task for them adopts them.
//!
//! Owns their numbers and the time that they wait; their bytes are in the store, under keys that no
//! task has, counted and spilled like results. The scheduler brings them over the data plane.
//!
//! Invariants: room is made before bytes are read, and given back if they do not all come; what
//! nobody adopts goes after [`ADOPTION_TIME_MAX`]; a value is adopted once, without a copy.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use oxidask_comm::{BulkRefusal, BulkSink, BulkUpload};
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_exec::{Body, Executor, Program, TaskContext, TaskError};
use oxidask_proto::upload::{OPERATION, UploadArguments};
use oxidask_store::{Payload, PayloadKind, Reservation, ResultKey, Store};

/// How long a value waits for its task.
pub(crate) const ADOPTION_TIME_MAX: Duration = Duration::from_mins(1);
/// Values that wait or are on their way.
const UPLOADS_MAX: usize = 1_024;
/// The graph of the keys under which values wait. No graph has this number.
const NO_GRAPH: u32 = u32::MAX;

/// The values that wait.
#[derive(Debug)]
pub(crate) struct Uploads {
    store: Arc<Store>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: HashMap<u64, Waiting>,
    under_way: usize,
    last: u32,
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    key: ResultKey,
    until: Instant,
}

impl Uploads {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        Self {
            store,
            state: Mutex::default(),
        }
    }

    /// Makes room for a value.
    pub(crate) fn begin(
        self: &Arc<Self>,
        upload: BulkUpload,
    ) -> Result<Box<dyn BulkSink>, BulkRefusal> {
        let kind = PayloadKind::from_number(u32::from(upload.kind)).ok_or(BulkRefusal::NotTaken)?;
        let reservation = self.store.account().reservation();
        let mut state = self.state();
        if state.waiting.len() + state.under_way >= UPLOADS_MAX {
            return Err(BulkRefusal::TooMany);
        }
        if reservation.try_grow(upload.bytes).is_err() {
            return Err(BulkRefusal::NoRoom);
        }
        state.under_way += 1;
        drop(state);
        Ok(Box::new(Arriving {
            uploads: Arc::clone(self),
            reservation: Some(reservation),
            number: upload.number,
            kind,
        }))
    }

    /// Lets go what has waited for too long.
    pub(crate) fn sweep(&self, now: Instant) {
        let mut state = self.state();
        let late: Vec<(u64, ResultKey)> = state
            .waiting
            .iter()
            .filter(|(_, waiting)| waiting.until <= now)
            .map(|(number, waiting)| (*number, waiting.key))
            .collect();
        for (number, key) in late {
            state.waiting.remove(&number);
            self.store.remove(key);
            tracing::debug!(number, "nobody adopted a value of a client");
        }
    }

    /// Forgets all of them; their bytes have gone with everything else.
    pub(crate) fn clear(&self) {
        self.state().waiting.clear();
    }

    /// Takes a value out of those that wait.
    fn adopt(&self, number: u64) -> Option<Adopted> {
        let waiting = self.state().waiting.remove(&number)?;
        Some(Adopted {
            store: Arc::clone(&self.store),
            key: waiting.key,
        })
    }

    /// Whether a value waits on the disk.
    fn is_on_disk(&self, number: u64) -> bool {
        let waiting = self.state().waiting.get(&number).copied();
        waiting.is_some_and(|waiting| {
            self.store.contains(waiting.key) && self.store.get(waiting.key).is_none()
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A value on its way here.
struct Arriving {
    uploads: Arc<Uploads>,
    reservation: Option<Reservation>,
    number: u64,
    kind: PayloadKind,
}

impl BulkSink for Arriving {
    fn keep(mut self: Box<Self>, parts: Vec<Bytes>) -> Result<(), BulkRefusal> {
        let payload = Payload {
            kind: self.kind,
            parts,
        };
        let mut state = self.uploads.state();
        let key = ResultKey::new(NO_GRAPH, state.last);
        state.last = state.last.wrapping_add(1);
        // Counted as a result from now on, and not twice.
        drop(self.reservation.take());
        let inserted = self.uploads.store.insert_result(key, payload);
        inserted.map_err(|_| BulkRefusal::NoRoom)?;
        let until = Instant::now() + ADOPTION_TIME_MAX;
        state.waiting.insert(self.number, Waiting { key, until });
        drop(state);
        Ok(())
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.uploads.state().under_way -= 1;
    }
}

/// A value that belongs to a task now. Its place among those that wait goes with this.
struct Adopted {
    store: Arc<Store>,
    key: ResultKey,
}

impl Drop for Adopted {
    fn drop(&mut self) {
        self.store.remove(self.key);
    }
}

/// Runs the tasks that adopt values.
pub(crate) struct Adopter(pub(crate) Arc<Uploads>);

impl fmt::Debug for Adopter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Adopter").finish_non_exhaustive()
    }
}

impl Executor for Adopter {
    fn operations(&self) -> &'static [&'static str] {
        &[OPERATION]
    }

    fn prepare(&self, _: &Body) -> Result<Arc<dyn Program>, TaskError> {
        Ok(Arc::new(Self(Arc::clone(&self.0))))
    }
}

impl Program for Adopter {
    fn run_now(&self, _: &[Payload], context: &TaskContext) -> Option<Result<Payload, TaskError>> {
        let Some(arguments) = UploadArguments::decode(&context.arguments) else {
            return Some(Err(nonsense(&context.key)));
        };
        match arguments {
            UploadArguments::Value { kind, data } => {
                let kind = PayloadKind::from_number(u32::from(kind));
                let payload = kind.map(|kind| Payload::new(kind, data));
                Some(payload.ok_or_else(|| nonsense(&context.key)))
            }
            UploadArguments::Number(number) if self.0.is_on_disk(number) => None,
            UploadArguments::Number(number) => {
                let payload = self.0.adopt(number);
                let payload = payload.and_then(|adopted| adopted.store.get(adopted.key));
                Some(payload.ok_or_else(|| lost(&context.key)))
            }
        }
    }

    fn run(
        self: Arc<Self>,
        _: Vec<Payload>,
        context: TaskContext,
    ) -> BoxFuture<'static, Result<Payload, TaskError>> {
        async move {
            let arguments = UploadArguments::decode(&context.arguments);
            let Some(UploadArguments::Number(number)) = arguments else {
                return Err(nonsense(&context.key));
            };
            let adopted = self.0.adopt(number).ok_or_else(|| lost(&context.key))?;
            let loaded = adopted.store.load_all(vec![adopted.key]).await;
            let payload = loaded.map(|mut loaded| loaded.payloads.pop());
            match payload {
                Ok(Some(payload)) => Ok(payload),
                Ok(None) => Err(lost(&context.key)),
                Err(error) => {
                    let mut lost = lost(&context.key);
                    lost.diagnostic = lost.diagnostic.with_cause(error.to_string());
                    Err(lost)
                }
            }
        }
        .boxed()
    }
}

fn lost(key: &str) -> TaskError {
    TaskError::permanent(Diagnostic::new(
        Code::UploadLost,
        format!("the value that a client gave for `{key}` is not at this worker any more"),
    ))
}

fn nonsense(key: &str) -> TaskError {
    TaskError::permanent(Diagnostic::new(
        Code::ProtocolMismatch,
        format!("the task `{key}` says nothing of the value that it should adopt"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uploads(limit_bytes: u64) -> Arc<Uploads> {
        Arc::new(Uploads::new(Arc::new(Store::new(limit_bytes))))
    }

    fn put(uploads: &Arc<Uploads>, number: u64, bytes: usize) -> Result<(), BulkRefusal> {
        let sink = uploads.begin(BulkUpload {
            number,
            kind: 5,
            bytes: bytes as u64,
        })?;
        sink.keep(vec![Bytes::from(vec![1; bytes])])
    }

    fn adopt(uploads: &Arc<Uploads>, arguments: &UploadArguments) -> Result<Payload, TaskError> {
        let mut context = TaskContext::alone(1 << 30, "/".into(), "/".into());
        context.arguments = arguments.encode();
        Adopter(Arc::clone(uploads)).run_now(&[], &context).unwrap()
    }

    #[test]
    fn a_value_is_adopted_once() {
        let uploads = uploads(10_000);
        put(&uploads, 9, 1_000).unwrap();
        assert_eq!(uploads.store.held().bytes(), 1_000);
        let payload = adopt(&uploads, &UploadArguments::Number(9)).unwrap();
        assert_eq!((payload.kind, payload.len()), (PayloadKind::Python, 1_000));
        assert_eq!(uploads.store.held().bytes(), 0);
        let again = adopt(&uploads, &UploadArguments::Number(9)).unwrap_err();
        assert!(!again.is_retryable);
        assert_eq!(again.diagnostic.code, Code::UploadLost);
    }

    #[test]
    fn what_nobody_adopts_goes() {
        let uploads = uploads(10_000);
        put(&uploads, 9, 1_000).unwrap();
        uploads.sweep(Instant::now());
        assert_eq!(uploads.store.held().bytes(), 1_000);
        uploads.sweep(Instant::now() + ADOPTION_TIME_MAX);
        assert_eq!(uploads.store.held().bytes(), 0);
        assert!(adopt(&uploads, &UploadArguments::Number(9)).is_err());
    }

    #[test]
    fn what_does_not_fit_is_refused_and_what_does_not_come_gives_its_room_back() {
        let uploads = uploads(10_000);
        assert_eq!(put(&uploads, 1, 20_000), Err(BulkRefusal::NoRoom));
        let upload = BulkUpload {
            number: 2,
            kind: 0,
            bytes: 6_000,
        };
        let sink = uploads.begin(upload).unwrap();
        assert!(uploads.store.held().reserved_bytes >= 6_000);
        assert_eq!(put(&uploads, 3, 6_000), Err(BulkRefusal::NoRoom));
        drop(sink);
        assert_eq!(uploads.store.held().reserved_bytes, 0);
        put(&uploads, 3, 6_000).unwrap();
        let unknown = BulkUpload { kind: 99, ..upload };
        assert_eq!(uploads.begin(unknown).err(), Some(BulkRefusal::NotTaken));
    }

    #[test]
    fn only_so_many_wait() {
        let uploads = uploads(1 << 30);
        for number in 0..UPLOADS_MAX as u64 {
            put(&uploads, number, 1).unwrap();
        }
        assert_eq!(put(&uploads, 1 << 40, 1), Err(BulkRefusal::TooMany));
        uploads.sweep(Instant::now() + ADOPTION_TIME_MAX);
        put(&uploads, 1 << 40, 1).unwrap();
    }

    #[test]
    fn a_small_value_comes_with_its_task() {
        let value = UploadArguments::Value {
            kind: 1,
            data: Bytes::from_static(b"abc"),
        };
        let payload = adopt(&uploads(100), &value).unwrap();
        assert_eq!(payload, Payload::new(PayloadKind::Bytes, &b"abc"[..]));
    }
}
