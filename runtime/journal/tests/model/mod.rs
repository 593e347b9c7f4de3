//! A journal on a failing disk beside a plain list of what it must hold.

use oxidask_journal::{
    Incarnation, JournalError, MemoryDisk, Origin, Recovered, Schema, Settings, Writer,
};

/// The kind of the record with which a snapshot says how many records it has seen.
const SEEN: u16 = u16::MAX;

pub(crate) const INCARNATION: Incarnation = Incarnation(0x5eed);

/// Small bounds, so that short tests rotate and fill buffers.
pub(crate) fn settings() -> Settings {
    Settings {
        segment_bytes: 600,
        buffer_bytes_max: 2_000,
        schema: Schema {
            current: 2,
            oldest: 1,
        },
    }
}

/// What may happen to a journal.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Append(usize),
    Commit,
    BeginSnapshot,
    Slice(usize),
    FinishSnapshot,
    AbortSnapshot,
    /// So much room is left, or all.
    Capacity(Option<u64>),
    FailSyncs(u32),
    /// The power goes off so many operations later.
    CutPowerIn(u64),
    /// The process is killed so many operations later, in the middle of one.
    KillIn(u64),
    /// The process ends at once, the machine goes on.
    Kill,
    LosePower,
    Close,
}

/// The journal and what is known about it.
pub(crate) struct Model {
    pub(crate) disk: MemoryDisk,
    writer: Option<Writer<MemoryDisk>>,
    /// Every record that may be recovered, in order.
    pub(crate) log: Vec<Vec<u8>>,
    /// So many of them must be.
    pub(crate) acknowledged: usize,
    epoch: u64,
    nonce: u64,
    /// How far the snapshot is, and where it ends.
    snapshot: Option<(usize, usize)>,
    pub(crate) recoveries: usize,
    /// Whether the operation that is cut ends the process only, not the machine.
    is_kill: bool,
}

impl Model {
    pub(crate) fn new(seed: u64) -> Self {
        let mut model = Self {
            disk: MemoryDisk::new(seed),
            writer: None,
            log: Vec::new(),
            acknowledged: 0,
            epoch: 0,
            nonce: 0,
            snapshot: None,
            recoveries: 0,
            is_kill: false,
        };
        model.recover();
        model
    }

    pub(crate) fn run(&mut self, steps: &[Step]) {
        for step in steps {
            self.step(step);
            if self.disk.is_off() {
                self.writer = None;
                self.end_cut();
                self.recover();
            }
        }
        // Whatever happened, the end is a power loss, and the journal is of use afterwards.
        self.lose_power();
        self.disk.set_capacity(None);
        self.step(&Step::Append(10));
        self.step(&Step::Commit);
        assert_eq!(self.acknowledged, self.log.len(), "the last commit failed");
        self.lose_power();
    }

    fn writer(&mut self) -> &mut Writer<MemoryDisk> {
        self.writer.as_mut().unwrap()
    }

    /// Takes one step, whatever the disk then is.
    #[allow(dead_code, reason = "not every test file takes single steps")]
    pub(crate) fn run_one(&mut self, step: &Step) {
        self.step(step);
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Append(length) => self.append(*length),
            Step::Commit => {
                if let Ok(durable) = self.writer().commit() {
                    assert_eq!(durable, self.log.len() as u64);
                    self.acknowledged = self.log.len();
                }
            }
            Step::BeginSnapshot => {
                let begun = self.writer().begin_snapshot().is_ok();
                self.snapshot = begun.then_some((0, self.log.len()));
                self.observe_durable();
            }
            Step::Slice(count) => self.slice(*count),
            Step::FinishSnapshot => self.finish(),
            Step::AbortSnapshot => {
                self.writer().abort_snapshot();
                self.snapshot = None;
            }
            Step::Capacity(room) => {
                let capacity = room.map(|room| self.disk.used_bytes() + room);
                self.disk.set_capacity(capacity);
            }
            Step::FailSyncs(count) => self.disk.fail_syncs(*count),
            Step::CutPowerIn(count) | Step::KillIn(count) => {
                self.is_kill = matches!(step, Step::KillIn(_));
                let at = self.disk.operations() + count;
                self.disk.cut_power_at(Some(at));
            }
            Step::Kill => {
                self.writer = None;
                self.disk.restart();
                self.recover();
            }
            Step::LosePower => self.lose_power(),
            Step::Close => {
                let count = self.log.len();
                if self.writer.take().unwrap().close().is_ok() {
                    self.acknowledged = count;
                }
                self.recover();
            }
        }
    }

    /// A call that commits among other things may have succeeded in that.
    fn observe_durable(&mut self) {
        let durable = usize::try_from(self.writer().durable()).unwrap();
        assert!(durable >= self.acknowledged);
        self.acknowledged = durable;
    }

    fn append(&mut self, length: usize) {
        self.nonce += 1;
        let mut payload = self.nonce.to_le_bytes().to_vec();
        payload.extend((0..length).map(|i| (i as u64 * self.nonce) as u8));
        let (first, second) = payload.split_at(length / 2);
        let kind = kind_of(&payload);
        match self.writer().append(kind, &[first, &[], second]) {
            Ok(sequence) => {
                self.log.push(payload);
                assert_eq!(sequence, self.log.len() as u64);
            }
            Err(error) => assert!(matches!(error, JournalError::Behind { .. }), "{error}"),
        }
    }

    fn slice(&mut self, count: usize) {
        let Some((at, end)) = self.snapshot else {
            let result = self.writer().append_snapshot(1, &[]);
            assert!(matches!(result, Err(JournalError::NoSnapshot)));
            return;
        };
        let to = end.min(at + count);
        for index in at..to {
            let payload = self.log[index].clone();
            let result = self
                .writer()
                .append_snapshot(kind_of(&payload), &[&payload]);
            if result.is_err() {
                self.snapshot = None;
                return;
            }
        }
        self.snapshot = Some((to, end));
    }

    fn finish(&mut self) {
        self.slice(usize::MAX / 2);
        if self.snapshot.is_none() {
            return;
        }
        // The slice shows a later time: then all records up to that must be recovered, too.
        let seen = (self.log.len() as u64).to_le_bytes();
        self.snapshot = None;
        if self.writer().append_snapshot(SEEN, &[&seen]).is_ok()
            && self.writer().finish_snapshot().is_ok()
        {
            self.acknowledged = self.log.len();
        }
        self.observe_durable();
        self.writer().abort_snapshot();
    }

    pub(crate) fn lose_power(&mut self) {
        self.writer = None;
        self.disk.lose_power();
        self.recover();
    }

    /// The process is killed now, and the power goes off so many operations into its next start.
    pub(crate) fn kill_and_cut_power_in(&mut self, count: u64) {
        self.writer = None;
        self.is_kill = false;
        self.disk.restart();
        let at = self.disk.operations() + count;
        self.disk.cut_power_at(Some(at));
        self.recover();
    }

    fn end_cut(&mut self) {
        if self.is_kill {
            self.disk.restart();
        } else {
            self.disk.lose_power();
        }
    }

    fn recover(&mut self) {
        self.snapshot = None;
        loop {
            match self.try_recover() {
                Ok(()) => return,
                Err(_) if self.disk.is_off() => self.end_cut(),
                Err(JournalError::DiskFull { .. }) => self.disk.set_capacity(None),
                Err(error) => {
                    // A sync has failed.
                    assert!(matches!(error, JournalError::Io { .. }), "{error}");
                    self.disk.restart();
                }
            }
        }
    }

    fn try_recover(&mut self) -> Result<(), JournalError> {
        self.recoveries += 1;
        let disk = self.disk.clone();
        let mut recovered = Recovered::open(disk, settings(), INCARNATION, None)?;
        let found = read_all(&mut recovered)?;
        let count = found.records.len();
        assert!(count >= self.acknowledged, "an acknowledged record is lost");
        assert!(
            count >= found.seen,
            "a snapshot has seen more than there is"
        );
        assert_eq!(found.records, self.log[..count], "something else was read");
        let epoch = recovered.epoch();
        assert!(epoch > self.epoch, "an epoch is used twice");
        // What was read must stay, even if the machine stops right after the start.
        let writer = recovered.start()?;
        assert_eq!(writer.epoch(), epoch);
        assert_eq!(writer.durable(), count as u64);
        self.epoch = epoch;
        self.writer = Some(writer);
        self.log.truncate(count);
        self.acknowledged = count;
        Ok(())
    }
}

/// What a recovery has read.
pub(crate) struct Found {
    pub(crate) records: Vec<Vec<u8>>,
    pub(crate) seen: usize,
}

/// Reads all records and checks all that goes without knowing them.
pub(crate) fn read_all(recovered: &mut Recovered<MemoryDisk>) -> Result<Found, JournalError> {
    let mut found = Found {
        records: Vec::new(),
        seen: 0,
    };
    let mut is_tail = false;
    while let Some(record) = recovered.next_record()? {
        assert!(!is_tail || record.origin == Origin::Tail);
        is_tail = record.origin == Origin::Tail;
        assert_eq!(record.schema, 2);
        if record.kind == SEEN {
            let seen = u64::from_le_bytes(record.payload.try_into().unwrap());
            found.seen = usize::try_from(seen).unwrap();
            continue;
        }
        assert_eq!(record.kind, kind_of(record.payload));
        found.records.push(record.payload.to_vec());
        assert_eq!(record.sequence, found.records.len() as u64);
    }
    Ok(found)
}

fn kind_of(payload: &[u8]) -> u16 {
    u16::try_from(payload.len()).unwrap()
}
