"""Packages by somebody who means harm: nothing in them is run, names a path, or takes more memory than their files."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from safetensors.torch import load_file, save_file

from diffusion.config import DiTConfig, MLPConfig, UNetConfig, VpProcess
from diffusion.config.solver import SOLVER_ADAPTER
from diffusion.interop.diffusers_folder import SHARDS, load_diffusers
from diffusion.package import (
    CONFIG,
    MANIFEST,
    WEIGHTS,
    PackageConfig,
    PackageError,
    build_denoiser_network,
    file_sha256,
    load_package,
    package_sha256,
    save_package,
    verify_package,
)
from sampler.__main__ import main as sampler, solver_config
from sampler.models import ModelError, load, resolve
from tests.conftest import ROOT
from trainer.errors import InputError
from trainer.evaluate.__main__ import parser as evaluate_parser
from trainer.evaluate.target import find_target, with_options


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """An honest package."""
    config = PackageConfig(
        process=VpProcess(), prediction="epsilon", network=MLPConfig(width=8, depth=1), image_shape=(1, 4, 4)
    )
    save_package(tmp_path / "package", config, build_denoiser_network(config).state_dict())
    return tmp_path / "package"


def sign(folder: Path) -> None:
    """Whoever writes a package can make a manifest that agrees with it."""
    digests = {name: file_sha256(folder / name) for name in (CONFIG, WEIGHTS)}
    manifest = {"files": digests, "package_sha256": package_sha256(digests)}
    (folder / MANIFEST).write_text(json.dumps(manifest))


def change(folder: Path, where: str, value: Any) -> None:
    """Change one setting of a package, and sign it."""
    config = json.loads((folder / CONFIG).read_text())
    *way, last = where.split(".")
    place = config
    for name in way:
        place = place[name]
    place[last] = value
    (folder / CONFIG).write_text(json.dumps(config))
    sign(folder)


def test_the_honest_one_loads(package: Path):
    load_package(package)
    assert load(resolve(str(package))).package_sha256 == verify_package(package)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("code.py", lambda path: path.write_text("raise SystemExit")),
        ("pytorch_model.bin", lambda path: path.write_bytes(b"\x80\x04N.")),
        (".hidden", lambda path: path.touch()),
        ("folder", lambda path: path.mkdir()),
        ("pipe", os.mkfifo),
    ],
)
def test_other_files_are_refused(package: Path, name: str, make: Callable[[Path], object]):
    make(package / name)
    with pytest.raises(PackageError, match=rf"{name}: not a file of a package"):
        load_package(package)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, MANIFEST])
def test_links_are_refused(package: Path, tmp_path: Path, name: str):
    (package / name).rename(tmp_path / "elsewhere")
    (package / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PackageError, match=rf"{name}: a link or no file"):
        load_package(package)


@pytest.mark.parametrize("name", [CONFIG, MANIFEST])
def test_a_text_without_end_is_not_read(package: Path, name: str):
    with (package / name).open("r+b") as file:
        file.truncate(2**40)  # a hole, which takes no disk
    with pytest.raises(PackageError, match=rf"{name}: 1099511627776 bytes; allowed: at most"):
        verify_package(package)


@pytest.mark.parametrize(
    "text", ["[" * 10**6, '{"a":' * 10**5, "\0", "\ud800".encode("utf-8", "surrogatepass"), "1e999"]
)
def test_texts_that_are_none(package: Path, text: str | bytes):
    content = text if isinstance(text, bytes) else text.encode()
    (package / CONFIG).write_bytes(content)
    sign(package)
    with pytest.raises(PackageError):
        load_package(package)
    (package / MANIFEST).write_bytes(content)
    with pytest.raises(PackageError, match="not a package manifest"):
        load_package(package)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("network.width", 10**6),
        ("network.width", 10**400),
        ("network.depth", 10**9),
        ("network.classes", 10**12),
        ("image_shape", [1, 10**6, 10**6]),
        ("image_shape", [0, 4, 4]),
        ("image_shape", [10**9, 4, 4]),
        ("image_shape", [-1, -1, 4]),
        ("process.num_train_timesteps", 10**12),
        ("solver", {"kind": "euler", "num_steps": 10**11}),
        ("solver", {"kind": "predictor_corrector", "corrector_steps": 10**11}),
        ("image_shape", [256, 8192, 8192]),
        ("image_shape", [3, 8192, 8192]),
        ("network", {"kind": "unet", "channels": [8] * 12, "attention": [True] * 12, "layers_per_block": 101}),
        ("network", {"kind": "unet", "channels": [8] * 100, "attention": [False] * 100}),
        ("network", {"kind": "unet", "channels": [65536], "attention": [True], "layers_per_block": 10**6}),
        ("network", {"kind": "dit", "layers": 10**9}),
        ("process.schedule", {"kind": "learned", "width": 10**9}),
        ("format", "pickle"),
        ("code", "/tmp/x.py"),
    ],
)
def test_sizes_are_bounded(package: Path, where: str, value: Any):
    change(package, where, value)
    with pytest.raises(PackageError, match=r"config\.json"):
        load_package(package)


def test_a_table_that_is_in_no_file_is_bounded_too(package: Path):
    """diffusers' DiT computes that of all positions: of one head, 4 GiB in float64 and twice."""
    network = {"kind": "dit", "patch_size": 1, "layers": 1, "heads": 1, "head_width": 512}
    change(package, "network", network)
    change(package, "image_shape", [1, 1024, 1024])
    with torch.device("meta"):
        built = build_denoiser_network(PackageConfig.model_validate_json((package / CONFIG).read_bytes()))
    save_file({name: torch.zeros(each.shape) for name, each in built.state_dict().items()}, package / WEIGHTS)
    sign(package)
    assert taken(package, "constants beside") < 500_000


def test_a_solver_without_end_is_not_run(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    change(package, "solver", {"kind": "euler", "num_steps": 10**6})
    load_package(package)
    out = str(tmp_path / "grid.png")
    assert sampler(["generate", str(package), "--out", out, "--count", "1"]) == 2
    assert "1000000 evaluations of an image; allowed: at most 10000" in capsys.readouterr().err
    assert sampler(["generate", str(package), "--out", out, "--count", "1", "--steps", "5"]) == 0
    target = find_target(str(package), None, lambda *_: pytest.fail("no registry"))
    options = ["--data", "digits", "--out", str(tmp_path / "out")]
    with pytest.raises(InputError, match=r"1000000 evaluations of an image; allowed: .* --solver, --nfe"):
        with_options(target, evaluate_parser().parse_args([str(package), *options]))
    with_options(target, evaluate_parser().parse_args([str(package), *options, "--nfe", "5"]))


@pytest.mark.parametrize(
    ("own", "named"),
    [
        ({"kind": "heun", "num_steps": 10**6}, ["--solver", "heun"]),
        ({"kind": "predictor_corrector", "corrector_steps": 10**6}, ["--solver", "predictor_corrector"]),
    ],
)
def test_a_solver_that_is_named_has_none_of_the_packages_settings(
    package: Path, tmp_path: Path, own: dict[str, Any], named: list[str]
):
    change(package, "solver", own)
    target = find_target(str(package), None, lambda *_: pytest.fail("no registry"))
    options = [str(package), "--data", "digits", "--out", str(tmp_path / "out"), *named]
    solver = with_options(target, evaluate_parser().parse_args(options)).evaluation.solver
    assert solver == SOLVER_ADAPTER.validate_python({"kind": own["kind"]})
    assert solver_config(target.evaluation.solver, own["kind"], None) == solver
    few = solver_config(target.evaluation.solver, own["kind"], 5)
    assert few == solver.model_copy(update={"num_steps": 5})


def test_the_steps_of_a_package_that_are_named_end_too(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """A step may be a million evaluations."""
    change(package, "solver", {"kind": "predictor_corrector", "corrector_steps": 10**6})
    assert sampler(["generate", str(package), "--out", str(tmp_path / "a.png"), "-n", "1", "--steps", "25"]) == 2
    assert "evaluations of an image; allowed: at most 10000; or --solver of your own" in capsys.readouterr().err


@pytest.mark.parametrize("name", [CONFIG, MANIFEST])
def test_an_evaluation_follows_no_links_of_a_package(package: Path, name: str):
    (package / name).unlink()
    (package / name).symlink_to("/dev/zero")
    with pytest.raises(InputError, match=r"not a complete package|no model"):
        find_target(str(package), None, lambda *_: pytest.fail("no registry"))


HUGE = {
    "wide": {"network.width": 65536, "network.depth": 1000},
    "large images": {"image_shape": [1, 8192, 8192], "network.width": 65536},
    "unet": {"network": {"kind": "unet", "channels": [65536, 65536], "attention": [True, True], "norm_groups": 8}},
    "learned": {"process.schedule": {"kind": "learned", "width": 4096}},
}


@pytest.mark.parametrize("name", list(HUGE))
def test_what_is_within_the_bounds_takes_no_memory_before_its_weights_are_there(package: Path, name: str):
    for where, value in HUGE[name].items():
        change(package, where, value)
    assert taken(package, "weights do not fit the network of config.json") < 500_000  # the weights would be terabytes


LARGE = {
    "unet": (8192, {"kind": "unet", "channels": [64], "attention": [False]}),
    "unet with layers": (
        2048,
        {"kind": "unet", "channels": [64, 64], "attention": [False] * 2, "layers_per_block": 100},
    ),
    "unet that attends": (2048, {"kind": "unet", "channels": [8], "attention": [False]}),
    "unet that attends early": (2048, {"kind": "unet", "channels": [8, 8], "attention": [True, False]}),
    "dit": (4096, {"kind": "dit", "patch_size": 4, "layers": 1, "heads": 16, "head_width": 128}),
    "dit that attends": (8192, {"kind": "dit", "patch_size": 4, "layers": 1, "heads": 1, "head_width": 4}),
}


@pytest.mark.parametrize("name", list(LARGE))
def test_what_an_image_takes_of_a_small_network_is_bounded(package: Path, name: str):
    """A few megabytes of weights make gigabytes of activations; an MLP's weights are more than those."""
    side, network = LARGE[name]
    change(package, "network", network)
    change(package, "image_shape", [1, side, side])
    with pytest.raises(PackageError, match=rf"config\.json: the network holds .* of an image of {side} x {side}"):
        load_package(package)


@pytest.mark.parametrize(
    ("side", "network"),
    [
        (1024, UNetConfig(channels=(320, 640, 1280, 1280), attention=(True,) + 3 * (False,), layers_per_block=2)),
        (2048, UNetConfig(channels=(256, 256, 512, 512, 1024), attention=5 * (False,), layers_per_block=2)),
        (2048, UNetConfig()),
        (1024, DiTConfig(patch_size=2, layers=28, heads=16, head_width=72)),
    ],
)
def test_large_images_have_usual_networks(side: int, network: UNetConfig | DiTConfig):
    network.check_image(side, side)


def taken(package: Path, refused: str) -> int:
    """Kilobytes that it takes, with diffusers itself, to refuse a package with these words."""
    script = (
        "import sys; from pathlib import Path; import torch; from tests.security.peak import peak\n"
        "from diffusion.package import PackageError, load_package\n"
        "before = peak()\n"
        "try: load_package(Path(sys.argv[1]))\n"
        "except PackageError as error: print(peak() - before, error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(package)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    kilobytes, _, words = done.stdout.partition(" ")
    assert refused in words
    return int(kilobytes)


@pytest.mark.parametrize(
    "altered",
    [
        {"dtype": torch.float64},
        {"dtype": torch.float16},
        {"dtype": torch.int32},
        {"fill": float("nan")},
        {"fill": float("inf")},
        {"more": True},
        {"fewer": True},
        {"reshaped": True},
    ],
    ids=str,
)
def test_weights_that_are_others_are_refused(package: Path, altered: dict[str, Any]):
    weights = load_file(package / WEIGHTS)
    name = sorted(weights)[0]
    if "dtype" in altered:
        weights[name] = weights[name].to(altered["dtype"])
    elif "fill" in altered:
        weights[name] = weights[name].clone().index_fill_(0, torch.tensor([0]), altered["fill"])
    elif "reshaped" in altered:
        weights[name] = weights[name][..., None]
    elif "more" in altered:
        weights["another"] = torch.zeros(1)
    else:
        del weights[name]
    save_file(weights, package / WEIGHTS)
    sign(package)
    with pytest.raises(PackageError, match=rf"model\.safetensors: .*{'another' if 'more' in altered else name}"):
        load_package(package)
    with pytest.raises(ModelError):
        load(resolve(str(package)))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        (2**62).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}",
        (10).to_bytes(8, "little") + b"[[[[[[[[[[",
        b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    ],
)
def test_files_that_are_no_safetensors(package: Path, content: bytes):
    (package / WEIGHTS).write_bytes(content)
    sign(package)
    with pytest.raises(PackageError, match=r"model\.safetensors: "):
        load_package(package)


def test_a_header_that_overlaps_is_refused(package: Path):
    weights = load_file(package / WEIGHTS)
    header: dict[str, Any] = {
        name: {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [0, tensor.numel() * 4]}
        for name, tensor in weights.items()
    }
    text = json.dumps(header).encode()
    (package / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + bytes(4096))
    sign(package)
    with pytest.raises(PackageError, match=r"model\.safetensors: "):
        load_package(package)


def test_a_folder_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(PackageError, match=r"no manifest\.json; this is not a complete package"):
        load_package(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(PackageError, match="Not a directory"):
        load_package(tmp_path / "file")


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A network as diffusers leaves it, in several files."""
    model = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=8,
    )
    DDPMScheduler(num_train_timesteps=50).save_pretrained(tmp_path / "scheduler")
    model.save_pretrained(tmp_path / "unet", max_shard_size="5kB")
    load_diffusers(tmp_path / "unet")
    return tmp_path / "unet"


@pytest.mark.parametrize("variant", [None, "ema"])
@pytest.mark.parametrize("name", ["x.bin", "x", "x.safetensors.pt", "../x.safetensors", "pipe.safetensors", 3, None])
def test_of_a_diffusers_folder_no_pickle_is_read(
    shards: Path, monkeypatch: pytest.MonkeyPatch, name: object, variant: str | None
):
    monkeypatch.setattr("torch.load", lambda *_, **__: pytest.fail("a pickle is read"))
    for place in ("x.bin", "x", "x.safetensors.pt", "../x.safetensors"):
        torch.save({}, shards / place)
    os.mkfifo(shards / "pipe.safetensors")
    index = json.loads((shards / SHARDS).read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], name)
    named = shards / (SHARDS.replace(".json", ".ema.json") if variant else SHARDS)
    named.write_text(json.dumps(index))
    (shards / "diffusion_pytorch_model.ema.safetensors").touch()
    with pytest.raises(ValueError, match=rf"shard '{name}'; allowed: the names of \.safetensors files beside it"):
        load_diffusers(shards, variant=variant)


def test_a_text_of_a_diffusers_folder_without_end_is_not_read(shards: Path):
    names = ["config.json", "scheduler_config.json", "model_index.json", SHARDS]
    code = (
        "import os, sys; from pathlib import Path; from tests.security.peak import peak\n"
        "from diffusion.interop.diffusers_folder import load_diffusers\n"
        "from diffusers.models.unets.unet_2d import UNet2DModel\n"
        "before = peak()\n"
        "for name in sys.argv[2:]:\n"
        "    file = Path(sys.argv[1], name); whole = file.read_bytes() if file.exists() else None\n"
        "    file.touch(); os.truncate(file, 60 * 2**30)  # a hole, which takes no disk\n"
        "    try: load_diffusers(file.parent)\n"
        "    except ValueError as error: print(error)\n"
        "    file.unlink(); whole is None or file.write_bytes(whole)\n"
        "print(peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(shards), *names], cwd=ROOT, capture_output=True, text=True, timeout=120,
        check=True,
    )  # fmt: skip
    *problems, kilobytes = done.stdout.splitlines()
    assert int(kilobytes) < 300_000
    for name, problem in zip(names, problems, strict=True):
        assert f"{name}: not JSON: has 64424509440 bytes or more; allowed: at most 16777216" in problem


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "settings",
    [
        {"layers_per_block": 10**9},
        {"layers_per_block": 101},
        {"block_out_channels": [8] * 10**6},
        {"down_block_types": ["DownBlock2D"] * 10**6},
        {"up_block_types": "UpBlock2D" * 10**6},
    ],
)
def test_the_layers_of_a_diffusers_network_are_counted_before_it_is_built(shards: Path, settings: dict[str, Any]):
    fields = json.loads((shards / "config.json").read_text())
    (shards / "config.json").write_text(json.dumps({**fields, **settings}))
    with pytest.raises(ValueError, match=rf"unet\.{next(iter(settings))} = .{{1,200}}; allowed: a .* up to \d+"):
        load_diffusers(shards)


def test_files_that_are_not_read_are_no_room_for_weights(shards: Path):
    with (shards / "another.safetensors").open("wb") as file:
        file.truncate(2**40)
    settings = json.loads((shards / "config.json").read_text())
    (shards / "config.json").write_text(json.dumps({**settings, "block_out_channels": [8192]}))
    with pytest.raises(ValueError, match=r"do not fit the network of config\.json: \d+ bytes for"):
        load_diffusers(shards)
