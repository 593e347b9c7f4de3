//! Prints the definitions of the custom resources, for `kubectl apply --server-side -f -`.

use std::io::{self, Write as _};

use oxidask_operator_api::kubernetes::{custom_resource_definitions, to_yaml};

use crate::error::OperatorError;

pub(crate) fn print() -> Result<(), OperatorError> {
    let mut text = String::new();
    for definition in custom_resource_definitions() {
        // Definitions are maps with string keys, which always have a JSON form.
        let definition = serde_json::to_value(&definition).unwrap_or_default();
        text.push_str("---\n");
        text.push_str(&to_yaml(&definition));
    }
    match io::stdout().write_all(text.as_bytes()) {
        // A reader that closed the pipe has what it wanted.
        Err(source) if source.kind() != io::ErrorKind::BrokenPipe => {
            Err(OperatorError::Output { source })
        }
        _ => Ok(()),
    }
}
