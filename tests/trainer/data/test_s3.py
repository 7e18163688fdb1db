"""A real S3 server: what is prepared there comes back, is cached once on a node, and is what `dataset.json` says."""

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import ray

from tests.servers.s3 import S3Server
from tests.trainer.data.images import encoded, noise, parquet
from trainer.__main__ import main as train
from trainer.config.data import DataConfig
from trainer.data import cache
from trainer.data.__main__ import main
from trainer.data.dataset import open_dataset
from trainer.data.manifest import FILE
from trainer.data.prepare import prepare
from trainer.data.sources import check_source
from trainer.data.store import Store
from trainer.errors import InputError

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """An empty bucket on a server of its own."""
    patch = pytest.MonkeyPatch()
    with S3Server("images") as server:
        settings = {**server.settings, "DUALVIEW_CACHE": str(tmp_path_factory.mktemp("cache"))}
        for name, value in settings.items():
            patch.setenv(name, value)
        try:
            ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)  # its workers inherit the environment
            yield "s3://images"
        finally:
            ray.shutdown()
            patch.undo()


@pytest.fixture
def node(tmp_path, monkeypatch):
    """A node with an empty cache."""
    monkeypatch.setenv("DUALVIEW_CACHE", str(tmp_path / "node"))
    return tmp_path / "node" / "shards"


@pytest.fixture(scope="module")
def prepared(bucket, tmp_path_factory):
    """The same source prepared from S3 to S3, and here."""
    folder = tmp_path_factory.mktemp("here")
    files = [encoded(noise("L", seed=seed)) for seed in range(40)]
    source = parquet(folder / "raw" / "a.parquet", files, [0, 1] * 20, rows=7)
    Store(f"{bucket}/raw").write("a.parquet", Path(source).read_bytes())
    assert main(["prepare", f"{bucket}/raw", f"{bucket}/prepared"]) == 0
    assert main(["prepare", str(folder / "raw"), str(folder / "prepared")]) == 0
    return f"{bucket}/prepared", open_dataset(folder / "prepared")


def test_what_is_prepared_on_s3_is_what_is_prepared_here(prepared, node, tmp_path):
    url, here = prepared
    there = prepare(DataConfig(source=url), tmp_path / "storage")
    assert there.info.fingerprint == here.info.fingerprint
    assert there.info.shards == here.info.shards
    for split in ("train", "heldout"):
        assert np.array_equal(there.images(split)[:], here.images(split)[:])
        assert np.array_equal(there.labels(split), here.labels(split))
        assert there.ids(split) == here.ids(split)
    names = {name for name, _ in Store(url).listing()}
    assert names == {FILE, "rejected.parquet", "train-00000.arrow", "heldout-00000.arrow"}


def test_workers_find_it_through_the_runs_storage_and_a_node_reads_it_once(prepared, node, tmp_path, monkeypatch):
    url, here = prepared
    folder = prepare(DataConfig(source=url), tmp_path / "storage").folder
    assert [path.name for path in folder.iterdir()] == [FILE]
    assert not node.exists()
    first = open_dataset(folder).images("train")[:]
    assert {path.name for path in node.glob("*.arrow")} == {f"{here.info.shards['train'][0].sha256}.arrow"}
    monkeypatch.setattr(Store, "download", lambda *_: pytest.fail("read again"))
    assert np.array_equal(open_dataset(folder).images("train")[:], first)
    assert not first.flags.owndata


def test_another_data_set_does_not_take_the_place_of_one_whose_fingerprint_it_claims(bucket, prepared, node, tmp_path):
    url, here = prepared
    first, forged = prepare(DataConfig(source=url), tmp_path / "storage"), Store(f"{bucket}/forged")
    for shard in (shard for shards in here.info.shards.values() for shard in shards):
        forged.write(shard.name, Store(url).read(shard.name))
    manifest = json.loads(Store(url).read(FILE))
    manifest["shards"]["train"][0]["sha256"] = "e" * 64
    forged.write(FILE, json.dumps(manifest).encode())
    other = prepare(DataConfig(source=forged.url), tmp_path / "storage")
    assert other.info.fingerprint == first.info.fingerprint
    assert other.folder != first.folder
    assert other.info.content != first.info.content
    forged.write("train-00000.arrow", b"short")
    with pytest.raises(InputError, match=r"train-00000\.arrow: missing or incomplete; allowed: \d+ bytes"):
        prepare(DataConfig(source=forged.url), tmp_path / "storage")


def test_processes_that_race_for_a_shard_get_it_once(prepared, node, monkeypatch):
    url, here = prepared
    downloads, download = [], Store.download

    def counted(store, name, target):
        downloads.append(name)
        time.sleep(0.2)
        download(store, name, target)

    monkeypatch.setattr(Store, "download", counted)
    shards = here.info.shards["train"]
    found = []
    threads = [threading.Thread(target=lambda: found.append(cache.cached(url, shards))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert downloads == ["train-00000.arrow"]
    assert found == [[node / f"{shards[0].sha256}.arrow"]] * 4


def test_a_shard_that_is_not_what_dataset_json_says_is_refused(bucket, prepared, node):
    url, here = prepared
    (shard,) = here.info.shards["heldout"]
    content = bytearray(Store(url).read(shard.name))
    content[len(content) // 2] ^= 1
    Store(f"{bucket}/altered").write(shard.name, bytes(content))
    with pytest.raises(ValueError, match=r"altered/heldout-00000\.arrow: SHA-256 .*, but dataset\.json says"):
        cache.cached(f"{bucket}/altered", [shard])
    assert list(node.glob("*.arrow")) == []
    half = node / f"{shard.sha256}.arrow"
    half.write_bytes(b"half")
    assert cache.cached(url, [shard])[0].stat().st_size == shard.bytes


@pytest.mark.parametrize("name", ["nothing", ""])
def test_a_prefix_without_data_is_refused_at_once(bucket, name):
    source = f"{bucket}/{name}" if name else "s3://"
    with pytest.raises(InputError, match="no such data"):
        check_source(DataConfig(source=source))


def test_a_server_that_does_not_answer_is_bad_input(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    with pytest.raises(InputError, match=r"data\.source = 's3://images/x': ") as caught:
        check_source(DataConfig(source="s3://images/x"))
    assert "\n" not in str(caught.value)


def test_a_bucket_that_is_not_there_is_a_bad_destination(bucket, capsys):
    assert main(["prepare", "digits", "s3://nowhere/prepared"]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: s3://nowhere/prepared: ")
    assert errors.count("\n") == 1


def test_an_array_is_prepared_on_s3(bucket, node, tmp_path):
    assert main(["prepare", "digits", f"{bucket}/digits"]) == 0
    there = prepare(DataConfig(source=f"{bucket}/digits"), tmp_path)
    assert np.array_equal(there.images("train")[:], prepare(DataConfig(), tmp_path).images("train")[:])


@pytest.mark.slow
def test_a_run_on_data_in_s3_is_the_run_on_the_same_data_here(bucket, tmp_path):
    """Trained, packaged, scored and recorded, by Ray's workers that read S3 themselves."""
    digests = []
    for name, place in (("there", f"{bucket}/digits"), ("here", str(tmp_path / "digits"))):
        assert main(["prepare", "digits", place]) == 0
        sets = [f"data.source={place}", f"run.storage={tmp_path / name}", "run.name=short", "training.steps=12"]
        sets += ["evaluation.samples=65", "evaluation.vlb_draws=1", "evaluation.solver.num_steps=2"]
        sets += ["evaluation.metrics=[vlb, frechet]", "run.register_as=null"]
        assert train(["--config", "configs/digits.yaml", *(part for each in sets for part in ("--set", each))]) == 0
        summary = json.loads((tmp_path / name / "digits" / "short" / "results" / "summary.json").read_text())
        assert summary["recorded"]
        package = tmp_path / name / "digits" / "short" / "package"
        digests.append(
            ((package / "model.safetensors").read_bytes(), summary["vlb_bpd"], summary["frechet_classifier"])
        )
    assert digests[0] == digests[1]
    kept = {file.stem for file in cache.cache_folder().glob("*.arrow")}
    shards = prepare(DataConfig(source=f"{bucket}/digits"), tmp_path / "there").info.shards
    assert {shard.sha256 for split in shards.values() for shard in split} <= kept


def test_an_endpoint_that_is_no_url_is_bad_input(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:8333")
    with pytest.raises(InputError, match=r"AWS_ENDPOINT_URL = 'localhost:8333': allowed: http"):
        check_source(DataConfig(source="s3://images/x"))
