//! What can go wrong between two processes.

use std::borrow::Cow;
use std::io;

use oxidask_diagnostic::{Code, Coded};
use oxidask_identity::{Identity, Role};

use crate::certificate::CertificateFault;

/// An error of a connection. Each names the peer's address.
#[derive(Debug, thiserror::Error)]
pub enum CommError {
    /// A file of the certificates' folder cannot be read.
    #[error("`{path}` cannot be read")]
    CertificateFile {
        /// The file.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file of the certificates' folder has no PEM block of the kind that it should have.
    #[error("there is no usable {what} in the PEM text")]
    CertificatePem {
        /// What should be there.
        what: &'static str,
    },
    /// Our own certificate does not say who we are.
    #[error("our own certificate cannot be used")]
    CertificateOwn(#[source] CertificateFault),
    /// Certificate, key and authority do not fit together.
    #[error("certificate, key and authority do not fit together")]
    CertificateMismatch(#[source] rustls::Error),
    /// Renewed certificates are those of somebody else.
    #[error("the new certificate is that of `{found}`, not of `{expected}`")]
    IdentityChanged {
        /// Who we are.
        expected: Box<Identity>,
        /// Who the files speak for.
        found: Box<Identity>,
    },
    /// The address is not `oxidask://host:port`.
    #[error("`{address}` is not an address of the form `{form}`")]
    Address {
        /// What was given.
        address: String,
        /// The form that is expected.
        form: &'static str,
    },
    /// The host's name is unknown.
    #[error("the host of `{address}` cannot be found")]
    Lookup {
        /// The address.
        address: String,
        /// What the resolver said.
        #[source]
        source: io::Error,
    },
    /// Nobody accepts connections there.
    #[error("`{address}` cannot be reached")]
    Connect {
        /// The address.
        address: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Nobody answered in time.
    #[error("`{address}` did not answer within `{seconds}` s")]
    Timeout {
        /// The address.
        address: String,
        /// How long we waited.
        seconds: u64,
    },
    /// The connection broke before it was set up.
    #[error("`{address}` broke off the connection while it was being set up")]
    Handshake {
        /// The address.
        address: String,
        /// How it broke.
        #[source]
        source: io::Error,
    },
    /// Something else than TLS 1.3 was received.
    #[error("`{address}` does not speak TLS as oxidask does")]
    NotTls {
        /// The address.
        address: String,
        /// What was wrong with its answer.
        #[source]
        source: rustls::Error,
    },
    /// The port is one of ours, of the other kind.
    #[error("`{address}` is a port of another kind: data and scheduler ports differ")]
    WrongPort {
        /// The address.
        address: String,
    },
    /// The peer's certificate is not valid for us.
    #[error("the certificate of `{address}` was rejected: {reason}")]
    CertificateRejected {
        /// The address.
        address: String,
        /// Why, in plain words.
        reason: String,
    },
    /// The peer gave no certificate.
    #[error("`{address}` presented no certificate")]
    CertificateAbsent {
        /// The address.
        address: String,
    },
    /// Our certificate is not valid for the peer.
    #[error("`{address}` rejected the certificate of this process: {reason}")]
    RejectedByPeer {
        /// The address.
        address: String,
        /// Why, in plain words.
        reason: String,
    },
    /// The peer's certificate is of this authority but does not name an identity.
    #[error("the certificate of `{address}` names no identity")]
    IdentityUnreadable {
        /// The address.
        address: String,
        /// What is wrong with it.
        #[source]
        source: CertificateFault,
    },
    /// The peer belongs to another cluster.
    #[error("`{address}` belongs to another cluster: it is `{found}`")]
    OtherCluster {
        /// The address.
        address: String,
        /// Who the peer is.
        found: Box<Identity>,
    },
    /// The peer belongs to this cluster in another role.
    #[error("`{address}` is not a {expected} of this cluster but a {found}")]
    OtherRole {
        /// The address.
        address: String,
        /// The role that we looked for.
        expected: Role,
        /// The role that we found.
        found: Role,
    },
    /// The peer does not accept who we are.
    #[error("`{address}` does not accept the identity of this process")]
    IdentityRefusedByPeer {
        /// The address.
        address: String,
    },
    /// The caller's role does not allow the call.
    #[error("`{identity}` may not make this call")]
    Forbidden {
        /// Who called.
        identity: Box<Identity>,
    },
    /// The call did not come over a checked connection.
    #[error("the caller is unknown")]
    CallerUnknown,
    /// The channel on a connection could not be set up.
    #[error("the channel to `{address}` could not be set up")]
    Channel {
        /// The address.
        address: String,
        /// Why not.
        #[source]
        source: tonic::transport::Error,
    },
    /// A transfer broke in the middle.
    #[error("the transfer from `{address}` broke off")]
    Transfer {
        /// The peer.
        address: String,
        /// How it broke.
        #[source]
        source: io::Error,
    },
    /// A transfer made no progress.
    #[error("the transfer with `{address}` made no progress for `{seconds}` s")]
    Stalled {
        /// The peer.
        address: String,
        /// How long we waited.
        seconds: u64,
    },
    /// A message of the bulk data plane makes no sense.
    #[error("`{address}` sent nonsense on the data port: {what}")]
    Nonsense {
        /// The peer.
        address: String,
        /// What is wrong.
        what: &'static str,
    },
    /// An object could not be read to its end, or went away, while it was sent.
    #[error("what `{address}` was being sent could not be read to its end")]
    SourceGone {
        /// The peer.
        address: String,
    },
    /// Whoever asked for the parts of a transfer went away.
    #[error("the receiver of the transfer from `{address}` is gone")]
    ReceiverGone {
        /// The peer.
        address: String,
    },
}

impl CommError {
    /// Whether the same try may succeed later, although nobody changes anything: the peer is not
    /// there yet, or is just going.
    pub fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Lookup { .. }
                | Self::Connect { .. }
                | Self::Timeout { .. }
                | Self::Handshake { .. }
                | Self::Channel { .. }
                | Self::Transfer { .. }
                | Self::Stalled { .. }
        )
    }

    /// A short name for labels of metrics and fields of logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::CertificateFile { .. }
            | Self::CertificatePem { .. }
            | Self::CertificateOwn(_)
            | Self::CertificateMismatch(_)
            | Self::IdentityChanged { .. } => "certificate_files",
            Self::Address { .. } | Self::Lookup { .. } => "address",
            Self::Connect { .. } | Self::Timeout { .. } | Self::Channel { .. } => "connect",
            Self::Handshake { .. } | Self::NotTls { .. } | Self::WrongPort { .. } => "handshake",
            Self::CertificateRejected { .. }
            | Self::CertificateAbsent { .. }
            | Self::RejectedByPeer { .. } => "certificate",
            Self::IdentityUnreadable { .. }
            | Self::OtherCluster { .. }
            | Self::OtherRole { .. }
            | Self::IdentityRefusedByPeer { .. }
            | Self::CallerUnknown => "identity",
            Self::Forbidden { .. } => "forbidden",
            Self::Transfer { .. } | Self::Stalled { .. } => "transfer",
            Self::Nonsense { .. } => "protocol",
            Self::SourceGone { .. } => "source",
            Self::ReceiverGone { .. } => "receiver",
        }
    }
}

impl Coded for CommError {
    fn code(&self) -> Code {
        match self {
            Self::CertificateFile { .. }
            | Self::CertificatePem { .. }
            | Self::CertificateOwn(_)
            | Self::CertificateMismatch(_)
            | Self::IdentityChanged { .. } => Code::CertificateFiles,
            Self::Address { .. }
            | Self::Lookup { .. }
            | Self::Connect { .. }
            | Self::Timeout { .. }
            | Self::Handshake { .. }
            | Self::NotTls { .. }
            | Self::WrongPort { .. }
            | Self::Channel { .. } => Code::SchedulerUnreachable,
            Self::CertificateRejected { .. }
            | Self::CertificateAbsent { .. }
            | Self::RejectedByPeer { .. } => Code::CertificateRejected,
            Self::IdentityUnreadable { .. }
            | Self::OtherCluster { .. }
            | Self::OtherRole { .. }
            | Self::IdentityRefusedByPeer { .. }
            | Self::CallerUnknown => Code::IdentityRejected,
            Self::Forbidden { .. } => Code::CallForbidden,
            Self::Transfer { .. } | Self::SourceGone { .. } | Self::ReceiverGone { .. } => {
                Code::ResultUnavailable
            }
            Self::Stalled { .. } => Code::PeerTooSlow,
            Self::Nonsense { .. } => Code::ProtocolMismatch,
        }
    }

    fn hint(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::Address { .. } => "give host and port, for example `oxidask://127.0.0.1:8786`",
            Self::Lookup { .. } => "check the host's name in the address",
            Self::NotTls { .. } => {
                "check the port: the scheduler's is 8786 by default, 8787 serves plain HTTP"
            }
            Self::WrongPort { .. } => "use the scheduler's port, 8786 by default, not a worker's",
            Self::OtherCluster { .. } | Self::IdentityRefusedByPeer { .. } => {
                "use the address and the certificates of one and the same cluster"
            }
            _ => self.code().hint(),
        })
    }
}
