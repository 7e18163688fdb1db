"""What a snapshot gives away: nothing that is usually a secret, nothing from elsewhere, and not to others."""

import os
import stat
import subprocess
import zipfile
from pathlib import Path

import pytest

from cluster import snapshot
from cluster.__main__ import main
from cluster.errors import InputError
from cluster.store import Store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkout with one tracked program."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "job.py").write_text("print()")
    git(code, "init", "-q")
    git(code, "add", "job.py")
    git(code, "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", "x")
    return code


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)


SECRET = [
    ".env", ".env.local", "app/.env", "server.pem", "deploy/tls.key", "id_rsa", "home/.ssh/config", ".netrc",
    ".aws/credentials", ".aws/config", "credentials.json", "service-account-prod.json", "secrets.yaml", ".pypirc",
    ".git-credentials", ".kube/config", ".docker/config.json", "client_secret_1.json", "cert.p12", ".pgpass",
    "SERVER.PEM", "prod.env", "id_ed25519_sk", "home/.config/gcloud/x",
    ".env~", "prod.env~", "id_rsa.bak", "id_rsa_work", "id_ecdsa.old", "kaggle.json", "home/.kaggle/kaggle.json",
    ".cache/huggingface/token", "home/.cache/huggingface/stored_tokens", "home/.config/gh/hosts.yml", "a/prod.tfvars",
    "x.auto.tfvars.json", "terraform.tfstate", "terraform.tfstate.backup", "home/.config/rclone/rclone.conf",
    ".databrickscfg", ".mlflow/credentials", "var/ray_token", ".ray/auth_token", "queue/queue.db.key",
    "queue/tokens/dualview-0f0f0f0f-1-2", "queue/tokens/dualview-0f0f0f0f-1-2.answer",
    f"queue/secrets/{'0f' * 16}/HF_TOKEN",
]  # fmt: skip


@pytest.mark.parametrize("tracked", [True, False])
def test_what_is_usually_a_secret_is_left_out_and_named(folder: Path, tracked: bool):
    for name in SECRET:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("TOKEN=x")
    if tracked:
        git(folder, "add", "-A")
    contents = snapshot.list_files(folder)
    assert contents.names == ["job.py"]
    assert set(contents.left_out) == set(SECRET)
    assert all("takes it along" in words for words in contents.left_out.values())


@pytest.mark.parametrize(
    "name",
    [
        ".env.example",
        "environment.yml",
        "monkey.py",
        "keys.py",
        "secrets.py",
        "public.pub",
        "credentials/api.py",
        "tokens/__init__.py",
        "tokens/bpe.py",
        "tokens/vocab.txt",
        "tokens/README",
        "secrets/vault.py",
        "ray_tokens.py",
        "id_rsa.pub",
        "id_ed25519.pub",
        "id_rsa_keys.py",
        "app/mlflow/credentials.py",
        "terraform.tfvars.example",
        "huggingface/token.py",
        "rclone.conf.example",
    ],
)
def test_what_only_looks_like_one_goes_along(folder: Path, name: str):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()
    assert name in snapshot.list_files(folder).names


def test_the_users_own_list_leaves_out_and_takes_along(folder: Path):
    for name in (".env", "large.bin", "data/a.csv", "data/keep.csv"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    (folder / snapshot.IGNORE).write_text("# mine\n!.env\n*.bin\ndata/*\n!data/keep.csv\n")
    contents = snapshot.list_files(folder)
    assert contents.names == [snapshot.IGNORE, ".env", "data/keep.csv", "job.py"]
    assert contents.left_out == {"large.bin": "", "data/a.csv": ""}


@pytest.mark.parametrize("way", ["file", "through a folder", "relative"])
def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path, way: str):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "shadow").write_text("root:x")
    target = {"file": tmp_path / "elsewhere/shadow", "relative": Path("../elsewhere/shadow")}
    if way == "through a folder":
        (folder / "inner").symlink_to(tmp_path / "elsewhere")
        (folder / "link").symlink_to("inner/shadow")
    else:
        (folder / "link").symlink_to(target[way])
    with pytest.raises(InputError, match=r"link is a link to .*/elsewhere/shadow; allowed: files of the folder"):
        snapshot.list_files(folder)
    (folder / snapshot.IGNORE).write_text("link\n")
    assert "link" not in snapshot.list_files(folder).names


@pytest.mark.parametrize("target", [".env", ".git/config"])
def test_a_link_to_a_secret_of_the_folder_is_one(folder: Path, target: str):
    (folder / ".env").write_text("TOKEN=x")
    (folder / "settings").symlink_to(target)
    contents = snapshot.list_files(folder)
    assert contents.names == ["job.py"]
    assert "a secret, by its name" in contents.left_out["settings"]


def test_a_link_within_the_folder_is_its_content(folder: Path, tmp_path: Path):
    (folder / "also.py").symlink_to("job.py")
    digest = snapshot.create(folder, snapshot.list_files(folder).names, tmp_path)
    with zipfile.ZipFile(snapshot.archive_path(tmp_path, digest)) as archive:
        assert archive.read("also.py") == b"print()"


def test_what_goes_along_untracked_is_said_and_nobody_else_can_read_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for index in range(12):
        (folder / f"new-{index:02}.py").touch()
    (folder / ".env").write_text("TOKEN=x")
    (folder / "odd\x1b[2J.pem").touch()
    url = f"sqlite:///{tmp_path}/queue/queue.db"
    before = os.umask(0)
    try:
        words = ["submit", "--working-dir", str(folder), "--", "bash", "-c", "true"]
        assert main(["--store", url, *words]) == 0
    finally:
        os.umask(before)
    output = capsys.readouterr().out
    assert "  not in its snapshot: .env (a secret, by its name" in output
    assert "\x1b" not in output
    assert "odd\\x1b[2J.pem" in output
    assert output.count("goes along, though git does not track it") == 10
    assert "and 2 more of these (.dualviewignore leaves files out)" in output
    [job] = Store.open(url).jobs()
    for path in (tmp_path / "queue").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    with zipfile.ZipFile(tmp_path / "queue" / "snapshots" / f"{job.snapshot}.zip") as archive:
        assert ".env" not in archive.namelist()
