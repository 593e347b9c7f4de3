//! What a statement does, and which statements are refused.
//!
//! Owns the one list of supported statements. A statement is refused with the hint that leads to
//! what works instead.

use datafusion::sql::parser::{CopyToStatement, CreateExternalTable, Statement as Syntax};
use datafusion::sql::sqlparser::ast::{ObjectType, Set, Statement as Sql, Value};

/// What a statement does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StatementKind {
    /// Defines a table or a view, or sets an option, for the statements after it.
    Define,
    /// Gives rows.
    Query,
    /// Writes data to a location.
    Write,
}

/// Why a statement cannot run.
pub(crate) struct Refused {
    pub(crate) what: String,
    pub(crate) hint: &'static str,
}

const COPY_HINT: &str = "write a new data set with `COPY (SELECT …) TO 'location'`";
const CREDENTIALS_HINT: &str = "credentials come from the environment or the service account, \
     such as AWS_ACCESS_KEY_ID; remove the option";

fn refused(what: impl Into<String>, hint: &'static str) -> Refused {
    Refused {
        what: what.into(),
        hint,
    }
}

/// The kind of a statement, if it is supported.
pub(crate) fn classify(statement: &Syntax) -> Result<StatementKind, Refused> {
    match statement {
        Syntax::CreateExternalTable(table) => check_table(table),
        Syntax::CopyTo(copy) => check_copy(copy),
        Syntax::Reset(_) => Ok(StatementKind::Define),
        Syntax::Explain(explain) => match classify(&explain.statement)? {
            StatementKind::Query => Ok(StatementKind::Query),
            StatementKind::Write if !explain.options.analyze => Ok(StatementKind::Query),
            _ => Err(refused(
                "EXPLAIN ANALYZE works for queries only",
                "explain the query inside",
            )),
        },
        Syntax::Statement(sql) => classify_sql(sql),
    }
}

fn classify_sql(statement: &Sql) -> Result<StatementKind, Refused> {
    match statement {
        Sql::Query(_)
        | Sql::ShowTables { .. }
        | Sql::ShowColumns { .. }
        | Sql::ShowVariable { .. }
        | Sql::ShowFunctions { .. }
        | Sql::ShowCreate { .. }
        | Sql::ExplainTable { .. } => Ok(StatementKind::Query),
        Sql::CreateView(view) if !view.materialized => Ok(StatementKind::Define),
        Sql::Drop {
            object_type: ObjectType::Table | ObjectType::View,
            ..
        } => Ok(StatementKind::Define),
        Sql::Set(set) => check_set(set),
        Sql::Insert(_) => Err(refused("INSERT is not supported", COPY_HINT)),
        Sql::Update { .. } => Err(refused("UPDATE is not supported", COPY_HINT)),
        Sql::Delete(_) => Err(refused("DELETE is not supported", COPY_HINT)),
        Sql::Merge { .. } => Err(refused("MERGE is not supported", COPY_HINT)),
        Sql::CreateTable(_) => Err(refused(
            "CREATE TABLE is not supported",
            "use CREATE EXTERNAL TABLE for files, CREATE VIEW for a query, or COPY … TO to keep \
             the rows of a query",
        )),
        other => {
            let text = other.to_string();
            let words: Vec<_> = text.split_whitespace().take(2).collect();
            let hint = "use CREATE EXTERNAL TABLE, CREATE VIEW, queries and COPY … TO";
            Err(refused(
                format!("the statement `{} …` is not supported", words.join(" ")),
                hint,
            ))
        }
    }
}

/// Memory and temporary files are the worker's to decide.
fn check_set(set: &Set) -> Result<StatementKind, Refused> {
    if let Set::SingleAssignment { variable, .. } = set {
        let name = variable.to_string().to_lowercase();
        if name.starts_with("datafusion.runtime") {
            return Err(refused(
                format!("`{name}` (datafusion.runtime) cannot be set"),
                "set the worker's memory and folders in the manifest",
            ));
        }
    }
    Ok(StatementKind::Define)
}

fn check_table(table: &CreateExternalTable) -> Result<StatementKind, Refused> {
    if table.unbounded {
        return Err(refused(
            "UNBOUNDED tables are not supported",
            "a table's files must have an end; remove UNBOUNDED",
        ));
    }
    if table.temporary {
        return Err(refused(
            "TEMPORARY is not supported",
            "every table ends with its job",
        ));
    }
    check_options(&table.options)?;
    Ok(StatementKind::Define)
}

fn check_copy(copy: &CopyToStatement) -> Result<StatementKind, Refused> {
    check_options(&copy.options)?;
    Ok(StatementKind::Write)
}

/// Options that hold credentials or choose an endpoint are refused wherever they stand.
pub(crate) fn check_options(options: &[(String, Value)]) -> Result<(), Refused> {
    const STORES: [&str; 6] = ["aws.", "s3.", "gcp.", "gs.", "google.", "azure."];
    const SECRETS: [&str; 6] = [
        "secret",
        "access_key",
        "password",
        "token",
        "credential",
        "account_key",
    ];
    for (key, _) in options {
        let lower = key.to_lowercase();
        let is_store = STORES.iter().any(|prefix| lower.starts_with(prefix));
        if is_store || SECRETS.iter().any(|word| lower.contains(word)) {
            return Err(refused(
                format!("the option `{key}` may not stand in a SQL text"),
                CREDENTIALS_HINT,
            ));
        }
    }
    Ok(())
}
