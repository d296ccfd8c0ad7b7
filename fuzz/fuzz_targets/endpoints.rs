//! Settings of an endpoint as they may come out of a configuration: no panic, and no secret in what is shown of them.
//!
//! URLs are read by redis-py; `tests/test_security.py` throws anything at that. What Rust reads itself is here: names,
//! and certificates and keys in PEM or DER.

#![no_main]

use futures_util::FutureExt;
use libfuzzer_sys::fuzz_target;
use redlock::master::endpoint::{Address, Endpoint};
use redlock::master::tls::{self, Tls, TlsSettings};

const SECRET: &str = "canary-of-the-fuzzer";

fuzz_target!(init: forget_the_system(), |data: &[u8]| {
    let split = data.first().map_or(0, |&at| usize::from(at).min(data.len()));
    let (name, pem) = data.split_at(split);
    let host = String::from_utf8_lossy(name).into_owned();
    show(&host);
    encrypt(&host, TlsSettings { ca_data: Some(pem.to_vec()), ..TlsSettings::default() }, pem);
    let own = std::env::temp_dir().join(format!("redlock-fuzz-{}.pem", std::process::id()));
    if std::fs::write(&own, pem).is_ok() {
        encrypt(&host, TlsSettings { cert_file: Some(own), ..TlsSettings::default() }, pem);
    }
});

/// The system's hundreds of certificates would have to be read each time.
fn forget_the_system() {
    // SAFETY: no other thread runs yet.
    unsafe { std::env::set_var("SSL_CERT_FILE", concat!(env!("CARGO_MANIFEST_DIR"), "/authority.pem")) };
}

/// What logs and reprs have of an endpoint.
fn show(host: &str) {
    let mut endpoint = Endpoint::new(Address::Tcp { host: host.to_owned(), port: 6379 });
    endpoint.username = Some(format!("user-{SECRET}"));
    endpoint.password = Some(SECRET.to_owned());
    let shown = format!("{endpoint} {endpoint:?} {:?}", endpoint.address);
    assert!(!shown.contains(SECRET), "{shown}");
}

/// Certificates in any encoding, a server of any name, and a connection that ends at once.
fn encrypt(host: &str, settings: TlsSettings, pem: &[u8]) {
    let tls = match Tls::new(settings) {
        Ok(tls) => tls,
        Err(error) => return quotes_nothing(&format!("{error} {error:?}"), pem),
    };
    let (near, far) = tokio::io::duplex(1 << 16);
    drop(far);
    _ = tls::connect(&tls, host, near).now_or_never();
}

/// A file that cannot be read may be a private key.
fn quotes_nothing(error: &str, pem: &[u8]) {
    for line in String::from_utf8_lossy(pem).lines().filter(|line| line.len() >= 16) {
        assert!(!error.contains(line), "{error}");
    }
}
