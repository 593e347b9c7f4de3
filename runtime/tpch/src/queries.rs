//! The texts of the 22 queries, and by which columns their rows are ordered.

/// How many queries there are.
pub const QUERY_COUNT: usize = 22;

/// By what the rows of an answer are ordered, and how many of them are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// Columns of `ORDER BY`, as positions in the select list.
    pub columns: &'static [usize],
    /// `LIMIT`.
    pub limit: Option<usize>,
}

/// The queries with their numbers, in order.
pub fn queries() -> [(u32, &'static str); QUERY_COUNT] {
    [
        (1, include_str!("../queries/q01.sql")),
        (2, include_str!("../queries/q02.sql")),
        (3, include_str!("../queries/q03.sql")),
        (4, include_str!("../queries/q04.sql")),
        (5, include_str!("../queries/q05.sql")),
        (6, include_str!("../queries/q06.sql")),
        (7, include_str!("../queries/q07.sql")),
        (8, include_str!("../queries/q08.sql")),
        (9, include_str!("../queries/q09.sql")),
        (10, include_str!("../queries/q10.sql")),
        (11, include_str!("../queries/q11.sql")),
        (12, include_str!("../queries/q12.sql")),
        (13, include_str!("../queries/q13.sql")),
        (14, include_str!("../queries/q14.sql")),
        (15, include_str!("../queries/q15.sql")),
        (16, include_str!("../queries/q16.sql")),
        (17, include_str!("../queries/q17.sql")),
        (18, include_str!("../queries/q18.sql")),
        (19, include_str!("../queries/q19.sql")),
        (20, include_str!("../queries/q20.sql")),
        (21, include_str!("../queries/q21.sql")),
        (22, include_str!("../queries/q22.sql")),
    ]
}

/// The text of one query.
pub fn query(number: u32) -> Option<&'static str> {
    let found = queries().into_iter().find(|(found, _)| *found == number);
    found.map(|(_, text)| text)
}

/// The order of a query's rows; a query of a single row has none.
pub fn order(number: u32) -> Order {
    let (columns, limit): (&'static [usize], _) = match number {
        1 | 9 => (&[0, 1], None),
        2 => (&[0, 2, 1, 3], Some(100)),
        3 => (&[1, 2], Some(10)),
        4 | 8 | 12 | 15 | 20 | 22 => (&[0], None),
        5 | 11 => (&[1], None),
        7 => (&[0, 1, 2], None),
        10 => (&[2], Some(20)),
        13 => (&[1, 0], None),
        16 => (&[3, 0, 1, 2], None),
        18 => (&[4, 3], Some(100)),
        21 => (&[1, 0], Some(100)),
        _ => (&[], None),
    };
    Order { columns, limit }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_orders_agree() {
        for (number, text) in queries() {
            let order = order(number);
            let last = text.trim_end().lines().last().unwrap_or_default();
            let limit = last
                .strip_prefix("LIMIT ")
                .map(|rest| rest.trim_end_matches(';'));
            let limit = limit.map(|rows| rows.parse::<usize>().unwrap());
            assert_eq!(limit, order.limit, "query {number}");
            let by = text
                .lines()
                .rev()
                .find_map(|line| line.strip_prefix("ORDER BY "));
            let by = by.map_or(0, |columns| columns.split(',').count());
            assert_eq!(by, order.columns.len(), "query {number}");
            assert!(text.ends_with(";\n"), "query {number}");
        }
        assert_eq!(
            query(1).map(|text| text.contains("l_returnflag")),
            Some(true)
        );
        assert_eq!(query(23), None);
    }
}
