//! What redis-py's `ssl_*` arguments say, and the configuration that follows from them and from the files they name.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::client::danger::ServerCertVerifier;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DEFAULT_VERSIONS, Error, InconsistentKeys, SupportedProtocolVersion,
};

use super::certificate::Certificate;
use super::roots::{self, SystemStore, at, pem_certificates, read};
use super::verifier::{Rules, Unverified, Verifier};

/// Whether the master's certificate is verified (redis-py's `ssl_cert_reqs`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CertReqs {
    /// It must chain to a trusted CA.
    #[default]
    Required,
    /// The same as [`CertReqs::Required`]: a TLS server always shows a certificate, so Python's `CERT_OPTIONAL` on a
    /// client verifies it too.
    Optional,
    /// Any certificate is accepted, whatever is in it. The connection is encrypted, but to whom is not known.
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
    /// A directory of PEM files to trust beside the system's (`ssl_ca_path`), named as `openssl rehash` names them.
    pub ca_path: Option<PathBuf>,
    /// Certificates to trust beside the system's (`ssl_ca_data`): PEM text, or DER one after another.
    pub ca_data: Option<Vec<u8>>,
    /// Whether a chain may end at any trusted certificate, not only at one that has signed itself: Python's
    /// `VERIFY_X509_PARTIAL_CHAIN`.
    pub partial_chain: bool,
    /// Whether certificates must keep to RFC 5280 where OpenSSL is otherwise lenient: Python's `VERIFY_X509_STRICT`.
    pub strict: bool,
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
    /// The system trusts nothing, and neither do the settings.
    #[error("expected CA certificates in the system's trust store or in the settings, found none{places}")]
    NoRoots {
        /// Where the system's store was looked for.
        places: String,
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
            partial_chain: false,
            strict: false,
            cert_file: None,
            key_file: None,
            min_version: None,
        }
    }
}

impl fmt::Debug for TlsSettings {
    /// Paths but no contents: a key may have been put into `ca_data`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsSettings")
            .field("cert_reqs", &self.cert_reqs)
            .field("check_hostname", &self.check_hostname)
            .field("ca_file", &self.ca_file)
            .field("ca_path", &self.ca_path)
            .field("ca_data_bytes", &self.ca_data.as_ref().map(Vec::len))
            .field("partial_chain", &self.partial_chain)
            .field("strict", &self.strict)
            .field("cert_file", &self.cert_file)
            .field("key_file", &self.key_file)
            .field("min_version", &self.min_version)
            .finish()
    }
}

/// TLS to one master: settings that could be used when they were given.
///
/// Their files are read again for each connection, as redis-py does: certificates are replaced while programs run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    pub(super) settings: TlsSettings,
    pub(super) system: SystemStore,
}

impl Tls {
    /// Checks the settings: whatever they name is read once.
    pub fn new(settings: TlsSettings) -> Result<Self, TlsError> {
        let tls = Self { settings, system: SystemStore::find() };
        tls.config()?;
        Ok(tls)
    }

    /// Reads what the settings name and makes the configuration of one connection.
    ///
    /// Sessions are not resumed, as in Python's `ssl`: the cache would be behind a mutex, which another thread may hold
    /// at the moment of a `fork`.
    pub(super) fn config(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let verifier = self.verifier(&provider)?;
        let own = self.own_certificate(&provider)?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(self.versions())
            .map_err(TlsError::Provider)?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match own {
            None => builder.with_no_client_auth(),
            Some(own) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own))),
        };
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }

    fn versions(&self) -> &'static [&'static SupportedProtocolVersion] {
        static NEWEST: &[&SupportedProtocolVersion] = &[&TLS13];
        match self.settings.min_version {
            Some(TlsVersion::Tls13) => NEWEST,
            Some(TlsVersion::Tls12) | None => DEFAULT_VERSIONS,
        }
    }

    /// The CAs of the settings and the system's: redis-py calls `load_verify_locations` on a default context, which
    /// adds to the system's store. The settings' own are read even if nothing is verified, so that a wrong path is
    /// always an error, as it is in Python.
    fn verifier(&self, provider: &CryptoProvider) -> Result<Arc<dyn ServerCertVerifier>, TlsError> {
        let settings = &self.settings;
        let named = roots::named(settings)?;
        if settings.cert_reqs == CertReqs::None {
            return Ok(Arc::new(Unverified));
        }
        if named.is_empty() && self.system.trusted().is_empty() {
            return Err(TlsError::NoRoots { places: self.system.places() });
        }
        Ok(Arc::new(Verifier {
            named,
            system: self.system.clone(),
            check_name: settings.check_hostname,
            rules: Rules { partial_chain: settings.partial_chain, strict: settings.strict },
            algorithms: provider.signature_verification_algorithms,
        }))
    }

    fn own_certificate(&self, provider: &CryptoProvider) -> Result<Option<CertifiedKey>, TlsError> {
        let Some(cert_file) = &self.settings.cert_file else {
            return match &self.settings.key_file {
                Some(file) => Err(TlsError::KeyWithoutCertificate { place: at("client key file", file) }),
                None => Ok(None),
            };
        };
        let place = at("client certificate file", cert_file);
        let chain = pem_certificates(&read(cert_file, &place)?, &place)?;
        let key = private_key(self.settings.key_file.as_ref().unwrap_or(cert_file))?;
        let unusable = |source| TlsError::Unusable { place, source };
        let key = match provider.key_provider.load_private_key(key) {
            Ok(key) => key,
            Err(source) => return Err(unusable(source)),
        };
        let own = CertifiedKey::new(chain, key);
        match belong_together(&own) {
            Ok(()) => Ok(Some(own)),
            Err(source) => Err(unusable(source)),
        }
    }
}

/// As rustls's own check, which refuses certificates of X.509 version 1: servers accept them of clients.
fn belong_together(own: &CertifiedKey) -> Result<(), Error> {
    let certificate = own.end_entity_cert()?;
    let certificate = Certificate::read(certificate).ok_or(CertificateError::BadEncoding)?;
    match own.key.public_key() {
        Some(key) if key.as_ref() != certificate.key => Err(InconsistentKeys::KeyMismatch.into()),
        _ => Ok(()),
    }
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
