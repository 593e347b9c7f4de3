//! What stands behind the question mark.

use std::str::FromStr;

use super::answer::{Refusal, excerpt};

/// The named values of a request; each is taken out, and what is left is an error.
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// Reads the text; percent signs are undone.
    pub(crate) fn read(text: Option<&str>) -> Self {
        let text = text.unwrap_or_default();
        let pairs = url::form_urlencoded::parse(text.as_bytes());
        Self(pairs.into_owned().collect())
    }

    /// A text; empty if it is not there.
    pub(crate) fn text(&mut self, name: &str) -> String {
        let found = self.0.iter().position(|(known, _)| known == name);
        found.map_or_else(String::new, |at| self.0.swap_remove(at).1)
    }

    /// A whole number.
    pub(crate) fn number<N: FromStr>(&mut self, name: &str) -> Result<Option<N>, Refusal> {
        let text = self.text(name);
        if text.is_empty() {
            return Ok(None);
        }
        let wrong = || {
            let text = excerpt(&text);
            Refusal::bad(format!("`{name}` is `{text}`, not a whole number"))
        };
        text.parse().map(Some).map_err(|_| wrong())
    }

    /// Nothing else may be there: a value with a wrong name would be passed over in silence.
    pub(crate) fn end(self, known: &str) -> Result<(), Refusal> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => {
                let message = format!("`{}` means nothing here", excerpt(name));
                Err(Refusal::bad(message).with_hint(format!("known: {known}")))
            }
        }
    }
}
