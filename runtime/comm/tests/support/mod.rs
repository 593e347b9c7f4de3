//! Credentials and raw TLS peers for the tests.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses its own part of this"
)]

use std::sync::Arc;
use std::time::Duration;

use oxidask_comm::{Credentials, install_crypto_provider};
use oxidask_identity::Role;
use oxidask_pki::{Authority, Leaf, Lifetime};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream as ClientStream;
use tokio_rustls::server::TlsStream as ServerStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

pub const HOUR: Duration = Duration::from_hours(1);

pub fn authority() -> Authority {
    install_crypto_provider();
    Authority::new("local", "flights").unwrap()
}

pub fn credentials(authority: &Authority, role: Role) -> Credentials {
    with_leaf(&authority.ca_pem(), &authority.issue(role, HOUR).unwrap())
}

pub fn expired(authority: &Authority, role: Role) -> Credentials {
    with_leaf(
        &authority.ca_pem(),
        &authority.issue(role, Lifetime::expired()).unwrap(),
    )
}

/// Trusts one authority, but shows a certificate of another.
pub fn mixed(trusted: &Authority, issuer: &Authority, role: Role) -> Credentials {
    with_leaf(&trusted.ca_pem(), &issuer.issue(role, HOUR).unwrap())
}

/// Trusts both authorities and shows a certificate of the first.
pub fn trusting_both(own: &Authority, other: &Authority, role: Role) -> Credentials {
    let bundle = format!("{}{}", own.ca_pem(), other.ca_pem());
    with_leaf(&bundle, &own.issue(role, HOUR).unwrap())
}

pub fn with_leaf(bundle: &str, leaf: &Leaf) -> Credentials {
    Credentials::from_pem(bundle, &leaf.cert_pem, &leaf.key_pem).unwrap()
}

pub async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn chain(leaf: &Leaf) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let certificate = CertificateDer::from_pem_slice(leaf.cert_pem.as_bytes()).unwrap();
    (
        vec![certificate],
        PrivateKeyDer::from_pem_slice(leaf.key_pem.as_bytes()).unwrap(),
    )
}

/// A peer that accepts every client and speaks whatever the test makes it say.
pub async fn accept_raw(
    listener: &TcpListener,
    leaf: &Leaf,
    protocol: &[u8],
) -> ServerStream<TcpStream> {
    let (chain, key) = chain(leaf);
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![protocol.to_vec()];
    let (tcp, _) = listener.accept().await.unwrap();
    TlsAcceptor::from(Arc::new(config))
        .accept(tcp)
        .await
        .unwrap()
}

/// A client that accepts every server and shows the given certificate, if any.
pub async fn connect_raw(
    address: &str,
    leaf: Option<&Leaf>,
    protocol: &[u8],
) -> std::io::Result<ClientStream<TcpStream>> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AcceptAll));
    let mut config = match leaf {
        None => builder.with_no_client_auth(),
        Some(leaf) => {
            let (chain, key) = chain(leaf);
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    config.alpn_protocols = vec![protocol.to_vec()];
    let tcp = TcpStream::connect(address).await?;
    let name = ServerName::try_from("anything").unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await
}

#[derive(Debug)]
struct AcceptAll;

impl ServerCertVerifier for AcceptAll {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
