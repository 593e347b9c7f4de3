//! Every code has a page, every page has a code, and the book links them all.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use oxidask_diagnostic::Code;

/// Lines that a page needs at least to be of use, and has at most to be read.
const LINES: std::ops::RangeInclusive<usize> = 8..=40;

fn book() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/src")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| format!("{}: {error}", path.display()))
}

#[test]
fn every_code_has_a_page_with_title_example_causes_and_advice() {
    for code in Code::ALL {
        let page = read(&book().join(format!("errors/{code}.md")));
        let heading = format!("# {code}: {}\n", code.title());
        assert!(
            page.starts_with(&heading),
            "{code} starts with {:?}",
            page.lines().next()
        );
        for part in ["\n## Causes\n", "\n## What to do\n"] {
            assert!(page.contains(part), "the page of {code} lacks {part:?}");
        }
        // As the command prints it, or as the HTTP port answers.
        let printed = [&format!("error[{code}]: "), "\nhint: "];
        let answered = [&format!("\"code\": \"{code}\""), "\"hint\": "];
        assert!(
            [printed, answered]
                .iter()
                .any(|parts| parts.iter().all(|part| page.contains(*part))),
            "the page of {code} has no example"
        );
        let lines = page.lines().count();
        assert!(
            LINES.contains(&lines),
            "the page of {code} has {lines} lines"
        );
    }
}

#[test]
fn no_page_is_without_a_code() {
    let wanted: BTreeSet<String> = Code::ALL.iter().map(|code| format!("{code}.md")).collect();
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(book().join("errors")).unwrap() {
        found.insert(entry.unwrap().file_name().into_string().unwrap());
    }
    assert!(found.remove("index.md"), "the list of codes is missing");
    assert_eq!(found, wanted);
}

#[test]
fn the_summary_and_the_list_link_every_page() {
    let summary = read(&book().join("SUMMARY.md"));
    let index = read(&book().join("errors/index.md"));
    for code in Code::ALL {
        let entry = format!("- [{code}: {}](errors/{code}.md)\n", code.title());
        assert!(summary.contains(&entry), "SUMMARY.md lacks {entry}");
        let row = format!("| [{code}]({code}.md) | {} |\n", code.title());
        assert!(index.contains(&row), "errors/index.md lacks {row}");
    }
}

#[test]
fn links_between_pages_lead_somewhere() {
    let mut folders = vec![book()];
    let mut count = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            for target in links(&read(&path)) {
                let file = target.split('#').next().unwrap_or_default();
                let is_outside = file.contains("://") || file.is_empty();
                assert!(
                    is_outside || folder.join(file).exists(),
                    "{}: {target}",
                    path.display()
                );
                count += 1;
            }
        }
    }
    assert!(count > 100, "only {count} links were found");
}

/// The targets of `[text](target)`.
fn links(page: &str) -> Vec<&str> {
    page.split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .collect()
}
