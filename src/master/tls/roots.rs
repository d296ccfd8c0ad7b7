//! Which certificates are trusted, where they are, and how they are read.

use std::env;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use tokio_rustls::rustls::CertificateError;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;

use super::certificate::{Certificate, first_length};
use super::settings::{TlsError, TlsSettings};

/// A certificate that may be trusted, and where it was found.
#[derive(Debug)]
pub(super) struct Trusted {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) place: Arc<str>,
}

pub(super) fn at(what: &str, path: &Path) -> String {
    format!("{what} {}", path.display())
}

pub(super) fn read(file: &Path, place: &str) -> Result<Vec<u8>, TlsError> {
    fs::read(file).map_err(|source| TlsError::Unreadable { place: place.to_owned(), source })
}

/// The certificates that the settings name: all that is read of them is found well-formed, or is an error.
pub(super) fn named(settings: &TlsSettings) -> Result<Vec<Trusted>, TlsError> {
    let mut named = Vec::new();
    if let Some(file) = &settings.ca_file {
        let place = at("CA file", file);
        named.extend(well_formed(pem_certificates(&read(file, &place)?, &place)?, &place)?);
    }
    if let Some(directory) = &settings.ca_path {
        named.extend(named_directory(directory)?);
    }
    if let Some(data) = &settings.ca_data {
        named.extend(well_formed(data_certificates(data)?, "CA data")?);
    }
    Ok(named)
}

fn well_formed(certificates: Vec<CertificateDer<'static>>, place: &str) -> Result<Vec<Trusted>, TlsError> {
    if certificates.iter().any(|certificate| Certificate::read(certificate).is_none()) {
        let source = CertificateError::BadEncoding.into();
        return Err(TlsError::Unusable { place: place.to_owned(), source });
    }
    Ok(placed(certificates, &place.into()).collect())
}

fn placed(certificates: Vec<CertificateDer<'static>>, place: &Arc<str>) -> impl Iterator<Item = Trusted> {
    certificates.into_iter().map(|certificate| Trusted { certificate, place: Arc::clone(place) })
}

fn named_directory(directory: &Path) -> Result<Vec<Trusted>, TlsError> {
    let place = at("CA directory", directory);
    let found = hashed(directory).map_err(|source| TlsError::Unreadable { place: place.clone(), source })?;
    if found.is_empty() {
        let expected = "files with PEM certificates in it, under the names that `openssl rehash` gives them";
        return Err(TlsError::NoCertificate { place, expected });
    }
    Ok(placed(found, &place.into()).collect())
}

/// What OpenSSL finds in a directory: files whose name is the hash of a subject and a number. Others are not looked at,
/// and whatever in them is no certificate is passed over.
fn hashed(directory: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let mut certificates = Vec::new();
    for entry in fs::read_dir(directory)?.flatten() {
        let file = entry.path();
        // `is_file` follows the links that `openssl rehash` makes, and keeps away from pipes without a writer.
        if entry.file_name().to_str().is_some_and(is_hash) && file.is_file() {
            certificates.extend(CertificateDer::pem_slice_iter(&fs::read(file).unwrap_or_default()).flatten());
        }
    }
    Ok(certificates)
}

/// `9d66eef0.0`
fn is_hash(name: &str) -> bool {
    name.split_once('.').is_some_and(|(hash, number)| {
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
        hash.len() == 8 && hash.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) && digits(number)
    })
}

pub(super) fn pem_certificates(pem: &[u8], place: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
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
        let (certificate, rest) = data.split_at_checked(first_length(data)?)?;
        certificates.push(CertificateDer::from(certificate.to_vec()));
        data = rest;
    }
    Some(certificates)
}

/// Where the system's certificates are.
///
/// Found when a master is configured, for the environment must not be read while another thread may change it: Python
/// does so under its own lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SystemStore {
    pub(super) file: Option<PathBuf>,
    pub(super) directories: Vec<PathBuf>,
    /// The system has them elsewhere than in files.
    pub(super) elsewhere: bool,
}

/// What was read of the system's store the last time, and what it looked like then. Reading it takes milliseconds.
struct Cached {
    store: SystemStore,
    looks: Vec<Looks>,
    trusted: Arc<[Trusted]>,
}

/// By which a file or directory is seen to have changed.
type Looks = Option<(u64, u64, SystemTime)>;

static CACHED: Mutex<Option<Cached>> = Mutex::new(None);

impl SystemStore {
    /// Where `SSL_CERT_FILE` and `SSL_CERT_DIR` say; if they say nothing, where this system keeps its store.
    pub(super) fn find() -> Self {
        let (file, directories) = (env::var_os("SSL_CERT_FILE"), env::var_os("SSL_CERT_DIR"));
        if file.is_none() && directories.is_none() {
            if cfg!(target_vendor = "apple") {
                return Self { file: None, directories: Vec::new(), elsewhere: true };
            }
            let found = openssl_probe::probe();
            return Self { file: found.cert_file, directories: found.cert_dir, elsewhere: false };
        }
        let directories = directories.iter().flat_map(env::split_paths).collect();
        Self { file: file.map(PathBuf::from), directories, elsewhere: false }
    }

    /// Where it is looked for, to be shown.
    pub(super) fn places(&self) -> String {
        let places: Vec<_> = self.file.iter().chain(&self.directories).map(|path| path.display().to_string()).collect();
        if places.is_empty() { String::new() } else { format!(" (looked into {})", places.join(", ")) }
    }

    /// What the system trusts, as far as it can be read.
    ///
    /// It is kept for as long as its files and directories look the same. The lock is never waited for: a thread that
    /// held it may be missing from a forked child, which then reads the store each time.
    pub(super) fn trusted(&self) -> Arc<[Trusted]> {
        let looks: Vec<Looks> = self.file.iter().chain(&self.directories).map(|path| looks(path)).collect();
        let Ok(mut cached) = CACHED.try_lock() else { return self.load() };
        if let Some(cached) = cached.as_ref().filter(|cached| cached.store == *self && cached.looks == looks) {
            return Arc::clone(&cached.trusted);
        }
        let trusted = self.load();
        *cached = Some(Cached { store: self.clone(), looks, trusted: Arc::clone(&trusted) });
        trusted
    }

    fn load(&self) -> Arc<[Trusted]> {
        let mut certificates = if self.elsewhere { elsewhere() } else { Vec::new() };
        if let Some(file) = &self.file {
            let pem = fs::read(file).unwrap_or_default();
            certificates.extend(CertificateDer::pem_slice_iter(&pem).flatten());
        }
        for directory in &self.directories {
            certificates.extend(hashed(directory).unwrap_or_default());
        }
        certificates.sort_unstable_by(|one, other| one.as_ref().cmp(other.as_ref()));
        certificates.dedup();
        placed(certificates, &"the system's trust store".into()).collect()
    }
}

fn looks(path: &Path) -> Looks {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.len(), metadata.modified().ok()?))
}

#[cfg(target_vendor = "apple")]
fn elsewhere() -> Vec<CertificateDer<'static>> {
    rustls_native_certs::load_native_certs().certs
}

#[cfg(not(target_vendor = "apple"))]
fn elsewhere() -> Vec<CertificateDer<'static>> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashed_names_are_those_of_openssl() {
        for name in ["9d66eef0.0", "00000000.12"] {
            assert!(is_hash(name), "{name}");
        }
        for name in ["9d66eef0.r0", "9d66eef0", "9d66eef0.", "9D66EEF0.0", "9d66eef.0", "ca.pem", "9d66eef0.0.bak"] {
            assert!(!is_hash(name), "{name}");
        }
    }
}
