"""Signatures of packages: who made a package, where a digest says only which one it is.

A signature is ed25519 (RFC 8032) of a package's digest. Whoever signs has the private key; whoever samples has the
public one, and can tell a signed package from any other, but sign none. It is kept in the package's folder, in the file
`signature`, and with a registered version, in its tag `package_signature`.
"""

import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from diffusion.package import SIGNATURE, PackageError, verify_package

TAG = "package_signature"
MAX_BYTES = 10_000  # of a key's file, and of a signature's


def make_keys(file: Path) -> Path:
    """Make a pair of keys: the private one in a file that only this user can read, the public one beside it.

    Returns:
        The file of the public key, `file` with `.pub` appended.

    Raises:
        FileExistsError: there is such a file.
    """
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = file.with_name(f"{file.name}.pub")
    if public.exists():
        raise FileExistsError(f"{public}: exists; allowed: a new name")
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
        opened.write(private)
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return public


def sign(digest: str, private_key: Path) -> str:
    """The signature of a package's digest, in hex.

    Args:
        digest: 64 hexadecimal digits.
        private_key: file of the key.

    Raises:
        ValueError: the file holds no such key.
    """
    try:
        key = load_pem_private_key(_read(private_key), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ValueError(f"{private_key}: no private key without a password: {error}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(f"{private_key}: a key of another kind; allowed: ed25519")
    return key.sign(_message(digest)).hex()


def sign_package(folder: Path, private_key: Path) -> str:
    """Verify a package and write its signature into it; returns its digest.

    Raises:
        PackageError: it is not a complete package.
        ValueError: the file holds no private key.
    """
    digest = verify_package(folder)
    (folder / SIGNATURE).write_text(sign(digest, private_key) + "\n")
    return digest


def read_signature(folder: Path) -> str | None:
    """The signature in a package's folder; None if there is none."""
    try:
        return _read(folder / SIGNATURE).decode(errors="replace").strip()
    except FileNotFoundError:
        return None


def read_public_key(file: Path) -> bytes:
    """The content of a public key's file.

    Raises:
        ValueError: it holds no such key.
    """
    content = _read(file)
    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(f"{file}: no public key: {error}") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError(f"{file}: a key of another kind; allowed: ed25519")
    return content


def check_signature(digest: str, signature: str | None, public_key: bytes) -> None:
    """Refuse a package that the holder of a key has not signed.

    Args:
        digest: of the package, as `verify_package` has computed it.
        signature: in hex; None for none.
        public_key: as `read_public_key` gives it.

    Raises:
        PackageError: there is no signature, or it is not one of this package by this key.
    """
    key = load_pem_public_key(public_key)
    if signature is None:
        raise PackageError(f"package {digest}: not signed; allowed: one that the holder of the given key has signed")
    try:
        assert isinstance(key, Ed25519PublicKey)
        key.verify(bytes.fromhex(signature), _message(digest))
    except (InvalidSignature, ValueError):
        raise PackageError(f"package {digest}: its signature is not one by the given key") from None


def _message(digest: str) -> bytes:
    return f"dualview-package {digest}".encode()


def _read(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(MAX_BYTES)
