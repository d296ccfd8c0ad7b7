//! Handshakes in memory, under every setting, with servers good and bad.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use futures_util::future::join;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{ALL_VERSIONS, RootCertStore, ServerConfig, SupportedProtocolVersion};
use tokio_rustls::server::TlsStream as ServerStream;

use super::*;
use crate::master::tls::roots::SystemStore;

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
    handshake_of(&Tls::new(settings.clone()).unwrap(), name, server)
}

fn handshake_of(tls: &Tls, name: &str, server: ServerConfig) -> Outcome {
    let (near, far) = tokio::io::duplex(1 << 16);
    let acceptor = TlsAcceptor::from(Arc::new(server));
    run(join(connect(tls, name, near), acceptor.accept(far)))
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
    Tls::new(settings.clone()).unwrap_err().to_string()
}

#[test]
fn by_default_an_unknown_ca_is_refused() {
    let server = server(&leaf(&ca("unknown"), &["redis.test"]));
    match Tls::new(TlsSettings::default()) {
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
    fs::write(directory.join("00000000.0"), "-----BEGIN CERTIFICATE-----\n").unwrap();
    fs::write(directory.join("00000000.1"), ca.pem()).unwrap();
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

/// The settings, on a system whose trust store is a file.
fn on_a_system(settings: TlsSettings, file: PathBuf) -> Tls {
    let system = SystemStore { file: Some(file), directories: Vec::new(), elsewhere: false };
    Tls { settings, system }
}

#[test]
fn own_cas_are_added_to_the_systems() {
    let (scratch, ours, theirs, unknown) = (Scratch::new(), ca("ours"), ca("theirs"), ca("unknown"));
    let tls = on_a_system(trusting(&ours), scratch.write("system.pem", theirs.pem()));
    for (ca, accepted) in [(&ours, true), (&theirs, true), (&unknown, false)] {
        let (client, _) = handshake_of(&tls, "redis.test", server(&leaf(ca, &["redis.test"])));
        assert_eq!(client.is_ok(), accepted, "{client:?}");
    }
}

#[test]
fn what_is_replaced_on_disk_is_read_again() {
    let scratch = Scratch::new();
    let (system, file) = (scratch.write("system.pem", ca("first").pem()), scratch.write("ca.pem", ca("second").pem()));
    let settings = TlsSettings { ca_file: Some(file.clone()), ..TlsSettings::default() };
    let tls = on_a_system(settings, system.clone());
    for path in [file, system] {
        let ca = ca("a longer name, so that the length of the file differs");
        let served = || server(&leaf(&ca, &["redis.test"]));
        assert!(handshake_of(&tls, "redis.test", served()).0.is_err());
        fs::write(path, ca.pem()).unwrap();
        assert!(handshake_of(&tls, "redis.test", served()).0.is_ok());
    }
}

#[test]
fn what_is_broken_later_is_an_error_of_the_connection() {
    let (scratch, ca) = (Scratch::new(), ca("ours"));
    let own = leaf(&ca, &["client.test"]);
    let settings = TlsSettings {
        ca_file: Some(scratch.write("ca.pem", ca.pem())),
        cert_file: Some(scratch.write("client.pem", own.certificate.pem())),
        key_file: Some(scratch.write("client.key", own.key.serialize_pem())),
        ..TlsSettings::default()
    };
    let tls = Tls::new(settings).unwrap();
    let served = || server(&leaf(&ca, &["redis.test"]));
    for name in ["ca.pem", "client.pem", "client.key"] {
        let path = scratch.0.join(name);
        let whole = fs::read(&path).unwrap();
        for broken in [Some("-----BEGIN"), Some(""), None] {
            broken.map_or_else(|| fs::remove_file(&path), |text| fs::write(&path, text)).unwrap();
            let (near, _far) = tokio::io::duplex(1);
            let error = run(connect(&tls, "redis.test", near)).unwrap_err();
            assert!(error.to_string().contains(&path.display().to_string()), "{error}");
        }
        fs::write(&path, whole).unwrap();
        assert!(handshake_of(&tls, "redis.test", served()).0.is_ok());
    }
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
    let directory = scratch.write("00000000.0", &pem).parent().unwrap().to_owned();
    let none = TlsSettings::default;
    for settings in [
        TlsSettings { ca_data: Some(pem.clone().into_bytes()), ..none() },
        TlsSettings { ca_file: file, ..none() },
        TlsSettings { ca_path: Some(directory), ..none() },
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
    let tls = Tls::new(trusting(&ca("ours"))).unwrap();
    let error = run(connect(&tls, "not a name", tokio::io::duplex(1).0)).unwrap_err();
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
fn without_verification_nothing_of_the_certificate_is_read() {
    let settings = TlsSettings { cert_reqs: CertReqs::None, ..TlsSettings::default() };
    let held = leaf(&ca("unknown"), &["redis.test"]);
    for version in [&TLS12, &TLS13] {
        let provider = ring::default_provider();
        let key = provider.key_provider.load_private_key(held.key_der()).unwrap();
        let pair = CertifiedKey::new(vec![CertificateDer::from(b"anything".to_vec())], key);
        let server = ServerConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(pair)));
        let (client, _) = handshake(&settings, "redis.test", server);
        assert!(client.is_ok(), "{client:?}");
    }
}

#[test]
fn the_minimum_version_is_kept() {
    let ca = ca("ours");
    let certificate = leaf(&ca, &["redis.test"]);
    let old = || server_of(&certificate, &[&TLS12]);
    for (min_version, accepted) in [(None, true), (Some(TlsVersion::Tls12), true), (Some(TlsVersion::Tls13), false)] {
        let settings = TlsSettings { min_version, ..trusting(&ca) };
        assert_eq!(handshake(&settings, "redis.test", old()).0.is_ok(), accepted, "{min_version:?}");
    }
}

fn server_asking_for_certificates(ca: &Ca) -> ServerConfig {
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().unwrap();
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
        let error = Tls::new(settings).unwrap_err();
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
