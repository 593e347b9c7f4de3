//! SQL texts: their statements, where they stand, and what kind each is.
//!
//! Owns the split of a text into statements and the refusal of what cannot run, each with its
//! place. Plans nothing and reads no data: a text that passes here may still name a table that
//! does not exist. Pure.

mod chain;
mod graph;
mod kind;

use datafusion::error::DataFusionError;
use datafusion::sql::parser::{DFParserBuilder, Statement as Syntax};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::ParserError;
use datafusion::sql::sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer};
use oxidask_diagnostic::{Code, Diagnostic};

use crate::error::lowered;

pub use graph::{ClusterSize, GraphTask, to_graph};
pub(crate) use graph::{PlacedText, StatementArguments};
pub use kind::StatementKind;
pub(crate) use kind::check_options;

/// Bytes of one SQL text.
pub const SCRIPT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Statements of one SQL text.
pub const STATEMENTS_MAX: usize = 10_000;

/// Tokens of one statement. Deep trees are built from long texts; this bounds them well below what
/// a thread's stack takes.
pub const STATEMENT_TOKENS_MAX: usize = 1_000_000;

const CHAIN_HINT: &str = "use IN (…) for many values, a table with a join for many conditions, and \
    several statements for many tables";

/// Characters of an offending line that a message shows.
const SHOWN_CHARS_MAX: usize = 120;

/// One statement of a SQL text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// Counts the statements of the text, from 1.
    pub number: usize,
    /// The line of its first word, from 1.
    pub line: u64,
    /// The column of its first word in characters, from 1.
    pub column: u64,
    /// Its text, without the semicolon.
    pub text: String,
    /// What it does.
    pub kind: StatementKind,
}

/// Splits a text into its statements. `origin` names the text in messages.
///
/// The first statement that cannot be read or is not supported is the error: `OX220` with its
/// place and line, or `OX222`. A text without statements is an error too.
pub fn parse(text: &str, origin: &str) -> Result<Vec<Statement>, Diagnostic> {
    if text.len() > SCRIPT_BYTES_MAX {
        let message = format!(
            "{origin}: the SQL text has {} bytes, more than the limit of {SCRIPT_BYTES_MAX}",
            text.len()
        );
        return Err(Diagnostic::new(Code::LimitPassed, message));
    }
    let source = Source::new(text, origin);
    let tokens = Tokenizer::new(&GenericDialect {}, text)
        .tokenize_with_location()
        .map_err(|error| source.syntax_error(error.location, &error.message))?;
    let mut statements = Vec::new();
    for piece in tokens.split(|token| token.token == Token::SemiColon) {
        if let Some(statement) = source.statement(piece, statements.len() + 1)? {
            statements.push(statement);
        }
        if statements.len() > STATEMENTS_MAX {
            let message =
                format!("{origin}: the SQL text has more than {STATEMENTS_MAX} statements");
            return Err(Diagnostic::new(Code::LimitPassed, message));
        }
    }
    if statements.is_empty() {
        let message = format!("{origin}: the SQL text holds no statement");
        return Err(Diagnostic::new(Code::SqlSyntax, message)
            .with_hint("write at least one statement, such as `SELECT 1;`"));
    }
    Ok(statements)
}

/// Reads one statement again, as a worker does with the text that [`parse`] has split off.
pub(crate) fn parse_one(text: &str) -> Result<Syntax, Diagnostic> {
    let tokens = Tokenizer::new(&GenericDialect {}, text)
        .tokenize_with_location()
        .map_err(|error| Diagnostic::new(Code::SqlSyntax, lowered(&error.message)))?;
    if let Some(what) = chain::too_long(&tokens) {
        return Err(Diagnostic::new(Code::LimitPassed, what).with_hint(CHAIN_HINT));
    }
    let mut parser = DFParserBuilder::new(tokens)
        .build()
        .map_err(|error| unplaced(&error))?;
    let mut statements = parser
        .parse_statements()
        .map_err(|error| unplaced(&error))?;
    match (statements.pop_front(), statements.is_empty()) {
        (Some(statement), true) => Ok(statement),
        _ => Err(Diagnostic::new(
            Code::SqlSyntax,
            "one SQL statement is expected here",
        )),
    }
}

/// A query for an operation that takes exactly one.
pub(crate) fn parse_query(text: &str) -> Result<Syntax, Diagnostic> {
    let statements = parse(text, "query")?;
    let [statement] = statements.as_slice() else {
        let message = "the operation `sql` takes one query";
        return Err(
            Diagnostic::new(Code::SqlSyntax, message).with_hint("use one task for each query")
        );
    };
    if statement.kind != StatementKind::Query {
        let message = "the operation `sql` takes a query";
        return Err(Diagnostic::new(Code::SqlUnsupported, message)
            .with_hint("use the operations `read` and `write` for tables in files"));
    }
    parse_one(&statement.text)
}

fn unplaced(error: &DataFusionError) -> Diagnostic {
    let (message, _) = split_place(error);
    Diagnostic::new(Code::SqlSyntax, message)
}

/// A text and its name.
struct Source<'a> {
    text: &'a str,
    origin: &'a str,
    /// Where each line begins, in bytes.
    line_starts: Vec<usize>,
}

impl<'a> Source<'a> {
    fn new(text: &'a str, origin: &'a str) -> Self {
        let ends = text.match_indices('\n').map(|(offset, _)| offset + 1);
        Self {
            text,
            origin,
            line_starts: std::iter::once(0).chain(ends).collect(),
        }
    }

    fn statement(
        &self,
        piece: &[TokenWithSpan],
        number: usize,
    ) -> Result<Option<Statement>, Diagnostic> {
        let is_word =
            |token: &&TokenWithSpan| !matches!(token.token, Token::Whitespace(_) | Token::EOF);
        let (Some(first), Some(last)) =
            (piece.iter().find(is_word), piece.iter().rev().find(is_word))
        else {
            return Ok(None);
        };
        let (start, end) = (first.span.start, last.span.end);
        if piece.len() > STATEMENT_TOKENS_MAX {
            let message = format!(
                "{}: the statement has more than {STATEMENT_TOKENS_MAX} words",
                self.place(start)
            );
            return Err(Diagnostic::new(Code::LimitPassed, message));
        }
        if let Some(what) = chain::too_long(piece) {
            let message = format!("{}: {what}", self.place(start));
            return Err(Diagnostic::new(Code::LimitPassed, message).with_hint(CHAIN_HINT));
        }
        let syntax = DFParserBuilder::new(piece.to_vec())
            .build()
            .and_then(|mut parser| parser.parse_statements())
            .map_err(|error| {
                let (message, place) = split_place(&error);
                let at_end = message.contains("found: EOF");
                let place = place.unwrap_or(if at_end { end } else { start });
                self.syntax_error(place, &message)
            })?;
        let Some(syntax) = syntax.front() else {
            return Ok(None);
        };
        let kind = kind::classify(syntax).map_err(|refused| {
            let message = format!("{}: {}", self.place(start), refused.what);
            Diagnostic::new(Code::SqlUnsupported, message).with_hint(refused.hint)
        })?;
        let text = self.text[self.offset(start)..self.offset(end)].to_owned();
        Ok(Some(Statement {
            number,
            line: start.line,
            column: start.column,
            text,
            kind,
        }))
    }

    fn place(&self, location: Location) -> String {
        format!("{}:{}:{}", self.origin, location.line, location.column)
    }

    fn line(&self, number: u64) -> (usize, &'a str) {
        let index = usize::try_from(number)
            .unwrap_or(usize::MAX)
            .saturating_sub(1);
        let start = self
            .line_starts
            .get(index)
            .copied()
            .unwrap_or(self.text.len());
        let rest = &self.text[start..];
        (
            start,
            rest.split('\n')
                .next()
                .unwrap_or_default()
                .trim_end_matches('\r'),
        )
    }

    /// Where a place is in the text, in bytes.
    fn offset(&self, location: Location) -> usize {
        let (start, line) = self.line(location.line);
        let column = usize::try_from(location.column)
            .unwrap_or(usize::MAX)
            .saturating_sub(1);
        start
            + line
                .char_indices()
                .nth(column)
                .map_or(line.len(), |(offset, _)| offset)
    }

    /// `origin:line:column: message`, the line, and a caret below the place.
    fn syntax_error(&self, location: Location, message: &str) -> Diagnostic {
        let (_, line) = self.line(location.line);
        let column = usize::try_from(location.column)
            .unwrap_or(usize::MAX)
            .max(1)
            - 1;
        // A long line is shown around the place.
        let skipped = column.saturating_sub(SHOWN_CHARS_MAX * 2 / 3);
        let shown: String = line
            .chars()
            .skip(skipped)
            .take(SHOWN_CHARS_MAX)
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        let caret = " ".repeat((column - skipped).min(SHOWN_CHARS_MAX));
        let place = self.place(location);
        Diagnostic::new(
            Code::SqlSyntax,
            format!(
                "{place}: {}\n    {shown}\n    {caret}^",
                lowered(message.trim_end_matches('.'))
            ),
        )
    }
}

/// The parser's words and, where it says one, the place.
fn split_place(error: &DataFusionError) -> (String, Option<Location>) {
    let message = match error.find_root() {
        DataFusionError::SQL(error, _) => match error.as_ref() {
            ParserError::TokenizerError(message) | ParserError::ParserError(message) => {
                message.clone()
            }
            ParserError::RecursionLimitExceeded => "the statement is nested too deeply".to_owned(),
        },
        other => other.message().into_owned(),
    };
    let Some((words, place)) = message.rsplit_once(" at Line: ") else {
        return (message, None);
    };
    let location = place.split_once(", Column: ").and_then(|(line, column)| {
        Some(Location {
            line: line.parse().ok()?,
            column: column.trim().parse().ok()?,
        })
    });
    match location {
        Some(location) => (words.to_owned(), Some(location)),
        None => (message, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_a_text_and_knows_the_places() {
        let text = "-- a comment; with a semicolon\nCREATE EXTERNAL TABLE t STORED AS CSV LOCATION 'a;b.csv';\n\n  SELECT 'ä;ö' AS \"x;y\" -- tail\n  FROM t;;\n/* ; */ COPY t TO 'out.csv'";
        let statements = parse(text, "q.sql").unwrap();
        let seen: Vec<_> = statements
            .iter()
            .map(|s| (s.number, s.line, s.column, s.kind))
            .collect();
        assert_eq!(
            seen,
            [
                (1, 2, 1, StatementKind::Define),
                (2, 4, 3, StatementKind::Query),
                (3, 6, 9, StatementKind::Write)
            ]
        );
        assert_eq!(
            statements[1].text,
            "SELECT 'ä;ö' AS \"x;y\" -- tail\n  FROM t"
        );
        assert_eq!(statements[2].text, "COPY t TO 'out.csv'");
    }

    #[test]
    fn shows_the_place_of_a_syntax_error() {
        let error = parse("SELECT 1;\nSELECT a,\n  FORM t WHERE 'ä' x y", "q.sql").unwrap_err();
        assert_eq!(error.code, Code::SqlSyntax);
        let lines: Vec<_> = error.message.lines().collect();
        assert!(lines[0].starts_with("q.sql:3:"), "{}", lines[0]);
        assert!(lines[1].contains("FORM t WHERE"), "{}", lines[1]);
        assert!(lines[2].trim_start() == "^", "{}", lines[2]);

        let error = parse("SELECT a FROM", "q.sql").unwrap_err();
        assert!(
            error.message.starts_with("q.sql:1:14: expected"),
            "{}",
            error.message
        );
        let error = parse("SELECT 'never closed", "q.sql").unwrap_err();
        assert!(
            error.message.starts_with("q.sql:1:8: unterminated"),
            "{}",
            error.message
        );
        let error = parse("SELEKT 1", "q.sql").unwrap_err();
        assert!(
            error.message.starts_with("q.sql:1:1: expected"),
            "{}",
            error.message
        );
    }

    #[test]
    fn a_text_without_statements_is_an_error() {
        for text in [
            "",
            " \n",
            ";;",
            "-- only a comment",
            "/* and */ ; -- another",
        ] {
            let error = parse(text, "q.sql").unwrap_err();
            assert_eq!(error.code, Code::SqlSyntax);
            assert_eq!(error.message, "q.sql: the SQL text holds no statement");
        }
    }

    #[test]
    fn refuses_what_cannot_run() {
        for (text, what) in [
            ("INSERT INTO t VALUES (1)", "INSERT"),
            ("UPDATE t SET a = 1", "UPDATE"),
            ("DELETE FROM t", "DELETE"),
            ("CREATE TABLE t AS SELECT 1", "CREATE TABLE"),
            (
                "SET datafusion.runtime.memory_limit = '100G'",
                "datafusion.runtime",
            ),
            ("EXPLAIN ANALYZE COPY t TO 'a.csv'", "EXPLAIN"),
            (
                "CREATE FUNCTION f(DOUBLE) RETURNS DOUBLE RETURN $1",
                "not supported",
            ),
            (
                "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION 's3://b/' \
                 OPTIONS ('aws.secret_access_key' 'x')",
                "aws.secret_access_key",
            ),
            (
                "COPY t TO 's3://b/x.csv' OPTIONS ('aws.access_key_id' 'x')",
                "aws.access_key_id",
            ),
        ] {
            let error = parse(&format!("SELECT 1;\n {text}"), "q.sql").unwrap_err();
            assert_eq!(error.code, Code::SqlUnsupported, "{text}");
            assert!(
                error.message.starts_with("q.sql:2:2: "),
                "{}",
                error.message
            );
            assert!(error.message.contains(what), "{text}: {}", error.message);
            assert!(!error.hint.is_empty());
        }
    }

    #[test]
    fn accepts_every_kind_of_query() {
        for text in [
            "SELECT 1",
            "VALUES (1), (2)",
            "WITH a AS (SELECT 1) SELECT * FROM a",
            "(SELECT 1) UNION ALL (SELECT 2)",
            "SHOW TABLES",
            "DESCRIBE t",
            "EXPLAIN SELECT 1",
            "EXPLAIN ANALYZE SELECT 1",
        ] {
            assert_eq!(
                parse(text, "q").unwrap()[0].kind,
                StatementKind::Query,
                "{text}"
            );
        }
        for text in [
            "SET datafusion.execution.batch_size = 100",
            "CREATE VIEW v AS SELECT 1",
            "DROP VIEW v",
        ] {
            assert_eq!(
                parse(text, "q").unwrap()[0].kind,
                StatementKind::Define,
                "{text}"
            );
        }
    }

    #[test]
    fn deep_nesting_is_an_error_and_no_crash() {
        let text = format!("SELECT {}1{}", "(".repeat(10_000), ")".repeat(10_000));
        let error = parse(&text, "q").unwrap_err();
        assert!(
            error.message.contains("nested too deeply"),
            "{}",
            error.message
        );
        assert!(error.message.len() < 1000);
    }
}
