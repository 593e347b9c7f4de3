//! The bearer tokens of a local cluster's HTTP port, in its private folder.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Random bytes of a token.
const TOKEN_BYTES: usize = 32;

/// The file with the token of those who may read.
pub(crate) fn reader_file(folder: &Path) -> PathBuf {
    folder.join("http-token")
}

/// The file with the token of those who may also change something.
pub(crate) fn operator_file(folder: &Path) -> PathBuf {
    folder.join("http-operator-token")
}

/// Makes both tokens.
pub(crate) fn create(folder: &Path) -> io::Result<()> {
    for path in [reader_file(folder), operator_file(folder)] {
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        writeln!(file, "{}", token()?)?;
    }
    Ok(())
}

/// The token of those who may read; nothing if it cannot be read.
pub(crate) fn reader(folder: &Path) -> Option<String> {
    let token = fs::read_to_string(reader_file(folder)).ok()?;
    Some(token.trim().to_owned())
}

/// From the system's source of randomness, in hexadecimal digits.
fn token() -> io::Result<String> {
    let mut bytes = [0; TOKEN_BYTES];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let mut text = String::with_capacity(2 * TOKEN_BYTES);
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn tokens_are_new_and_private() {
        let folder = tempfile::tempdir().unwrap();
        create(folder.path()).unwrap();
        let token = reader(folder.path()).unwrap();
        assert_eq!(token.len(), 64);
        let other = fs::read_to_string(operator_file(folder.path())).unwrap();
        assert_ne!(other.trim(), token);
        let mode = fs::metadata(reader_file(folder.path()))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(create(folder.path()).is_err(), "never written over");
    }
}
