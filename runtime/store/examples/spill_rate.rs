//! How fast results go to the disk and come back: `cargo run --release -p oxidask-store --example
//! spill_rate [FOLDER]`.
#![allow(
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a measurement for people"
)]

use std::error::Error;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::executor::block_on;
use oxidask_store::{Payload, PayloadKind, ResultKey, Store, StoreConfig};

const MIB: u64 = 1024 * 1024;
const RESULTS: u32 = 64;
const RESULT_BYTES: usize = 16 * 1024 * 1024;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1);
    let config = StoreConfig {
        limit_bytes: 256 * MIB,
        spill_dir: folder.map_or_else(std::env::temp_dir, Into::into),
        disk_limit_bytes: 1024 * 1024 * MIB,
    };
    let store = Store::with_spill(&config)?;
    let start = Instant::now();
    for task in 0..RESULTS {
        let bytes = Bytes::from(vec![task.to_le_bytes()[0]; RESULT_BYTES]);
        store.insert_result(
            ResultKey::new(1, task),
            Payload::new(PayloadKind::Bytes, bytes),
        )?;
        while store.pressure().is_paused {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    report("written", store.spill_figures().spilled_bytes, start);
    let start = Instant::now();
    let before = store.spill_figures().read_back_bytes;
    for task in 0..RESULTS {
        block_on(store.load_all(vec![ResultKey::new(1, task)]))?;
    }
    report(
        "read back whole",
        store.spill_figures().read_back_bytes - before,
        start,
    );
    let start = Instant::now();
    let before = store.spill_figures().read_back_bytes;
    for task in 0..RESULTS {
        for at in 0..16 {
            let read =
                store.read_piece(ResultKey::new(1, task), oxidask_store::WHOLE, at * MIB, MIB);
            block_on(read)?;
        }
    }
    report(
        "read back in pieces",
        store.spill_figures().read_back_bytes - before,
        start,
    );
    Ok(())
}

fn report(what: &str, bytes: u64, start: Instant) {
    let seconds = start.elapsed().as_secs_f64();
    let mib = bytes as f64 / MIB as f64;
    println!(
        "{what}: {mib:.0} MiB in {seconds:.2} s, {:.0} MiB/s",
        mib / seconds
    );
}
