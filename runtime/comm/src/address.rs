//! Addresses: `oxidask://host:port` and `host:port`.

use std::net::SocketAddr;

use tokio::net::lookup_host;

use crate::error::CommError;

const SCHEME: &str = "oxidask://";
const ADDRESSES_MAX: usize = 16;

/// A host and a port, as text that sockets and URIs understand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// `host:port`, with brackets around IPv6 literals.
    pub(crate) authority: String,
}

/// Refuses an address that is not of the form `oxidask://host:port`. Looks nothing up.
pub fn check_address(address: &str) -> Result<(), CommError> {
    Endpoint::from_url(address).map(drop)
}

impl Endpoint {
    /// Parses `oxidask://host:port`.
    pub(crate) fn from_url(address: &str) -> Result<Self, CommError> {
        let refused = || refused(address, "oxidask://host:port");
        let authority = address.strip_prefix(SCHEME).ok_or_else(refused)?;
        Self::parse(authority.strip_suffix('/').unwrap_or(authority)).ok_or_else(refused)
    }

    /// Parses `host:port`.
    pub(crate) fn from_authority(address: &str) -> Result<Self, CommError> {
        Self::parse(address).ok_or_else(|| refused(address, "host:port"))
    }

    fn parse(authority: &str) -> Option<Self> {
        let (host, port) = authority.rsplit_once(':')?;
        let port: u16 = port.parse().ok().filter(|port| *port != 0)?;
        let is_good = match host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
        {
            Some(literal) => literal.parse::<std::net::Ipv6Addr>().is_ok(),
            None => is_name(host),
        };
        is_good.then(|| Self {
            authority: format!("{host}:{port}"),
        })
    }

    /// The socket addresses behind it; a few at most.
    pub(crate) async fn resolve(&self) -> Result<Vec<SocketAddr>, CommError> {
        if let Ok(literal) = self.authority.parse() {
            return Ok(vec![literal]);
        }
        let failed = |source| CommError::Lookup {
            address: self.authority.clone(),
            source,
        };
        let found = lookup_host(&self.authority).await.map_err(failed)?;
        let found: Vec<SocketAddr> = found.take(ADDRESSES_MAX).collect();
        if found.is_empty() {
            return Err(failed(std::io::ErrorKind::NotFound.into()));
        }
        Ok(found)
    }
}

fn is_name(host: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !host.is_empty() && host.len() <= 253 && host.bytes().all(is_allowed)
}

fn refused(address: &str, form: &'static str) -> CommError {
    CommError::Address {
        address: address.chars().take(300).collect(),
        form,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_names_and_literals() {
        for good in [
            "a:1",
            "127.0.0.1:8786",
            "[::1]:8786",
            "flights-scheduler.ns.svc:8786",
        ] {
            assert_eq!(Endpoint::from_authority(good).unwrap().authority, good);
            let url = format!("oxidask://{good}");
            assert_eq!(Endpoint::from_url(&url).unwrap().authority, good);
            assert_eq!(
                Endpoint::from_url(&format!("{url}/")).unwrap().authority,
                good
            );
        }
    }

    #[test]
    fn refuses_everything_else() {
        for bad in [
            "",
            "oxidask://",
            "oxidask://host",
            "oxidask://host:0",
            "oxidask://host:65536",
            "oxidask://:1",
            "oxidask://::1:8786",
            "oxidask://[::1:8786",
            "oxidask://a b:1",
            "oxidask://user@host:1",
            "oxidask://host:1/path",
            "tcp://host:1",
            "host:1",
        ] {
            assert!(
                matches!(Endpoint::from_url(bad), Err(CommError::Address { .. })),
                "{bad}"
            );
        }
    }
}
