//! Writes tar archives that depend on nothing but names, modes and contents.
//!
//! Owns the ustar header: owner 0:0, time 0, no names of users. A path that does not fit into it is
//! an error, never an extension that some reader does not know.

use crate::Failure;

const BLOCK_BYTES: usize = 512;
const NAME_BYTES: usize = 100;

/// What a tar entry is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    File,
    Folder,
}

/// An archive in memory.
#[derive(Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// Adds a folder.
    pub(super) fn folder(&mut self, path: &str, mode: u32) -> Result<(), Failure> {
        let header = header(&format!("{path}/"), mode, 0, Kind::Folder)?;
        self.bytes.extend_from_slice(&header);
        Ok(())
    }

    /// Adds a file.
    pub(super) fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<(), Failure> {
        let header = header(path, mode, content.len(), Kind::File)?;
        self.bytes.extend_from_slice(&header);
        self.bytes.extend_from_slice(content);
        let full = self.bytes.len().next_multiple_of(BLOCK_BYTES);
        self.bytes.resize(full, 0);
        Ok(())
    }

    /// The archive with its end mark.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 2 * BLOCK_BYTES, 0);
        self.bytes
    }
}

fn header(path: &str, mode: u32, size: usize, kind: Kind) -> Result<[u8; BLOCK_BYTES], Failure> {
    if path.len() > NAME_BYTES {
        return Err(format!("`{path}` is longer than {NAME_BYTES} bytes").into());
    }
    // Eleven octal digits.
    if size >= 1 << 33 {
        return Err(format!("`{path}` is larger than 8 GiB").into());
    }
    let mut header = [0; BLOCK_BYTES];
    let mut put = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
    put(0, path.as_bytes());
    put(100, format!("{mode:07o}").as_bytes());
    put(108, b"0000000");
    put(116, b"0000000");
    put(124, format!("{size:011o}").as_bytes());
    put(136, b"00000000000");
    put(148, b"        ");
    put(156, if kind == Kind::Folder { b"5" } else { b"0" });
    put(257, b"ustar\x0000");
    put(329, b"0000000");
    put(337, b"0000000");
    let sum: u32 = header.iter().copied().map(u32::from).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(header)
}

/// An entry that was read back.
#[cfg(test)]
pub(super) struct Read {
    pub(super) kind: Kind,
    pub(super) content: Vec<u8>,
}

/// Reads an archive of this module back, for tests.
#[cfg(test)]
pub(super) fn read(bytes: &[u8]) -> Result<std::collections::BTreeMap<String, Read>, Failure> {
    let mut entries = std::collections::BTreeMap::new();
    let mut rest = bytes;
    while let Some((header, after)) = rest.split_at_checked(BLOCK_BYTES) {
        if header.iter().all(|byte| *byte == 0) {
            break;
        }
        let text = |from: usize, to: usize| {
            String::from_utf8_lossy(&header[from..to])
                .trim_end_matches(['\0', ' '])
                .to_owned()
        };
        let size = usize::from_str_radix(&text(124, 136), 8)?;
        let kind = if header[156] == b'5' {
            Kind::Folder
        } else {
            Kind::File
        };
        let content = after.get(..size).ok_or("cut")?.to_vec();
        let path = text(0, NAME_BYTES).trim_end_matches('/').to_owned();
        entries.insert(path, Read { kind, content });
        rest = after
            .get(size.next_multiple_of(BLOCK_BYTES)..)
            .ok_or("cut")?;
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_system_tar_reads_what_was_written() {
        let mut writer = Writer::default();
        writer.folder("a", 0o1777).unwrap();
        writer.file("a/b", 0o640, b"three").unwrap();
        writer.file("c", 0o755, &[7; BLOCK_BYTES]).unwrap();
        let mut tar = Command::new("tar")
            .args([
                "--list",
                "--verbose",
                "--numeric-owner",
                "--utc",
                "--file=-",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let bytes = writer.finish();
        tar.stdin.take().unwrap().write_all(&bytes).unwrap();
        let listing = String::from_utf8(tar.wait_with_output().unwrap().stdout).unwrap();
        let lines: Vec<Vec<&str>> = listing
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            lines,
            [
                ["drwxrwxrwt", "0/0", "0", "1970-01-01", "00:00", "a/"],
                ["-rw-r-----", "0/0", "5", "1970-01-01", "00:00", "a/b"],
                ["-rwxr-xr-x", "0/0", "512", "1970-01-01", "00:00", "c"],
            ]
        );
        let entries = read(&bytes).unwrap();
        assert_eq!(
            (entries["a"].kind, entries["a/b"].kind),
            (Kind::Folder, Kind::File)
        );
        assert_eq!(entries["a/b"].content, b"three");
    }

    #[test]
    fn a_path_that_does_not_fit_is_refused() {
        let mut writer = Writer::default();
        assert!(writer.file(&"x".repeat(NAME_BYTES), 0o644, b"").is_ok());
        assert!(
            writer
                .file(&"x".repeat(NAME_BYTES + 1), 0o644, b"")
                .is_err()
        );
    }
}
