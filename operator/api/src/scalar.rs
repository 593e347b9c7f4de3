//! Plain scalars by YAML's core schema.
//!
//! Owns what `2`, `0x1f`, `~` and `true` mean without quotes. `yes` and `on` are texts here.

use crate::document::Content;

/// A plain scalar by YAML's core schema.
pub(crate) fn resolve(text: &str) -> Result<Content, String> {
    Ok(match text {
        "" | "~" | "null" | "Null" | "NULL" => Content::Null,
        "true" | "True" | "TRUE" => Content::Bool(true),
        "false" | "False" | "FALSE" => Content::Bool(false),
        _ => match number(text) {
            Some(Content::Float(number)) if !number.is_finite() => {
                return Err(format!("the number `{text}` is infinite or not a number"));
            }
            Some(content) => content,
            None => Content::Text(text.to_owned()),
        },
    })
}

fn number(text: &str) -> Option<Content> {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if matches!(
        unsigned,
        ".inf" | ".Inf" | ".INF" | ".nan" | ".NaN" | ".NAN"
    ) {
        return Some(Content::Float(f64::NAN));
    }
    if let Some(digits) = text.strip_prefix("0x") {
        return u64::from_str_radix(digits, 16).ok().map(Content::Unsigned);
    }
    if let Some(digits) = text.strip_prefix("0o") {
        return u64::from_str_radix(digits, 8).ok().map(Content::Unsigned);
    }
    if !unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    if unsigned.bytes().all(|byte| byte.is_ascii_digit()) {
        let signed = text.parse().map(Content::Signed);
        return signed
            .or_else(|_| text.parse().map(Content::Unsigned))
            .or_else(|_| text.parse().map(Content::Float).map_err(|_| ()))
            .ok();
    }
    let is_numeric = unsigned
        .bytes()
        .all(|b| b.is_ascii_digit() || b".eE+-".contains(&b));
    if is_numeric {
        text.parse().ok().map(Content::Float)
    } else {
        None
    }
}
