//! How fast the bulk data plane is: GiB per second with large objects and with their pieces,
//! objects and pieces per second with tiny ones, once within a process and once between two.
//!
//! ```text
//! cargo run --release -p oxidask-comm --example bulk_rate
//! ```

#![allow(clippy::print_stdout, reason = "a program for people")]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use oxidask_comm::{
    BULK_WHOLE, BulkFound, BulkObject, BulkPart, BulkPiece, BulkPieceRequest, BulkPool, BulkRead,
    BulkSource, Credentials, install_crypto_provider, serve_bulk,
};
use oxidask_identity::Role;
use oxidask_pki::Authority;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const LARGE: u64 = 1 << 32;
/// Objects from here on are large, and not at hand.
const STORED: u64 = 1 << 48;
const LARGE_BYTES: usize = 64 * 1024 * 1024;
const LARGE_COUNT: u64 = 16;
const TINY_COUNT: u64 = 200_000;
const ROUNDS: usize = 7;

struct Objects {
    large: Bytes,
    tiny: Bytes,
}

impl Objects {
    fn part(&self, key: u64) -> &Bytes {
        if key >= LARGE {
            &self.large
        } else {
            &self.tiny
        }
    }
}

impl BulkSource for Objects {
    fn find(&self, key: u64) -> BulkFound {
        if key >= STORED {
            return BulkFound::Stored {
                kind: 1,
                bytes: self.large.len() as u64,
            };
        }
        BulkFound::Here(BulkObject {
            kind: 1,
            parts: vec![self.part(key).clone()],
        })
    }

    fn read(&self, request: BulkPieceRequest) -> BoxFuture<'_, BulkRead> {
        let part = self.part(request.key);
        let length = part.len() as u64;
        let start = request.offset.min(length);
        let end = start.saturating_add(request.bytes_max).min(length);
        let bytes = usize::try_from(start)
            .ok()
            .zip(usize::try_from(end).ok())
            .map(|(start, end)| part.slice(start..end));
        let piece = bytes.map(|bytes| BulkPiece {
            kind: 1,
            version: 1,
            total_bytes: length,
            parts: vec![bytes],
        });
        Box::pin(std::future::ready(
            piece.map_or(BulkRead::Missing, BulkRead::Found),
        ))
    }

    fn free(&self, _: &[(u64, u32)]) {}
}

fn main() -> Result<(), Failure> {
    install_crypto_provider();
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some("serve") {
        let dir = arguments.next().ok_or("no folder")?;
        return runtime()?.block_on(serve(&dir));
    }
    let dir = tempfile::tempdir()?;
    let authority = Authority::new("local", "rate")?;
    authority.write_dir(dir.path(), Role::Worker, Duration::from_hours(1))?;
    let path = dir.path().display().to_string();

    println!("two processes");
    let mut child = Command::new(std::env::current_exe()?)
        .args(["serve", &path])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().ok_or("no output")?).read_line(&mut line)?;
    let outcome = runtime()?.block_on(measure(line.trim(), &path));
    child.kill()?;
    child.wait()?;
    outcome?;

    println!("one process");
    runtime()?.block_on(async {
        let (address, listener) = listen().await?;
        tokio::spawn(serve_on(listener, path.clone()));
        measure(&address, &path).await
    })
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    Ok(builder.worker_threads(2).enable_all().build()?)
}

async fn listen() -> Result<(String, TcpListener), Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    Ok((listener.local_addr()?.to_string(), listener))
}

async fn serve(dir: &str) -> Result<(), Failure> {
    let (address, listener) = listen().await?;
    println!("{address}");
    serve_on(listener, dir.to_owned()).await
}

async fn serve_on(listener: TcpListener, dir: String) -> Result<(), Failure> {
    let objects = Objects {
        large: vec![7; LARGE_BYTES].into(),
        tiny: Bytes::from_static(b"{\"a\": 1, \"b\": 2}"),
    };
    let credentials = Credentials::from_dir(dir.as_ref())?;
    serve_bulk(
        listener,
        credentials,
        Arc::new(objects),
        CancellationToken::new(),
    )
    .await?;
    Ok(())
}

async fn measure(address: &str, dir: &str) -> Result<(), Failure> {
    let pool = BulkPool::new(Credentials::from_dir(dir.as_ref())?);
    let large: Vec<u64> = (LARGE..LARGE + LARGE_COUNT).collect();
    let tiny: Vec<u64> = (0..TINY_COUNT).collect();
    // The first transfer also makes the connection.
    pool.fetch(address, &tiny[..1]).await?;

    let mut rates = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let found = pool.fetch(address, &large).await?;
        let seconds = start.elapsed().as_secs_f64();
        let bytes: u64 = found
            .iter()
            .flat_map(|(_, object)| object)
            .map(BulkObject::len)
            .sum();
        rates.push(gibibytes(bytes) / seconds);
    }
    print("16 x 64 MiB, GiB/s", rates);

    let mut rates = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let mut bytes = 0;
        for key in &large {
            let found = pool.fetch(address, &[*key]).await?;
            bytes += found
                .iter()
                .flat_map(|(_, object)| object)
                .map(BulkObject::len)
                .sum::<u64>();
        }
        rates.push(gibibytes(bytes) / start.elapsed().as_secs_f64());
    }
    print("one after the other, GiB/s", rates);

    let mut rates = Vec::new();
    for _ in 0..ROUNDS {
        let (sender, mut receiver) = mpsc::channel(4);
        let start = Instant::now();
        let (pool, address, keys) = (pool.clone(), address.to_owned(), large.clone());
        let fetching = tokio::spawn(async move { pool.fetch_parts(&address, keys, sender).await });
        let mut bytes = 0;
        while let Some(part) = receiver.recv().await {
            if let BulkPart::Data(data) = part {
                bytes += data.len() as u64;
            }
        }
        fetching.await??;
        rates.push(gibibytes(bytes) / start.elapsed().as_secs_f64());
    }
    print("relayed in parts, GiB/s", rates);

    let mut rates = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let found = pool.fetch(address, &tiny).await?;
        rates.push(count(found.len() as u64) / start.elapsed().as_secs_f64() / 1e6);
    }
    print("tiny objects, million/s", rates);
    measure_pieces(&pool, address).await
}

async fn measure_pieces(pool: &BulkPool, address: &str) -> Result<(), Failure> {
    let stored: Vec<u64> = (STORED..STORED + LARGE_COUNT).collect();
    let mut rates = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let found = pool.fetch(address, &stored).await?;
        let objects = found.iter().flat_map(|(_, object)| object);
        let bytes: u64 = objects.map(BulkObject::len).sum();
        rates.push(gibibytes(bytes) / start.elapsed().as_secs_f64());
    }
    print("not at hand, GiB/s", rates);

    let piece = |key: u64, offset: u64| BulkPieceRequest {
        key,
        slice: BULK_WHOLE,
        offset,
        bytes_max: 8 << 20,
    };
    let mut rates = Vec::new();
    for _ in 0..ROUNDS {
        let (start, mut bytes) = (Instant::now(), 0);
        for key in LARGE..LARGE + LARGE_COUNT {
            let mut offset = 0;
            while offset < LARGE_BYTES as u64 {
                let found = pool.read_pieces(address, &[piece(key, offset)]).await?;
                offset += found
                    .into_iter()
                    .filter_map(BulkRead::piece)
                    .map(|piece| piece.len())
                    .sum::<u64>();
            }
            bytes += offset;
        }
        rates.push(gibibytes(bytes) / start.elapsed().as_secs_f64());
    }
    print("pieces of 8 MiB, GiB/s", rates);

    let tiny: Vec<_> = (0..TINY_COUNT).map(|key| piece(key, 0)).collect();
    let mut rates = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let found = pool.read_pieces(address, &tiny).await?;
        rates.push(count(found.len() as u64) / start.elapsed().as_secs_f64() / 1e6);
    }
    print("tiny pieces, million/s", rates);
    Ok(())
}

fn print(what: &str, mut rates: Vec<f64>) {
    rates.sort_by(f64::total_cmp);
    let (min, median) = (rates[0], rates[rates.len() / 2]);
    println!(
        "  {what:28} min {min:.2}  median {median:.2}  max {:.2}",
        rates[rates.len() - 1]
    );
}

fn gibibytes(bytes: u64) -> f64 {
    count(bytes) / f64::from(1 << 30)
}

#[allow(clippy::cast_precision_loss, reason = "a rate for people")]
fn count(number: u64) -> f64 {
    number as f64
}
