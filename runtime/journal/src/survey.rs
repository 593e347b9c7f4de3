//! What is in a folder, and which of it counts.
//!
//! Owns the choice of the snapshot and of the segments after it. Never changes a file. Invariants:
//! every segment that holds a record is in the plan, is replaced by a complete snapshot, or is an
//! error.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::disk::{Disk, DiskFile, read_full};
use crate::error::{Damage, JournalError};
use crate::format::{
    HEADER_BYTES, Header, HeaderBytes, Incarnation, Role, Salt, parse_segment_name, segment_name,
};
use crate::frames::{find_mark, has_end};
use crate::segment::{Next, Segment};

/// A segment that will be read.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) header: Header,
    /// Its records end here.
    pub(crate) end: u64,
}

/// A write that was torn by a crash: it was never acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CutTail {
    /// The segment.
    pub path: PathBuf,
    /// Where its records end.
    pub offset: u64,
    /// How many bytes after that do not count. They stay in the file until a snapshot replaces it.
    pub bytes: u64,
    /// What is wrong with them.
    pub damage: Damage,
}

/// Everything that is known before the records are read.
#[derive(Debug)]
pub(crate) struct Plan {
    /// None in a new journal.
    pub(crate) incarnation: Option<Incarnation>,
    /// The newest epoch that may have been used.
    pub(crate) epoch: u64,
    /// The largest number that a file has.
    pub(crate) number: u64,
    pub(crate) snapshot: Option<Part>,
    /// In order. Empty in a new journal.
    pub(crate) tail: Vec<Part>,
    /// The part of the last tail segment that may not be durable begins here.
    pub(crate) proven: u64,
    /// The sequence number of the next record.
    pub(crate) sequence: u64,
    pub(crate) cut: Option<CutTail>,
    /// Files that hold nothing that counts.
    pub(crate) leftovers: Vec<String>,
    /// Whether some of them are older than the snapshot, so that it may not be durable.
    pub(crate) is_snapshot_fresh: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Found {
    name: String,
    pub(crate) header: Header,
    length: u64,
}

/// The files of a folder by what they are.
#[derive(Debug, Default)]
struct Findings {
    tails: BTreeMap<u64, Found>,
    snapshots: BTreeMap<u64, Found>,
    /// Files whose creation did not come to its end.
    unborn: Vec<String>,
    number: u64,
}

pub(crate) fn survey<D: Disk>(
    disk: &D,
    expected: Option<Incarnation>,
) -> Result<Plan, JournalError> {
    let findings = find(disk, expected)?;
    let born = findings.tails.values().chain(findings.snapshots.values());
    let epoch = born.clone().map(|found| found.header.epoch).max();
    let incarnation = born.clone().map(|found| found.header.incarnation).next();
    let snapshot = newest_snapshot(disk, &findings)?;
    let mut plan = Plan {
        incarnation,
        epoch: epoch.unwrap_or(0) + findings.unborn.len() as u64,
        number: findings.number,
        tail: chain(disk, &findings, snapshot.as_ref())?,
        snapshot,
        proven: 0,
        sequence: 1,
        cut: None,
        leftovers: Vec::new(),
        is_snapshot_fresh: false,
    };
    check_unlinked(disk, &findings, &plan)?;
    read_end(disk, &findings, &mut plan)?;
    let is_used = |name: &String| {
        let mut parts = plan.snapshot.iter().chain(&plan.tail);
        parts.any(|part| part.name == *name)
    };
    let born = born.map(|found| found.name.clone());
    let replaced: Vec<String> = born.filter(|name| !is_used(name)).collect();
    plan.is_snapshot_fresh = plan.snapshot.is_some() && !replaced.is_empty();
    plan.leftovers.clone_from(&findings.unborn);
    plan.leftovers.extend(replaced);
    Ok(plan)
}

/// Reads the header of every segment.
fn find<D: Disk>(disk: &D, expected: Option<Incarnation>) -> Result<Findings, JournalError> {
    let mut findings = Findings::default();
    let mut expected = expected;
    let mut names = disk
        .list()
        .map_err(|source| JournalError::io("list", disk.path(""), source))?;
    names.sort();
    for name in names {
        let Some((incarnation, number)) = parse_segment_name(&name) else {
            continue;
        };
        findings.number = findings.number.max(number);
        let Some(found) = read_header(disk, &name)? else {
            findings.unborn.push(name);
            continue;
        };
        let header = found.header;
        let expected = *expected.get_or_insert(header.incarnation);
        if let Some(foreign) = [incarnation, header.incarnation]
            .into_iter()
            .find(|incarnation| *incarnation != expected)
        {
            return Err(JournalError::Foreign {
                path: disk.path(&name),
                found: foreign,
                expected,
            });
        }
        if header.number != number {
            return Err(damaged(disk, &name, 0, Damage::Name));
        }
        match header.role {
            Role::Tail => findings.tails.insert(number, found),
            Role::Snapshot => findings.snapshots.insert(number, found),
        };
    }
    Ok(findings)
}

/// None if the creation of the segment did not come to its end: a header is durable before anything
/// is written behind it.
pub(crate) fn read_header<D: Disk>(disk: &D, name: &str) -> Result<Option<Found>, JournalError> {
    let failed = |source| JournalError::io("read", disk.path(name), source);
    let file = disk.open(name, false).map_err(failed)?;
    let length = file.length().map_err(failed)?;
    let mut bytes = [0; HEADER_BYTES];
    let read = read_full(&file, 0, &mut bytes).map_err(failed)?;
    match Header::decode(&bytes[..read]) {
        HeaderBytes::Good(header) => Ok(Some(Found {
            name: name.to_owned(),
            header,
            length,
        })),
        HeaderBytes::Format(found) => Err(JournalError::Format {
            path: disk.path(name),
            found,
        }),
        HeaderBytes::Bad if length <= HEADER_BYTES as u64 => Ok(None),
        HeaderBytes::Bad => Err(damaged(disk, name, 0, Damage::Header)),
    }
}

fn newest_snapshot<D: Disk>(disk: &D, findings: &Findings) -> Result<Option<Part>, JournalError> {
    for found in findings.snapshots.values().rev() {
        let failed = |source| JournalError::io("read", disk.path(&found.name), source);
        let file = disk.open(&found.name, false).map_err(failed)?;
        let salt = Salt::snapshot(found.header.incarnation, found.header.number);
        if has_end(&file, found.header.number, salt, found.length).map_err(failed)? {
            return Ok(Some(found.part(found.length)));
        }
    }
    Ok(None)
}

/// The tail segments that count, from the newest back to where the snapshot or the journal begins.
fn chain<D: Disk>(
    disk: &D,
    findings: &Findings,
    snapshot: Option<&Part>,
) -> Result<Vec<Part>, JournalError> {
    let start = snapshot.map_or(0, |snapshot| snapshot.header.link);
    let Some(newest) = findings.tails.values().next_back() else {
        return match findings.snapshots.values().next_back() {
            Some(found) => Err(missing(disk, found, found.header.link)),
            None => Ok(Vec::new()),
        };
    };
    let mut tail = vec![newest.part(newest.length)];
    let mut current = newest;
    while current.header.number != start && current.header.link != 0 {
        let header = current.header;
        let Some(before) = findings.tails.get(&header.link) else {
            // Its records were replaced by a snapshot that is not complete any more?
            let mut snapshots = findings.snapshots.values();
            return Err(
                match snapshots.find(|found| found.header.link == header.number) {
                    Some(found) => damaged(disk, &found.name, found.length, Damage::NoEnd),
                    None => missing(disk, current, header.link),
                },
            );
        };
        let is_before = before.header.number < header.number;
        let end = header.link_bytes;
        if !is_before || before.length < end || end < HEADER_BYTES as u64 {
            return Err(damaged(disk, &before.name, before.length, Damage::Short));
        }
        tail.push(before.part(end));
        current = before;
    }
    if start != 0 && current.header.number != start {
        return Err(missing(disk, current, start));
    }
    tail.reverse();
    Ok(tail)
}

/// A tail segment that is not in the chain was replaced by the snapshot, or is only a header.
fn check_unlinked<D: Disk>(disk: &D, findings: &Findings, plan: &Plan) -> Result<(), JournalError> {
    let Some(first) = plan.tail.first() else {
        return Ok(());
    };
    for found in findings.tails.range(first.header.number..) {
        let found = found.1;
        let is_linked = plan.tail.iter().any(|part| part.name == found.name);
        if !is_linked && found.length > HEADER_BYTES as u64 {
            return Err(damaged(disk, &found.name, 0, Damage::Unlinked));
        }
    }
    Ok(())
}

/// Finds the end of the last segment: the only one that a crash can have torn.
fn read_end<D: Disk>(disk: &D, findings: &Findings, plan: &mut Plan) -> Result<(), JournalError> {
    let Some(last) = plan.tail.last_mut() else {
        return Ok(());
    };
    let length = findings
        .tails
        .get(&last.header.number)
        .map_or(last.end, |found| found.length);
    let failed = |source| JournalError::io("read", disk.path(&last.name), source);
    let file = disk.open(&last.name, false).map_err(failed)?;
    let mut segment = Segment::new(file, &last.header, last.end);
    loop {
        let (offset, damage) = match segment.next().map_err(failed)? {
            Next::Record(_) => continue,
            Next::End => break,
            Next::Broken { offset, damage } => (offset, damage),
        };
        let salt = Salt::tail(last.header.incarnation);
        let mark = find_mark(segment.file(), last.header.number, salt, offset + 1);
        if mark.map_err(failed)?.is_some() {
            return Err(damaged(disk, &last.name, offset, damage));
        }
        plan.cut = Some(CutTail {
            path: disk.path(&last.name),
            offset,
            bytes: length - offset,
            damage,
        });
        last.end = offset;
        break;
    }
    plan.proven = segment.proven();
    plan.sequence = segment.sequence();
    Ok(())
}

impl Found {
    fn part(&self, end: u64) -> Part {
        Part {
            name: self.name.clone(),
            header: self.header,
            end,
        }
    }
}

pub(crate) fn damaged<D: Disk>(disk: &D, name: &str, offset: u64, damage: Damage) -> JournalError {
    JournalError::Damaged {
        path: disk.path(name),
        offset,
        damage,
    }
}

fn missing<D: Disk>(disk: &D, found: &Found, number: u64) -> JournalError {
    JournalError::Missing {
        path: disk.path(&segment_name(found.header.incarnation, number)),
    }
}
