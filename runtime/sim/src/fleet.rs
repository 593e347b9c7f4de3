//! The workers that there are: names, groups, slots, amounts, memory.

use oxidask_store::Store;

use crate::graphs::RESULT_BYTES_MAX;
use crate::network::Happening;
use crate::process::Process;
use crate::random::{Random, Stream};
use crate::world::World;

/// Memory of a worker that has enough.
const AMPLE_BYTES: u64 = 1 << 40;

impl World {
    /// One more worker process; `is_complete`: it can run any task.
    pub(crate) fn add_process(&mut self, is_complete: bool) {
        self.add_process_after(is_complete, 0);
    }

    pub(crate) fn add_process_after(&mut self, is_complete: bool, after: u64) {
        let place = self.processes.len();
        let mut random = Random::new(self.config.seed ^ (place as u64) << 20, Stream::Fleet);
        let gpus = if is_complete { 2 } else { random.below(3) };
        let is_special = is_complete || random.chance(300);
        let scarce = RESULT_BYTES_MAX / 2 + random.below(4 * RESULT_BYTES_MAX);
        let is_scarce = self.config.is_tight && !is_complete;
        let memory_bytes = if is_scarce { scarce } else { AMPLE_BYTES };
        let process = Process {
            name: format!("w{place}"),
            group: if is_special { "special" } else { "default" }.to_owned(),
            slots: if is_complete { 4 } else { random.small(4) + 1 },
            resources: Some(("gpu".to_owned(), gpus))
                .filter(|_| gpus > 0)
                .into_iter()
                .collect(),
            memory_bytes,
            slowness: 1,
            is_up: true,
            incarnation: 0,
            store: Store::new(memory_bytes),
            lives: 0,
            life: None,
            link: None,
            is_welcome: false,
            loses_reports: false,
        };
        self.processes.push(process);
        self.at(self.now + after, Happening::WorkerConnects(place, 0));
    }

    /// A plain worker, for measuring.
    pub(crate) fn add_plain_process(&mut self, slots: u32) {
        let place = self.processes.len();
        self.processes.push(Process {
            name: format!("w{place}"),
            group: "default".to_owned(),
            slots,
            resources: Vec::new(),
            memory_bytes: AMPLE_BYTES,
            slowness: 1,
            is_up: true,
            incarnation: 0,
            store: Store::new(AMPLE_BYTES),
            lives: 0,
            life: None,
            link: None,
            is_welcome: false,
            loses_reports: false,
        });
        self.at(self.now, Happening::WorkerConnects(place, 0));
    }
}
