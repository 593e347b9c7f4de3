//! Finds the name that was probably meant.
//!
//! Owns the one measure of likeness that all hints use. Pure; its cost is bounded by
//! [`NAME_BYTES_MAX`] per candidate.

/// Longer names get no suggestion: nobody mistypes them by hand.
const NAME_BYTES_MAX: usize = 64;

/// The candidate that is most like `name`, if one is like enough to be what was meant.
///
/// Letter case, `-` and `_` count as a small difference. The first of equally near candidates wins.
///
/// ```
/// assert_eq!(oxidask_diagnostic::nearest("replcas", ["image", "replicas"]), Some("replicas"));
/// assert_eq!(oxidask_diagnostic::nearest("zzz", ["image", "replicas"]), None);
/// ```
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return None;
    }
    let wanted: Vec<char> = name.chars().collect();
    let folded = fold(name);
    let mut best: Option<(usize, &'a str)> = None;
    for candidate in candidates {
        if candidate.is_empty() || candidate.len() > NAME_BYTES_MAX || candidate == name {
            continue;
        }
        let distance = if fold(candidate) == folded {
            0
        } else {
            let other: Vec<char> = candidate.chars().collect();
            let distance = edit_distance(&wanted, &other);
            if distance > allowed(wanted.len().max(other.len())) {
                continue;
            }
            distance
        };
        if best.is_none_or(|(least, _)| distance < least) {
            best = Some((distance, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// Edits up to which two names of this length are alike.
fn allowed(length: usize) -> usize {
    match length {
        0..=2 => 0,
        3..=5 => 1,
        6..=9 => 2,
        _ => 3,
    }
}

fn fold(name: &str) -> String {
    name.chars()
        .filter(|c| !matches!(c, '-' | '_'))
        .flat_map(char::to_lowercase)
        .collect()
}

/// Insertions, deletions, replacements and swaps of neighbours that turn `left` into `right`.
fn edit_distance(left: &[char], right: &[char]) -> usize {
    let width = right.len() + 1;
    let mut two_back = vec![0; width];
    let mut previous: Vec<usize> = (0..width).collect();
    let mut current = vec![0; width];
    for (i, a) in left.iter().enumerate() {
        current[0] = i + 1;
        for (j, b) in right.iter().enumerate() {
            let replaced = previous[j] + usize::from(a != b);
            let mut least = replaced.min(previous[j + 1] + 1).min(current[j] + 1);
            if i > 0 && j > 0 && *a == right[j - 1] && left[i - 1] == *b {
                least = least.min(two_back[j - 1] + 1);
            }
            current[j + 1] = least;
        }
        std::mem::swap(&mut two_back, &mut previous);
        std::mem::swap(&mut previous, &mut current);
    }
    previous[width - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIELDS: [&str; 6] = ["key", "op", "inputs", "retries", "workers", "partitionBy"];

    #[test]
    fn finds_the_name_that_was_meant() {
        for (typed, meant) in [
            ("kye", "key"),
            ("ky", "key"),
            ("keys", "key"),
            ("input", "inputs"),
            ("retires", "retries"),
            ("worker", "workers"),
            ("partition_by", "partitionBy"),
            ("PARTITIONBY", "partitionBy"),
            ("partitonBy", "partitionBy"),
        ] {
            assert_eq!(nearest(typed, FIELDS), Some(meant), "{typed}");
        }
    }

    #[test]
    fn is_silent_when_nothing_is_near() {
        for typed in ["", "x", "banana", &"k".repeat(1000)] {
            assert_eq!(nearest(typed, FIELDS), None, "{typed}");
        }
    }

    #[test]
    fn counts_edits_and_swaps() {
        let distance = |left: &str, right: &str| {
            edit_distance(
                &left.chars().collect::<Vec<_>>(),
                &right.chars().collect::<Vec<_>>(),
            )
        };
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", "abc"), 0);
        assert_eq!(distance("abc", "acb"), 1);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("grün", "grun"), 1);
    }

    #[test]
    fn prefers_the_least_distance_and_then_the_first() {
        assert_eq!(nearest("map-11", ["map-12", "map-10"]), Some("map-12"));
        assert_eq!(
            nearest("counts", ["count", "county", "Counts"]),
            Some("Counts")
        );
    }
}
