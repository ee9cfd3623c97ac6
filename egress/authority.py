"""A certificate authority per sandbox: who stands for the servers whose connections are looked into.

Nobody but that sandbox trusts it. Its key exists in the memory of the gateway and of whoever runs the sandbox, and
nowhere else.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import marshal
import secrets
from functools import cached_property
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from collections.abc import Iterable

DAYS = 7
"""How long an authority, and all that it signs, is valid."""

MOST_LEAVES = 1024
"""Certificates that an authority keeps; the one made longest ago goes first."""

_EARLIER = dt.timedelta(hours=1)  # clocks inside a container of the host's may be set differently by a little
_MOST_OF_A_NAME = 64  # RFC 5280, ub-common-name


class Authority:
    """Signs a certificate for any name that it is asked for. From one thread at a time."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        """Take a key and the certificate that it signed for itself; `new` and `load` have them."""
        self._key = key
        self.certificate = certificate
        self._leaves: dict[str, x509.Certificate] = {}

    @staticmethod
    def new() -> Authority:
        """Make one: ECDSA on P-256, valid for DAYS."""
        key = ec.generate_private_key(ec.SECP256R1())
        # A name of its own: some programs look an issuer up by its name, and two sandboxes' must not be taken for one.
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"osmoda sandbox {secrets.token_hex(8)}")])
        now = dt.datetime.now(dt.UTC)
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _EARLIER)
            .not_valid_after(now + dt.timedelta(days=DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(identifier, critical=False)
        )
        return Authority(key, builder.sign(key, hashes.SHA256()))

    def dump(self) -> bytes:
        """What `load` takes: the key too, so it is for memory and private sockets only."""
        key = self._key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return marshal.dumps((key, self.certificate.public_bytes(serialization.Encoding.DER)))

    @staticmethod
    def load(dumped: bytes) -> Authority:
        """The authority that `dump` wrote. Raises ValueError."""
        try:
            key_der, certificate_der = marshal.loads(dumped)
            key = serialization.load_der_private_key(key_der, None)
            certificate = x509.load_der_x509_certificate(certificate_der)
        except (EOFError, TypeError, ValueError) as error:
            raise ValueError(f"a kept certificate authority cannot be read: {error}") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise ValueError("a kept certificate authority has a key that is not its own")
        return Authority(key, certificate)

    @cached_property
    def pem(self) -> bytes:
        """Its certificate, as a sandbox's bundle gets it."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @cached_property
    def leaf_key(self) -> ec.EllipticCurvePrivateKey:
        """The key of every certificate that it signs: whoever had one would have the authority's memory, too."""
        return ec.generate_private_key(ec.SECP256R1())

    def leaf(self, name: str) -> x509.Certificate:
        """A certificate for a server called `name`: a canonical host name, or an address."""
        found = self._leaves.get(name)
        if found is None:
            if len(self._leaves) >= MOST_LEAVES:
                del self._leaves[next(iter(self._leaves))]
            found = self._leaves[name] = self._sign(name)
        return found

    def _sign(self, name: str) -> x509.Certificate:
        alternative: x509.GeneralName
        try:
            alternative = x509.IPAddress(ipaddress.ip_address(name))
        except ValueError:
            alternative = x509.DNSName(name)
        common = [x509.NameAttribute(NameOID.COMMON_NAME, name)] if len(name) <= _MOST_OF_A_NAME else []
        key = self.leaf_key.public_key()
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(common))
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.certificate.not_valid_before_utc)
            .not_valid_after(self.certificate.not_valid_after_utc)
            .add_extension(x509.SubjectAlternativeName([alternative]), critical=not common)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        )
        return builder.sign(self._key, hashes.SHA256())


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def bundle(host_bundle: bytes, pem: bytes) -> bytes:
    """The host's PEM bundle with one certificate more, at its end."""
    if host_bundle and not host_bundle.endswith(b"\n"):
        host_bundle += b"\n"
    return host_bundle + pem


def java_store(host_certificates: Iterable[x509.Certificate], pem: bytes) -> bytes:
    """A Java trust store (PKCS #12) with the host's certificates and one more.

    It is neither encrypted nor sealed, since all in it is public: Java opens it with any password and with none.
    """
    certificates = [*host_certificates, x509.load_pem_x509_certificate(pem)]
    named = [
        pkcs12.PKCS12Certificate(certificate, f"osmoda-{index}".encode())
        for index, certificate in enumerate(certificates)
    ]
    return _unsealed(pkcs12.serialize_java_truststore(named, serialization.NoEncryption()))


def _unsealed(store: bytes) -> bytes:
    """A PKCS #12 file without its MAC, which can be made for one password only (RFC 7292, section 4: PFX)."""
    whole, _ = _value(store, 0)
    _, after_version = _value(store, whole.start)
    content, _ = _value(store, after_version)
    kept = store[whole.start : content.stop]
    length = len(kept).to_bytes((len(kept).bit_length() + 7) // 8)
    return b"\x30" + bytes([0x80 | len(length)]) + length + kept


def _value(der: bytes, at: int) -> tuple[slice, int]:
    """Where the value of the DER element at `at` lies, and where the next one begins."""
    size, start = der[at + 1], at + 2
    if size & 0x80:
        start += size & 0x7F
        size = int.from_bytes(der[at + 2 : start])
    return slice(start, start + size), start + size
