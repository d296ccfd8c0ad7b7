//! Whether a master's certificate is accepted: as OpenSSL judges, with Python's flags.
//!
//! webpki builds the chain and checks signatures, times, names and their constraints. It takes a root for good whatever
//! it says, and asks for no key usage: that is done here, so that nothing is accepted that OpenSSL refuses.

use std::cell::Cell;
use std::sync::Arc;

use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, SignatureScheme};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath, anchor_from_trusted_cert};

use super::certificate::{Certificate, usage};
use super::roots::{SystemStore, Trusted};

/// Python's flags of verification.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    pub(super) partial_chain: bool,
    pub(super) strict: bool,
}

/// Verifies what Python's `ssl` would: chain and name, or the chain alone.
#[derive(Debug)]
pub(super) struct Verifier {
    /// What the settings name, whether or not it can be trusted.
    pub(super) named: Vec<Trusted>,
    pub(super) system: SystemStore,
    pub(super) check_name: bool,
    pub(super) rules: Rules,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

/// Accepts any certificate. That includes those that webpki cannot read or whose signature it cannot verify: X.509
/// version 1, P-521, short keys. So the signature of the handshake is not looked at, either. It would show that the
/// other side has the certificate's key, but not who that is: everyone has a certificate of his own.
#[derive(Debug)]
pub(super) struct Unverified;

/// A reason that rustls has no word for.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

fn refusal(reason: String) -> Error {
    Error::Other(OtherError(Arc::new(Refusal(reason))))
}

/// What cures a key that is not supported.
const SUPPORTED_KEY: &str = "make one with `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256`";

impl Verifier {
    /// The system's store is read only if the chain does not end at what the settings name.
    fn verify(
        &self,
        shown: &CertificateDer<'_>,
        sent: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        let chain = Chain { shown, sent, name, now, rules: self.rules, algorithms: self.algorithms };
        if self.named.is_empty() || chain.ends_at(&self.named, &[]).is_err() {
            chain.ends_at(&self.named, &self.system.trusted())?;
        }
        if self.check_name {
            chain.check_name()?;
        }
        // Offered, so that a server with such a key shows it, and refused here, where the reason can be told.
        if Certificate::read(shown).is_some_and(|leaf| leaf.is_p521()) {
            return Err(refusal(format!("its key is P-521, which is not supported: {SUPPORTED_KEY}")));
        }
        Ok(())
    }
}

/// What a master shows, and what it is measured by.
struct Chain<'a> {
    shown: &'a CertificateDer<'a>,
    sent: &'a [CertificateDer<'a>],
    name: &'a ServerName<'a>,
    now: UnixTime,
    rules: Rules,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Chain<'_> {
    fn ends_at(&self, named: &[Trusted], system: &[Trusted]) -> Result<(), Error> {
        let leaf = Certificate::read(self.shown).ok_or(CertificateError::BadEncoding)?;
        let known = || named.iter().chain(system);
        let is_known = known().any(|known| known.certificate.as_ref() == self.shown.as_ref());
        if is_known && (self.rules.partial_chain || leaf.is_self_signed()) {
            return self.rules.stands_alone(&leaf, self.now);
        }
        let shown = EndEntityCert::try_from(self.shown).map_err(|error| self.explain(error))?;
        let mut untrusted: Vec<_> = self.sent.iter().map(|sent| CertificateDer::from(sent.as_ref())).collect();
        let (mut anchors, mut ends, mut rejected) = (Vec::new(), Vec::new(), Vec::new());
        for known in known() {
            // What cannot be read is passed over here; in what the settings name it was an error.
            let Some(end) = Certificate::read(&known.certificate) else { continue };
            let anchor = anchor_from_trusted_cert(&known.certificate).map_err(|_| "it is malformed");
            match self.rules.may_end_a_chain(&end, self.now).and(anchor) {
                Ok(anchor) => {
                    anchors.push(anchor);
                    ends.push(end);
                }
                Err(why) => {
                    if !end.is_self_issued() {
                        untrusted.push(CertificateDer::from(known.certificate.as_ref()));
                    }
                    rejected.push((end, why, &known.place));
                }
            }
        }
        let objection = Cell::new(None);
        let judge = |path: &VerifiedPath<'_>| {
            let end = anchors.iter().zip(&ends).find(|(anchor, _)| std::ptr::eq(*anchor, path.anchor()));
            self.rules.judge(&leaf, path, end.map(|(_, end)| end)).map_err(|why| {
                objection.set(Some(why));
                webpki::Error::EndEntityUsedAsCa
            })
        };
        let usage = KeyUsage::server_auth();
        let verified =
            shown.verify_for_usage(self.algorithms.all, &anchors, &untrusted, self.now, usage, None, Some(&judge));
        let Err(error) = verified else { return Ok(()) };
        if let Some(why) = objection.take() {
            return Err(refusal(why.to_owned()));
        }
        // The issuer is known, but may not be trusted: say why.
        let issuers: Vec<_> =
            untrusted.iter().filter_map(|der| Certificate::read(der)).map(|each| each.issuer).collect();
        let rejected = rejected.iter().find(|(end, ..)| end.subject == leaf.issuer || issuers.contains(&end.subject));
        match (error, rejected) {
            (webpki::Error::UnknownIssuer, Some((_, why, place))) => {
                Err(refusal(format!("UnknownIssuer: its issuer, in {place}, is not trusted: {why}")))
            }
            (error, _) => Err(self.explain(error)),
        }
    }

    fn check_name(&self) -> Result<(), Error> {
        let shown = EndEntityCert::try_from(self.shown).map_err(|error| self.explain(error))?;
        shown.verify_is_valid_for_subject_name(self.name).map_err(|error| self.explain(error))
    }

    /// webpki's reason in rustls's words, or in our own where there is a cure.
    fn explain(&self, error: webpki::Error) -> Error {
        use webpki::Error as E;
        let signed_with =
            |extension: &str| format!("sign it with `openssl x509 -req ... -extfile <(printf '{extension}')`");
        let kind = if matches!(self.name, ServerName::IpAddress(_)) { "IP" } else { "DNS" };
        let own_name = format!("subjectAltName={kind}:{}", self.name.to_str());
        match error {
            E::UnknownIssuer => CertificateError::UnknownIssuer.into(),
            E::CertExpired { time, not_after } => CertificateError::ExpiredContext { time, not_after }.into(),
            E::CertNotValidYet { time, not_before } => CertificateError::NotValidYetContext { time, not_before }.into(),
            E::InvalidSignatureForPublicKey => CertificateError::BadSignature.into(),
            E::CertNotValidForName(names) if names.presented.is_empty() => refusal(format!(
                "it has no subjectAltName, and a common name is not looked at: {}",
                signed_with(&own_name)
            )),
            E::CertNotValidForName(names) => {
                CertificateError::NotValidForNameContext { expected: names.expected, presented: names.presented }.into()
            }
            E::UnsupportedCertVersion => refusal(format!("it is X.509 version 1, not 3: {}", signed_with(&own_name))),
            E::CaUsedAsEndEntity => refusal(format!(
                "CaUsedAsEndEntity: it is a CA's, not a server's: {}",
                signed_with(&format!("basicConstraints=CA:FALSE\\n{own_name}"))
            )),
            E::UnsupportedSignatureAlgorithmContext(_) | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
                let why = "it, or a CA's above it, is signed in a way that is not supported (P-521, SHA-1)";
                refusal(format!("{why}: {SUPPORTED_KEY}"))
            }
            other => refusal(other.to_string()),
        }
    }
}

impl Rules {
    /// A certificate that is itself trusted needs no CA: most self-made ones are a server's and a CA's in one.
    fn stands_alone(self, leaf: &Certificate<'_>, now: UnixTime) -> Result<(), Error> {
        in_time(leaf, now).map_err(|why| refusal(why.to_owned()))?;
        if self.strict && leaf.is_old_ca() {
            return Err(refusal("strict: it may sign certificates, but has no basicConstraints".to_owned()));
        }
        if !leaf.serves() {
            return Err(CertificateError::InvalidPurpose.into());
        }
        is_server(leaf).map_err(|why| refusal(why.to_owned()))
    }

    /// Whether a chain may end at a certificate that is known.
    fn may_end_a_chain(self, end: &Certificate<'_>, now: UnixTime) -> Result<(), &'static str> {
        if !self.partial_chain && !end.is_self_signed() {
            return Err("it is an intermediate, and the root that has signed it is missing");
        }
        in_time(end, now)?;
        if !end.allows(usage::SIGN_CERTIFICATES) {
            return Err("its key usage does not allow it to sign certificates");
        }
        if !(end.is_ca() || end.is_old_ca() && !self.strict) {
            return Err("it is no CA: its basic constraints do not say CA:TRUE");
        }
        if !end.serves() {
            return Err("its extended key usage does not include TLS servers");
        }
        if end.has_unknown_critical() {
            return Err("it has an unknown critical extension");
        }
        Ok(())
    }

    /// What webpki did not ask of a chain that it has verified.
    fn judge(
        self,
        leaf: &Certificate<'_>,
        path: &VerifiedPath<'_>,
        end: Option<&Certificate<'_>>,
    ) -> Result<(), &'static str> {
        let between: Vec<_> = path.intermediate_certificates().map(webpki::Cert::der).collect();
        let between: Option<Vec<_>> = between.iter().map(|der| Certificate::read(der)).collect();
        let (Some(between), Some(end)) = (between, end) else { return Err("a CA's certificate above it is malformed") };
        is_server(leaf)?;
        if between.iter().any(|each| !each.allows(usage::SIGN_CERTIFICATES)) {
            return Err("the key usage of a CA above it does not allow it to sign certificates");
        }
        let longest = end.basic.and_then(|basic| basic.path_length);
        if longest.is_some_and(|longest| between.len() > longest) {
            return Err("its root allows fewer intermediates than there are");
        }
        if self.strict {
            std::iter::once(leaf).chain(&between).try_for_each(conforms)?;
            conforms(end)?;
            return std::iter::once(leaf).chain(&between).try_for_each(tells_its_issuers_key);
        }
        Ok(())
    }
}

fn in_time(certificate: &Certificate<'_>, now: UnixTime) -> Result<(), &'static str> {
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if now < certificate.not_before {
        return Err("it is not valid yet");
    }
    if now > certificate.not_after { Err("it has expired") } else { Ok(()) }
}

/// What OpenSSL asks of a TLS server's certificate, beside its extended key usage.
fn is_server(leaf: &Certificate<'_>) -> Result<(), &'static str> {
    if !leaf.allows(usage::SERVER) || !leaf.serves_netscape() {
        return Err("its key usage does not allow it to be a TLS server");
    }
    if leaf.has_unknown_critical() { Err("it has an unknown critical extension") } else { Ok(()) }
}

/// Where RFC 5280 is stricter than OpenSSL, unless that is told to be strict: its `check_extensions`.
fn conforms(certificate: &Certificate<'_>) -> Result<(), &'static str> {
    let may = |ways| certificate.key_usage.is_some() && certificate.allows(ways);
    let signs = may(usage::SIGN_CERTIFICATES);
    if certificate.is_ca() {
        if certificate.key_usage.is_none() {
            return Err("strict: a CA's certificate above it has no keyUsage: make it with \
                        `openssl req -x509 ... -addext keyUsage=critical,keyCertSign`, or set ssl_exclude_verify_flags");
        }
        if certificate.basic.is_some_and(|basic| !basic.critical) {
            return Err("strict: the basicConstraints of a CA's certificate above it are not critical");
        }
        if certificate.key_id().is_none() {
            return Err("strict: a CA's certificate above it has no subjectKeyIdentifier");
        }
    } else if signs {
        return Err("strict: its keyUsage has keyCertSign, but it is no CA's");
    }
    if certificate.basic.is_some_and(|basic| basic.path_length.is_some() && !(basic.ca && signs)) {
        return Err("strict: it limits the length of chains, but is no CA's");
    }
    let names = certificate.alternative_names();
    let unnamed = certificate.subject.is_empty();
    let needs_subject = certificate.is_ca() || may(usage::SIGN_REVOCATIONS) || names.is_none();
    if certificate.issuer.is_empty() || unnamed && needs_subject {
        return Err("strict: it, or a CA's above it, has an empty subject or issuer");
    }
    if names.is_some_and(|(names, critical)| names.is_empty() || unnamed && !critical) {
        return Err("strict: its subjectAltName is empty, or not critical where there is no other name");
    }
    if !certificate.one_algorithm {
        return Err("strict: it, or a CA's above it, names two signature algorithms");
    }
    if certificate.version < 3 && certificate.has_extensions() {
        return Err("strict: it, or a CA's above it, has extensions without being X.509 version 3");
    }
    Ok(())
}

fn tells_its_issuers_key(certificate: &Certificate<'_>) -> Result<(), &'static str> {
    let told = certificate.authority_key_id().is_some();
    if told { Ok(()) } else { Err("strict: it, or a CA's above it, has no authorityKeyIdentifier") }
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
        self.verify(end_entity, intermediates, server_name, now)?;
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
        [self.algorithms.supported_schemes(), vec![SignatureScheme::ECDSA_NISTP521_SHA512]].concat()
    }
}

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![
            SignatureScheme::ED25519,
            SignatureScheme::ECDSA_NISTP256_SHA256,
            SignatureScheme::ECDSA_NISTP384_SHA384,
            SignatureScheme::ECDSA_NISTP521_SHA512,
            SignatureScheme::RSA_PSS_SHA256,
            SignatureScheme::RSA_PSS_SHA384,
            SignatureScheme::RSA_PSS_SHA512,
            SignatureScheme::RSA_PKCS1_SHA256,
            SignatureScheme::RSA_PKCS1_SHA384,
            SignatureScheme::RSA_PKCS1_SHA512,
        ]
    }
}
