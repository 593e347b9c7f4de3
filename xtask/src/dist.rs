//! `cargo xtask dist`: the static binary for publishing.

use std::path::Path;

use crate::process::{binaries_dir, cargo, run as run_command};
use crate::{Failure, say};

/// Builds with the `dist` profile and prints where the binary is and how large.
pub(crate) fn run(root: &Path) -> Result<(), Failure> {
    run_command(&mut cargo(
        root,
        &["build", "--profile", "dist", "--package", "oxidask"],
    ))?;
    let binary = binaries_dir(root, "dist")?.join("oxidask");
    let bytes = std::fs::metadata(&binary)?.len();
    if has_interpreter(&binary)? {
        return Err(format!("{} is not static: it asks for a loader", binary.display()).into());
    }
    say!("{}  {:.1} MiB, static", binary.display(), mebibytes(bytes));
    Ok(())
}

#[allow(
    clippy::cast_precision_loss,
    reason = "a size for people, to one decimal"
)]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / (1024.0 * 1024.0)
}

/// Whether a 64-bit ELF file has a program header of type `PT_INTERP`: a static one has none.
pub(crate) fn has_interpreter(binary: &Path) -> Result<bool, Failure> {
    const PT_INTERP: u32 = 3;
    let bytes = std::fs::read(binary)?;
    let field = |at: usize, len: usize| bytes.get(at..at + len).ok_or("the ELF header is cut");
    let start = usize::try_from(u64::from_le_bytes(field(32, 8)?.try_into()?))?;
    let size = usize::from(u16::from_le_bytes(field(54, 2)?.try_into()?));
    let count = usize::from(u16::from_le_bytes(field(56, 2)?.try_into()?));
    for header in 0..count {
        if u32::from_le_bytes(field(start + header * size, 4)?.try_into()?) == PT_INTERP {
            return Ok(true);
        }
    }
    Ok(false)
}
