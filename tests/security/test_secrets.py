"""Secrets in URLs are refused where they would be kept, and masked where they are shown."""

import json
import traceback
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from cluster.__main__ import main as queue
from cluster.errors import InputError as QueueInputError
from cluster.request import check_command, job_environment
from diffusion.config.errors import has_secret, masked
from sampler.models import ModelError, RegistryUnavailableError, Source, load, resolve
from trainer.config.load import load_config
from trainer.errors import InputError
from trainer.evaluate.target import find_target

SECRET = "hunter2"
URLS = [
    f"https://{SECRET}@mlflow.example",
    f"https://me:{SECRET}@mlflow.example:5000/path",
    f"https://mlflow.example/?token={SECRET}",
    f"https://mlflow.example/?a=1&access_token={SECRET}&b=2",
    f"postgresql://me:{SECRET}@db/mlflow",
    f"postgresql://db/mlflow?user=me&password={SECRET}",
    f"postgresql://db/mlflow?sslpassword={SECRET}",
    f"mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3D{SECRET}",
    f"mysql://me:p@{SECRET}@db/mlflow",
    f"postgresql://me:a/{SECRET}@db/mlflow",
    f"postgresql://me:a?{SECRET}@db/mlflow",
    f"postgresql://me:a#{SECRET}@db/mlflow",
    f"https://h.example/?X-Amz-Signature={SECRET}",
    f"https://h.example/?api_key={SECRET}",
    f"https://h.blob.example/c?sv=2024&sig={SECRET}",
    f"https://h.example/?key={SECRET}",
    f"https://h.example/x?a=1&auth={SECRET}",
    f"https://h.example/x#access_token={SECRET}",
    f"HTTPS://{SECRET}@mlflow.example",
    f"Https://h.example/?Access_Key={SECRET}",
    f"https://h.example/?subscription-key={SECRET}",
    f"https://h.example/?AccountKey={SECRET}",
    f"https://h.example/?a=1&jwt={SECRET}",
    f"mssql+pyodbc:///?odbc_connect=PWD%3D{SECRET}%3BServer%3Dx",
    f"mssql+pyodbc:///?odbc_connect=UID%3Dme%3B+PWD%3D{SECRET}",
    f"mssql+pyodbc:///?odbc_connect=UID%3Dme;+PWD%3D{SECRET}",
    f"mssql+pyodbc:///?odbc_connect=Server%3Dx%3BPassword%3D{SECRET}",
    f"mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3D%7Ba%3B{SECRET}%7D%3BServer%3Dx",
    f"mssql+pyodbc:///?odbc_connect=UID%253Dme%253BPWD%253D{SECRET}",
    f"postgresql://db/mlflow?pass%77ord={SECRET}",
    f"postgresql://db/mlflow?p%61ssword={SECRET}&user=me",
    f"https://h.example/?a=1&tok%65n={SECRET}",
    f"https://h.example/?next=postgresql%3A%2F%2Fme%3A{SECRET}%40db",
    f"postgresql://me@db/mlflow?passfile=/x&sslkey=/y&password={SECRET}",
    f"mysql+pymysql://me@db/mlflow?ssl_ca=/a&ssl_key=/k&ssl_key_password={SECRET}",
    f"https://h.example/?bearer={SECRET}",
]
CONNECTIONS = [
    f"host=db user=me password={SECRET}",
    f"host=db password = '{SECRET} and more' user=me",
    f"Server=db;User Id=me;Password={SECRET};",
    f"DefaultEndpointsProtocol=https;AccountName=me;AccountKey={SECRET}==;EndpointSuffix=x",
    f"Endpoint=sb://h;SharedAccessKeyName=a;SharedAccessKey={SECRET}",
    f"BlobEndpoint=https://h;SharedAccessSignature={SECRET}",
    f"Driver=x;Password={{a;{SECRET}}};Server=db",
    f"-Djavax.net.ssl.keyStorePassword={SECRET}",
    f"client_id=a client_secret={SECRET}",
    f"api_key={SECRET}",
    f"jwt={SECRET}",
]
PLAIN = [
    "https://mlflow.example:5000",
    "sqlite:////a/b.db",
    "postgresql://me@db/mlflow",
    "postgresql://db/m?sslmode=require",
    "https://h/?max_tokens=5",
    "https://h/?author=me&monkey=1&design=2&keyboard=de",
    "tokenizer=gpt2 --max-tokens=5 --pad-token=0 key=value,keys=2 monkey=1 passes=3",
    "host=db user=me passfile=/x sslkey=/y password_file=/z",
    "mysql+pymysql://me@db/mlflow?ssl_ca=/etc/ca.pem&ssl_cert=/etc/c.pem&ssl_key=/etc/k.pem",
    "postgresql://me@db/mlflow?passfile=/x&sslkey=/y&sslcert=/z",
    "bigquery://project?credentials_path=/x",
    "https://h/?a=100%25&path=b%2Fc%3Dd",
]


@pytest.mark.parametrize("url", URLS)
def test_a_run_does_not_record_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str):
    (tmp_path / "run.yaml").write_text(json.dumps({"run": {"tracking_uri": url, "storage": str(tmp_path)}}))
    with pytest.raises(InputError, match=r"would be recorded|not a tracking URI") as caught:
        load_config(tmp_path / "run.yaml", [])
    assert SECRET not in str(caught.value)
    (tmp_path / "plain.yaml").write_text(json.dumps({"run": {"storage": str(tmp_path)}}))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    with pytest.raises(InputError) as caught:
        load_config(tmp_path / "plain.yaml", [])
    assert SECRET not in str(caught.value)
    assert [path.name for path in tmp_path.rglob("*")] == ["run.yaml", "plain.yaml"] or len(
        list(tmp_path.iterdir())
    ) == 2


@pytest.mark.parametrize("url", [*URLS, f"postgresql://me:5/{SECRET}@db/mlflow"])
def test_the_sampler_does_not_hand_it_to_ray(monkeypatch: pytest.MonkeyPatch, url: str):
    """A replica's arguments are kept by Ray, and shown."""
    with pytest.raises(ModelError, match=r"tracking-uri: .* would be recorded") as caught:
        resolve("digits@champion", url)
    assert SECRET not in str(caught.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    with pytest.raises(ModelError, match=r"tracking-uri: .* would be recorded") as caught:
        resolve("digits@champion")
    assert SECRET not in str(caught.value)


def test_the_errors_of_mlflow_are_not_in_a_replicas(monkeypatch: pytest.MonkeyPatch):
    """They show the credentials that MLflow has from the environment, in a URL; Ray keeps the text of an error."""

    def fail(*_: object, **__: object) -> None:
        raise MlflowException(f"API request to https://me:{SECRET}@h/api failed")

    monkeypatch.setattr("mlflow.artifacts.list_artifacts", fail)
    with pytest.raises(RegistryUnavailableError) as caught:
        load(Source("a@b", "a", "1", "mlflow-artifacts:/1", "http://127.0.0.1:9"))
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("url", PLAIN)
def test_a_url_without_one_is_taken_and_shown_as_it_is(url: str):
    assert not has_secret(url)
    assert masked(url) == url
    assert job_environment([f"X={url}"], None)["X"] == url


def test_the_path_of_a_web_server_may_have_an_at():
    assert not has_secret("http://h:5000/teams/@us")


@pytest.mark.parametrize("text", CONNECTIONS)
def test_a_connection_string_with_a_secret_is_refused_and_masked(text: str):
    assert SECRET not in masked(text)
    for refuse in (lambda: job_environment([f"DSN={text}"], None), lambda: check_command(["run", f"--dsn={text}"])):
        with pytest.raises(QueueInputError, match="holds a password or a token") as caught:
            refuse()
        assert SECRET not in str(caught.value)


def test_of_a_long_text_the_beginning_is_shown_and_no_part_of_a_password():
    """All of it would be looked through for a day."""
    assert len(masked("://:" * 10**6)) <= 2001
    for cut in range(1980, 2010):
        assert SECRET[:4] not in masked(f"{'x' * cut}postgresql://me:{SECRET}@db/x" + "y" * 100)


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("way", ["inherited", "given"])
def test_the_queue_does_not_keep_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str, way: str
):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "job.sh").touch()
    words = ["submit", "--working-dir", str(tmp_path / "code"), *(["--env", f"DSN={url}"] if way == "given" else [])]
    if way == "inherited":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    code = queue(["--store", f"sqlite:///{tmp_path}/queue.db", *words, "--", "bash", "job.sh"])
    output = capsys.readouterr()
    assert SECRET not in output.out + output.err
    assert code == 2
    assert "holds a password or a token, which everybody could read" in output.err
    assert not (tmp_path / "queue.db").exists()


@pytest.mark.parametrize(
    "word",
    [
        f"--dsn=postgresql://me:{SECRET}@db/x", f"https://{SECRET}@host/x", f"https://me:{SECRET}@host:5000",
        f"https://h/?a=1&access_token={SECRET}", f"https://h/c?sv=2024&sig={SECRET}", f"x='redis://:{SECRET}@h'",
        f"mysql://h/d?user=a&pwd={SECRET}", f"https://h/?auth={SECRET}", f"mysql://h/d?p%77d={SECRET}",
        f"x:///?odbc_connect=PWD%3D{SECRET}", f"x:///?odbc_connect=UID%3Dme%3B+PWD%3D{SECRET}",
    ],
)  # fmt: skip
def test_a_command_with_a_secret_is_refused(word: str):
    with pytest.raises(QueueInputError, match="the command: holds a password or a token") as caught:
        check_command(["bash", "-c", word])
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "word",
    [
        "--pwd=/work", "PWD=$(pwd) make", "docker://registry.local:5000/train@sha256:0123", "https://h/x?key=a&id=b",
        "git@github.com:me/x.git", "sqlite:////a/b.db", "http://127.0.0.1:5000", "s3://bucket/a:b@c", "a@b.c",
        "mysql --password=$PASSWORD", "PASSWORD=\"$(cat x)\" run", "--max-tokens=5", "tokenizer=gpt2",
        "--label=key=value", "--pad-token=0", "--password-file=/x", "--secret=A=/x",
        "postgresql://me@db/x?passfile=/x", "curl https://h/x; TOKEN=$(cat x)", "date +%Y%m%d",
    ],
)  # fmt: skip
def test_words_of_a_command_that_are_no_secrets(word: str):
    check_command(["bash", "-c", word])


def test_a_command_is_no_longer_than_linux_takes():
    check_command(["x" * 120_000])
    with pytest.raises(QueueInputError, match=r"the command has 1[0-9]+ bytes; allowed: at most 130048"):
        check_command(["'" * 30_000])


def test_a_folder_does_not_take_the_place_of_a_registered_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits@champion").mkdir()
    with pytest.raises(ModelError, match=r"a folder, and a name of the registry; allowed: \./digits@champion"):
        resolve("digits@champion")
    assert resolve("./digits@champion").version == "local"
    with pytest.raises(InputError, match=r"a folder, and a name of the registry; allowed: \./digits@champion"):
        find_target("digits@champion", None, lambda *_: pytest.fail("asked the registry"))
