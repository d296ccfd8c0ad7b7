//! What a certificate says where OpenSSL asks and webpki does not: X.509 in DER, read and never written.
//!
//! It decides on no signature and on no name. Whatever it cannot read is refused.

/// Bits of the key usage extension's first byte.
pub(super) mod usage {
    /// What a TLS server does with its key: sign, encipher a key, or agree on one.
    pub(in super::super) const SERVER: u8 = 0x80 | 0x20 | 0x08;
    /// Sign certificates.
    pub(in super::super) const SIGN_CERTIFICATES: u8 = 0x04;
    /// Sign revocation lists.
    pub(in super::super) const SIGN_REVOCATIONS: u8 = 0x02;
}

const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OBJECT_ID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;

/// The bit of Netscape's old extension that allows a TLS server.
const NETSCAPE_SERVER: u8 = 0x40;
/// 1.3.132.0.35, `secp521r1`, with its tag and length.
const P521: &[u8] = &[OBJECT_ID, 5, 0x2b, 0x81, 0x04, 0, 0x23];
/// 1.3.6.1.5.5.7.3.1, `serverAuth`.
const SERVER_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];
/// 2.16.840.1.113730.1.1, `nsCertType`.
const NETSCAPE_TYPE: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x86, 0xf8, 0x42, 0x01, 0x01];
/// The last number of 2.5.29.x.
const SUBJECT_KEY_ID: u8 = 14;
const KEY_USAGE: u8 = 15;
const ALTERNATIVE_NAMES: u8 = 17;
const BASIC_CONSTRAINTS: u8 = 19;
const AUTHORITY_KEY_ID: u8 = 35;
const EXTENDED_KEY_USAGE: u8 = 37;
/// Those of them that OpenSSL heeds, so that they may be critical: the above but for the two key ids, name constraints,
/// revocation lists, and all about policies.
const HEEDED: &[u8] = &[KEY_USAGE, ALTERNATIVE_NAMES, BASIC_CONSTRAINTS, 30, 31, 32, 33, 36, EXTENDED_KEY_USAGE, 54];

/// One certificate.
#[derive(Debug)]
pub(super) struct Certificate<'a> {
    /// X.509's version, 1 to 3.
    pub(super) version: u8,
    /// Its issuer's name, as encoded.
    pub(super) issuer: &'a [u8],
    /// Its own name, as encoded.
    pub(super) subject: &'a [u8],
    /// Its public key, with the algorithm.
    pub(super) key: &'a [u8],
    /// The first second of its time (UNIX).
    pub(super) not_before: i64,
    /// The last second of its time.
    pub(super) not_after: i64,
    /// Whether it names the same signature algorithm inside and outside of what is signed.
    pub(super) one_algorithm: bool,
    /// Its basic constraints.
    pub(super) basic: Option<BasicConstraints>,
    /// What its key may be used for ([`usage`]), if that is restricted.
    pub(super) key_usage: Option<u8>,
    serial: &'a [u8],
    authority: Authority<'a>,
    extensions: Vec<Extension<'a>>,
}

/// Whether a certificate is a CA's.
#[derive(Debug, Clone, Copy)]
pub(super) struct BasicConstraints {
    /// Whether it may issue certificates.
    pub(super) ca: bool,
    /// How many intermediates may follow it.
    pub(super) path_length: Option<usize>,
    /// Whether who does not know this extension must refuse.
    pub(super) critical: bool,
}

/// By which key a certificate says that it was signed.
#[derive(Debug, Default)]
struct Authority<'a> {
    key_id: Option<&'a [u8]>,
    serial: Option<&'a [u8]>,
}

#[derive(Debug)]
struct Extension<'a> {
    id: &'a [u8],
    critical: bool,
    value: &'a [u8],
}

impl<'a> Certificate<'a> {
    /// Reads a certificate; `None` if it is malformed in any part that is read here.
    pub(super) fn read(der: &'a [u8]) -> Option<Self> {
        let mut all = Reader(der);
        let mut outer = Reader(all.expect(SEQUENCE)?);
        let mut body = Reader(outer.expect(SEQUENCE)?);
        let outer_algorithm = outer.element()?.whole;
        outer.expect(BIT_STRING)?;
        let version = match body.optional(0xa0) {
            Some(version) => Reader(version).expect(INTEGER)?.last()?.saturating_add(1),
            None => 1,
        };
        let serial = body.expect(INTEGER)?;
        let algorithm = body.element()?.whole;
        let issuer = body.expect(SEQUENCE)?;
        let mut validity = Reader(body.expect(SEQUENCE)?);
        let (not_before, not_after) = (seconds(&validity.element()?)?, seconds(&validity.element()?)?);
        let subject = body.expect(SEQUENCE)?;
        let key = body.element()?.whole;
        // Unique ids, which no one has used since 1996.
        _ = (body.optional(0x81), body.optional(0x82));
        let extensions = body.optional(0xa3).map_or(Some(Vec::new()), extensions)?;
        if !(all.0.is_empty() && outer.0.is_empty() && body.0.is_empty()) {
            return None;
        }
        let mut certificate = Self {
            version,
            issuer,
            subject,
            key,
            not_before,
            not_after,
            one_algorithm: algorithm == outer_algorithm,
            basic: None,
            key_usage: None,
            serial,
            authority: Authority::default(),
            extensions,
        };
        if let Some(extension) = certificate.extension(BASIC_CONSTRAINTS) {
            certificate.basic = Some(basic_constraints(extension)?);
        }
        if let Some(extension) = certificate.extension(KEY_USAGE) {
            certificate.key_usage = Some(bits(extension.value)?);
        }
        if let Some(extension) = certificate.extension(AUTHORITY_KEY_ID) {
            certificate.authority = authority(extension.value)?;
        }
        Some(certificate)
    }

    fn extension(&self, number: u8) -> Option<&Extension<'a>> {
        self.extensions.iter().find(|extension| extension.id == [0x55, 0x1d, number])
    }

    /// The id of its key.
    pub(super) fn key_id(&self) -> Option<&'a [u8]> {
        Reader(self.extension(SUBJECT_KEY_ID)?.value).expect(OCTET_STRING)
    }

    /// The id of the key that signed it.
    pub(super) fn authority_key_id(&self) -> Option<&'a [u8]> {
        self.authority.key_id
    }

    /// Whether it names itself as its issuer, and no other key as the one that signed it. OpenSSL asks no more either:
    /// what is trusted is trusted, no matter who signed it.
    pub(super) fn is_self_signed(&self) -> bool {
        let other = |theirs: Option<&[u8]>, own: Option<&[u8]>| theirs.is_some() && own.is_some() && theirs != own;
        self.is_self_issued()
            && !other(self.authority.key_id, self.key_id())
            && !other(self.authority.serial, Some(self.serial))
    }

    /// Whether it names itself as its issuer.
    pub(super) fn is_self_issued(&self) -> bool {
        self.issuer == self.subject
    }

    /// Whether it is one of a CA, by its basic constraints.
    pub(super) fn is_ca(&self) -> bool {
        self.basic.is_some_and(|basic| basic.ca)
    }

    /// Whether OpenSSL takes it for a CA's although it has no basic constraints, unless it is to be strict.
    pub(super) fn is_old_ca(&self) -> bool {
        let old = self.version == 1 && self.is_self_signed();
        self.basic.is_none() && self.allows(usage::SIGN_CERTIFICATES) && (old || self.key_usage.is_some())
    }

    /// Whether its key may be used in one of these ways.
    pub(super) fn allows(&self, ways: u8) -> bool {
        self.key_usage.is_none_or(|allowed| allowed & ways != 0)
    }

    /// Whether its key is on the curve P-521.
    pub(super) fn is_p521(&self) -> bool {
        self.key.windows(P521.len()).any(|part| part == P521)
    }

    /// Whether its purpose, if it says one, is to be a TLS server or a CA of such servers.
    pub(super) fn serves(&self) -> bool {
        let Some(purposes) = self.extension(EXTENDED_KEY_USAGE) else { return true };
        let mut purposes = Reader(Reader(purposes.value).expect(SEQUENCE).unwrap_or_default());
        std::iter::from_fn(|| purposes.expect(OBJECT_ID)).any(|purpose| purpose == SERVER_AUTH)
    }

    /// Whether it is a TLS server's for Netscape, whose old extension OpenSSL still reads.
    pub(super) fn serves_netscape(&self) -> bool {
        let old = self.extensions.iter().find(|extension| extension.id == NETSCAPE_TYPE);
        old.is_none_or(|extension| bits(extension.value).is_some_and(|types| types & NETSCAPE_SERVER != 0))
    }

    /// Whether it has a critical extension that OpenSSL does not know.
    pub(super) fn has_unknown_critical(&self) -> bool {
        self.extensions.iter().any(|extension| {
            let known = matches!(*extension.id, [0x55, 0x1d, number] if HEEDED.contains(&number));
            extension.critical && !known && extension.id != NETSCAPE_TYPE
        })
    }

    /// Its alternative names, as encoded, and whether they are critical.
    pub(super) fn alternative_names(&self) -> Option<(&'a [u8], bool)> {
        let extension = self.extension(ALTERNATIVE_NAMES)?;
        Some((Reader(extension.value).expect(SEQUENCE).unwrap_or_default(), extension.critical))
    }

    /// Whether it has extensions at all.
    pub(super) fn has_extensions(&self) -> bool {
        !self.extensions.is_empty()
    }
}

fn extensions(wrapped: &[u8]) -> Option<Vec<Extension<'_>>> {
    let mut list = Reader(Reader(wrapped).expect(SEQUENCE)?);
    let mut extensions = Vec::<Extension<'_>>::new();
    while !list.0.is_empty() {
        let mut extension = Reader(list.expect(SEQUENCE)?);
        let id = extension.expect(OBJECT_ID)?;
        let critical = extension.optional(BOOLEAN).is_some_and(|value| value != [0]);
        let value = extension.expect(OCTET_STRING)?;
        if extensions.iter().any(|other| other.id == id) {
            return None;
        }
        extensions.push(Extension { id, critical, value });
    }
    Some(extensions)
}

fn basic_constraints(extension: &Extension<'_>) -> Option<BasicConstraints> {
    let mut constraints = Reader(Reader(extension.value).expect(SEQUENCE)?);
    let ca = constraints.optional(BOOLEAN).is_some_and(|value| value != [0]);
    let path_length = match constraints.optional(INTEGER) {
        Some(&[length]) if length < 0x80 => Some(usize::from(length)),
        Some(_) => return None,
        None => None,
    };
    constraints.0.is_empty().then_some(BasicConstraints { ca, path_length, critical: extension.critical })
}

fn authority(value: &[u8]) -> Option<Authority<'_>> {
    let mut fields = Reader(Reader(value).expect(SEQUENCE)?);
    let key_id = fields.optional(0x80);
    _ = fields.optional(0xa1);
    let serial = fields.optional(0x82);
    fields.0.is_empty().then_some(Authority { key_id, serial })
}

/// The first eight of a string of bits.
fn bits(value: &[u8]) -> Option<u8> {
    match *Reader(value).expect(BIT_STRING)? {
        [] => None,
        [_unused] => Some(0),
        [_unused, first, ..] => Some(first),
    }
}

/// A time in seconds since 1970, from `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ`.
fn seconds(time: &Element<'_>) -> Option<i64> {
    let digits = time.content.strip_suffix(b"Z")?;
    let number = |from: usize, length: usize| {
        let text = std::str::from_utf8(digits.get(from..from + length)?).ok()?;
        text.bytes().all(|digit| digit.is_ascii_digit()).then(|| text.parse::<i64>().ok())?
    };
    let (year, rest) = match (time.tag, digits.len()) {
        (UTC_TIME, 12) => (number(0, 2)?, 2),
        (GENERALIZED_TIME, 14) => (number(0, 4)?, 4),
        _ => return None,
    };
    let year = if rest == 4 { year } else { year + if year < 50 { 2000 } else { 1900 } };
    let part = |index: usize| number(rest + 2 * index, 2);
    let (month, day) = (part(0)?, part(1)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Days since 1970-01-01, with years that begin in March, so that a leap day is a year's last.
    let (years, months) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = years.div_euclid(4) - years.div_euclid(100) + years.div_euclid(400);
    let days = 365 * years + leap_days + (153 * months + 2) / 5 + day - 1 - 719_468;
    Some(days * 86_400 + part(2)? * 3_600 + part(3)? * 60 + part(4)?)
}

/// The length of the first certificate in `data`, the header included.
pub(super) fn first_length(data: &[u8]) -> Option<usize> {
    Reader(data).element().filter(|element| element.tag == SEQUENCE).map(|element| element.whole.len())
}

/// Reads one element after another.
struct Reader<'a>(&'a [u8]);

/// A tag, a length and that many bytes.
struct Element<'a> {
    tag: u8,
    content: &'a [u8],
    whole: &'a [u8],
}

impl<'a> Reader<'a> {
    fn element(&mut self) -> Option<Element<'a>> {
        let (tag, length, header) = match *self.0 {
            [tag, length @ 0..=0x7f, ..] => (tag, usize::from(length), 2),
            [tag, 0x81, length, ..] => (tag, usize::from(length), 3),
            [tag, 0x82, high, low, ..] => (tag, usize::from(u16::from_be_bytes([high, low])), 4),
            // No certificate is longer than 64 KiB.
            _ => return None,
        };
        let (whole, rest) = self.0.split_at_checked(header + length)?;
        self.0 = rest;
        Some(Element { tag, content: whole.get(header..)?, whole })
    }

    fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.element().filter(|element| element.tag == tag).map(|element| element.content)
    }

    fn optional(&mut self, tag: u8) -> Option<&'a [u8]> {
        if self.0.first() == Some(&tag) { self.expect(tag) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn time(tag: u8, text: &str) -> Option<i64> {
        seconds(&Element { tag, content: text.as_bytes(), whole: &[] })
    }

    #[test]
    fn times_are_seconds_since_1970() {
        for (text, expected) in [
            ("19700101000000Z", 0),
            ("19691231235959Z", -1),
            ("20000229120000Z", 951_825_600),
            ("20261127191234Z", 1_795_806_754),
            ("21000301000000Z", 4_107_542_400),
            ("99991231235959Z", 253_402_300_799),
        ] {
            assert_eq!(time(GENERALIZED_TIME, text), Some(expected), "{text}");
        }
        assert_eq!(time(UTC_TIME, "500101000000Z"), Some(-631_152_000));
        assert_eq!(time(UTC_TIME, "490101000000Z"), Some(2_493_072_000));
    }

    #[test]
    fn other_times_are_refused() {
        for text in
            ["", "Z", "20261127191234", "20261327191234Z", "20261100191234Z", "2026112719123Z", "2026112719+234Z"]
        {
            assert_eq!(time(GENERALIZED_TIME, text), None, "{text}");
        }
        assert_eq!(time(INTEGER, "500101000000Z"), None);
    }

    proptest! {
        #[test]
        fn a_damaged_certificate_is_read_or_refused(at in 0.0..1.0, byte: u8, cut in 0.0..1.0) {
            let params = CertificateParams::new(["redis.test".to_owned()]).unwrap();
            let whole = params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec();
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
            let part = |share: f64| (share * whole.len() as f64) as usize;
            prop_assert!(Certificate::read(&whole).is_some());
            prop_assert!(Certificate::read(&whole[..part(cut)]).is_none());
            let mut damaged = whole.clone();
            damaged[part(at)] = byte;
            if let Some(certificate) = Certificate::read(&damaged) {
                _ = (certificate.serves(), certificate.serves_netscape(), certificate.is_self_signed());
            }
        }
    }
}
