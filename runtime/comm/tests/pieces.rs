//! Pieces of objects over real sockets: ranges, slices, what comes short, what is freed, objects
//! that are read while they are sent, and peers that misbehave.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod support;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use oxidask_comm::{
    BULK_WHOLE, BulkFound, BulkPart, BulkPiece, BulkPieceRequest, BulkPool, BulkRead, BulkSource,
    CommError, serve_bulk,
};
use oxidask_diagnostic::{Code, Coded};
use oxidask_identity::Role;
use oxidask_pki::Authority;
use support::{HOUR, accept_raw, authority, connect_raw, credentials, listener};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const PROTOCOL: &[u8] = b"oxidask-bulk/1";
const GREETING: &[u8] = b"OXBULK2\n";
const MEBIBYTE: usize = 1 << 20;
const ANSWER_MAX: u64 = 8 << 20;

/// Objects that are read while they are sent: of each some slices, of which some are freed.
#[derive(Default)]
struct Slices {
    objects: HashMap<u64, Vec<Bytes>>,
    freed: Mutex<Vec<(u64, u32)>>,
    reads: AtomicU64,
    bytes_read: AtomicU64,
    /// Reads after which nothing can be read any more; 0: no end.
    reads_max: u64,
    /// Whether each read finds another version.
    is_restless: bool,
}

impl Slices {
    fn slice(&self, key: u64, slice: u32) -> Option<Bytes> {
        if self.freed.lock().unwrap().contains(&(key, slice)) {
            return None;
        }
        let slices = self.objects.get(&key)?;
        match slice {
            BULK_WHOLE => match slices.as_slice() {
                [only] => Some(only.clone()),
                several => Some(several.concat().into()),
            },
            _ => slices.get(slice as usize).cloned(),
        }
    }
}

impl BulkSource for Slices {
    fn find(&self, key: u64) -> BulkFound {
        let whole = self.slice(key, BULK_WHOLE);
        whole.map_or(BulkFound::Missing, |whole| BulkFound::Stored {
            kind: 3,
            bytes: whole.len() as u64,
        })
    }

    fn read(&self, request: BulkPieceRequest) -> BoxFuture<'_, BulkRead> {
        async move {
            // As if from a disk.
            tokio::task::yield_now().await;
            let reads = self.reads.fetch_add(1, Ordering::Relaxed) + 1;
            if self.reads_max != 0 && reads > self.reads_max {
                return BulkRead::Missing;
            }
            let count = self.objects.get(&request.key).map(Vec::len);
            let is_slice = request.slice != BULK_WHOLE;
            if is_slice && count.is_some_and(|count| request.slice as usize >= count) {
                return BulkRead::NoSuchSlice;
            }
            let Some(slice) = self.slice(request.key, request.slice) else {
                return BulkRead::Missing;
            };
            let total = slice.len() as u64;
            let start = request.offset.min(total);
            let end = start.saturating_add(request.bytes_max).min(total);
            self.bytes_read.fetch_add(end - start, Ordering::Relaxed);
            let [start, end] = [start, end].map(|place| usize::try_from(place).unwrap());
            let piece = slice.slice(start..end);
            BulkRead::Found(BulkPiece {
                kind: 3,
                version: if self.is_restless { reads } else { request.key },
                total_bytes: total,
                parts: piece.chunks(300_000).map(Bytes::copy_from_slice).collect(),
            })
        }
        .boxed()
    }

    fn free(&self, slices: &[(u64, u32)]) {
        self.freed.lock().unwrap().extend_from_slice(slices);
    }
}

fn pattern(bytes: usize, seed: u64) -> Bytes {
    let mut state = seed | 1;
    let mut pattern = Vec::with_capacity(bytes + 8);
    while pattern.len() < bytes {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        pattern.extend_from_slice(&state.to_le_bytes());
    }
    pattern.truncate(bytes);
    pattern.into()
}

async fn serve(authority: &Authority, source: Slices) -> (String, Arc<Slices>) {
    let (listener, address) = listener().await;
    let source = Arc::new(source);
    let worker = credentials(authority, Role::Worker);
    let serving = serve_bulk(listener, worker, source.clone(), CancellationToken::new());
    tokio::spawn(serving);
    (address, source)
}

fn holding(objects: impl IntoIterator<Item = (u64, Vec<Bytes>)>) -> Slices {
    Slices {
        objects: objects.into_iter().collect(),
        ..Slices::default()
    }
}

fn pool(authority: &Authority) -> BulkPool {
    BulkPool::new(credentials(authority, Role::Worker))
}

fn piece(key: u64, slice: u32, offset: u64, bytes_max: u64) -> BulkPieceRequest {
    BulkPieceRequest {
        key,
        slice,
        offset,
        bytes_max,
    }
}

fn pieces(found: Vec<BulkRead>) -> Vec<Option<BulkPiece>> {
    found.into_iter().map(BulkRead::piece).collect()
}

fn text(piece: Option<&BulkPiece>) -> Option<Vec<u8>> {
    piece.map(|piece| piece.parts.concat())
}

#[tokio::test]
async fn ranges_of_slices_and_of_whole_objects_arrive_in_order() {
    let authority = authority();
    let slices = vec![Bytes::from("alpha"), Bytes::new(), Bytes::from("gamma!")];
    let (address, _) = serve(&authority, holding([(5, slices)])).await;
    let requests = [
        piece(5, 0, 0, 100),
        piece(5, 0, 1, 2),
        piece(5, 2, 5, 10),
        piece(5, 2, 6, 10),
        piece(5, 2, u64::MAX, u64::MAX),
        piece(5, 1, 0, 10),
        piece(5, 3, 0, 10),
        piece(6, 0, 0, 10),
        piece(5, BULK_WHOLE, 3, 4),
        piece(5, 0, 0, 0),
    ];
    let pool = pool(&authority);
    let found = pool.read_pieces(&address, &requests).await.unwrap();
    assert_eq!(found[6], BulkRead::NoSuchSlice);
    assert_eq!(found[7], BulkRead::Missing);
    let found = pieces(found);
    let texts: Vec<_> = found.iter().map(|piece| text(piece.as_ref())).collect();
    let some = |text: &str| Some(text.as_bytes().to_vec());
    let (nothing, gone) = (some(""), None);
    let expected = [
        some("alpha"),
        some("lp"),
        some("!"),
        nothing.clone(),
        nothing.clone(),
        nothing.clone(),
        gone.clone(),
        gone,
        some("haga"),
        nothing,
    ];
    assert_eq!(texts, expected);
    let totals: Vec<_> = found.iter().flatten().map(|p| p.total_bytes).collect();
    assert_eq!(totals, [5, 5, 6, 6, 6, 0, 11, 5]);
    assert!(
        found
            .iter()
            .flatten()
            .all(|p| p.kind == 3 && p.version == 5)
    );
    assert_eq!(pool.read_pieces(&address, &[]).await.unwrap(), []);
}

#[tokio::test]
async fn an_answer_is_bounded_and_what_comes_short_is_asked_for_again() {
    let authority = authority();
    let content: Vec<_> = (0..7).map(|key| pattern(3 * MEBIBYTE, key)).collect();
    let objects = (0..).zip(content.iter().map(|slice| vec![slice.clone()]));
    let (address, source) = serve(&authority, holding(objects)).await;
    let pool = pool(&authority);
    let mut read = vec![Vec::new(); content.len()];
    let mut rounds = 0;
    loop {
        let left: Vec<_> = (0..content.len())
            .filter(|key| read[*key].len() < content[*key].len())
            .collect();
        if left.is_empty() {
            break;
        }
        rounds += 1;
        let requests: Vec<_> = left
            .iter()
            .map(|key| piece(*key as u64, 0, read[*key].len() as u64, u64::MAX))
            .collect();
        let found = pool.read_pieces(&address, &requests).await.unwrap();
        let found = pieces(found);
        let bytes: u64 = found.iter().flatten().map(BulkPiece::len).sum();
        assert!(bytes <= ANSWER_MAX, "{bytes}");
        assert!(!found[0].as_ref().unwrap().is_empty(), "no progress");
        for (key, piece) in left.into_iter().zip(found) {
            let piece = piece.unwrap();
            assert_eq!(piece.total_bytes, 3 << 20);
            read[key].extend_from_slice(&piece.parts.concat());
        }
    }
    assert!(read == content);
    assert_eq!(rounds, 3);
    // Nothing was read and thrown away.
    assert_eq!(source.bytes_read.load(Ordering::Relaxed), 21 << 20);
}

#[tokio::test]
async fn tens_of_thousands_of_pieces_take_few_requests() {
    let authority = authority();
    let slices: Vec<_> = (0..40_000_u32)
        .map(|number| Bytes::from(number.to_string()))
        .collect();
    let (address, _) = serve(&authority, holding([(1, slices)])).await;
    let requests: Vec<_> = (0..40_000).map(|slice| piece(1, slice, 0, 64)).collect();
    let found = pool(&authority)
        .read_pieces(&address, &requests)
        .await
        .unwrap();
    for (number, found) in pieces(found).iter().enumerate() {
        assert_eq!(text(found.as_ref()), Some(number.to_string().into_bytes()));
    }
}

#[tokio::test]
async fn an_object_that_is_not_at_hand_is_sent_piece_by_piece() {
    let authority = authority();
    let large = pattern(20 * MEBIBYTE + 5, 1);
    let objects = [(1, vec![large.clone()]), (2, vec![Bytes::new()])];
    let (address, source) = serve(&authority, holding(objects)).await;
    let pool = pool(&authority);
    let found = pool.fetch(&address, &[1, 2, 3]).await.unwrap();
    let object = found[0].1.as_ref().unwrap();
    assert_eq!(object.kind, 3);
    assert!(object.parts.concat() == large);
    assert!(found[1].1.as_ref().unwrap().is_empty());
    assert_eq!(found[2], (3, None));
    // Neither at once nor in crumbs.
    assert_eq!(source.reads.load(Ordering::Relaxed), 21);

    let (sender, mut parts) = mpsc::channel(1);
    let (relaying, to) = (pool.clone(), address.clone());
    let relay = tokio::spawn(async move { relaying.fetch_parts(&to, vec![1], sender).await });
    let mut relayed = Vec::new();
    while let Some(part) = parts.recv().await {
        if let BulkPart::Data(data) = part {
            relayed.extend_from_slice(&data);
        }
    }
    relay.await.unwrap().unwrap();
    assert!(relayed == large);
}

#[tokio::test]
async fn a_slow_reader_makes_the_server_read_no_more_than_it_sends() {
    let authority = authority();
    let objects = [(1, vec![pattern(200 * MEBIBYTE, 1)])];
    let (address, source) = serve(&authority, holding(objects)).await;
    let leaf = authority.issue(Role::Worker, HOUR).unwrap();
    let mut raw = connect_raw(&address, Some(&leaf), PROTOCOL).await.unwrap();
    let request = [&1_u32.to_le_bytes()[..], &[0; 4], &1_u64.to_le_bytes()].concat();
    raw.write_all(&request).await.unwrap();
    // Until it reads no more.
    let mut bytes = 0;
    let start = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let read = source.bytes_read.load(Ordering::Relaxed);
        if read > 0 && read == bytes {
            break;
        }
        bytes = read;
        assert!(start.elapsed() < Duration::from_secs(20), "{bytes}");
    }
    assert!(bytes < 50 << 20, "{bytes}");
}

#[tokio::test]
async fn an_object_that_goes_away_or_changes_while_it_is_sent_is_an_error() {
    let authority = authority();
    for (reads_max, is_restless) in [(3, false), (0, true)] {
        let source = Slices {
            reads_max,
            is_restless,
            ..holding([(1, vec![pattern(5 * MEBIBYTE, 1)])])
        };
        let (address, _) = serve(&authority, source).await;
        let error = pool(&authority).fetch(&address, &[1]).await.unwrap_err();
        assert!(matches!(error, CommError::Transfer { .. }), "{error:?}");
        assert_eq!(error.code(), Code::ResultUnavailable);
    }
}

#[tokio::test]
async fn slices_are_freed_by_workers_only() {
    let authority = authority();
    let (address, source) = serve(&authority, holding([(1, vec![Bytes::from("a"); 3])])).await;
    let worker = pool(&authority);
    let slices: Vec<_> = (0..20_000).map(|slice| (7, slice)).collect();
    worker.free_slices(&address, vec![(1, 1)]).await.unwrap();
    worker.free_slices(&address, slices.clone()).await.unwrap();
    worker.free_slices(&address, Vec::new()).await.unwrap();
    let freed = source.freed.lock().unwrap().clone();
    assert_eq!(freed.len(), 20_001);
    assert!(freed[0] == (1, 1) && freed[1..] == slices);
    let requests = [piece(1, 0, 0, 9), piece(1, 1, 0, 9)];
    let found = worker.read_pieces(&address, &requests).await.unwrap();
    assert_eq!(found[1], BulkRead::Missing);
    let found = pieces(found);
    assert_eq!(text(found[0].as_ref()), Some(b"a".to_vec()));
    assert_eq!(found[1], None);

    let scheduler = BulkPool::new(credentials(&authority, Role::Scheduler));
    scheduler
        .free_slices(&address, vec![(1, 0)])
        .await
        .unwrap_err();
    // It may read, though, and the server is not harmed.
    let found = scheduler
        .read_pieces(&address, &requests[..1])
        .await
        .unwrap();
    assert!(matches!(found[0], BulkRead::Found(_)));
    // So may clients.
    let client = BulkPool::new(credentials(&authority, Role::Client));
    client
        .free_slices(&address, vec![(1, 0)])
        .await
        .unwrap_err();
    let found = client.read_pieces(&address, &requests[..1]).await.unwrap();
    assert!(matches!(found[0], BulkRead::Found(_)));
    let operator = BulkPool::new(credentials(&authority, Role::Operator));
    let refused = operator.read_pieces(&address, &requests).await.unwrap_err();
    assert_eq!(refused.code(), Code::CallForbidden);
    assert_eq!(source.freed.lock().unwrap().len(), 20_001);
}

#[tokio::test]
async fn requests_that_are_no_requests_end_their_connection() {
    let authority = authority();
    let (address, source) = serve(&authority, holding([(1, vec![Bytes::from("a")])])).await;
    let leaf = authority.issue(Role::Worker, HOUR).unwrap();
    let header = |count: u32, verb: u8| [&count.to_le_bytes()[..], &[verb, 0, 0, 0]].concat();
    let rubbish = [0xff; 64];
    for request in [
        header(1, 4),
        header(2, 3),
        [&header(1, 3)[..], &rubbish[..24]].concat(),
        header(0, 1),
        header(16 * 1024 + 1, 1),
        header(16 * 1024 + 1, 2),
        [&header(1, 1)[..], &rubbish].concat(),
        [&header(1, 2)[..], &rubbish].concat(),
    ] {
        let mut raw = connect_raw(&address, Some(&leaf), PROTOCOL).await.unwrap();
        raw.write_all(&request).await.unwrap();
        let mut answer = Vec::new();
        let _ = timeout(Duration::from_secs(5), raw.read_to_end(&mut answer))
            .await
            .unwrap();
        assert!(answer == GREETING, "{answer:?}");
    }
    assert!(source.freed.lock().unwrap().is_empty());
}

/// A peer with a good certificate that answers each request with the same bytes and leaves.
async fn answers(authority: &Authority, answer: Vec<u8>) -> String {
    let leaf = authority.issue(Role::Worker, HOUR).unwrap();
    let (listener, address) = listener().await;
    tokio::spawn(async move {
        loop {
            let mut stream = accept_raw(&listener, &leaf, PROTOCOL).await;
            stream.write_all(GREETING).await.unwrap();
            let mut request = [0; 24];
            let _ = stream.read_exact(&mut request).await;
            let _ = stream.write_all(&answer).await;
            let _ = stream.shutdown().await;
        }
    });
    address
}

fn header(status: u8, kind: u8, total: u64, bytes: u64) -> Vec<u8> {
    let mut header = vec![status, kind, 0, 0, 0, 0, 0, 0];
    for number in [0, total, bytes] {
        header.extend_from_slice(&number.to_le_bytes());
    }
    header
}

#[tokio::test]
async fn answers_that_lie_are_errors() {
    let authority = authority();
    let request = [piece(1, 0, 0, 1_000)];
    let cut = [header(1, 0, 1_000, 1_000), vec![1; 999]].concat();
    for answer in [cut, Vec::new(), vec![1, 0, 0]] {
        let address = answers(&authority, answer).await;
        let pool = pool(&authority);
        let error = pool.read_pieces(&address, &request).await.unwrap_err();
        assert!(matches!(error, CommError::Transfer { .. }), "{error:?}");
    }
    let surplus = [header(0, 0, 0, 0), vec![0; 5]].concat();
    for answer in [
        // Longer than was asked for, longer than the slice, more than nothing of what is missing.
        header(1, 0, 2_000, 1_001),
        header(1, 0, 10, 11),
        header(1, 0, u64::MAX, u64::MAX),
        header(0, 0, 1, 0),
        header(0, 1, 0, 0),
        header(2, 0, 1, 0),
        header(3, 0, 0, 0),
        surplus,
        vec![1; 32],
    ] {
        let address = answers(&authority, answer).await;
        let pool = pool(&authority);
        let error = pool.read_pieces(&address, &request).await.unwrap_err();
        assert!(matches!(error, CommError::Nonsense { .. }), "{error:?}");
    }
    // More than one answer may hold, although each piece is as asked for.
    let half = [header(1, 0, 5 << 20, 5 << 20), vec![1; 5 << 20]].concat();
    let address = answers(&authority, [half.clone(), half].concat()).await;
    let pool = pool(&authority);
    let both = [piece(1, 0, 0, u64::MAX), piece(2, 0, 0, u64::MAX)];
    let error = pool.read_pieces(&address, &both).await.unwrap_err();
    assert!(matches!(error, CommError::Nonsense { .. }), "{error:?}");

    let address = answers(&authority, vec![9; 8]).await;
    let error = pool.free_slices(&address, vec![(1, 2)]).await.unwrap_err();
    assert!(matches!(error, CommError::Nonsense { .. }), "{error:?}");
}
