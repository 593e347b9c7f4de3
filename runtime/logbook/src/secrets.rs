//! Hides what must not stand in a log.

use std::borrow::Cow;

/// What stands in place of a secret.
pub const HIDDEN: &str = "***";

/// Shorter values are not looked for: they would hide half of every line.
const SECRET_BYTES_MIN: usize = 8;
/// Values that are looked for at most.
const SECRETS_MAX: usize = 64;
/// Parts of names whose values are secrets.
const NAME_PARTS: [&str; 8] = [
    "secret",
    "token",
    "password",
    "passwd",
    "credential",
    "authorization",
    "access_key",
    "account_key",
];

/// Whether the value of a variable or field of this name is a secret.
pub fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    // The usual variables that only say where a secret is.
    let is_place = ["_file", "_path", "_dir", "_uri"]
        .iter()
        .any(|end| name.ends_with(end));
    !is_place && NAME_PARTS.iter().any(|part| name.contains(part))
}

/// Values that are hidden wherever they turn up.
#[derive(Clone, Default)]
pub struct Secrets {
    values: Vec<String>,
}

impl Secrets {
    /// The values of variables whose names say that they are secrets.
    pub fn of(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let values = variables
            .into_iter()
            .filter(|(name, value)| is_secret_name(name) && value.len() >= SECRET_BYTES_MIN);
        let mut values: Vec<_> = values.map(|(_, value)| value).take(SECRETS_MAX).collect();
        // A secret that is a part of another one must not leave the rest of that one.
        values.sort_unstable_by_key(|value| std::cmp::Reverse(value.len()));
        Self { values }
    }

    /// Those of this process's environment.
    pub fn of_environment() -> Self {
        let variables = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        Self::of(variables)
    }

    /// The text without them. Passwords in URLs (`scheme://user:password@host`) go as well.
    pub fn hide<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut text = Cow::Borrowed(text);
        for value in &self.values {
            if text.contains(value.as_str()) {
                text = Cow::Owned(text.replace(value.as_str(), HIDDEN));
            }
        }
        match hide_passwords(&text) {
            Some(hidden) => Cow::Owned(hidden),
            None => text,
        }
    }
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secrets({})", self.values.len())
    }
}

/// Passwords in URLs; nothing if there are none.
fn hide_passwords(text: &str) -> Option<String> {
    let mut hidden: Option<String> = None;
    let mut done = 0;
    while let Some(found) = text[done..].find("://") {
        let start = done + found + "://".len();
        let is_end = |c: char| c.is_whitespace() || matches!(c, '/' | '?' | '#' | '"' | '\'' | '`');
        let end = text[start..]
            .find(is_end)
            .map_or(text.len(), |at| start + at);
        let authority = &text[start..end];
        let copy_to = if let Some(at) = authority.rfind('@')
            && let Some(colon) = authority[..at].find(':')
        {
            let hidden = hidden.get_or_insert_default();
            hidden.push_str(&text[done..=start + colon]);
            hidden.push_str(HIDDEN);
            start + at
        } else {
            done
        };
        if let Some(hidden) = &mut hidden {
            hidden.push_str(&text[copy_to..end]);
        }
        done = end;
    }
    if let Some(hidden) = &mut hidden {
        hidden.push_str(&text[done..]);
    }
    hidden
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(variables: &[(&str, &str)]) -> Secrets {
        let owned = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Secrets::of(owned)
    }

    #[test]
    fn names_of_secrets() {
        for name in [
            "AWS_SECRET_ACCESS_KEY",
            "AWS_ACCESS_KEY_ID",
            "AZURE_STORAGE_ACCOUNT_KEY",
            "OXIDASK_HTTP_TOKEN",
            "authorization",
            "dbPassword",
        ] {
            assert!(is_secret_name(name), "{name}");
        }
        for name in [
            "key",
            "attempt",
            "PATH",
            "OXIDASK_TLS_DIR",
            "AWS_WEB_IDENTITY_TOKEN_FILE",
        ] {
            assert!(!is_secret_name(name), "{name}");
        }
    }

    #[test]
    fn values_of_secrets_are_hidden_and_others_are_not() {
        let secrets = secrets(&[
            ("DB_PASSWORD", "hunter2hunter2"),
            ("API_TOKEN", "hunter2hunter2-and-more"),
            ("SHORT_TOKEN", "abc"),
            ("HOME", "/root/somewhere"),
        ]);
        assert_eq!(
            secrets.hide("a hunter2hunter2 b hunter2hunter2-and-more abc /root/somewhere"),
            "a *** b *** abc /root/somewhere"
        );
        assert!(matches!(secrets.hide("nothing here"), Cow::Borrowed(_)));
        assert_eq!(format!("{secrets:?}"), "Secrets(2)");
    }

    #[test]
    fn passwords_in_urls_are_hidden() {
        let none = Secrets::default();
        assert_eq!(
            none.hide("see https://me:pass@word@host:1/x and s3://b/k, ftp://u:p@h"),
            "see https://me:***@host:1/x and s3://b/k, ftp://u:***@h"
        );
        for text in [
            "",
            "://",
            "http://host:80/a:b@c",
            "http://user@host",
            "ä://ö:@ü",
        ] {
            let expected = text.replace(":@", ":***@");
            assert_eq!(none.hide(text), expected);
        }
    }
}
