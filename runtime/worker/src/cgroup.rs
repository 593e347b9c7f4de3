//! The memory that the system grants this process, and how much of it is used.
//!
//! Knows control groups of version 1 and 2, both at once, and groups within groups: the tightest
//! limit on the way to the top counts, together with what is used at that place. Pages of files that
//! the system takes back first (`inactive_file`) are not counted as used.
//!
//! Invariants: reads only; what is not there, or not understood, is no limit; files stay open, so
//! that a look costs a few reads.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Version 1 says "no limit" with a number near the largest that there is.
const LIMIT_BYTES_MAX: u64 = 1 << 60;

/// Bytes that are read of a file at most; the longest is `memory.stat`.
const FILE_BYTES_MAX: usize = 16 * 1024;

/// Bytes of memory that the control groups of this process grant it, if they set a limit.
pub fn memory_limit_bytes() -> Option<u64> {
    Cgroup::find(Path::new("/")).limit_bytes()
}

/// How the files of a group are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Version {
    fn limit(self) -> &'static str {
        match self {
            Self::One => "memory.limit_in_bytes",
            Self::Two => "memory.max",
        }
    }

    fn usage(self) -> &'static str {
        match self {
            Self::One => "memory.usage_in_bytes",
            Self::Two => "memory.current",
        }
    }

    /// Of version 1, also of the groups below.
    fn inactive_file(self) -> &'static str {
        match self {
            Self::One => "total_inactive_file",
            Self::Two => "inactive_file",
        }
    }

    /// The file that counts processes that the system ended because memory ran out.
    fn events(self) -> &'static str {
        match self {
            Self::One => "memory.oom_control",
            Self::Two => "memory.events",
        }
    }
}

/// What is used where the limit is tightest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CgroupUsage {
    pub(crate) used_bytes: u64,
    pub(crate) limit_bytes: u64,
}

/// The control groups of this process, as far as memory is concerned.
#[derive(Debug)]
pub(crate) struct Cgroup {
    tightest: Option<Group>,
    /// The file that counts ended processes; without groups, that of the whole machine.
    events: Option<File>,
    buffer: Vec<u8>,
}

/// A group with a limit.
#[derive(Debug)]
struct Group {
    version: Version,
    limit: File,
    usage: File,
    stat: Option<File>,
    limit_bytes: u64,
    /// What was used when it could be read last.
    used_bytes: u64,
}

impl Cgroup {
    /// Looks below this folder, `/` except in tests.
    pub(crate) fn find(root: &Path) -> Self {
        let mut buffer = vec![0; FILE_BYTES_MAX];
        let levels = levels(root);
        let mut tightest: Option<Group> = None;
        for (version, folder) in &levels {
            let Some(group) = Group::open(*version, folder, &mut buffer) else {
                continue;
            };
            let is_tighter = tightest
                .as_ref()
                .is_none_or(|tightest| group.limit_bytes < tightest.limit_bytes);
            if is_tighter {
                tightest = Some(group);
            }
        }
        let mut places = levels
            .iter()
            .map(|(version, folder)| folder.join(version.events()));
        let events = places.find_map(|path| File::open(path).ok());
        let events = events.or_else(|| File::open(root.join("proc/vmstat")).ok());
        Self {
            tightest,
            events,
            buffer,
        }
    }

    /// The tightest limit when it was last looked at.
    pub(crate) fn limit_bytes(&self) -> Option<u64> {
        Some(self.tightest.as_ref()?.limit_bytes)
    }

    /// What is used. Pages that the system takes back first are left out if there may be more
    /// used than this share of the limit; below it, the exact figure is not worth its price.
    pub(crate) fn usage(&mut self, exact_from_permille: u64) -> Option<CgroupUsage> {
        let group = self.tightest.as_mut()?;
        let limit = read(&group.limit, &mut self.buffer).and_then(limit_number);
        // It may be changed, or lifted, while the process runs.
        group.limit_bytes = limit.unwrap_or(group.limit_bytes).clamp(1, LIMIT_BYTES_MAX);
        let limit_bytes = group.limit_bytes;
        // A look that fails must not end a pause: what was seen last still counts.
        if let Some(total) = read(&group.usage, &mut self.buffer).and_then(first_number) {
            group.used_bytes = total;
            let permille = u128::from(total) * 1_000 / u128::from(limit_bytes);
            if permille >= u128::from(exact_from_permille)
                && let Some(stat) = &group.stat
            {
                let name = group.version.inactive_file();
                let inactive = read(stat, &mut self.buffer).and_then(|text| field(text, name));
                group.used_bytes = total.saturating_sub(inactive.unwrap_or(0));
            }
        }
        Some(CgroupUsage {
            used_bytes: group.used_bytes,
            limit_bytes,
        })
    }

    /// How many processes of the group (without one, of the machine) the system has ended because
    /// memory ran out.
    pub(crate) fn out_of_memory_count(&self) -> Option<u64> {
        let mut buffer = [0; 4096];
        let mut offset = 0;
        let events = self.events.as_ref()?;
        // `vmstat` of a machine is longer than one block.
        let mut text = Vec::new();
        while let Ok(count @ 1..) = events.read_at(&mut buffer, offset) {
            text.extend_from_slice(&buffer[..count]);
            offset += count as u64;
            if text.len() >= FILE_BYTES_MAX {
                break;
            }
        }
        field(std::str::from_utf8(&text).ok()?, "oom_kill")
    }
}

impl Group {
    /// A group that has a limit; one without this controller has not.
    fn open(version: Version, folder: &Path, buffer: &mut [u8]) -> Option<Self> {
        let limit = File::open(folder.join(version.limit())).ok()?;
        let limit_bytes = read(&limit, buffer).and_then(limit_number)?;
        let usage = File::open(folder.join(version.usage())).ok()?;
        (limit_bytes < LIMIT_BYTES_MAX).then(|| Self {
            version,
            limit,
            usage,
            stat: File::open(folder.join("memory.stat")).ok(),
            limit_bytes,
            used_bytes: 0,
        })
    }
}

/// The folders of this process's groups, each followed by the one above it.
fn levels(root: &Path) -> Vec<(Version, PathBuf)> {
    let text = |name| std::fs::read_to_string(root.join("proc/self").join(name));
    let (Ok(groups), Ok(mounts)) = (text("cgroup"), text("mountinfo")) else {
        return Vec::new();
    };
    let group = |version| groups.lines().find_map(|line| group_path(line, version));
    // Where both versions are in use, memory is the business of one of them: the first one, if it
    // is there.
    for version in [Version::One, Version::Two] {
        let mount = mounts.lines().find_map(|line| Mount::of(line, version));
        if let (Some(path), Some(mount)) = (group(version), mount) {
            let folders = mount.folders(root, path);
            return folders.map(|folder| (version, folder)).collect();
        }
    }
    Vec::new()
}

/// The path in a line of `cgroup`: `4:memory:/path`, or `0::/path` of version 2.
fn group_path(line: &str, version: Version) -> Option<&str> {
    let mut parts = line.splitn(3, ':');
    let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    let is_it = match version {
        Version::One => controllers.split(',').any(|name| name == "memory"),
        Version::Two => number == "0" && controllers.is_empty(),
    };
    is_it.then_some(path)
}

/// Where the files of groups are.
struct Mount {
    /// The group that lies at the mount point.
    group: String,
    point: PathBuf,
}

impl Mount {
    /// Of a line of `mountinfo`, if it is the mount of the memory controller.
    fn of(line: &str, version: Version) -> Option<Self> {
        let (first, second) = line.split_once(" - ")?;
        let mut first = first.split(' ').skip(3);
        let (group, point) = (first.next()?, first.next()?);
        let mut second = second.split(' ');
        let kind = second.next()?;
        let mut options = second.nth(1)?.split(',');
        let is_it = match version {
            Version::One => kind == "cgroup" && options.any(|option| option == "memory"),
            Version::Two => kind == "cgroup2",
        };
        is_it.then(|| Self {
            group: unescaped(group),
            point: PathBuf::from(unescaped(point)),
        })
    }

    /// The folder of a group and those above it, up to the mount point. In a container, the path may
    /// be one of the host, of which only the container's own group is mounted.
    fn folders(&self, root: &Path, path: &str) -> impl Iterator<Item = PathBuf> {
        let below = match self.group.as_str() {
            "/" => Path::new(path).strip_prefix("/"),
            group => Path::new(path).strip_prefix(group),
        };
        let below = below.unwrap_or_else(|_| Path::new(""));
        let is_inside = below
            .components()
            .all(|part| matches!(part, std::path::Component::Normal(_)));
        let below = if is_inside { below } else { Path::new("") };
        let top = root.join(self.point.strip_prefix("/").unwrap_or(&self.point));
        let folders: Vec<_> = below.ancestors().map(|part| top.join(part)).collect();
        folders.into_iter()
    }
}

/// The system writes spaces and the like in octal.
fn unescaped(text: &str) -> String {
    let escapes = [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ];
    let mut text = text.to_owned();
    for (escape, character) in escapes {
        if text.contains(escape) {
            text = text.replace(escape, character);
        }
    }
    text
}

/// What a file holds now.
pub(crate) fn read<'a>(file: &File, buffer: &'a mut [u8]) -> Option<&'a str> {
    let count = file.read_at(buffer, 0).ok()?;
    std::str::from_utf8(&buffer[..count]).ok()
}

/// Nothing while somebody is writing it.
fn first_number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The same of a limit, which may be none.
fn limit_number(text: &str) -> Option<u64> {
    match text.trim() {
        "max" => Some(LIMIT_BYTES_MAX),
        number => first_number(number),
    }
}

/// The number behind a name.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (found, number) = line.split_once(' ')?;
        (found == name).then(|| number.trim().parse().ok())?
    })
}

#[cfg(test)]
#[path = "cgroup/tests.rs"]
mod tests;
