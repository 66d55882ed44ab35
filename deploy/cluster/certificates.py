"""The certificates of a control plane that lives on loopback: one authority, made anew at each start."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFETIME = timedelta(days=365)
# Clocks of containers may lag behind the one that signed.
BACKDATED = timedelta(hours=1)
# The last is the first address of the range of services, which is the API server's inside a cluster.
LOOPBACK_ADDRESSES = ("127.0.0.1", "::1", "10.96.0.1")


@dataclass(frozen=True, kw_only=True)
class Files:
    """Where a certificate and its key are."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates for servers and clients. Its own key is never written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.certificate = folder / "authority.crt"
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("belvedere test control plane")
        extensions: list[tuple[x509.ExtensionType, bool]] = [
            (x509.BasicConstraints(ca=True, path_length=0), True),
            (_usage(signs_certificates=True), True),
        ]
        self._certificate = self._signed(self._name, self._key.public_key(), extensions)
        folder.mkdir(parents=True, exist_ok=True)
        self.certificate.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def issue(
        self,
        file_name: str,
        common_name: str,
        *,
        groups: tuple[str, ...] = (),
        server: bool = False,
        addresses: tuple[str, ...] = (),
    ) -> Files:
        """Return a certificate for a client of this name and these groups, or a server on loopback and the addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if server else [])]
        extensions: list[tuple[x509.ExtensionType, bool]] = [
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_usage(signs_certificates=False), True),
            (x509.ExtendedKeyUsage(usages), False),
        ]
        if server:
            extensions.append((_server_names(addresses), False))
        certificate = self._signed(_name(common_name, groups), key.public_key(), extensions)
        files = Files(certificate=self.folder / f"{file_name}.crt", key=self.folder / f"{file_name}.key")
        files.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        write_key(files.key, key)
        return files

    def _signed(
        self,
        subject: x509.Name,
        public_key: ec.EllipticCurvePublicKey,
        extensions: list[tuple[x509.ExtensionType, bool]],
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder(subject_name=subject, issuer_name=self._name, public_key=public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATED)
            .not_valid_after(now + LIFETIME)
            # Python from 3.13 on refuses certificates without these two.
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(self._key, hashes.SHA256())


def write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    """Write a private key that only its owner can read."""
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def service_account_keys(folder: Path) -> Files:
    """Return the pair of keys that signs and checks the tokens of service accounts."""
    key = ec.generate_private_key(ec.SECP256R1())
    files = Files(certificate=folder / "service-accounts.pub", key=folder / "service-accounts.key")
    write_key(files.key, key)
    files.certificate.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return files


def _name(common_name: str, groups: tuple[str, ...] = ()) -> x509.Name:
    return x509.Name(
        [
            *(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _server_names(addresses: tuple[str, ...]) -> x509.SubjectAlternativeName:
    names = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")
    return x509.SubjectAlternativeName(
        [
            *(x509.DNSName(name) for name in names),
            *(x509.IPAddress(ipaddress.ip_address(address)) for address in (*LOOPBACK_ADDRESSES, *addresses)),
        ]
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
