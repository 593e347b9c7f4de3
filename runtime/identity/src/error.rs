//! What can be wrong with an identity.

use std::borrow::Cow;

use oxidask_diagnostic::{Code, Coded};

/// A text that is no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The text is not the URI of an identity.
    #[error("`{uri}` is not an identity of the form `{}`", crate::FORM)]
    Form {
        /// The text, shortened if it is long.
        uri: String,
    },
    /// The name cannot be part of an identity.
    #[error("`{name}` cannot be the {what} of an identity")]
    Name {
        /// `namespace` or `cluster`.
        what: &'static str,
        /// The name, shortened if it is long.
        name: String,
    },
    /// The text is not a role.
    #[error("`{role}` is not one of the roles scheduler, worker, client, operator")]
    Role {
        /// The text, shortened if it is long.
        role: String,
    },
}

impl Coded for IdentityError {
    fn code(&self) -> Code {
        Code::IdentityRejected
    }

    fn hint(&self) -> Cow<'static, str> {
        match self {
            Self::Name { .. } => Cow::Borrowed(
                "use letters, digits, `-`, `_` and `.`, at most 253 characters, as Kubernetes does",
            ),
            Self::Form { .. } | Self::Role { .. } => Cow::Borrowed(self.code().hint()),
        }
    }
}

/// The first characters of a text that a peer chose, for use in a message.
pub(crate) fn excerpt(text: &str) -> String {
    const CHARACTERS_MAX: usize = 300;
    text.chars().take(CHARACTERS_MAX).collect()
}
