//! Objects that the scheduler brings to a worker, over real sockets: who may, what is refused, and
//! what breaks off.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod support;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream;
use oxidask_comm::{
    BulkFound, BulkPieceRequest, BulkPool, BulkRead, BulkRefusal, BulkSink, BulkSource, BulkUpload,
    CommError, serve_bulk,
};
use oxidask_diagnostic::{Code, Coded};
use oxidask_identity::Role;
use oxidask_pki::Authority;
use support::{authority, credentials, listener};
use tokio_util::sync::CancellationToken;

const ROOM_BYTES: u64 = 100 << 20;

#[derive(Default, Clone)]
struct Kept(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    objects: HashMap<u64, (u8, Vec<Bytes>)>,
    under_way: usize,
}

struct Sink(Kept, BulkUpload);

impl BulkSink for Sink {
    fn keep(self: Box<Self>, parts: Vec<Bytes>) -> Result<(), BulkRefusal> {
        let mut state = self.0.0.lock().unwrap();
        state.objects.insert(self.1.number, (self.1.kind, parts));
        drop(state);
        Ok(())
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.0.0.lock().unwrap().under_way -= 1;
    }
}

impl BulkSource for Kept {
    fn find(&self, _: u64) -> BulkFound {
        BulkFound::Missing
    }

    fn read(&self, _: BulkPieceRequest) -> BoxFuture<'_, BulkRead> {
        Box::pin(std::future::ready(BulkRead::Missing))
    }

    fn free(&self, _: &[(u64, u32)]) {}

    fn upload(&self, upload: BulkUpload) -> Result<Box<dyn BulkSink>, BulkRefusal> {
        if upload.bytes > ROOM_BYTES {
            return Err(BulkRefusal::NoRoom);
        }
        self.0.lock().unwrap().under_way += 1;
        Ok(Box::new(Sink(self.clone(), upload)))
    }
}

async fn serve(authority: &Authority) -> (Kept, String) {
    let (listener, address) = listener().await;
    let kept = Kept::default();
    let worker = credentials(authority, Role::Worker);
    let source = Arc::new(kept.clone());
    tokio::spawn(serve_bulk(
        listener,
        worker,
        source,
        CancellationToken::new(),
    ));
    (kept, address)
}

fn upload(number: u64, bytes: u64) -> BulkUpload {
    BulkUpload {
        number,
        kind: 5,
        bytes,
    }
}

#[tokio::test]
async fn an_object_is_brought_part_by_part_and_the_connection_used_again() {
    let authority = authority();
    let (kept, address) = serve(&authority).await;
    let pool = BulkPool::new(credentials(&authority, Role::Scheduler));
    let part = Bytes::from((0..=255).cycle().take(1 << 20).collect::<Vec<u8>>());
    for number in [1, 2] {
        let mut parts = stream::iter(std::iter::repeat_n(part.clone(), 100));
        let outcome = pool.upload(&address, upload(number, 100 << 20), &mut parts);
        assert_eq!(outcome.await.unwrap(), Ok(()));
    }
    let mut nothing = stream::empty();
    let outcome = pool.upload(&address, upload(3, 0), &mut nothing).await;
    assert_eq!(outcome.unwrap(), Ok(()));
    let state = kept.0.lock().unwrap();
    for number in [1, 2] {
        let (kind, parts) = &state.objects[&number];
        assert_eq!(*kind, 5);
        assert!(parts.concat() == part.repeat(100));
    }
    assert!(state.objects[&3].1.is_empty());
    assert_eq!(state.under_way, 0);
}

#[tokio::test]
async fn nothing_is_read_of_an_object_that_is_refused() {
    let authority = authority();
    let (kept, address) = serve(&authority).await;
    let pool = BulkPool::new(credentials(&authority, Role::Scheduler));
    let mut parts = stream::iter([Bytes::from_static(b"one"), Bytes::from_static(b"two")]);
    let outcome = pool.upload(&address, upload(1, ROOM_BYTES + 1), &mut parts);
    assert_eq!(outcome.await.unwrap(), Err(BulkRefusal::NoRoom));
    let outcome = pool.upload(&address, upload(2, 6), &mut parts).await;
    assert_eq!(
        outcome.unwrap(),
        Ok(()),
        "the same connection, the same parts"
    );
    assert_eq!(kept.0.lock().unwrap().objects[&2].1.concat(), b"onetwo");
}

#[tokio::test]
async fn only_the_scheduler_brings_objects() {
    let authority = authority();
    let (kept, address) = serve(&authority).await;
    for role in [Role::Worker, Role::Client, Role::Operator] {
        let pool = BulkPool::new(credentials(&authority, role));
        let mut parts = stream::iter([Bytes::from_static(b"x")]);
        let error = pool.upload(&address, upload(1, 1), &mut parts).await;
        let error = error.unwrap_err();
        // The operator is turned away before it can ask.
        let is_cut = matches!(error, CommError::Transfer { .. });
        assert!(is_cut || error.code() == Code::CallForbidden, "{error:?}");
    }
    assert!(kept.0.lock().unwrap().objects.is_empty());
}

#[tokio::test]
async fn what_breaks_off_or_does_not_fit_its_length_is_not_kept() {
    let authority = authority();
    let (kept, address) = serve(&authority).await;
    let pool = BulkPool::new(credentials(&authority, Role::Scheduler));
    for bytes in [1, 5] {
        let mut parts = stream::iter([Bytes::from_static(b"abc")]);
        let error = pool.upload(&address, upload(1, bytes), &mut parts).await;
        assert!(matches!(error, Err(CommError::SourceGone { .. })));
    }
    let mut patience = 100;
    while kept.0.lock().unwrap().under_way > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        patience -= 1;
        assert!(patience > 0, "its room is given back");
    }
    assert!(kept.0.lock().unwrap().objects.is_empty());
}
