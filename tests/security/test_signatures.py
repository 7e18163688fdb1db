"""A sampler that is told to serve signed packages serves no other."""

import stat
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from diffusion.config import MLPConfig, VpProcess
from diffusion.package import PackageConfig, PackageError, build_denoiser_network, save_package, verify_package
from diffusion.sign import main as sign_command
from diffusion.signature import TAG, check_signature, make_keys, read_public_key, read_signature, sign
from sampler.__main__ import main as sampler_command
from sampler.models import ModelError, load, resolve
from trainer.errors import InputError
from trainer.registry import models as registry


@pytest.fixture
def package(tmp_path: Path) -> Path:
    config = PackageConfig(
        process=VpProcess(), prediction="epsilon", network=MLPConfig(width=8, depth=1), image_shape=(1, 4, 4)
    )
    save_package(tmp_path / "package", config, build_denoiser_network(config).state_dict())
    return tmp_path / "package"


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """A private key, and its public one."""
    return tmp_path / "team.key", make_keys(tmp_path / "team.key")


def test_a_private_key_is_its_users_alone_and_not_written_over(keys: tuple[Path, Path]):
    private, public = keys
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert b"PRIVATE" not in public.read_bytes()
    with pytest.raises(FileExistsError):
        make_keys(private)
    private.unlink()
    with pytest.raises(FileExistsError):
        make_keys(private)


def test_a_signature_is_of_one_package_by_one_key(keys: tuple[Path, Path], tmp_path: Path):
    key = read_public_key(keys[1])
    signature = sign("a" * 64, keys[0])
    check_signature("a" * 64, signature, key)
    other = read_public_key(make_keys(tmp_path / "other.key"))
    bad = [("b" * 64, signature, key), ("a" * 64, signature, other), ("a" * 64, signature[:-2] + "00", key)]
    bad += [("a" * 64, "", key), ("a" * 64, "no hex", key), ("a" * 64, signature * 2, key)]
    for digest, given, public in bad:
        with pytest.raises(PackageError, match="its signature is not one by the given key"):
            check_signature(digest, given, public)
    with pytest.raises(PackageError, match="not signed"):
        check_signature("a" * 64, None, key)


def test_a_sampler_takes_signed_packages_alone(package: Path, keys: tuple[Path, Path], tmp_path: Path):
    key, source = read_public_key(keys[1]), resolve(str(package))
    with pytest.raises(ModelError, match="not signed"):
        load(source, signed_by=key)
    assert sign_command(["package", str(keys[0]), str(package)]) == 0
    assert load(source, signed_by=key).package_sha256 == load(source).package_sha256 == verify_package(package)
    make_keys(tmp_path / "other.key")
    assert sign_command(["package", str(tmp_path / "other.key"), str(package)]) == 0
    with pytest.raises(ModelError, match="not one by the given key"):
        load(source, signed_by=key)
    with pytest.raises(ModelError, match="not one by the given key"):
        load(replace(source, signature="00" * 64), signed_by=key)


def test_the_command_line(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert sign_command(["keys", str(tmp_path / "k")]) == 0
    words = ["generate", str(package), "-n", "1", "--steps", "2", "--out", str(tmp_path / "x.png"), "--signed-by"]
    assert sampler_command([*words, str(tmp_path / "k.pub")]) == 2
    assert "not signed" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()
    assert sign_command(["package", str(tmp_path / "k"), str(package)]) == 0
    assert sampler_command([*words, str(tmp_path / "k.pub")]) == 0
    assert (tmp_path / "x.png").exists()
    assert sign_command(["keys", str(tmp_path / "k")]) == 2
    assert sign_command(["package", str(tmp_path / "k.pub"), str(package)]) == 2
    with pytest.raises(SystemExit) as ended:
        sampler_command([*words, str(tmp_path / "k")])
    assert ended.value.code == 2


@pytest.mark.parametrize(
    "content", [b"", b"-----BEGIN PUBLIC KEY-----\nx\n-----END PUBLIC KEY-----\n", b"\xff" * 100, b"rsa"]
)
def test_files_that_are_no_keys(tmp_path: Path, content: bytes):
    file = tmp_path / "key"
    private = content
    if content == b"rsa":
        key = generate_private_key(65537, 2048)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        content = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"key: (no public key|a key of another kind)"):
        read_public_key(file)
    file.write_bytes(private)
    with pytest.raises(ValueError, match=r"key: (no private key|a key of another kind)"):
        sign("a" * 64, file)


def test_a_registered_version_is_signed_in_its_tag(
    package: Path, keys: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "store" / "artifacts").mkdir(parents=True)
    package.rename(tmp_path / "store" / "artifacts" / "package")
    digest = verify_package(tmp_path / "store" / "artifacts" / "package")
    tags: dict[str, str] = {}
    version = SimpleNamespace(name="digits", version="3", tags={"package_sha256": digest})
    client: Any = SimpleNamespace(
        get_model_version=lambda name, number: version,
        get_model_version_download_uri=lambda name, number: str(tmp_path / "store"),
        set_model_version_tag=lambda name, number, tag, value: tags.update({tag: value}),
    )

    @contextmanager
    def asked(what: str, tracking_uri: str):
        yield client

    monkeypatch.setattr(registry, "_asked", asked)
    assert registry.sign_version("digits", "3", "http://x", tmp_path / "into", keys[0]) == digest
    check_signature(digest, tags[TAG], read_public_key(keys[1]))
    assert read_signature(tmp_path / "into" / "digits" / "3" / "package") is None
    with pytest.raises(InputError, match=r"--key .*: no private key"):
        registry.sign_version("digits", "3", "http://x", tmp_path / "into", keys[1])
    tags.clear()
    told: list[str] = []
    with pytest.raises(InputError, match=rf"--package-sha256 {'1' * 64}: the registry has package {digest}; nothing"):
        registry.sign_version("digits", "3", "http://x", tmp_path / "into", keys[0], "1" * 64, told.append)
    assert told == [digest]
    assert tags == {}, "another package than the one that is meant"

    def tell(_: str) -> None:
        assert tags == {}, "shown before it is signed"

    registry.sign_version("digits", "3", "http://x", tmp_path / "into", keys[0], digest.upper(), tell)
    assert TAG in tags
    version.tags["package_sha256"] = "0" * 64
    with pytest.raises(InputError, match="the registry says"):
        registry.sign_version("digits", "3", "http://x", tmp_path / "into", keys[0])
