//! What the `COPY` instructions put where: one tree of files per layer.
//!
//! Owns the meaning of source and target. Never reads the files themselves. Everything belongs to
//! root, and a folder that an earlier layer has made is not made again.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::at;
use super::dockerfile::{Copy, Recipe};
use crate::Failure;

/// The mode of a folder that a target path makes on its way.
const FOLDER_MODE: u32 = 0o755;

/// A file or folder of a layer.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) mode: u32,
    /// The file in the context; a folder has none.
    pub(super) content: Option<PathBuf>,
}

/// Paths without a leading slash; sorted, so that a folder comes before what it holds.
pub(super) type Tree = BTreeMap<String, Entry>;

/// The layers of a recipe, in its order.
pub(super) fn layers(recipe: &Recipe, context: &Path) -> Result<Vec<Tree>, Failure> {
    let mut folders = BTreeSet::new();
    let mut layers = Vec::new();
    for copy in &recipe.copies {
        let tree = layer(copy, context, &folders)
            .map_err(|error| format!("line {}: {error}", copy.line))?;
        let made = tree.iter().filter(|(_, entry)| entry.content.is_none());
        folders.extend(made.map(|(path, _)| path.clone()));
        layers.push(tree);
    }
    let working_dir = relative(&recipe.working_dir);
    if !working_dir.is_empty() && !folders.contains(working_dir) {
        return Err(format!(
            "`WORKDIR {}` is a folder that no `COPY` makes",
            recipe.working_dir
        )
        .into());
    }
    all_is_copied(recipe, context)?;
    Ok(layers)
}

fn layer(copy: &Copy, context: &Path, folders: &BTreeSet<String>) -> Result<Tree, Failure> {
    let source = context.join(&copy.source);
    let kind = std::fs::symlink_metadata(&source).map_err(at(&source))?;
    let mut tree = Tree::new();
    let target = relative(&copy.target);
    if kind.is_dir() {
        // As in every builder: what the folder holds, not the folder itself.
        add_folders(&mut tree, target, folders);
        add_contents(&mut tree, &source, target, copy.mode)?;
        tree.retain(|path, entry| entry.content.is_some() || !folders.contains(path));
    } else {
        let name = source.file_name().unwrap_or_default().to_string_lossy();
        let path = if copy.target.ends_with('/') {
            join(target, &name)
        } else {
            target.to_owned()
        };
        if let Some((parent, _)) = path.rsplit_once('/') {
            add_folders(&mut tree, parent, folders);
        }
        add(&mut tree, &source, path, copy.mode)?;
    }
    Ok(tree)
}

/// The folder and those above it, unless they are there.
fn add_folders(tree: &mut Tree, path: &str, present: &BTreeSet<String>) {
    let mut above = String::new();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        above = join(&above, part);
        if !present.contains(&above) {
            let folder = Entry {
                mode: FOLDER_MODE,
                content: None,
            };
            tree.insert(above.clone(), folder);
        }
    }
}

fn add_contents(
    tree: &mut Tree,
    folder: &Path,
    target: &str,
    mode: Option<u32>,
) -> Result<(), Failure> {
    for entry in std::fs::read_dir(folder).map_err(at(folder))? {
        let entry = entry.map_err(at(folder))?;
        let path = join(target, &entry.file_name().to_string_lossy());
        add(tree, &entry.path(), path, mode)?;
    }
    Ok(())
}

fn add(tree: &mut Tree, source: &Path, path: String, mode: Option<u32>) -> Result<(), Failure> {
    let metadata = std::fs::symlink_metadata(source).map_err(at(source))?;
    let own_mode = metadata.permissions().mode() & 0o7777;
    if metadata.is_dir() {
        tree.insert(
            path.clone(),
            Entry {
                mode: own_mode,
                content: None,
            },
        );
        add_contents(tree, source, &path, mode)
    } else if metadata.is_file() {
        let content = Some(source.to_owned());
        tree.insert(
            path,
            Entry {
                mode: mode.unwrap_or(own_mode),
                content,
            },
        );
        Ok(())
    } else {
        Err(format!("{} is neither a file nor a folder", source.display()).into())
    }
}

/// What lies in the context and is copied by no instruction was forgotten.
fn all_is_copied(recipe: &Recipe, context: &Path) -> Result<(), Failure> {
    for entry in std::fs::read_dir(context).map_err(at(context))? {
        let name = entry.map_err(at(context))?.file_name();
        let name = name.to_string_lossy();
        let first = |copy: &Copy| copy.source.split('/').next() == Some(&*name);
        if !recipe.copies.iter().any(first) {
            return Err(format!("no `COPY` takes `{name}`, which lies in the context").into());
        }
    }
    Ok(())
}

fn relative(path: &str) -> &str {
    path.trim_matches('/')
}

fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() {
        name.to_owned()
    } else {
        format!("{folder}/{name}")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::dockerfile::parse;
    use super::*;

    fn trees(copies: &str) -> Result<Vec<Tree>, Failure> {
        let context = tempfile::tempdir().unwrap();
        let inner = context.path().join("tree/etc/inner");
        std::fs::create_dir_all(&inner).unwrap();
        std::fs::write(inner.join("file"), "1").unwrap();
        std::fs::write(context.path().join("program"), "2").unwrap();
        let mode = std::fs::Permissions::from_mode(0o1777);
        std::fs::set_permissions(inner, mode).unwrap();
        let text = format!("FROM scratch\n{copies}\nENTRYPOINT [\"/program\"]\n");
        layers(&parse(&text, &BTreeMap::new()).unwrap(), context.path())
    }

    fn paths(tree: &Tree) -> Vec<&str> {
        tree.keys().map(String::as_str).collect()
    }

    #[test]
    fn a_folder_is_copied_with_its_contents_and_a_file_to_its_target() {
        let trees =
            trees("COPY tree/ /\nCOPY --chmod=0700 program /etc/opt/\nWORKDIR /etc").unwrap();
        assert_eq!(paths(&trees[0]), ["etc", "etc/inner", "etc/inner/file"]);
        assert_eq!(trees[0]["etc/inner"].mode, 0o1777);
        assert_eq!(paths(&trees[1]), ["etc/opt", "etc/opt/program"]);
        assert_eq!(trees[1]["etc/opt/program"].mode, 0o700);
    }

    #[test]
    fn what_cannot_be_the_same_elsewhere_is_an_error() {
        for (copies, problem) in [
            ("COPY tree/ /", "no `COPY` takes `program`"),
            (
                "COPY tree/ /\nCOPY program /p\nWORKDIR /new",
                "no `COPY` makes",
            ),
            ("COPY absent /", "line 2: "),
        ] {
            let error = trees(copies).unwrap_err().to_string();
            assert!(error.contains(problem), "{copies}: {error}");
        }
    }
}
