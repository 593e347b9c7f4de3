//! A layer: the tar archive of a tree, compressed once.
//!
//! Owns compression and its cache. The cache is keyed by the digest of what is compressed, so an
//! unchanged binary is never compressed again and a stale entry cannot be taken for a fresh one.
//! Compression is called without any choice by processor: the same bytes on every machine.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use miniz_oxide::deflate::compress_to_vec;
use sha2::{Digest as _, Sha256};

use super::at;
use super::filesystem::Tree;
use super::tar::Writer;
use crate::Failure;

/// Smaller ones are hardly faster, larger ones hardly better. Part of the cache's names.
const LEVEL: u8 = 6;

/// Fixed: deflate, no name, no time, no extra flags, unknown system.
const GZIP_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];

/// A layer as the archive holds it.
pub(super) struct Layer {
    /// Of the uncompressed tar archive.
    pub(super) diff_id: String,
    pub(super) bytes_unpacked: u64,
    /// Compressed.
    pub(super) content: Vec<u8>,
    /// Of the compressed bytes.
    pub(super) digest: String,
}

impl Layer {
    /// Packs a tree, or takes it from the cache in `output`.
    pub(super) fn of(tree: &Tree, output: &Path) -> Result<Self, Failure> {
        let packed = pack(tree)?;
        let diff_id = digest(&packed);
        let cached = cache_dir(output).join(cache_name(&diff_id));
        let content = if let Ok(content) = std::fs::read(&cached) {
            content
        } else {
            let content = compress(&packed)?;
            keep(&cached, &content)?;
            content
        };
        Ok(Self {
            digest: digest(&content),
            diff_id,
            bytes_unpacked: packed.len().try_into()?,
            content,
        })
    }

    /// A layer that is packed already.
    pub(super) fn packed(packed: &[u8]) -> Result<Self, Failure> {
        let content = compress(packed)?;
        Ok(Self {
            digest: digest(&content),
            diff_id: digest(packed),
            bytes_unpacked: packed.len().try_into()?,
            content,
        })
    }

    /// The file of the cache that holds it.
    pub(super) fn cache_name(&self) -> String {
        cache_name(&self.diff_id)
    }
}

fn pack(tree: &Tree) -> Result<Vec<u8>, Failure> {
    let mut writer = Writer::default();
    for (path, entry) in tree {
        match &entry.content {
            None => writer.folder(path, entry.mode)?,
            Some(file) => {
                let content = std::fs::read(file).map_err(at(file))?;
                writer.file(path, entry.mode, &content)?;
            }
        }
    }
    Ok(writer.finish())
}

fn compress(bytes: &[u8]) -> Result<Vec<u8>, Failure> {
    // The format counts sizes modulo 2^32; a layer that large would be a mistake anyway.
    let size = u32::try_from(bytes.len())?;
    let mut compressed = GZIP_HEADER.to_vec();
    compressed.append(&mut compress_to_vec(bytes, LEVEL));
    compressed.extend_from_slice(&crc32fast::hash(bytes).to_le_bytes());
    compressed.extend_from_slice(&size.to_le_bytes());
    Ok(compressed)
}

/// Unpacks what [`compress`] made, for tests.
#[cfg(test)]
pub(super) fn decompress(bytes: &[u8]) -> Result<Vec<u8>, Failure> {
    let body = bytes.strip_prefix(&GZIP_HEADER).ok_or("another header")?;
    let (body, trailer) = body.split_last_chunk::<8>().ok_or("cut")?;
    let plain = miniz_oxide::inflate::decompress_to_vec(body).map_err(|error| error.to_string())?;
    let mut expected = crc32fast::hash(&plain).to_le_bytes().to_vec();
    expected.extend_from_slice(&u32::try_from(plain.len())?.to_le_bytes());
    if trailer.as_slice() == expected {
        Ok(plain)
    } else {
        Err("another checksum".into())
    }
}

/// `sha256:` and the digest in hexadecimal digits.
pub(super) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(bytes))
}

fn cache_dir(output: &Path) -> PathBuf {
    output.join("layers")
}

fn cache_name(diff_id: &str) -> String {
    format!("{}-level-{LEVEL}.tar.gz", diff_id.replace(':', "-"))
}

/// Written beside and renamed, so that a file of this name is always whole.
fn keep(path: &Path, content: &[u8]) -> Result<(), Failure> {
    let folder = path.parent().ok_or("the cache has no folder")?;
    std::fs::create_dir_all(folder).map_err(at(folder))?;
    let file = tempfile::NamedTempFile::new_in(folder).map_err(at(folder))?;
    std::fs::write(file.path(), content).map_err(at(file.path()))?;
    file.persist(path)?;
    Ok(())
}

/// Removes the layers of earlier binaries, so that the cache does not grow.
pub(super) fn prune(output: &Path, used: &[String]) -> Result<(), Failure> {
    let used: BTreeSet<&str> = used.iter().map(String::as_str).collect();
    let folder = cache_dir(output);
    for entry in std::fs::read_dir(&folder).map_err(at(&folder))? {
        let entry = entry.map_err(at(&folder))?;
        if !used.contains(&*entry.file_name().to_string_lossy()) {
            std::fs::remove_file(entry.path()).map_err(at(&entry.path()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::filesystem::Entry;
    use super::*;

    #[test]
    fn the_cache_is_used_by_content_and_holds_only_what_is_used() {
        let output = tempfile::tempdir().unwrap();
        let file = output.path().join("file");
        let layer = |text: &str| {
            std::fs::write(&file, text).unwrap();
            let entry = Entry {
                mode: 0o644,
                content: Some(file.clone()),
            };
            Layer::of(&Tree::from([("file".to_owned(), entry)]), output.path()).unwrap()
        };
        let (first, second) = (layer("one"), layer("two"));
        assert_ne!(first.digest, second.digest);
        assert!(layer("one").content == first.content);

        prune(output.path(), &[second.cache_name()]).unwrap();
        assert!(!cache_dir(output.path()).join(first.cache_name()).exists());
        let kept = cache_dir(output.path()).join(second.cache_name());
        std::fs::write(&kept, "from the cache").unwrap();
        assert_eq!(layer("two").content, b"from the cache");
    }

    #[test]
    fn compression_is_undone_by_decompression() {
        let plain: Vec<u8> = (0..100_000_u32)
            .flat_map(|number| (number / 3).to_le_bytes())
            .collect();
        let compressed = compress(&plain).unwrap();
        assert!(compressed.len() < plain.len());
        assert_eq!(decompress(&compressed).unwrap(), plain);
    }
}
