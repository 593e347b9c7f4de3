//! The group of a task: what its key has in common with its siblings' keys.

/// Characters that set numbers apart in keys such as `('sum-3f2a', 0, 1)` or `tile_3_4`.
const SEPARATORS: [char; 12] = ['-', '_', '.', ',', ':', '/', ' ', '(', ')', '[', ']', '\''];

/// The part of a key that names its group: without trailing numbers, and without what follows a
/// last `-`. A key with nothing else is its own group.
pub(super) fn group_name(key: &str) -> &str {
    let mut name = without_numbers(key);
    // A token of letters and digits behind a hyphen, as Dask has them.
    while let Some((before, token)) = name.rsplit_once('-') {
        if !token.contains(|c: char| c.is_ascii_digit()) || before.is_empty() {
            break;
        }
        name = without_numbers(before);
    }
    if name.len() == key.trim_end_matches(SEPARATORS).len()
        && let Some((before, _)) = name.rsplit_once('-')
    {
        name = before;
    }
    let name = name.trim_matches(SEPARATORS);
    if name.is_empty() { key } else { name }
}

fn without_numbers(name: &str) -> &str {
    name.trim_end_matches(|c: char| c.is_ascii_digit() || SEPARATORS.contains(&c))
}

#[cfg(test)]
mod tests {
    use super::group_name;

    #[test]
    fn leaves_out_numbers_and_tokens() {
        for (key, name) in [
            ("map-12", "map"),
            ("map-1-2", "map"),
            ("map12", "map"),
            ("tile_3_4", "tile"),
            ("read-a", "read"),
            ("load-day", "load"),
            ("total", "total"),
            ("word-count-7", "word-count"),
            ("sum-9f31a2", "sum"),
            ("sum-9f31", "sum"),
            ("('sum-aggregate-9f31', 0, 11)", "sum-aggregate"),
            ("7", "7"),
            ("1-2", "1-2"),
            ("-", "-"),
            ("größe-7", "größe"),
            ("x", "x"),
        ] {
            assert_eq!(group_name(key), name, "{key}");
        }
    }
}
