"""Certificates with whatever is wrong with them."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from collections.abc import Iterable

SERVER = [ExtendedKeyUsageOID.SERVER_AUTH]
CLIENT = [ExtendedKeyUsageOID.CLIENT_AUTH]
SIGN = frozenset({"key_cert_sign", "crl_sign"})
SERVE = frozenset({"digital_signature"})

_USES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip
_UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.55555.1"), b"\x05\x00")


@dataclass(frozen=True)
class Made:
    """A certificate in DER and its key."""

    name: x509.Name
    key: ec.EllipticCurvePrivateKey
    der: bytes

    @property
    def pem(self) -> str:
        """The certificate."""
        return serialized(self.der)

    @property
    def key_pem(self) -> str:
        """The private key."""
        encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        return self.key.private_bytes(encoding, form, serialization.NoEncryption()).decode()


def serialized(der: bytes) -> str:
    """A certificate in PEM."""
    return x509.load_der_x509_certificate(der).public_bytes(serialization.Encoding.PEM).decode()


def make(
    name: str,
    issuer: Made | None = None,
    *,
    ca: bool | None = None,
    path_length: int | None = None,
    critical: bool = True,
    uses: Iterable[str] = (),
    purposes: list[x509.ObjectIdentifier] | None = None,
    names: Iterable[str] = (),
    days: tuple[int, int] = (-2, 30),
    key_ids: bool = True,
    unknown: bool = False,
    curve: ec.EllipticCurve | None = None,
    key: ec.EllipticCurvePrivateKey | None = None,
    signed_by: ec.EllipticCurvePrivateKey | None = None,
    version: int = 3,
) -> Made:
    """A certificate for ``name``, of an issuer or else its own.

    Args:
        name: the subject's common name.
        issuer: who signs it; itself by default.
        ca: CA:TRUE or CA:FALSE; ``None`` leaves the basic constraints out.
        path_length: how many intermediates may follow.
        critical: whether the basic constraints are.
        uses: what the key may be used for; nothing leaves the extension out.
        purposes: the extended key usage.
        names: DNS names.
        days: from when and until when, counted from today.
        key_ids: whether to say whose key it is and which key has signed it.
        unknown: whether to add a critical extension that is of no known kind.
        curve: of the key.
        key: the key, instead of a new one.
        signed_by: a key other than the issuer's.
        version: 1 strips all extensions.
    """
    key = key or ec.generate_private_key(curve or ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer = signed_by or (issuer.key if issuer else key)
    today = dt.datetime.now(dt.timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.name if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today + dt.timedelta(days=days[0]))
        .not_valid_after(today + dt.timedelta(days=days[1]))
    )
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca, path_length), critical)
    if uses:
        wanted = frozenset(uses)
        builder = builder.add_extension(x509.KeyUsage(**{use: use in wanted for use in _USES}), critical=True)
    if purposes:
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(each) for each in names]), False)
    if key_ids:
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    if unknown:
        builder = builder.add_extension(_UNKNOWN, critical=True)
    made = builder.sign(signer, hashes.SHA256())
    der = made.public_bytes(serialization.Encoding.DER)
    if version == 1:
        der = _version_1(made, signer)
    return Made(subject, key, der)


def root(name: str = "root", **changes: Any) -> Made:
    """A root as it should be, but for the changes."""
    wanted: dict[str, Any] = {"ca": True, "uses": SIGN, **changes}
    return make(name, **wanted)


def intermediate(issuer: Made, name: str = "intermediate", **changes: Any) -> Made:
    """A CA under another, but for the changes."""
    wanted: dict[str, Any] = {"ca": True, "uses": SIGN, **changes}
    return make(name, issuer, **wanted)


def leaf(issuer: Made | None, **changes: Any) -> Made:
    """A server's certificate as it should be, but for the changes."""
    wanted: dict[str, Any] = {"uses": SERVE, "names": ["localhost"], **changes}
    return make("localhost", issuer, **wanted)


def _version_1(made: x509.Certificate, signer: ec.EllipticCurvePrivateKey) -> bytes:
    """The same without a version and without extensions, as ``openssl x509 -req`` made them for decades."""
    body = b"".join(part for part in _parts(made.tbs_certificate_bytes) if part[0] not in (0xA0, 0xA3))
    body = _sequence(0x30, body)
    _, algorithm, _ = _parts(made.public_bytes(serialization.Encoding.DER))
    signature = signer.sign(body, ec.ECDSA(hashes.SHA256()))
    return _sequence(0x30, body + algorithm + _sequence(0x03, b"\0" + signature))


def _parts(der: bytes) -> list[bytes]:
    """The elements of a sequence."""
    _, start, end = _header(der, 0)
    parts = []
    while start < end:
        _, _, stop = _header(der, start)
        parts.append(der[start:stop])
        start = stop
    return parts


def _header(der: bytes, at: int) -> tuple[int, int, int]:
    """The tag at an offset, and where its content begins and ends."""
    length, start = der[at + 1], at + 2
    if length >= 0x80:
        digits = length & 0x7F
        length, start = int.from_bytes(der[start : start + digits], "big"), start + digits
    return der[at], start, start + length


def _sequence(tag: int, content: bytes) -> bytes:
    size = len(content)
    length = bytes([size]) if size < 0x80 else b"\x82" + size.to_bytes(2, "big")
    if 0x80 <= size < 0x100:
        length = b"\x81" + bytes([size])
    return bytes([tag]) + length + content
