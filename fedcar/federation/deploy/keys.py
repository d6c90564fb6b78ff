"""Keys and certificates: the server's own authority, its certificate, and a key pair a device (EC P-384)."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import os
import re
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedcar.common.files import replace_file, written_whole
from fedcar.errors import FedcarError, quoted

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
CA_DAYS, SERVER_DAYS, LEFT_TO_RENEW = 3650, 825, 30
PEM, OPENSSH = serialization.Encoding.PEM, serialization.Encoding.OpenSSH


def check_name(name: str) -> str:
    """The name of a device: a file's name and a word in messages."""
    if not NAME.fullmatch(name):
        raise FedcarError(f"--node {quoted(name)}: up to 63 letters, digits, dots, dashes and underscores")
    return name


def keygen(folder: Path, name: str) -> tuple[Path, Path]:
    """FOLDER/NAME.key, readable by its owner alone, and FOLDER/NAME.pub; never writes over a key."""
    check_name(name)
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    for file in (private, public):
        if file.exists():
            raise FedcarError(f"{file}: is there already; a new key would be another device, so move it away first")
    key = ec.generate_private_key(ec.SECP384R1())
    folder.mkdir(parents=True, exist_ok=True)
    write_private(private, key.private_bytes(PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()))
    line = key.public_key().public_bytes(OPENSSH, serialization.PublicFormat.OpenSSH)
    replace_file(public, line + f" {name}\n".encode())
    return private, public


def read_public(file: Path) -> tuple[str, bytes]:
    """A device's name and its public key (PEM) from a .pub file."""
    try:
        content = file.read_bytes()
        key = serialization.load_ssh_public_key(content)
        name = content.split()[2].decode()
    except OSError as error:
        raise FedcarError(f"{file}: cannot be read ({error.strerror}); give the .pub file of fedcar keygen") from error
    except (ValueError, IndexError, UnsupportedAlgorithm) as error:
        raise FedcarError(f"{file}: not the .pub file of fedcar keygen; ask the device for it again") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1":
        raise FedcarError(f"{file}: not a key on the curve P-384; make one with fedcar keygen")
    return check_name(name), public_bytes(key)


def read_private(file: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_ssh_private_key(file.read_bytes(), None)
    except OSError as error:
        raise FedcarError(f"{file}: cannot be read ({error.strerror}); give the key that fedcar keygen made") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise FedcarError(f"{file}: not the key that fedcar keygen made; give that one") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise FedcarError(f"{file}: not a key on the curve P-384; give the key that fedcar keygen made")
    return key


def public_bytes(key: ec.EllipticCurvePublicKey) -> bytes:
    return bytes(key.public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo))


def key_fingerprint(public_key: bytes) -> str:
    """sha256 of a public key's DER form."""
    key = serialization.load_pem_public_key(public_key)
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


# -------------------------------------------------------------------- the server's certificates


def make_authority(folder: Path) -> None:
    """FOLDER/ca.pem and FOLDER/ca.key, where they are missing."""
    if (folder / "ca.pem").exists() and (folder / "ca.key").exists():
        return
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedcar federation")])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    builder = _certificate(name, name, key.public_key(), CA_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(usage, critical=True).add_extension(identifier, critical=False)
    write_private(folder / "ca.key", _private_pem(key))
    replace_file(folder / "ca.pem", builder.sign(key, hashes.SHA384()).public_bytes(PEM))


def make_certificate(folder: Path, name: str, hosts: list[str], days: int = SERVER_DAYS) -> None:
    """FOLDER/NAME.pem and NAME.key for these hosts, signed by the folder's authority; anew before they run out."""
    certificate = folder / f"{name}.pem"
    if certificate.exists() and days_left(certificate) > LEFT_TO_RENEW and set(hosts) <= set(hosts_of(certificate)):
        return
    authority = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    authority_key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
    assert isinstance(authority_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"fedcar {name}")])
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    builder = (
        _certificate(subject, authority.subject, key.public_key(), days)
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(issuer_key, critical=False)
    )
    certificate.unlink(missing_ok=True)  # a crash between the two leaves none, and both are made again
    write_private(folder / f"{name}.key", _private_pem(key))
    replace_file(certificate, builder.sign(authority_key, hashes.SHA384()).public_bytes(PEM))


def days_left(certificate: Path) -> float:
    """Days until a certificate runs out; negative afterwards."""
    try:
        end = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    except (OSError, ValueError) as error:
        raise FedcarError(f"{certificate}: not a certificate; give one in PEM form") from error
    return float((end - datetime.datetime.now(datetime.timezone.utc)).total_seconds() / 86400)


def hosts_of(certificate: Path) -> list[str]:
    loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
    try:
        names = loaded.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in names]


def write_private(file: Path, content: bytes) -> None:
    """Write a file that its owner alone can read, from its first byte on; whole or not at all."""
    with written_whole(file) as new:
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(content)


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.timezone.utc)
    end = now + datetime.timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, end) - datetime.timedelta(hours=1))  # a device's clock may be behind
        .not_valid_after(end)
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
