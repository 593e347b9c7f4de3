//! A process's own certificate with its key and the authorities that it trusts.
//!
//! Owns how TLS is configured: 1.3 only, ring only, no tickets and no resumption, so that every
//! connection proves both identities anew.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use oxidask_identity::{Identity, Role};
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::certificate::inspect;
use crate::error::CommError;
use crate::verify::{ClientCheck, ServerCheck};

const AUTHORITY_FILE: &str = "ca.crt";
const CERTIFICATE_FILE: &str = "tls.crt";
const KEY_FILE: &str = "tls.key";

/// Authorities in one bundle, and certificates in one chain.
const CERTIFICATES_MAX: usize = 64;

/// What is spoken on a port; each kind refuses the other during the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Application {
    Grpc,
    Bulk,
}

impl Application {
    fn protocol(self) -> Vec<u8> {
        match self {
            Self::Grpc => b"h2".to_vec(),
            Self::Bulk => b"oxidask-bulk/1".to_vec(),
        }
    }
}

/// Certificate, key and trusted authorities of this process, checked to fit together.
#[derive(Clone)]
pub struct Credentials {
    inner: Arc<Inner>,
}

struct Inner {
    identity: Identity,
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let identity = &self.inner.identity;
        f.debug_struct("Credentials")
            .field("identity", identity)
            .finish_non_exhaustive()
    }
}

impl Credentials {
    /// Reads `ca.crt`, `tls.crt` and `tls.key` of a folder.
    pub fn from_dir(dir: &Path) -> Result<Self, CommError> {
        let read = |name: &str| {
            let path = dir.join(name);
            std::fs::read_to_string(&path).map_err(|source| CommError::CertificateFile {
                path: path.display().to_string(),
                source,
            })
        };
        Self::from_pem(
            &read(AUTHORITY_FILE)?,
            &read(CERTIFICATE_FILE)?,
            &read(KEY_FILE)?,
        )
    }

    /// Takes the content of the three files.
    pub fn from_pem(ca: &str, cert: &str, key: &str) -> Result<Self, CommError> {
        let mut roots = RootCertStore::empty();
        for authority in certificates(ca, "certificate of an authority")? {
            roots
                .add(authority)
                .map_err(CommError::CertificateMismatch)?;
        }
        let chain = certificates(cert, "certificate")?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|_| {
            CommError::CertificatePem {
                what: "private key",
            }
        })?;
        let own = inspect(&chain[0]).map_err(CommError::CertificateOwn)?;
        let inner = Inner {
            identity: own.identity,
            provider: Arc::new(provider()),
            roots: Arc::new(roots),
            chain,
            key,
        };
        let credentials = Self {
            inner: Arc::new(inner),
        };
        // Fails if the key is not the certificate's.
        credentials.client_config(Role::Scheduler, Application::Grpc)?;
        Ok(credentials)
    }

    /// Who this process is.
    pub fn identity(&self) -> &Identity {
        &self.inner.identity
    }

    pub(crate) fn client_config(
        &self,
        expected: Role,
        application: Application,
    ) -> Result<ClientConfig, CommError> {
        let Inner {
            identity,
            provider,
            roots,
            chain,
            key,
        } = &*self.inner;
        let check = ServerCheck {
            roots: Arc::clone(roots),
            algorithms: provider.signature_verification_algorithms,
            own: identity.clone(),
            expected,
        };
        let mut config = ClientConfig::builder_with_provider(Arc::clone(provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(CommError::CertificateMismatch)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(check))
            .with_client_auth_cert(chain.clone(), key.clone_key())
            .map_err(CommError::CertificateMismatch)?;
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        config.alpn_protocols = vec![application.protocol()];
        Ok(config)
    }

    pub(crate) fn server_config(
        &self,
        application: Application,
    ) -> Result<ServerConfig, CommError> {
        let Inner {
            identity,
            provider,
            roots,
            chain,
            key,
        } = &*self.inner;
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider));
        let verifier = verifier
            .clear_root_hint_subjects()
            .build()
            .map_err(|error| {
                CommError::CertificateMismatch(rustls::Error::General(error.to_string()))
            })?;
        let check = ClientCheck {
            chain: verifier,
            own: identity.clone(),
        };
        let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(CommError::CertificateMismatch)?
            .with_client_cert_verifier(Arc::new(check))
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(CommError::CertificateMismatch)?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        config.alpn_protocols = vec![application.protocol()];
        Ok(config)
    }
}

/// Makes ring the process's default provider. Our own code passes it explicitly; other libraries
/// ask for the default. Call it first in every `main`; later calls change nothing.
pub fn install_crypto_provider() {
    // An error only says that a default is installed already.
    let _ = provider().install_default();
}

// The fastest suite on machines with AES instructions first.
fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            ring::cipher_suite::TLS13_AES_128_GCM_SHA256,
            ring::cipher_suite::TLS13_AES_256_GCM_SHA384,
            ring::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..ring::default_provider()
    }
}

fn certificates(pem: &str, what: &'static str) -> Result<Vec<CertificateDer<'static>>, CommError> {
    let blocks = CertificateDer::pem_slice_iter(pem.as_bytes()).take(CERTIFICATES_MAX);
    let found: Result<Vec<_>, _> = blocks.collect();
    found
        .ok()
        .filter(|found| !found.is_empty())
        .ok_or(CommError::CertificatePem { what })
}
