//! TLS to one master: the settings as redis-py means its `ssl_*` arguments, and the handshake.
//!
//! rustls on the `tokio` I/O traits, without a runtime and without a process-wide crypto provider.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use tokio_rustls::rustls::crypto::{WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DEFAULT_VERSIONS, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    SupportedProtocolVersion,
};

/// Whether the master's certificate is verified (redis-py's `ssl_cert_reqs`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CertReqs {
    /// It must chain to a trusted CA.
    #[default]
    Required,
    /// The same as [`CertReqs::Required`]: a TLS server always shows a certificate, so Python's `CERT_OPTIONAL` on a
    /// client verifies it too.
    Optional,
    /// Any certificate is accepted, and its name is not checked. The handshake still proves that the master holds the
    /// certificate's key.
    None,
}

/// The lowest protocol version to agree to (redis-py's `ssl_min_version`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsVersion {
    /// TLS 1.2 or newer, which is the default of Python's `ssl` as well.
    Tls12,
    /// TLS 1.3 only.
    Tls13,
}

/// What redis-py's `ssl_*` arguments say about one master.
#[derive(Clone, PartialEq, Eq)]
pub struct TlsSettings {
    /// Whether the certificate is verified (`ssl_cert_reqs`).
    pub cert_reqs: CertReqs,
    /// Whether the certificate must name the host (`ssl_check_hostname`); without effect under [`CertReqs::None`].
    pub check_hostname: bool,
    /// A file of PEM certificates to trust beside the system's (`ssl_ca_certs`).
    pub ca_file: Option<PathBuf>,
    /// A directory of PEM files to trust beside the system's (`ssl_ca_path`).
    pub ca_path: Option<PathBuf>,
    /// Certificates to trust beside the system's (`ssl_ca_data`): PEM text, or DER one after another.
    pub ca_data: Option<Vec<u8>>,
    /// The client's own PEM certificate, with its intermediates after it (`ssl_certfile`).
    pub cert_file: Option<PathBuf>,
    /// The client's PEM private key, unencrypted (`ssl_keyfile`); by default it is looked for in `cert_file`.
    pub key_file: Option<PathBuf>,
    /// The lowest protocol version (`ssl_min_version`); by default TLS 1.2.
    pub min_version: Option<TlsVersion>,
}

/// Why settings cannot be used.
///
/// No variant carries the PEM reader's own error: that quotes the line it stumbled over, which in a key file may be the
/// key.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file or directory cannot be read.
    #[error("{place}: cannot be read: {source}")]
    Unreadable {
        /// What was being read, and its path.
        place: String,
        /// The operating system's reason.
        source: io::Error,
    },
    /// Certificates were expected and there are none, or broken ones.
    #[error("{place}: expected {expected}")]
    NoCertificate {
        /// What was being read, and its path.
        place: String,
        /// What would have been right.
        expected: &'static str,
    },
    /// A certificate was read but cannot be used, alone or with its key.
    #[error("{place}: {source}")]
    Unusable {
        /// What was being read, and its path.
        place: String,
        /// rustls's reason.
        source: Error,
    },
    /// No private key was found.
    #[error("{place}: expected an unencrypted PEM private key (PKCS#8, PKCS#1 or SEC1)")]
    NoKey {
        /// What was being read, and its path.
        place: String,
    },
    /// The private key is behind a password.
    #[error("{place}: the private key is encrypted, which is not supported: expected an unencrypted one")]
    EncryptedKey {
        /// What was being read, and its path.
        place: String,
    },
    /// A key without the certificate it belongs to.
    #[error("{place}: expected a client certificate file to go with the key")]
    KeyWithoutCertificate {
        /// What was given, and its path.
        place: String,
    },
    /// The system trusts nobody, and neither do the settings.
    #[error("expected CA certificates in the system's trust store or in the settings, found none{reason}")]
    NoRoots {
        /// What went wrong with the system's store, or nothing.
        reason: String,
    },
    /// The crypto provider cannot do what was asked.
    #[error("TLS cannot be set up: {0}")]
    Provider(Error),
}

impl Default for TlsSettings {
    fn default() -> Self {
        Self {
            cert_reqs: CertReqs::Required,
            check_hostname: true,
            ca_file: None,
            ca_path: None,
            ca_data: None,
            cert_file: None,
            key_file: None,
            min_version: None,
        }
    }
}

impl fmt::Debug for TlsSettings {
    /// Paths but no contents: somebody will put a key into `ca_data`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsSettings")
            .field("cert_reqs", &self.cert_reqs)
            .field("check_hostname", &self.check_hostname)
            .field("ca_file", &self.ca_file)
            .field("ca_path", &self.ca_path)
            .field("ca_data_bytes", &self.ca_data.as_ref().map(Vec::len))
            .field("cert_file", &self.cert_file)
            .field("key_file", &self.key_file)
            .field("min_version", &self.min_version)
            .finish()
    }
}

impl TlsSettings {
    /// Reads every file the settings name and makes the configuration that all connections to the master share.
    ///
    /// It costs tens of milliseconds (the system's trust store), so once per endpoint. Sessions are not resumed, as in
    /// Python's `ssl`: the cache would be behind a mutex, which another thread may hold at the moment of a `fork`.
    pub fn client_config(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let algorithms = provider.signature_verification_algorithms;
        let trust = Some(self.trust()?).filter(|_| self.cert_reqs != CertReqs::None);
        let verifier = Verifier { trust, check_name: self.check_hostname, algorithms };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(self.versions())
            .map_err(TlsError::Provider)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match self.own_certificate()? {
            None => builder.with_no_client_auth(),
            Some(own) => builder
                .with_client_auth_cert(own.chain, own.key)
                .map_err(|source| TlsError::Unusable { place: own.place, source })?,
        };
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }

    fn versions(&self) -> &'static [&'static SupportedProtocolVersion] {
        static NEWEST: &[&SupportedProtocolVersion] = &[&TLS13];
        match self.min_version {
            Some(TlsVersion::Tls13) => NEWEST,
            Some(TlsVersion::Tls12) | None => DEFAULT_VERSIONS,
        }
    }

    /// The CAs of the settings and the system's: redis-py calls `load_verify_locations` on a default context, which
    /// adds to the system's store. The settings' own are read even if nothing is verified, so that a wrong path is
    /// always an error, as it is in Python.
    fn trust(&self) -> Result<Trust, TlsError> {
        let mut trust = Trust { roots: RootCertStore::empty(), own: Vec::new() };
        if let Some(file) = &self.ca_file {
            let place = at("CA file", file);
            add(&mut trust, pem_certificates(&read(file, &place)?, &place)?, &place)?;
        }
        if let Some(directory) = &self.ca_path {
            add_directory(&mut trust, directory)?;
        }
        if let Some(data) = &self.ca_data {
            add(&mut trust, data_certificates(data)?, "CA data")?;
        }
        if self.cert_reqs != CertReqs::None {
            add_system(&mut trust.roots)?;
        }
        Ok(trust)
    }

    fn own_certificate(&self) -> Result<Option<OwnCertificate>, TlsError> {
        let Some(cert_file) = &self.cert_file else {
            return match &self.key_file {
                Some(file) => Err(TlsError::KeyWithoutCertificate { place: at("client key file", file) }),
                None => Ok(None),
            };
        };
        let place = at("client certificate file", cert_file);
        let chain = pem_certificates(&read(cert_file, &place)?, &place)?;
        let key = private_key(self.key_file.as_ref().unwrap_or(cert_file))?;
        Ok(Some(OwnCertificate { chain, key, place }))
    }
}

/// What the client shows of itself.
struct OwnCertificate {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    place: String,
}

fn at(what: &str, path: &Path) -> String {
    format!("{what} {}", path.display())
}

fn read(file: &Path, place: &str) -> Result<Vec<u8>, TlsError> {
    fs::read(file).map_err(|source| TlsError::Unreadable { place: place.to_owned(), source })
}

fn add(trust: &mut Trust, certificates: Vec<CertificateDer<'static>>, place: &str) -> Result<(), TlsError> {
    certificates
        .iter()
        .try_for_each(|certificate| trust.roots.add(certificate.clone()))
        .map_err(|source| TlsError::Unusable { place: place.to_owned(), source })?;
    trust.own.extend(certificates);
    Ok(())
}

/// OpenSSL passes over whatever in the directory is not a CA; so does this, but a directory without any is an error.
fn add_directory(trust: &mut Trust, directory: &Path) -> Result<(), TlsError> {
    let place = at("CA directory", directory);
    let entries = fs::read_dir(directory).map_err(|source| TlsError::Unreadable { place: place.clone(), source })?;
    let before = trust.roots.len();
    for entry in entries.flatten() {
        let file = entry.path();
        // `is_file` follows the links that `openssl rehash` makes, and keeps away from pipes that nobody writes to.
        if file.is_file() {
            let pem = fs::read(file).unwrap_or_default();
            let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem).flatten().collect();
            trust.roots.add_parsable_certificates(certificates.iter().cloned());
            trust.own.extend(certificates);
        }
    }
    if trust.roots.len() == before {
        return Err(TlsError::NoCertificate { place, expected: "files with PEM certificates in it" });
    }
    Ok(())
}

/// As Python does, takes what the system has; that it has nothing matters only if the settings name no CA either.
fn add_system(roots: &mut RootCertStore) -> Result<(), TlsError> {
    let system = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(system.certs);
    if roots.is_empty() {
        let reason = system.errors.first().map(|error| format!(" ({error})")).unwrap_or_default();
        return Err(TlsError::NoRoots { reason });
    }
    Ok(())
}

fn pem_certificates(pem: &[u8], place: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(TlsError::NoCertificate { place: place.to_owned(), expected: "well-formed PEM certificates" }),
    }
}

/// Python takes text for PEM and bytes for DER; no DER certificate contains a PEM header.
fn data_certificates(data: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    const PEM: &[u8] = b"-----BEGIN ";
    if data.windows(PEM.len()).any(|window| window == PEM) {
        return pem_certificates(data, "CA data");
    }
    split_der(data)
        .filter(|certificates| !certificates.is_empty())
        .ok_or(TlsError::NoCertificate { place: "CA data".to_owned(), expected: "PEM or DER certificates" })
}

fn split_der(mut data: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let mut certificates = Vec::new();
    while !data.is_empty() {
        // An ASN.1 SEQUENCE and its length, in the two forms between 128 bytes and 64 KiB that certificates have.
        let length = match *data {
            [0x30, 0x81, length, ..] => 3 + usize::from(length),
            [0x30, 0x82, high, low, ..] => 4 + usize::from(u16::from_be_bytes([high, low])),
            _ => return None,
        };
        let (certificate, rest) = data.split_at_checked(length)?;
        certificates.push(CertificateDer::from(certificate.to_vec()));
        data = rest;
    }
    Some(certificates)
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    // In the header of PKCS#8 (`BEGIN ENCRYPTED PRIVATE KEY`), in a line of its own in the older formats.
    const ENCRYPTED: &[u8] = b"ENCRYPTED";
    let place = at("client key file", file);
    let pem = read(file, &place)?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|_| {
        if pem.windows(ENCRYPTED.len()).any(|window| window == ENCRYPTED) {
            TlsError::EncryptedKey { place }
        } else {
            TlsError::NoKey { place }
        }
    })
}

/// Who is trusted.
#[derive(Debug)]
struct Trust {
    roots: RootCertStore,
    /// Those of the roots that the settings name, whole.
    own: Vec<CertificateDer<'static>>,
}

/// Verifies what Python's `ssl` would: chain and name, the chain alone, or, without `trust`, neither. Handshake
/// signatures are always verified.
#[derive(Debug)]
struct Verifier {
    trust: Option<Trust>,
    check_name: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Trust {
    /// The chain must end at a root. A CA's certificate can be no server's, says rustls. Most self-made ones are both
    /// (`openssl req -x509`), and Python accepts them: so does this, if the very certificate is among the settings' own.
    fn verify(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Result<(), Error> {
        let parsed = ParsedCertificate::try_from(certificate)?;
        match verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms.all) {
            Err(error) if is_only_a_ca(&error) && self.own.iter().any(|own| own.as_ref() == certificate.as_ref()) => {
                Ok(())
            }
            result => result,
        }
    }
}

/// Whether nothing but being a CA's is wrong with a certificate; that it is not out of date was checked before. rustls
/// passes on this error of its verifier without a name of its own.
fn is_only_a_ca(error: &Error) -> bool {
    matches!(error, Error::InvalidCertificate(CertificateError::Other(why)) if why.to_string() == "CaUsedAsEndEntity")
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(trust) = &self.trust {
            trust.verify(end_entity, intermediates, now, self.algorithms)?;
            if self.check_name {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Does the TLS handshake over `stream`, with a master called `server_name`: a DNS name or an IP address, no brackets.
///
/// Dropping the result, or this future half way, sends nothing: neither tokio-rustls's `TlsStream` and `Connect` nor
/// rustls's `ClientConnection` implement `Drop`, and a `close_notify` is queued only by `AsyncWrite::poll_shutdown`.
/// That is what lets a forked child let go of its parent's sessions. The error of a refused certificate has the kind
/// `InvalidData`, with rustls's reason in it.
pub async fn connect<S>(config: Arc<ClientConfig>, server_name: &str, stream: S) -> io::Result<TlsStream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let name = ServerName::try_from(server_name.to_owned()).map_err(|_| {
        let message = format!("TLS server name {server_name:?}: expected a DNS name or an IP address");
        io::Error::new(io::ErrorKind::InvalidInput, message)
    })?;
    TlsConnector::from(config).connect(name, stream).await
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Poll, Waker};

    use futures_util::future::join;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio_rustls::TlsAcceptor;
    use tokio_rustls::rustls::server::WebPkiClientVerifier;
    use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
    use tokio_rustls::rustls::version::TLS12;
    use tokio_rustls::rustls::{ALL_VERSIONS, ServerConfig};
    use tokio_rustls::server::TlsStream as ServerStream;

    use super::*;

    type Ca = CertifiedIssuer<'static, KeyPair>;
    type Outcome = (io::Result<TlsStream<DuplexStream>>, io::Result<ServerStream<DuplexStream>>);

    /// A directory that goes away with the test.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new() -> Self {
            static COUNT: AtomicUsize = AtomicUsize::new(0);
            let name = format!("redlock-tls-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
            let path = std::env::temp_dir().join(name);
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
            let path = self.0.join(name);
            fs::write(&path, content).unwrap();
            path
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    struct Leaf {
        certificate: rcgen::Certificate,
        key: KeyPair,
    }

    impl Leaf {
        fn key_der(&self) -> PrivateKeyDer<'static> {
            PrivateKeyDer::try_from(self.key.serialize_der()).unwrap()
        }
    }

    fn ca(name: &str) -> Ca {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    fn leaf(ca: &Ca, names: &[&str]) -> Leaf {
        leaf_until(ca, names, 2999)
    }

    fn leaf_until(ca: &Ca, names: &[&str], year: i32) -> Leaf {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().unwrap();
        Leaf { certificate: params.signed_by(&key, ca).unwrap(), key }
    }

    /// Nothing but the two ends moves an in-memory pipe, so polling until done needs no waker; the bound is a hang's.
    fn run<F: Future>(future: F) -> F::Output {
        let mut future = pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..10_000 {
            if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
                return output;
            }
        }
        panic!("the handshake hangs");
    }

    fn server(leaf: &Leaf) -> ServerConfig {
        server_of(leaf, ALL_VERSIONS)
    }

    fn server_of(leaf: &Leaf, versions: &[&'static SupportedProtocolVersion]) -> ServerConfig {
        let chain = vec![leaf.certificate.der().clone()];
        ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, leaf.key_der())
            .unwrap()
    }

    fn handshake(settings: &TlsSettings, name: &str, server: ServerConfig) -> Outcome {
        let config = settings.client_config().unwrap();
        let (near, far) = tokio::io::duplex(1 << 16);
        let acceptor = TlsAcceptor::from(Arc::new(server));
        run(join(connect(config, name, near), acceptor.accept(far)))
    }

    fn refusal(settings: &TlsSettings, name: &str, server: ServerConfig) -> String {
        let error = handshake(settings, name, server).0.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        error.to_string()
    }

    fn trusting(ca: &Ca) -> TlsSettings {
        TlsSettings { ca_data: Some(ca.pem().into_bytes()), ..TlsSettings::default() }
    }

    fn failure(settings: &TlsSettings) -> String {
        settings.client_config().unwrap_err().to_string()
    }

    #[test]
    fn by_default_an_unknown_ca_is_refused() {
        let server = server(&leaf(&ca("unknown"), &["redis.test"]));
        match TlsSettings::default().client_config() {
            Err(error) => assert!(matches!(error, TlsError::NoRoots { .. }), "{error}"),
            Ok(_) => {
                assert!(refusal(&TlsSettings::default(), "redis.test", server).contains("UnknownIssuer"));
            }
        }
    }

    #[test]
    fn another_ca_is_refused_in_every_verifying_mode() {
        let (ours, theirs) = (ca("ours"), ca("theirs"));
        let settings = |cert_reqs, check_hostname| TlsSettings { cert_reqs, check_hostname, ..trusting(&ours) };
        for cert_reqs in [CertReqs::Required, CertReqs::Optional] {
            for check_hostname in [true, false] {
                let server = server(&leaf(&theirs, &["redis.test"]));
                let error = refusal(&settings(cert_reqs, check_hostname), "redis.test", server);
                assert!(error.contains("UnknownIssuer"), "{error}");
            }
        }
    }

    #[test]
    fn the_ca_is_found_wherever_it_was_put() {
        let (scratch, ca, other) = (Scratch::new(), ca("ours"), ca("other"));
        let directory = scratch.0.join("directory");
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("README"), "no certificate").unwrap();
        fs::write(directory.join("broken.pem"), "-----BEGIN CERTIFICATE-----\n").unwrap();
        fs::write(directory.join("ca.pem"), ca.pem()).unwrap();
        let file = scratch.write("ca.pem", other.pem() + &ca.pem());
        let der = [other.der().as_ref(), ca.der().as_ref()].concat();
        let none = TlsSettings::default;
        for settings in [
            TlsSettings { ca_file: Some(file), ..none() },
            TlsSettings { ca_path: Some(directory), ..none() },
            TlsSettings { ca_data: Some(ca.pem().into_bytes()), ..none() },
            TlsSettings { ca_data: Some(der), ..none() },
        ] {
            let (client, _) = handshake(&settings, "redis.test", server(&leaf(&ca, &["redis.test"])));
            assert!(client.is_ok(), "{settings:?}: {client:?}");
        }
    }

    #[test]
    fn own_cas_are_added_to_the_systems() {
        let own = TlsSettings { cert_reqs: CertReqs::None, ..trusting(&ca("ours")) };
        let system = TlsSettings::default().trust().map_or(0, |trust| trust.roots.len());
        assert_eq!(own.trust().unwrap().roots.len(), 1);
        assert_eq!(trusting(&ca("ours")).trust().unwrap().roots.len(), system + 1);
    }

    #[test]
    fn another_name_is_refused_unless_names_are_not_checked() {
        let ca = ca("ours");
        let other = leaf(&ca, &["other.test"]);
        let strict = trusting(&ca);
        assert!(refusal(&strict, "redis.test", server(&other)).contains("not valid for name"));
        let lax = TlsSettings { check_hostname: false, ..strict };
        assert!(handshake(&lax, "redis.test", server(&other)).0.is_ok());
    }

    #[test]
    fn an_expired_certificate_is_refused_even_if_names_are_not_checked() {
        let ca = ca("ours");
        for check_hostname in [true, false] {
            let settings = TlsSettings { check_hostname, ..trusting(&ca) };
            let error = refusal(&settings, "redis.test", server(&leaf_until(&ca, &["redis.test"], 2001)));
            assert!(error.contains("expired"), "{error}");
        }
    }

    /// As `openssl req -x509` makes them: a server's certificate, and a CA that has signed itself.
    fn self_made(names: &[&str], year: i32) -> Leaf {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().unwrap();
        Leaf { certificate: params.self_signed(&key).unwrap(), key }
    }

    #[test]
    fn a_self_made_certificate_is_accepted_where_it_is_named() {
        let (scratch, made) = (Scratch::new(), self_made(&["redis.test"], 2999));
        let pem = made.certificate.pem();
        let file = Some(scratch.write("made.pem", &pem));
        let none = TlsSettings::default;
        for settings in [
            TlsSettings { ca_data: Some(pem.clone().into_bytes()), ..none() },
            TlsSettings { ca_file: file, ..none() },
            TlsSettings { ca_path: Some(scratch.0.clone()), ..none() },
            TlsSettings { ca_data: Some(pem.into_bytes()), check_hostname: false, ..none() },
        ] {
            let (client, _) = handshake(&settings, "redis.test", server(&made));
            assert!(client.is_ok(), "{settings:?}: {client:?}");
        }
    }

    #[test]
    fn a_self_made_certificate_is_held_to_all_else() {
        let settings = |leaf: &Leaf, check_hostname| {
            let ca_data = Some(leaf.certificate.pem().into_bytes());
            TlsSettings { check_hostname, ca_data, ..TlsSettings::default() }
        };
        let (made, other) = (self_made(&["redis.test"], 2999), self_made(&["redis.test"], 2999));
        let expired = self_made(&["redis.test"], 2001);
        for check_hostname in [true, false] {
            let error = refusal(&settings(&made, check_hostname), "redis.test", server(&other));
            assert!(error.contains("CaUsedAsEndEntity"), "another: {error}");
            let error = refusal(&settings(&expired, check_hostname), "redis.test", server(&expired));
            assert!(error.contains("expired"), "{error}");
        }
        assert!(refusal(&settings(&made, true), "other.test", server(&made)).contains("not valid for name"));
    }

    #[test]
    fn what_a_trusted_ca_has_signed_may_still_be_no_ca() {
        let issuer = ca("ours");
        let mut params = CertificateParams::new(["redis.test".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let below = Leaf { certificate: params.signed_by(&key, &issuer).unwrap(), key };
        assert!(refusal(&trusting(&issuer), "redis.test", server(&below)).contains("CaUsedAsEndEntity"));
    }

    #[test]
    fn ip_addresses_are_names() {
        let ca = ca("ours");
        let certificate = leaf(&ca, &["127.0.0.1", "::1"]);
        for name in ["127.0.0.1", "::1"] {
            assert!(handshake(&trusting(&ca), name, server(&certificate)).0.is_ok(), "{name}");
        }
        assert!(refusal(&trusting(&ca), "127.0.0.2", server(&certificate)).contains("not valid for name"));
    }

    #[test]
    fn an_impossible_name_is_an_error_that_shows_it() {
        let config = trusting(&ca("ours")).client_config().unwrap();
        let error = run(connect(config, "not a name", tokio::io::duplex(1).0)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains("\"not a name\""), "{error}");
    }

    #[test]
    fn without_verification_any_certificate_will_do() {
        let settings = TlsSettings { cert_reqs: CertReqs::None, ..TlsSettings::default() };
        let expired = leaf_until(&ca("unknown"), &["other.test"], 2001);
        assert!(handshake(&settings, "redis.test", server(&expired)).0.is_ok());
    }

    #[test]
    fn without_verification_the_server_must_still_hold_the_key() {
        let settings = TlsSettings { cert_reqs: CertReqs::None, ..TlsSettings::default() };
        let ca = ca("unknown");
        let (shown, held) = (leaf(&ca, &["redis.test"]), leaf(&ca, &["redis.test"]));
        for version in [&TLS12, &TLS13] {
            let provider = ring::default_provider();
            let key = provider.key_provider.load_private_key(held.key_der()).unwrap();
            let pair = CertifiedKey::new(vec![shown.certificate.der().clone()], key);
            let server = ServerConfig::builder_with_provider(Arc::new(provider))
                .with_protocol_versions(&[version])
                .unwrap()
                .with_no_client_auth()
                .with_cert_resolver(Arc::new(SingleCertAndKey::from(pair)));
            assert!(refusal(&settings, "redis.test", server).contains("BadSignature"));
        }
    }

    #[test]
    fn the_minimum_version_is_kept() {
        let ca = ca("ours");
        let certificate = leaf(&ca, &["redis.test"]);
        let old = || server_of(&certificate, &[&TLS12]);
        for (min_version, accepted) in [(None, true), (Some(TlsVersion::Tls12), true), (Some(TlsVersion::Tls13), false)]
        {
            let settings = TlsSettings { min_version, ..trusting(&ca) };
            assert_eq!(handshake(&settings, "redis.test", old()).0.is_ok(), accepted, "{min_version:?}");
        }
    }

    fn server_asking_for_certificates(ca: &Ca) -> ServerConfig {
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone()).unwrap();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().unwrap();
        let own = leaf(ca, &["redis.test"]);
        ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(ALL_VERSIONS)
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![own.certificate.der().clone()], own.key_der())
            .unwrap()
    }

    #[test]
    fn the_client_shows_its_certificate() {
        let (scratch, ca) = (Scratch::new(), ca("ours"));
        let own = leaf(&ca, &["client.test"]);
        let (certificate, key) = (own.certificate.pem(), own.key.serialize_pem());
        let apart = scratch.write("client.pem", &certificate);
        let key_file = scratch.write("client.key", &key);
        let together = scratch.write("both.pem", key + &certificate);
        for (cert_file, key_file, accepted) in
            [(None, None, false), (Some(apart), Some(key_file), true), (Some(together), None, true)]
        {
            let settings = TlsSettings { cert_file, key_file, ..trusting(&ca) };
            let (_, served) = handshake(&settings, "redis.test", server_asking_for_certificates(&ca));
            assert_eq!(served.is_ok(), accepted, "{settings:?}: {served:?}");
        }
    }

    #[test]
    fn a_path_that_is_not_there_is_named() {
        let path = Some(PathBuf::from("/nowhere/it.pem"));
        let none = || TlsSettings { cert_reqs: CertReqs::None, ..TlsSettings::default() };
        for (settings, place) in [
            (TlsSettings { ca_file: path.clone(), ..none() }, "CA file /nowhere/it.pem: cannot be read"),
            (TlsSettings { ca_path: path.clone(), ..none() }, "CA directory /nowhere/it.pem: cannot be read"),
            (TlsSettings { cert_file: path.clone(), ..none() }, "client certificate file /nowhere/it.pem: cannot"),
            (TlsSettings { key_file: path, ..none() }, "client key file /nowhere/it.pem: expected a client certi"),
        ] {
            let error = failure(&settings);
            assert!(error.starts_with(place), "{error}");
        }
    }

    #[test]
    fn content_that_is_something_else_is_named() {
        let scratch = Scratch::new();
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let none = || TlsSettings { cert_reqs: CertReqs::None, ..TlsSettings::default() };
        for (settings, message) in [
            (TlsSettings { ca_file: Some(scratch.write("text", "text")), ..none() }, "text: expected well-formed PEM"),
            (TlsSettings { ca_file: Some(scratch.write("asn1", broken)), ..none() }, "asn1: invalid peer certificate"),
            (TlsSettings { ca_path: Some(scratch.0.clone()), ..none() }, ": expected files with PEM certificates"),
            (TlsSettings { ca_data: Some(b"text".to_vec()), ..none() }, "CA data: expected PEM or DER certificates"),
            (TlsSettings { ca_data: Some(Vec::new()), ..none() }, "CA data: expected PEM or DER certificates"),
        ] {
            let error = failure(&settings);
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn an_unusable_key_is_named_and_never_shown() {
        let (scratch, ca) = (Scratch::new(), ca("ours"));
        let own = leaf(&ca, &["client.test"]);
        let cert_file = Some(scratch.write("client.pem", own.certificate.pem()));
        let one_line = own.key.serialize_pem().replace('\n', "");
        let pkcs8 = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nc2VjcmV0\n-----END ENCRYPTED PRIVATE KEY-----\n";
        let pkcs1 = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nc2VjcmV0\n\
                     -----END RSA PRIVATE KEY-----\n";
        for (content, message) in [
            ("text", "expected an unencrypted PEM private key"),
            (&one_line, "expected an unencrypted PEM private key"),
            (pkcs8, "the private key is encrypted"),
            (pkcs1, "the private key is encrypted"),
            (&KeyPair::generate().unwrap().serialize_pem(), "keys may not be consistent"),
        ] {
            let key_file = Some(scratch.write("client.key", content));
            let settings = TlsSettings { cert_file: cert_file.clone(), key_file, ..trusting(&ca) };
            let error = settings.client_config().unwrap_err();
            assert!(error.to_string().contains(message), "{error}");
            let shown = format!("{error} {error:?}");
            let leaks = content.lines().filter(|line| line.len() > 5).any(|line| shown.contains(line));
            assert!(!leaks && !shown.contains("45, 45"), "{shown}"); // nor as bytes: 45 is a dash
        }
    }

    #[test]
    fn settings_show_no_content() {
        let settings = TlsSettings { ca_data: Some(b"secret".to_vec()), ..TlsSettings::default() };
        let shown = format!("{settings:?}");
        assert!(shown.contains("ca_data_bytes: Some(6)"), "{shown}");
        assert!(!shown.contains("secret") && !shown.contains("115"), "{shown}");
    }

    #[test]
    fn bytes_go_both_ways_and_dropping_sends_none() {
        let ca = ca("ours");
        let (client, served) = handshake(&trusting(&ca), "redis.test", server(&leaf(&ca, &["redis.test"])));
        let (mut client, mut served) = (client.unwrap(), served.unwrap());
        let mut buffer = [0; 4];
        run(client.write_all(b"PING")).unwrap();
        run(client.flush()).unwrap();
        run(served.read_exact(&mut buffer)).unwrap();
        assert_eq!(&buffer, b"PING");
        drop(client);
        // With a close_notify this would be an orderly end of file, `Ok(0)`.
        assert_eq!(run(served.read(&mut buffer)).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
