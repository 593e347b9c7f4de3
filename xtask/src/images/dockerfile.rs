//! The few instructions of a Dockerfile that the images use: `ARG`, `FROM`, `LABEL`, `ENV`, `COPY`,
//! `WORKDIR`, `USER`, `ENTRYPOINT`.
//!
//! Owns what they mean. Whatever it does not know is an error that names the line, so that an image
//! of another builder can never differ silently.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::Failure;

/// The only base that needs nothing from elsewhere.
const EMPTY_BASE: &str = "scratch";

/// What a Dockerfile says, with its arguments filled in.
#[derive(Debug, Default)]
pub(super) struct Recipe {
    pub(super) copies: Vec<Copy>,
    pub(super) environment: Vec<(String, String)>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) working_dir: String,
    pub(super) user: String,
    pub(super) entrypoint: Vec<String>,
    pub(super) history: Vec<Step>,
}

/// One `COPY`: a layer of its own.
#[derive(Debug)]
pub(super) struct Copy {
    pub(super) line: usize,
    /// Relative to the context.
    pub(super) source: String,
    /// From the image's root.
    pub(super) target: String,
    /// For files; without it they keep the context's.
    pub(super) mode: Option<u32>,
}

/// One instruction after `FROM`.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) text: String,
    pub(super) has_layer: bool,
}

struct Parser<'a> {
    given: &'a BTreeMap<String, String>,
    /// `ARG`s that can be named: before `FROM` those of the file, then those of the stage.
    known: BTreeMap<String, String>,
    has_base: bool,
    recipe: Recipe,
}

/// Reads a whole Dockerfile; `given` are values for its `ARG`s.
pub(super) fn parse(text: &str, given: &BTreeMap<String, String>) -> Result<Recipe, Failure> {
    let mut parser = Parser {
        given,
        known: BTreeMap::new(),
        has_base: false,
        recipe: Recipe::default(),
    };
    for (line, instruction) in instructions(text) {
        parser
            .take(line, &instruction)
            .map_err(|error| format!("line {line}: {error}"))?;
    }
    match (parser.has_base, parser.recipe.entrypoint.is_empty()) {
        (true, false) => Ok(parser.recipe),
        (false, _) => Err("it has no `FROM`".into()),
        (true, true) => Err("it has no `ENTRYPOINT`".into()),
    }
}

/// The instructions with the number of their first line: comments gone, continued lines joined.
fn instructions(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (start, mut joined) = open.take().unwrap_or((index + 1, String::new()));
        if !joined.is_empty() {
            joined.push(' ');
        }
        if let Some(part) = line.strip_suffix('\\') {
            joined.push_str(part.trim_end());
            open = Some((start, joined));
        } else {
            joined.push_str(line);
            found.push((start, joined));
        }
    }
    found.extend(open);
    found
}

impl Parser<'_> {
    fn take(&mut self, line: usize, text: &str) -> Result<(), Failure> {
        let (name, rest) = text.split_once(' ').unwrap_or((text, ""));
        if !self.has_base && !matches!(name, "ARG" | "FROM") {
            return Err(format!("`{name}` stands before `FROM`").into());
        }
        let filled = self.filled(rest.trim())?;
        match name {
            "ARG" => return self.argument(&filled),
            "FROM" => return self.base(&filled),
            "LABEL" => self.recipe.labels.extend(pairs(&filled)?),
            "ENV" => self.recipe.environment.extend(pairs(&filled)?),
            "COPY" => self.recipe.copies.push(copy(line, &filled)?),
            "WORKDIR" => self.recipe.working_dir = absolute(&one_word(&filled)?)?,
            "USER" => self.recipe.user = one_word(&filled)?,
            "ENTRYPOINT" => self.recipe.entrypoint = program(&filled)?,
            _ => return Err(format!("`{name}` is not an instruction that is known here").into()),
        }
        self.recipe.history.push(Step {
            text: format!("{name} {filled}"),
            has_layer: name == "COPY",
        });
        Ok(())
    }

    fn argument(&mut self, text: &str) -> Result<(), Failure> {
        let word = one_word(text)?;
        let (name, default) = match word.split_once('=') {
            Some((name, default)) => (name, Some(default)),
            None => (word.as_str(), None),
        };
        let value = self.given.get(name).map(String::as_str).or(default);
        let value = value.ok_or_else(|| format!("`ARG {name}` has no value"))?;
        self.known.insert(name.to_owned(), value.to_owned());
        Ok(())
    }

    fn base(&mut self, text: &str) -> Result<(), Failure> {
        if self.has_base {
            return Err("a second stage is not known here".into());
        }
        if text != EMPTY_BASE {
            return Err(format!("only the base `{EMPTY_BASE}` is known here").into());
        }
        self.has_base = true;
        // As in every builder: a stage sees only the arguments that it declares itself.
        self.known.clear();
        Ok(())
    }

    /// The text with each `${NAME}` replaced.
    fn filled(&self, text: &str) -> Result<String, Failure> {
        let mut filled = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            let (name, after) = after
                .strip_prefix('{')
                .and_then(|after| after.split_once('}'))
                .ok_or("a `$` must open a `${NAME}`")?;
            let value = self.known.get(name);
            filled.push_str(before);
            filled.push_str(value.ok_or_else(|| format!("no `ARG {name}` before this"))?);
            rest = after;
        }
        filled.push_str(rest);
        Ok(filled)
    }
}

/// Words at spaces; double quotes keep spaces inside a word.
fn words(text: &str) -> Result<Vec<String>, Failure> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut is_quoted = false;
    for character in text.chars() {
        match character {
            '"' => is_quoted = !is_quoted,
            '\\' | '\'' => return Err(format!("`{character}` is not known here").into()),
            ' ' if !is_quoted => words.push(std::mem::take(&mut word)),
            _ => word.push(character),
        }
    }
    if is_quoted {
        return Err("a quote is not closed".into());
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    Ok(words)
}

fn one_word(text: &str) -> Result<String, Failure> {
    match words(text)?.as_slice() {
        [word] => Ok(word.clone()),
        _ => Err("exactly one word is expected".into()),
    }
}

fn pairs(text: &str) -> Result<Vec<(String, String)>, Failure> {
    let pair = |word: &String| -> Result<_, Failure> {
        let pair = word.split_once('=').filter(|(name, _)| !name.is_empty());
        let (name, value) = pair.ok_or_else(|| format!("`{word}` is not NAME=VALUE"))?;
        Ok((name.to_owned(), value.to_owned()))
    };
    words(text)?.iter().map(pair).collect()
}

fn copy(line: usize, text: &str) -> Result<Copy, Failure> {
    let words = words(text)?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (mode, source, target) = match words.as_slice() {
        [source, target] if !source.starts_with("--") => (None, source, target),
        [flag, source, target] => match flag.strip_prefix("--chmod=") {
            Some(mode) => (Some(u32::from_str_radix(mode, 8)?), source, target),
            None => return Err(format!("`{flag}` is not known here").into()),
        },
        _ => return Err("`COPY [--chmod=MODE] SOURCE TARGET` is expected".into()),
    };
    let is_inside = !source.starts_with('/') && !source.split('/').any(|part| part == "..");
    if !is_inside || source.contains(['*', '?', '[']) {
        return Err(format!("`{source}` is not a plain path inside the context").into());
    }
    Ok(Copy {
        line,
        source: source.trim_end_matches('/').to_owned(),
        target: absolute(target)?,
        mode,
    })
}

fn absolute(path: &str) -> Result<String, Failure> {
    let is_plain = !path.split('/').any(|part| part == "." || part == "..");
    if path.starts_with('/') && is_plain {
        Ok(path.to_owned())
    } else {
        Err(format!("`{path}` does not start at the image's root").into())
    }
}

fn program(text: &str) -> Result<Vec<String>, Failure> {
    let Ok(Value::Array(words)) = serde_json::from_str(text) else {
        return Err("a JSON list is expected: there is no shell".into());
    };
    let word = |word: &Value| word.as_str().map(ToOwned::to_owned);
    let words: Option<Vec<String>> = words.iter().map(word).collect();
    words
        .filter(|words| !words.is_empty())
        .ok_or_else(|| "a list of words is expected".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"# a comment
ARG BASE=scratch
FROM ${BASE}

ARG VERSION=none
LABEL title="two words" \
      version="${VERSION}"
COPY --chmod=0755 program /program
USER 1:2
ENTRYPOINT ["/program", "run"]
"#;

    #[test]
    fn instructions_have_their_meaning() {
        let given = BTreeMap::from([("VERSION".to_owned(), "7".to_owned())]);
        let recipe = parse(SMALL, &given).unwrap();
        assert_eq!(recipe.labels["title"], "two words");
        assert_eq!(recipe.labels["version"], "7");
        assert_eq!(recipe.user, "1:2");
        assert_eq!(recipe.entrypoint, ["/program", "run"]);
        assert_eq!(recipe.copies[0].mode, Some(0o755));
        let layers: Vec<bool> = recipe.history.iter().map(|step| step.has_layer).collect();
        assert_eq!(layers, [false, true, false, false]);
    }

    #[test]
    fn a_line_that_is_not_known_is_named() {
        for (line, problem) in [
            ("RUN true", "`RUN` is not an instruction"),
            ("COPY --from=other /a /b", "`--from=other` is not known"),
            ("COPY ../secret /secret", "inside the context"),
            ("COPY a* /b", "inside the context"),
            ("COPY a b", "does not start at the image's root"),
            ("ENTRYPOINT /program", "there is no shell"),
            ("LABEL x=${BASE}", "no `ARG BASE`"),
            ("LABEL x=$VERSION", "must open a `${NAME}`"),
            ("LABEL x=\"open", "not closed"),
            ("FROM scratch", "second stage"),
            ("USER", "exactly one word"),
        ] {
            let text = SMALL.replace("USER 1:2", line);
            let error = parse(&text, &BTreeMap::new()).unwrap_err().to_string();
            assert!(error.starts_with("line 9: "), "{line}: {error}");
            assert!(error.contains(problem), "{line}: {error}");
        }
    }

    #[test]
    fn only_the_empty_base_can_be_built_here() {
        let given = BTreeMap::from([("BASE".to_owned(), "debian".to_owned())]);
        let error = parse(SMALL, &given).unwrap_err().to_string();
        assert_eq!(error, "line 3: only the base `scratch` is known here");
    }
}
