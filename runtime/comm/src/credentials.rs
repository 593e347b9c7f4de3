//! A process's own certificate with its key and the authorities that it trusts.
//!
//! Owns how TLS is configured: 1.3 only, ring only, no tickets and no resumption, so that every
//! connection proves both identities anew. Owns which files they come from, and that others may be
//! taken from there later: new connections use them, those that stand stay.
//!
//! Invariant: the identity never changes, whatever the files say later.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use oxidask_identity::{Identity, Role, bundle_digest, certificate_digest};
use oxidask_proto::wire::Loaded;
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

/// Certificate, key and trusted authorities of this process, checked to fit together. Clones are
/// the same credentials: all of them see what is loaded later.
#[derive(Clone)]
pub struct Credentials {
    shared: Arc<Shared>,
}

struct Shared {
    identity: Identity,
    /// Where they were read.
    dir: Option<PathBuf>,
    current: RwLock<Arc<Material>>,
}

/// What was loaded at one time.
struct Material {
    provider: Arc<CryptoProvider>,
    authorities: Vec<CertificateDer<'static>>,
    loaded: Loaded,
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    grpc_server: OnceLock<Arc<ServerConfig>>,
    bulk_server: OnceLock<Arc<ServerConfig>>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("identity", self.identity())
            .finish_non_exhaustive()
    }
}

impl Credentials {
    /// Reads `ca.crt`, `tls.crt` and `tls.key` of a folder.
    pub fn from_dir(dir: &Path) -> Result<Self, CommError> {
        let (material, identity) = read(dir)?;
        Self::new(material, identity, Some(dir.to_owned()))
    }

    /// Takes the content of the three files.
    pub fn from_pem(ca: &str, cert: &str, key: &str) -> Result<Self, CommError> {
        let (material, identity) = parse(ca, cert, key)?;
        Self::new(material, identity, None)
    }

    fn new(
        material: Material,
        identity: Identity,
        dir: Option<PathBuf>,
    ) -> Result<Self, CommError> {
        // Fails if the key is not the certificate's.
        material.client_config(&identity, Role::Scheduler, Application::Grpc)?;
        let current = RwLock::new(Arc::new(material));
        let shared = Shared {
            identity,
            dir,
            current,
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Reads the folder again. True if what is there is new: connections made from now on use it.
    /// Blocks for as long as three small files take.
    ///
    /// # Errors
    ///
    /// The files cannot be read, do not fit together, or are those of somebody else. What was
    /// loaded before stays in use: a folder that is being written is whole a moment later.
    pub fn reload(&self) -> Result<bool, CommError> {
        let Some(dir) = &self.shared.dir else {
            return Ok(false);
        };
        let (material, identity) = read(dir)?;
        if material.is_same(&self.material()) {
            return Ok(false);
        }
        if identity != self.shared.identity {
            let (expected, found) = (self.shared.identity.clone(), identity);
            return Err(CommError::IdentityChanged {
                expected: Box::new(expected),
                found: Box::new(found),
            });
        }
        material.client_config(&identity, Role::Scheduler, Application::Grpc)?;
        let mut current = self
            .shared
            .current
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(material);
        Ok(true)
    }

    /// Who this process is.
    pub fn identity(&self) -> &Identity {
        &self.shared.identity
    }

    /// Digests of what is in use.
    pub fn loaded(&self) -> Loaded {
        self.material().loaded.clone()
    }

    pub(crate) fn has_folder(&self) -> bool {
        self.shared.dir.is_some()
    }

    fn material(&self) -> Arc<Material> {
        let current = self.shared.current.read();
        Arc::clone(&current.unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn client_config(
        &self,
        expected: Role,
        application: Application,
    ) -> Result<ClientConfig, CommError> {
        self.material()
            .client_config(&self.shared.identity, expected, application)
    }

    /// The same one until something else is loaded.
    pub(crate) fn server_config(
        &self,
        application: Application,
    ) -> Result<Arc<ServerConfig>, CommError> {
        let material = self.material();
        let kept = match application {
            Application::Grpc => &material.grpc_server,
            Application::Bulk => &material.bulk_server,
        };
        if let Some(config) = kept.get() {
            return Ok(Arc::clone(config));
        }
        let config = material.server_config(&self.shared.identity, application)?;
        Ok(Arc::clone(kept.get_or_init(|| Arc::new(config))))
    }
}

fn read(dir: &Path) -> Result<(Material, Identity), CommError> {
    let read = |name: &str| {
        let path = dir.join(name);
        std::fs::read_to_string(&path).map_err(|source| CommError::CertificateFile {
            path: path.display().to_string(),
            source,
        })
    };
    parse(
        &read(AUTHORITY_FILE)?,
        &read(CERTIFICATE_FILE)?,
        &read(KEY_FILE)?,
    )
}

fn parse(ca: &str, cert: &str, key: &str) -> Result<(Material, Identity), CommError> {
    let authorities = certificates(ca, "certificate of an authority")?;
    let mut roots = RootCertStore::empty();
    for authority in &authorities {
        roots
            .add(authority.clone())
            .map_err(CommError::CertificateMismatch)?;
    }
    let chain = certificates(cert, "certificate")?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes());
    let key = key.map_err(|_| CommError::CertificatePem {
        what: "private key",
    })?;
    let own = inspect(&chain[0]).map_err(CommError::CertificateOwn)?;
    // Told with every beat, so made once.
    let loaded = Loaded {
        bundle: bundle_digest(authorities.iter().map(AsRef::as_ref)),
        certificate: certificate_digest(&chain[0]),
    };
    let material = Material {
        provider: Arc::new(provider()),
        authorities,
        loaded,
        roots: Arc::new(roots),
        chain,
        key,
        grpc_server: OnceLock::new(),
        bulk_server: OnceLock::new(),
    };
    Ok((material, own.identity))
}

impl Material {
    fn is_same(&self, other: &Self) -> bool {
        self.authorities == other.authorities
            && self.chain == other.chain
            && self.key.secret_der() == other.key.secret_der()
    }

    fn client_config(
        &self,
        identity: &Identity,
        expected: Role,
        application: Application,
    ) -> Result<ClientConfig, CommError> {
        let Self {
            provider,
            roots,
            chain,
            key,
            ..
        } = self;
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

    fn server_config(
        &self,
        identity: &Identity,
        application: Application,
    ) -> Result<ServerConfig, CommError> {
        let Self {
            provider,
            roots,
            chain,
            key,
            ..
        } = self;
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
