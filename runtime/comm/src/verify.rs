//! The checks of a peer's certificate during the handshake: chain first, then identity.
//!
//! A client knows whom it expects; a server takes every role of its own cluster and leaves it to
//! each call which roles may make it. Neither compares names or addresses.

use std::sync::Arc;

use oxidask_identity::{Identity, Role};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::certificate::{CertificateFault, Inspected, inspect};

/// Why a certificate with a good chain is not accepted.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum IdentityFault {
    #[error(transparent)]
    Certificate(CertificateFault),
    #[error("`{0}` belongs to another cluster")]
    OtherCluster(Identity),
    #[error("a {found} instead of a {expected}")]
    OtherRole { expected: Role, found: Role },
}

impl From<IdentityFault> for rustls::Error {
    fn from(fault: IdentityFault) -> Self {
        CertificateError::Other(OtherError(Arc::new(fault))).into()
    }
}

/// The rule: the same cluster, and the expected role if there is one.
pub(crate) fn check_identity(
    certificate: &CertificateDer<'_>,
    own: &Identity,
    expected: Option<Role>,
) -> Result<Inspected, IdentityFault> {
    let inspected = inspect(certificate).map_err(IdentityFault::Certificate)?;
    let found = &inspected.identity;
    if !found.is_same_cluster(own) {
        return Err(IdentityFault::OtherCluster(found.clone()));
    }
    match expected {
        Some(expected) if expected != found.role => Err(IdentityFault::OtherRole {
            expected,
            found: found.role,
        }),
        _ => Ok(inspected),
    }
}

/// Checks servers.
#[derive(Debug)]
pub(crate) struct ServerCheck {
    pub(crate) roots: Arc<RootCertStore>,
    pub(crate) algorithms: WebPkiSupportedAlgorithms,
    pub(crate) own: Identity,
    pub(crate) expected: Role,
}

impl ServerCertVerifier for ServerCheck {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.algorithms.all;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            algorithms,
        )?;
        check_identity(end_entity, &self.own, Some(self.expected))?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Checks clients: `WebPkiClientVerifier`, then the identity, so that a refused client receives an
/// alert that tells it why.
#[derive(Debug)]
pub(crate) struct ClientCheck {
    pub(crate) chain: Arc<dyn ClientCertVerifier>,
    pub(crate) own: Identity,
}

impl ClientCertVerifier for ClientCheck {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self
            .chain
            .verify_client_cert(end_entity, intermediates, now)?;
        check_identity(end_entity, &self.own, None)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
