//! Who gets in at a port that asks for a certificate.
//!
//! Two kinds of callers: a raw one that trusts every server and shows whatever it is told to, as
//! somebody with bad intentions would, and the product's own channel for calls that need a role.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use oxidask_comm::Credentials;
use oxidask_identity::Role;
use oxidask_proto::wire;
use oxidask_proto::wire::scheduler_client::SchedulerClient;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature};
use rustls::version::TLS13;
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, Stream};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::Outcome;
use crate::kubectl::Kubectl;
use crate::process::failure;

/// What is spoken on the scheduler's port.
pub(crate) const GRPC: &[u8] = b"h2";
/// What is spoken on a worker's data port.
pub(crate) const BULK: &[u8] = b"oxidask-bulk/1";

/// What a worker says to a caller of its cluster whose role may not fetch.
pub(crate) const BULK_REFUSAL: &[u8] = b"OXROLE!\n";

/// More is not read of what should be nothing.
const BYTES_MAX: usize = 64 * 1024;
const READ: Duration = Duration::from_secs(5);
const CALL: Duration = Duration::from_secs(10);
/// First byte of a TLS record that only says why a connection ends.
const TLS_ALERT: u8 = 21;

/// Certificate, key and authority of one role of a cluster, as in its Secret.
#[derive(Debug, Clone)]
pub(crate) struct Papers {
    authority: String,
    certificate: String,
    key: String,
}

impl Papers {
    /// Reads the Secret of a role.
    pub(crate) fn read(kubectl: &Kubectl, cluster: &str, role: Role) -> Outcome<Self> {
        let secret = format!("{cluster}-tls-{role}");
        Ok(Self {
            authority: kubectl.secret(&secret, "ca.crt")?,
            certificate: kubectl.secret(&secret, "tls.crt")?,
            key: kubectl.secret(&secret, "tls.key")?,
        })
    }

    /// The certificate as it travels.
    pub(crate) fn certificate(&self) -> Outcome<Vec<u8>> {
        Ok(CertificateDer::from_pem_slice(self.certificate.as_bytes())?.to_vec())
    }

    /// Writes them as the files that the command reads.
    pub(crate) fn write(&self, folder: &std::path::Path) -> Outcome {
        std::fs::write(folder.join("ca.crt"), &self.authority)?;
        std::fs::write(folder.join("tls.crt"), &self.certificate)?;
        std::fs::write(folder.join("tls.key"), &self.key)?;
        Ok(())
    }

    fn credentials(&self) -> Outcome<Credentials> {
        Ok(Credentials::from_pem(
            &self.authority,
            &self.certificate,
            &self.key,
        )?)
    }
}

/// What a server sends first to a caller that shows these papers and trusts it blindly.
pub(crate) fn greeting(address: &str, papers: &Papers, protocol: &[u8]) -> Outcome<Vec<u8>> {
    let mut caller = Caller::connect(address, Some(papers), protocol)?;
    caller
        .ask(protocol)
        .and_then(|()| caller.receive())
        .map_err(|error| failure(format!("a caller who should get in is refused: {error}")))
}

/// All that a server sends to a caller with these papers, or none, before it ends the connection;
/// the caller asks as if it had been let in.
pub(crate) fn refusal(address: &str, papers: Option<&Papers>, protocol: &[u8]) -> Outcome<Vec<u8>> {
    let mut caller = Caller::connect(address, papers, protocol)?;
    // What fails from here on is the refusal.
    let _ = caller.ask(protocol);
    let mut all = Vec::new();
    loop {
        match caller.receive() {
            Ok(part) if !part.is_empty() && all.len() < BYTES_MAX => all.extend(part),
            Err(error) if is_timeout(&error) => {
                let text = format!("{address} does not end the connection, after {all:?}");
                return Err(failure(text));
            }
            _ => return Ok(all),
        }
    }
}

/// The certificate that a server shows to a caller with these papers.
pub(crate) fn shown_certificate(
    address: &str,
    papers: &Papers,
    protocol: &[u8],
) -> Outcome<Vec<u8>> {
    let mut caller = Caller::connect(address, Some(papers), protocol)?;
    caller.ask(protocol)?;
    caller.receive()?;
    let shown = caller.connection.peer_certificates();
    let leaf = shown.and_then(|chain| chain.first());
    let leaf = leaf.ok_or_else(|| failure(format!("{address} shows no certificate")))?;
    Ok(leaf.to_vec())
}

/// Somebody at the other end of a TLS connection who does not care whom it leads to.
struct Caller {
    connection: ClientConnection,
    tcp: TcpStream,
}

impl Caller {
    fn connect(address: &str, papers: Option<&Papers>, protocol: &[u8]) -> Outcome<Self> {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(TrustsEverybody));
        let mut config = match papers {
            None => builder.with_no_client_auth(),
            Some(papers) => {
                let certificate = CertificateDer::from_pem_slice(papers.certificate.as_bytes())?;
                let key = PrivateKeyDer::from_pem_slice(papers.key.as_bytes())?;
                builder.with_client_auth_cert(vec![certificate], key)?
            }
        };
        config.alpn_protocols = vec![protocol.to_vec()];
        let name = ServerName::try_from("anything")?;
        Ok(Self {
            connection: ClientConnection::new(Arc::new(config), name)?,
            tcp: connect(address)?,
        })
    }

    /// The first thing that a client of the protocol says.
    fn ask(&mut self, protocol: &[u8]) -> std::io::Result<()> {
        // HTTP/2: the preface and empty settings. Bulk: a request for one object.
        let words: &[u8] = if protocol == GRPC {
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"
        } else {
            b"\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0"
        };
        Stream::new(&mut self.connection, &mut self.tcp).write_all(words)
    }

    fn receive(&mut self) -> std::io::Result<Vec<u8>> {
        let mut part = vec![0; 1024];
        let count = Stream::new(&mut self.connection, &mut self.tcp).read(&mut part)?;
        part.truncate(count);
        Ok(part)
    }
}

/// What a server answers to text without TLS, apart from a TLS alert.
pub(crate) fn plain_answer(address: &str) -> Outcome<Vec<u8>> {
    let mut tcp = connect(address)?;
    tcp.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")?;
    let mut received = vec![0; 1024];
    let count = tcp.read(&mut received).unwrap_or(0);
    received.truncate(count);
    if received.first() == Some(&TLS_ALERT) {
        received.clear();
    }
    Ok(received)
}

/// The workers that a scheduler names to a caller with these papers; a refusal is an error.
pub(crate) fn status(address: &str, papers: &Papers) -> Outcome<Vec<String>> {
    let credentials = papers.credentials()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let asking = async {
        let url = format!("oxidask://{address}");
        let channel = oxidask_comm::connect(&url, &credentials, Role::Scheduler).await?;
        let mut client = SchedulerClient::new(channel);
        let reply = client.status(wire::StatusRequest {}).await?.into_inner();
        Outcome::Ok(
            reply
                .workers
                .into_iter()
                .map(|worker| worker.name)
                .collect(),
        )
    };
    runtime.block_on(async { tokio::time::timeout(CALL, asking).await })?
}

/// The body that an open HTTP path answers with; any status but 200 is an error.
pub(crate) fn open_path(address: &str, path: &str) -> Outcome<String> {
    match http_get(address, path, None)? {
        (200, body) => Ok(body),
        (status, body) => Err(failure(format!("{path} answers {status}: {body}"))),
    }
}

/// Status and body of an HTTP path, asked with this bearer token or none.
pub(crate) fn http_get(address: &str, path: &str, token: Option<&str>) -> Outcome<(u16, String)> {
    let mut tcp = connect(address)?;
    let authorization = token.map_or(String::new(), |token| {
        format!("Authorization: Bearer {token}\r\n")
    });
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\n{authorization}Connection: close\r\n\r\n"
    );
    tcp.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    tcp.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let split = answer.split_once("\r\n\r\n").and_then(|(head, body)| {
        let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?;
        Some((status.parse().ok()?, body.to_owned()))
    });
    split.ok_or_else(|| failure(format!("{path} answers `{answer}`")))
}

fn connect(address: &str) -> Outcome<TcpStream> {
    let tcp = TcpStream::connect(address)?;
    tcp.set_read_timeout(Some(READ))?;
    tcp.set_write_timeout(Some(READ))?;
    Ok(tcp)
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
    )
}

/// Lets the caller go on whatever the server shows: what is tested is what the server refuses.
#[derive(Debug)]
struct TrustsEverybody;

impl ServerCertVerifier for TrustsEverybody {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let provider: CryptoProvider = ring::default_provider();
        let algorithms = &provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
