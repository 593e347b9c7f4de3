//! From a TCP stream to a checked connection, and from TLS's errors to ours.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use oxidask_identity::Role;
use rustls::{AlertDescription, CertificateError};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncBufReadExt, AsyncReadExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::connection::{Connection, Peer};
use crate::credentials::{Application, Credentials};
use crate::error::CommError;
use crate::socket::Socket;
use crate::verify::{IdentityFault, check_identity};

/// How long a handshake may take, on either side.
pub(crate) const HANDSHAKE_SECONDS_MAX: u64 = 5;

/// The server's first bytes on the data port.
pub(crate) const BULK_GREETING: &[u8; 8] = b"OXBULK2\n";
/// The same for a peer whose role may not use it.
pub(crate) const BULK_REFUSAL: &[u8; 8] = b"OXROLE!\n";

// Never sent and never compared, but the library asks for one.
const SERVER_NAME: &str = "oxidask";

/// The connecting side.
///
/// In TLS 1.3 the client is done before the server has looked at its certificate. So we wait for
/// the server's first bytes (HTTP/2 settings, or the greeting of the data port): a refusal arrives
/// instead of them, and becomes a clear error here rather than a broken call later.
pub(crate) async fn initiate(
    tcp: TcpStream,
    address: &str,
    credentials: &Credentials,
    expected: Role,
    application: Application,
) -> Result<Connection, CommError> {
    let config = Arc::new(credentials.client_config(expected, application)?);
    let name = ServerName::try_from(SERVER_NAME).map_err(|_| CommError::CertificatePem {
        what: "server name",
    })?;
    let tcp = Socket::new(tcp);
    let socket = tcp
        .peer_address()
        .map_err(|error| explain(address, error))?;
    let handshake = async {
        let mut stream = TlsConnector::from(config).connect(name, tcp).await?;
        if stream.fill_buf().await?.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut greeting = *BULK_GREETING;
        if application == Application::Bulk {
            stream.read_exact(&mut greeting).await?;
        }
        Ok((stream, greeting))
    };
    let stream = match timeout(Duration::from_secs(HANDSHAKE_SECONDS_MAX), handshake).await {
        Ok(Ok((stream, greeting))) if greeting == *BULK_GREETING => stream,
        Ok(Ok((_, greeting))) if greeting == *BULK_REFUSAL => {
            let identity = Box::new(credentials.identity().clone());
            return Err(CommError::Forbidden { identity });
        }
        Ok(Ok(_)) => {
            let (address, what) = (address.to_owned(), "it does not begin with a greeting");
            return Err(CommError::Nonsense { address, what });
        }
        Ok(Err(error)) => return Err(explain(address, error)),
        Err(_) => return Err(too_slow(address)),
    };
    finish(
        TlsStream::Client(stream),
        address,
        socket,
        credentials,
        Some(expected),
    )
}

/// The accepting side.
pub(crate) async fn answer(
    tcp: TcpStream,
    address: SocketAddr,
    credentials: &Credentials,
    application: Application,
) -> Result<Connection, CommError> {
    let text = address.to_string();
    let acceptor = TlsAcceptor::from(credentials.server_config(application)?);
    let handshake = acceptor.accept(Socket::new(tcp));
    let stream = match timeout(Duration::from_secs(HANDSHAKE_SECONDS_MAX), handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(explain(&text, error)),
        Err(_) => return Err(too_slow(&text)),
    };
    finish(TlsStream::Server(stream), &text, address, credentials, None)
}

fn too_slow(address: &str) -> CommError {
    CommError::Timeout {
        address: address.to_owned(),
        seconds: HANDSHAKE_SECONDS_MAX,
    }
}

// The identity is checked again on the finished connection: a call must never depend on what a
// verifier did or did not see.
fn finish(
    stream: TlsStream<Socket>,
    address: &str,
    socket: SocketAddr,
    credentials: &Credentials,
    expected: Option<Role>,
) -> Result<Connection, CommError> {
    let certificates = stream.get_ref().1.peer_certificates();
    let Some([certificate, ..]) = certificates else {
        return Err(CommError::CertificateAbsent {
            address: address.to_owned(),
        });
    };
    let inspected = check_identity(certificate, credentials.identity(), expected)
        .map_err(|fault| refused(address.to_owned(), &fault))?;
    let peer = Peer {
        identity: inspected.identity,
        address: socket,
    };
    Ok(Connection::new(stream, peer, inspected.not_after))
}

/// What an error during a handshake means.
pub(crate) fn explain(address: &str, error: io::Error) -> CommError {
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner.cloned() {
        Some(inner) => explain_tls(address.to_owned(), inner),
        None => CommError::Handshake {
            address: address.to_owned(),
            source: error,
        },
    }
}

fn explain_tls(address: String, error: rustls::Error) -> CommError {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(other)) => {
            match other.0.downcast_ref::<IdentityFault>() {
                Some(fault) => refused(address, fault),
                None => CommError::CertificateRejected {
                    address,
                    reason: other.0.to_string(),
                },
            }
        }
        rustls::Error::InvalidCertificate(fault) => CommError::CertificateRejected {
            address,
            reason: certificate_reason(&fault),
        },
        rustls::Error::NoCertificatesPresented => CommError::CertificateAbsent { address },
        rustls::Error::AlertReceived(alert) => explain_alert(address, alert),
        rustls::Error::NoApplicationProtocol => CommError::WrongPort { address },
        source => CommError::NotTls { address, source },
    }
}

fn refused(address: String, fault: &IdentityFault) -> CommError {
    match fault.clone() {
        IdentityFault::Certificate(source) => CommError::IdentityUnreadable { address, source },
        IdentityFault::OtherCluster(found) => CommError::OtherCluster {
            address,
            found: Box::new(found),
        },
        IdentityFault::OtherRole { expected, found } => CommError::OtherRole {
            address,
            expected,
            found,
        },
    }
}

fn explain_alert(address: String, alert: AlertDescription) -> CommError {
    let reason = match alert {
        // What our own verifiers answer when chain and dates are good but the identity is not.
        AlertDescription::CertificateUnknown | AlertDescription::AccessDenied => {
            return CommError::IdentityRefusedByPeer { address };
        }
        AlertDescription::NoApplicationProtocol => return CommError::WrongPort { address },
        AlertDescription::UnknownCA | AlertDescription::DecryptError => {
            "it is not from the authority that the peer trusts".to_owned()
        }
        AlertDescription::CertificateExpired => "it has expired or is not valid yet".to_owned(),
        AlertDescription::CertificateRequired => "there was none".to_owned(),
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateRevoked => format!("the peer answered `{alert:?}`"),
        _ => {
            let source = rustls::Error::AlertReceived(alert);
            return CommError::NotTls { address, source };
        }
    };
    CommError::RejectedByPeer { address, reason }
}

fn certificate_reason(fault: &CertificateError) -> String {
    match fault {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "it has expired".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "it is not valid yet; compare the clocks of both machines".to_owned()
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "it is not from this cluster's authority".to_owned()
        }
        fault => fault.to_string(),
    }
}
