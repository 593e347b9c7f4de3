//! Bounds how deep the tree of a statement can become.
//!
//! Owns an upper bound of the depth, counted from the words before anything is built: `a + b + c …`
//! needs no parentheses to become a tree as deep as it is long, and trees are planned, copied and
//! dropped by recursion. Nesting by parentheses is bounded by the parser itself.

use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};

/// Operators in a row, and `UNION`s in a row. Three times as many end a thread of 2 MiB.
pub(crate) const CHAIN_MAX: usize = 1_000;

/// Joined tables in a row; planning them takes time by the square of their number.
pub(crate) const JOINS_MAX: usize = 200;

/// One level of parentheses.
#[derive(Default)]
struct Level {
    operators: usize,
    unions: usize,
    joins: usize,
    is_from: bool,
    deepest_child: usize,
    deepest: usize,
}

impl Level {
    fn depth(&self) -> usize {
        self.operators + self.unions + self.joins + self.deepest_child
    }

    /// A new expression begins beside the last one.
    fn next_expression(&mut self) {
        self.deepest = self.deepest.max(self.depth());
        self.operators = 0;
        self.deepest_child = 0;
    }
}

/// What is too long, if anything.
pub(crate) fn too_long(tokens: &[TokenWithSpan]) -> Option<String> {
    let mut levels = vec![Level::default()];
    for token in tokens {
        if token.token == Token::LParen {
            levels.push(Level::default());
            continue;
        }
        if token.token == Token::RParen && levels.len() > 1 {
            let depth = levels
                .pop()
                .map_or(0, |level| level.depth().max(level.deepest));
            if let Some(parent) = levels.last_mut() {
                parent.deepest_child = parent.deepest_child.max(depth);
            }
        }
        let level = levels.last_mut()?;
        match &token.token {
            Token::Comma if level.is_from => level.joins += 1,
            Token::Comma => level.next_expression(),
            Token::Word(word) => keyword(level, word.keyword),
            Token::Whitespace(_)
            | Token::RParen
            | Token::Number(..)
            | Token::SingleQuotedString(_)
            | Token::DoubleQuotedString(_)
            | Token::Period
            | Token::EOF => {}
            _ => level.operators += 1,
        }
        if level.joins > JOINS_MAX {
            return Some(format!("more than {JOINS_MAX} tables are joined"));
        }
        if level.depth() > CHAIN_MAX {
            return Some(format!("more than {CHAIN_MAX} operators follow each other"));
        }
    }
    None
}

fn keyword(level: &mut Level, keyword: Keyword) {
    match keyword {
        Keyword::FROM => {
            level.next_expression();
            level.is_from = true;
        }
        Keyword::SELECT
        | Keyword::WHERE
        | Keyword::GROUP
        | Keyword::HAVING
        | Keyword::ORDER
        | Keyword::LIMIT
        | Keyword::QUALIFY => {
            level.next_expression();
            level.is_from = false;
        }
        Keyword::ON | Keyword::WHEN | Keyword::THEN | Keyword::ELSE => level.next_expression(),
        Keyword::JOIN => level.joins += 1,
        Keyword::UNION | Keyword::EXCEPT | Keyword::INTERSECT => {
            level.next_expression();
            level.joins = 0;
            level.is_from = false;
            level.unions += 1;
        }
        Keyword::AND
        | Keyword::OR
        | Keyword::XOR
        | Keyword::NOT
        | Keyword::IS
        | Keyword::IN
        | Keyword::LIKE
        | Keyword::ILIKE
        | Keyword::RLIKE
        | Keyword::SIMILAR
        | Keyword::BETWEEN
        | Keyword::DIV
        | Keyword::COLLATE
        | Keyword::AT
        | Keyword::CASE => level.operators += 1,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::sql::sqlparser::dialect::GenericDialect;
    use datafusion::sql::sqlparser::tokenizer::Tokenizer;

    fn is_long(text: &str) -> bool {
        let tokens = Tokenizer::new(&GenericDialect {}, text)
            .tokenize_with_location()
            .unwrap();
        too_long(&tokens).is_some()
    }

    fn chain(count: usize, term: &str, between: &str) -> String {
        format!("SELECT {}", vec![term; count].join(between))
    }

    #[test]
    fn chains_are_counted_through_parentheses_and_commas() {
        for (term, between) in [
            ("1", " + "),
            ("a = 1", " OR "),
            ("coalesce(1, 2)", " + "),
            ("(1)", " || "),
            ("x", "::int + "),
            ("1 FROM t", " UNION ALL SELECT "),
            ("x", " IS NULL AND "),
        ] {
            assert!(is_long(&chain(1_100, term, between)), "{term}{between}");
            assert!(!is_long(&chain(300, term, between)), "{term}{between}");
        }
        let joins = vec!["JOIN t ON a = b"; 300].join(" ");
        assert!(is_long(&format!("SELECT 1 FROM t {joins}")));
        assert!(is_long(&format!(
            "SELECT 1 FROM {}",
            vec!["t"; 300].join(", ")
        )));
        let nested = format!(
            "SELECT ({}) + 1",
            "1 + ".repeat(600) + "(1" + &" + 1".repeat(600) + ")"
        );
        assert!(is_long(&nested));
    }

    #[test]
    fn wide_statements_are_not_deep() {
        assert!(!is_long(&chain(20_000, "a + b", ", ")));
        assert!(!is_long(&format!(
            "SELECT x IN ({}) FROM t",
            vec!["1"; 20_000].join(",")
        )));
        assert!(!is_long(&format!(
            "VALUES {}",
            vec!["(1 + 2, -3)"; 20_000].join(",")
        )));
        assert!(!is_long(&chain(600, "(x = 1 AND y = 2)", " OR ")));
        let cases = "WHEN a = 1 AND b = 2 THEN 3 ".repeat(3_000);
        assert!(!is_long(&format!("SELECT CASE {cases} END")));
        assert!(!is_long(") ) ( ; SELECT"));
    }
}
