//! YAML text to a tree that remembers where everything stands.
//!
//! Owns the reading of YAML: scalars by the core schema, duplicate keys refused, merge keys (`<<`)
//! followed, aliases expanded within a budget. Never looks at what the fields mean.
//!
//! Invariants: no tree is deeper than `DEPTH_MAX`, so walking it by recursion is safe; aliases
//! copy at most `ALIASED_BYTES_MAX` in all, so a small file cannot become a large tree.

use std::collections::{HashMap, HashSet};

use granit_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Span, Tag};

use crate::error::{ManifestError, Place};
use crate::scalar::resolve;

/// How deep lists and objects may nest.
pub const DEPTH_MAX: usize = 100;

/// What anchors may keep and aliases copy in one file, with 64 bytes for each
/// value besides its text.
pub const ALIASED_BYTES_MAX: usize = 16 << 20;

/// The assumed size of a value besides its text.
const NODE_BYTES: usize = 64;

/// Characters of a line that a message quotes.
const QUOTED_CHARS_MAX: usize = 80;

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) content: Content,
}

#[derive(Debug, Clone)]
pub(crate) enum Content {
    Null,
    Bool(bool),
    Signed(i64),
    Unsigned(u64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Object(Vec<Field>),
}

/// A field of an object.
#[derive(Debug, Clone)]
pub(crate) struct Field {
    pub(crate) name: String,
    pub(crate) place: Place,
    pub(crate) value: Node,
}

impl Node {
    /// The value of a field, if this is an object that has it.
    pub(crate) fn get(&self, name: &str) -> Option<&Node> {
        match &self.content {
            Content::Object(fields) => fields
                .iter()
                .find(|field| field.name == name)
                .map(|field| &field.value),
            _ => None,
        }
    }

    /// The value at a path such as `spec.workerGroups[1].name`.
    pub(crate) fn at(&self, path: &str) -> Option<&Node> {
        let mut node = self;
        for part in path.split('.') {
            let (name, index) = match part.split_once('[') {
                Some((name, index)) => (name, index.strip_suffix(']')?.parse::<usize>().ok()),
                None => (part, None),
            };
            node = node.get(name)?;
            if let (Some(index), Content::List(items)) = (index, &node.content) {
                node = items.get(index)?;
            }
        }
        Some(node)
    }

    /// The text, if this is one.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.content {
            Content::Text(text) => Some(text),
            _ => None,
        }
    }

    /// What kind of value this is, for messages.
    pub(crate) fn describe(&self) -> &'static str {
        match &self.content {
            Content::Null => "nothing",
            Content::Bool(_) => "true or false",
            Content::Signed(_) | Content::Unsigned(_) | Content::Float(_) => "a number",
            Content::Text(_) => "a text",
            Content::List(_) => "a list",
            Content::Object(_) => "an object",
        }
    }
}

/// Reads every document of a text; empty ones are left out.
pub(crate) fn parse(text: &str, origin: &str) -> Result<Vec<Node>, ManifestError> {
    let options = granit_parser::options! {
        flow_nesting_limit: DEPTH_MAX,
        block_nesting_limit: DEPTH_MAX,
    };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut builder = Builder::new(text, origin);
    for next in Parser::new_from_str_with_options(text, options) {
        let (event, span) = next.map_err(|error| builder.scan_error(&error))?;
        builder.take(event, span)?;
    }
    Ok(builder.documents)
}

/// An object or a list whose end has not come yet.
struct Open {
    place: Place,
    anchor: usize,
    kind: OpenKind,
}

enum OpenKind {
    List(Vec<Node>),
    Object {
        fields: Vec<Field>,
        names: HashSet<String>,
        merges: Vec<Node>,
        key: Option<Key>,
    },
}

struct Key {
    name: String,
    place: Place,
    is_merge: bool,
}

struct Builder<'a> {
    text: &'a str,
    origin: &'a str,
    open: Vec<Open>,
    /// Finished anchored values with their depth and size.
    anchors: HashMap<usize, (Node, usize, usize)>,
    aliased_bytes: usize,
    documents: Vec<Node>,
}

fn place(marker: Marker) -> Place {
    Place {
        line: marker.line(),
        column: marker.col() + 1,
    }
}

impl<'a> Builder<'a> {
    fn new(text: &'a str, origin: &'a str) -> Self {
        Self {
            text,
            origin,
            open: Vec::new(),
            anchors: HashMap::new(),
            aliased_bytes: 0,
            documents: Vec::new(),
        }
    }

    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), ManifestError> {
        let place = place(span.start);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let tag = tag.as_deref();
                if let Some(tag) = tag
                    && !is_core(tag)
                {
                    return Err(self.syntax(place, format!("the tag `{tag}` has no meaning here")));
                }
                if self.expects_key() {
                    let is_merge = text == "<<" && style == ScalarStyle::Plain;
                    return self.take_key(text.into_owned(), place, is_merge);
                }
                let is_text = tag.is_some_and(|tag| tag.is_yaml_core_schema_tag("str"));
                let content = if is_text || style != ScalarStyle::Plain {
                    Content::Text(text.into_owned())
                } else {
                    resolve(text.as_ref()).map_err(|problem| self.syntax(place, problem))?
                };
                self.finish(Node { place, content }, anchor)
            }
            Event::SequenceStart(_, anchor, _) => {
                self.begin(place, anchor, OpenKind::List(Vec::new()))
            }
            Event::MappingStart(_, anchor, _) => {
                let (fields, names, merges) = (Vec::new(), HashSet::new(), Vec::new());
                self.begin(
                    place,
                    anchor,
                    OpenKind::Object {
                        fields,
                        names,
                        merges,
                        key: None,
                    },
                )
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(anchor) => self.expand(anchor, place),
            Event::DocumentEnd => {
                self.anchors.clear();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn expects_key(&self) -> bool {
        matches!(
            self.open.last(),
            Some(Open {
                kind: OpenKind::Object { key: None, .. },
                ..
            })
        )
    }

    fn take_key(&mut self, name: String, at: Place, is_merge: bool) -> Result<(), ManifestError> {
        let Some(Open {
            kind: OpenKind::Object { names, key, .. },
            ..
        }) = self.open.last_mut()
        else {
            return Ok(());
        };
        if !is_merge && !names.insert(name.clone()) {
            return Err(self.syntax(at, format!("the field `{name}` is given twice")));
        }
        *key = Some(Key {
            name,
            place: at,
            is_merge,
        });
        Ok(())
    }

    fn begin(&mut self, at: Place, anchor: usize, kind: OpenKind) -> Result<(), ManifestError> {
        if self.expects_key() {
            return Err(self.syntax(at, "a field's name must be a text".to_owned()));
        }
        if self.open.len() >= DEPTH_MAX {
            return Err(self.too_deep(at));
        }
        self.open.push(Open {
            place: at,
            anchor,
            kind,
        });
        Ok(())
    }

    fn end(&mut self) -> Result<(), ManifestError> {
        let Some(Open {
            place,
            anchor,
            kind,
        }) = self.open.pop()
        else {
            return Ok(());
        };
        let content = match kind {
            OpenKind::List(items) => Content::List(items),
            OpenKind::Object {
                fields,
                names,
                merges,
                ..
            } => Content::Object(merged(fields, names, merges)),
        };
        self.finish(Node { place, content }, anchor)
    }

    /// Puts a finished value where it belongs.
    fn finish(&mut self, node: Node, anchor: usize) -> Result<(), ManifestError> {
        if anchor != 0 {
            let (depth, bytes) = measure(&node);
            self.spend(bytes, node.place)?;
            self.anchors.insert(anchor, (node.clone(), depth, bytes));
        }
        match self.open.last_mut().map(|open| &mut open.kind) {
            None => {
                if !matches!(node.content, Content::Null) {
                    self.documents.push(node);
                }
            }
            Some(OpenKind::List(items)) => items.push(node),
            Some(OpenKind::Object {
                fields,
                merges,
                key,
                ..
            }) => match key.take() {
                Some(Key {
                    is_merge: true,
                    place,
                    ..
                }) => match node.content {
                    Content::Object(_) => merges.push(node),
                    Content::List(items) => merges.extend(items),
                    _ => return Err(self.syntax(place, "`<<` needs an object".to_owned())),
                },
                Some(Key { name, place, .. }) => fields.push(Field {
                    name,
                    place,
                    value: node,
                }),
                None => {}
            },
        }
        Ok(())
    }

    fn expand(&mut self, anchor: usize, at: Place) -> Result<(), ManifestError> {
        if self.expects_key() {
            return Err(self.syntax(at, "a field's name must be a text".to_owned()));
        }
        let Some((depth, bytes)) = self.anchors.get(&anchor).map(|known| (known.1, known.2)) else {
            return Err(self.syntax(at, "the alias stands inside of what it names".to_owned()));
        };
        if self.open.len() + depth > DEPTH_MAX {
            return Err(self.too_deep(at));
        }
        self.spend(bytes, at)?;
        let content = self
            .anchors
            .get(&anchor)
            .map(|known| known.0.content.clone());
        self.finish(
            Node {
                place: at,
                content: content.unwrap_or(Content::Null),
            },
            0,
        )
    }

    /// Counts what anchors keep and aliases copy.
    fn spend(&mut self, bytes: usize, at: Place) -> Result<(), ManifestError> {
        self.aliased_bytes = self.aliased_bytes.saturating_add(bytes);
        if self.aliased_bytes <= ALIASED_BYTES_MAX {
            return Ok(());
        }
        let limit = ALIASED_BYTES_MAX >> 20;
        Err(self.syntax(
            at,
            format!("anchors and aliases copy more than {limit} MiB"),
        ))
    }

    fn too_deep(&self, at: Place) -> ManifestError {
        self.syntax(
            at,
            format!("lists and objects nest deeper than {DEPTH_MAX} levels"),
        )
    }

    fn scan_error(&self, error: &ScanError) -> ManifestError {
        let mut problem = error.info();
        let line = self
            .text
            .lines()
            .nth(error.marker().line().saturating_sub(1));
        let before: Option<String> =
            line.map(|line| line.chars().take(error.marker().col() + 1).collect());
        if before.is_some_and(|before| before.contains('\t')) {
            problem.push_str(" (the line has a tab; YAML indents with spaces)");
        }
        self.syntax(place(*error.marker()), problem)
    }

    fn syntax(&self, place: Place, problem: String) -> ManifestError {
        let line = self
            .text
            .lines()
            .nth(place.line.saturating_sub(1))
            .unwrap_or_default();
        let mut quoted: String = line.trim().chars().take(QUOTED_CHARS_MAX).collect();
        if quoted.len() < line.trim().len() {
            quoted.push('…');
        }
        ManifestError::Syntax {
            origin: self.origin.to_owned(),
            place,
            problem,
            line: quoted,
        }
    }
}

fn is_core(tag: &Tag) -> bool {
    ["str", "int", "float", "bool", "null"]
        .iter()
        .any(|name| tag.is_yaml_core_schema_tag(name))
}

/// Fields given in place win over merged ones, earlier merges over later ones.
fn merged(mut fields: Vec<Field>, mut names: HashSet<String>, merges: Vec<Node>) -> Vec<Field> {
    for merge in merges {
        let Content::Object(more) = merge.content else {
            continue;
        };
        fields.extend(
            more.into_iter()
                .filter(|field| names.insert(field.name.clone())),
        );
    }
    fields
}

/// Depth and assumed size; the depth of what is measured is bounded, so recursion is safe.
fn measure(node: &Node) -> (usize, usize) {
    let mut depth = 0;
    let mut bytes = NODE_BYTES;
    let mut add = |child: &Node, name_bytes: usize| {
        let (child_depth, child_bytes) = measure(child);
        depth = depth.max(child_depth);
        bytes += child_bytes + name_bytes;
    };
    match &node.content {
        Content::List(items) => {
            for item in items {
                add(item, 0);
            }
        }
        Content::Object(fields) => {
            for field in fields {
                add(&field.value, field.name.len());
            }
        }
        Content::Text(text) => return (1, NODE_BYTES + text.len()),
        _ => return (1, NODE_BYTES),
    }
    (depth + 1, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(node: &Node) -> serde_json::Value {
        match &node.content {
            Content::Null => serde_json::Value::Null,
            Content::Bool(value) => (*value).into(),
            Content::Signed(value) => (*value).into(),
            Content::Unsigned(value) => (*value).into(),
            Content::Float(value) => (*value).into(),
            Content::Text(value) => value.as_str().into(),
            Content::List(items) => items.iter().map(json).collect(),
            Content::Object(fields) => fields
                .iter()
                .map(|field| (field.name.clone(), json(&field.value)))
                .collect(),
        }
    }

    fn first(text: &str) -> String {
        match parse(text, "f") {
            Ok(documents) => json(&documents[0]).to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn scalars_follow_the_core_schema() {
        let cases = [
            ("1", "1"),
            ("-7", "-7"),
            ("+7", "7"),
            ("0x1f", "31"),
            ("0o17", "15"),
            ("18446744073709551615", "18446744073709551615"),
            ("1.5", "1.5"),
            ("1e3", "1000.0"),
            ("1.2.3", "\"1.2.3\""),
            ("2Gi", "\"2Gi\""),
            ("1-2", "\"1-2\""),
            ("-", "[null]"),
            ("'1'", "\"1\""),
            ("!!str 1", "\"1\""),
            ("yes", "\"yes\""),
            ("~x", "\"~x\""),
            ("{a: , b: ~, c: True}", "{\"a\":null,\"b\":null,\"c\":true}"),
            ("2013-01-01", "\"2013-01-01\""),
        ];
        for (text, wanted) in cases {
            assert_eq!(first(text), wanted, "{text}");
        }
    }

    #[test]
    fn aliases_and_merges_are_expanded() {
        let text = "base: &b {x: 1, y: 2}\nthis: {<<: *b, y: 3}\nthat: *b\n";
        let wanted = r#"{"base":{"x":1,"y":2},"this":{"y":3,"x":1},"that":{"x":1,"y":2}}"#;
        assert_eq!(first(text), wanted);
    }

    #[test]
    fn syntax_errors_name_the_place_and_the_line() {
        let cases = [
            (
                "a: 1\na: 2\n",
                "f:2:1: the field `a` is given twice: `a: 2`",
            ),
            (
                "a: &x [*x]\n",
                "f:1:8: the alias stands inside of what it names: `a: &x [*x]`",
            ),
            (
                "? [a]\n: 1\n",
                "f:1:3: a field's name must be a text: `? [a]`",
            ),
            (
                "a: .nan\n",
                "f:1:4: the number `.nan` is infinite or not a number: `a: .nan`",
            ),
            ("a: {<<: 1}\n", "f:1:5: `<<` needs an object: `a: {<<: 1}`"),
        ];
        for (text, wanted) in cases {
            assert_eq!(first(text), wanted);
        }
        assert!(
            first("a: [1, 2\nb: 3\n").starts_with("f:2:"),
            "{}",
            first("a: [1, 2\nb: 3\n")
        );
        let tab = first("a:\n\tb: 1\n");
        assert!(tab.contains("tab"), "{tab}");
    }

    #[test]
    fn alias_bombs_and_towers_are_refused() {
        let mut bomb = vec!["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol]".to_owned()];
        let mut tower = vec!["a0: &a0 [x]".to_owned()];
        for level in 1..200 {
            let below = level - 1;
            let many = vec![format!("*a{below}"); 9].join(", ");
            bomb.push(format!("a{level}: &a{level} [{many}]"));
            tower.push(format!("a{level}: &a{level} [*a{below}]"));
        }
        let (bomb, tower) = (bomb.join("\n"), tower.join("\n"));
        let message = first(&bomb);
        assert!(
            message.contains("anchors and aliases copy more than 16 MiB"),
            "{message}"
        );
        let message = first(&tower);
        assert!(message.contains("nest deeper than 100 levels"), "{message}");
    }

    #[test]
    fn deep_nesting_is_refused_without_deep_recursion() {
        for text in [
            "[".repeat(100_000),
            "- ".repeat(100_000),
            "{a: ".repeat(100_000),
        ] {
            assert!(parse(&text, "f").is_err());
        }
        let fits = format!("{}{}", "[".repeat(99), "]".repeat(99));
        assert!(parse(&fits, "f").is_ok());
    }

    #[test]
    fn documents_are_separated_and_empty_ones_left_out() {
        let count = |text: &str| parse(text, "f").unwrap().len();
        assert_eq!(count(""), 0);
        assert_eq!(count("# only a comment\n"), 0);
        assert_eq!(count("---\n---\n"), 0);
        assert_eq!(count("a: 1\n---\nb: 2\n---\n"), 2);
        assert_eq!(count("\u{feff}a: 1\n"), 1);
    }
}
