//! Selectors of labels and fields.

use serde_json::Value;

use crate::error::Refused;

/// What an object must be like.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    rule: Rule,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Rule {
    Exists,
    Absent,
    In(Vec<String>),
    NotIn(Vec<String>),
}

impl Selector {
    pub(crate) fn parse(labels: &str, fields: &str) -> Result<Self, Refused> {
        let parse = |text: &str| -> Result<Vec<Requirement>, Refused> {
            terms(text).into_iter().map(requirement).collect()
        };
        Ok(Self {
            labels: parse(labels)?,
            fields: parse(fields)?,
        })
    }

    pub(crate) fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub(crate) fn matches(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        let label = |it: &Requirement| it.rule.holds(labels.get(&it.key).and_then(Value::as_str));
        self.labels.iter().all(label)
            && self
                .fields
                .iter()
                .all(|it| it.rule.holds(field(object, &it.key)))
    }
}

impl Rule {
    fn holds(&self, value: Option<&str>) -> bool {
        let is_one = |of: &[String]| value.is_some_and(|it| of.iter().any(|other| other == it));
        match self {
            Self::Exists => value.is_some(),
            Self::Absent => value.is_none(),
            Self::In(values) => is_one(values),
            Self::NotIn(values) => !is_one(values),
        }
    }
}

fn field<'a>(object: &'a Value, path: &str) -> Option<&'a str> {
    let mut value = object;
    for part in path.split('.') {
        match value.get(part) {
            Some(inner) => value = inner,
            // A field that is not set compares as an empty text.
            None => return Some(""),
        }
    }
    value.as_str()
}

/// Splits at commas outside of parentheses.
fn terms(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut found) = (0_i32, 0, Vec::new());
    for (at, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                found.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    found.push(text[start..].trim());
    found.retain(|term| !term.is_empty());
    found
}

fn requirement(term: &str) -> Result<Requirement, Refused> {
    let of = |key: &str, rule: Rule| Requirement {
        key: key.trim().to_owned(),
        rule,
    };
    if let Some((head, values)) = term.split_once('(') {
        let values = values.trim_end_matches(')').split(',');
        let values: Vec<String> = values.map(|it| it.trim().to_owned()).collect();
        let mut words = head.split_whitespace();
        return match (words.next(), words.next()) {
            (Some(key), Some("in")) => Ok(of(key, Rule::In(values))),
            (Some(key), Some("notin")) => Ok(of(key, Rule::NotIn(values))),
            _ => Err(Refused::bad(format!("unable to parse requirement: {term}"))),
        };
    }
    let one = |value: &str| vec![value.trim().to_owned()];
    if let Some((key, value)) = term.split_once("!=") {
        return Ok(of(key, Rule::NotIn(one(value))));
    }
    if let Some((key, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
        return Ok(of(key, Rule::In(one(value))));
    }
    Ok(match term.strip_prefix('!') {
        Some(key) => of(key, Rule::Absent),
        None => of(term, Rule::Exists),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn selects(labels: &str, fields: &str) -> bool {
        let object = json!({
            "metadata": {"name": "p", "labels": {"a": "1", "b": "2"}},
            "status": {"phase": "Running"},
        });
        Selector::parse(labels, fields).unwrap().matches(&object)
    }

    #[test]
    fn labels_are_selected_as_kubernetes_does() {
        for (labels, wanted) in [
            ("", true),
            ("a", true),
            ("a,b=2", true),
            ("a==2", false),
            ("a!=2", true),
            ("c!=2", true),
            ("!c", true),
            ("!a", false),
            ("a in (1, 3),b notin (3)", true),
            ("a notin (1)", false),
        ] {
            assert_eq!(selects(labels, ""), wanted, "{labels}");
        }
        assert!(Selector::parse("a of (1)", "").is_err());
    }

    #[test]
    fn fields_are_found_by_their_path() {
        assert!(selects("", "metadata.name=p,status.phase!=Failed"));
        assert!(!selects("", "metadata.name=q"));
        assert!(selects("", "spec.nodeName="));
    }
}
