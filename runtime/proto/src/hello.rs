//! The first message of each stream: protocol version and build.
//!
//! Owns the rule which versions speak with each other: neighbours do. Version N speaks with N-1,
//! so an older program accepts a peer that is one ahead: that peer adapts.

use crate::error::{ProtoError, excerpt};
use crate::wire;

/// The version of the messages. Grows when an older program would misunderstand a newer one.
pub const PROTOCOL_VERSION: u32 = 1;

/// What this build calls itself.
pub const BUILD: &str = env!("CARGO_PKG_VERSION");

/// This program's hello. A scheduler also fills in its incarnation and epoch.
pub fn hello() -> wire::Hello {
    wire::Hello {
        protocol_version: PROTOCOL_VERSION,
        build: BUILD.to_owned(),
        incarnation: 0,
        epoch: 0,
    }
}

/// The peer's hello, if there is one and we can speak with the peer.
pub fn check(hello: Option<wire::Hello>) -> Result<wire::Hello, ProtoError> {
    let hello = hello.ok_or(ProtoError::FieldMissing {
        message: "batch",
        field: "hello",
    })?;
    let theirs = hello.protocol_version;
    if theirs == 0 || theirs.abs_diff(PROTOCOL_VERSION) > 1 {
        let build = excerpt(&hello.build);
        return Err(ProtoError::Version {
            theirs,
            ours: PROTOCOL_VERSION,
            build,
        });
    }
    Ok(hello)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_speak_with_each_other_and_others_do_not() {
        assert!(check(Some(hello())).is_ok());
        let next = wire::Hello {
            protocol_version: PROTOCOL_VERSION + 1,
            ..hello()
        };
        assert!(check(Some(next)).is_ok());
        for version in [0, PROTOCOL_VERSION + 2, u32::MAX] {
            let other = wire::Hello {
                protocol_version: version,
                ..hello()
            };
            assert!(
                matches!(check(Some(other)), Err(ProtoError::Version { .. })),
                "{version}"
            );
        }
        assert!(matches!(check(None), Err(ProtoError::FieldMissing { .. })));
    }
}
