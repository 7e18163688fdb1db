"""A run's identity: canonical JSON and the two digests, over every leaf of the configuration."""

import json
import types
import typing
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from pydantic import BaseModel, ValidationError

from trainer.config.load import validate
from trainer.config.run_config import RunConfig, canonical
from trainer.errors import InputError

OUTSIDE_THE_METHOD = ("parallel.", "run.", "training.steps", "training.init_from")

# another valid value for every leaf; a new field has to be added here, and so thought about
OTHER = {
    "data.source": "/data/images.npy",
    "data.heldout_fraction": 0.3,
    "data.split_seed": 1,
    "data.size": 16,
    "data.channels": 3,
    "data.image_column": "picture",
    "data.label_column": "kind",
    "data.split": "seeded",
    "data.white_level": 4095,
    "process.num_train_timesteps": 999,
    "process.log_snr_max": 12.0,
    "process.log_snr_min": -12.0,
    "process.schedule.zero_terminal_snr": True,
    "process.schedule.s": 0.01,
    "process.schedule.max_beta": 0.99,
    "process.reverse_variance": "beta_tilde",
    "objective.prediction": "score",
    "objective.weighting.kind": "vlb",
    "objective.time_sampling.kind": "uniform",
    "objective.sigma_data": 0.4,
    "objective.label_dropout": 0.2,
    "network.classes": 10,
    "network.channels": [32, 128],
    "network.attention": [True, True],
    "network.layers_per_block": 2,
    "network.norm_groups": 4,
    "network.head_width": 16,
    "network.dropout": 0.1,
    "optim.lr": 2e-3,
    "optim.betas": [0.9, 0.999],
    "optim.eps": 1e-7,
    "optim.weight_decay": 0.01,
    "optim.warmup_steps": 0,
    "optim.max_grad_norm": 2.0,
    "ema.sigma_rel": 0.05,
    "ema.tracks": [0.05, 0.12],
    "ema.snapshot_every": 9,
    "training.steps": 1501,
    "training.init_from": "/packages/other",
    "training.init_sha256": "e" * 64,
    "training.global_batch_size": 127,
    "training.precision": "bf16",
    "training.on_nonfinite": "skip",
    "training.max_skips": 6,
    "training.augment.horizontal_flip": True,
    "training.augment.crop_padding": 2,
    "training.dequantise": "uniform",
    "evaluation.metrics": ["vlb"],
    "evaluation.extractors": ["pixels"],
    "evaluation.inception_file": "/models/inception.pt",
    "evaluation.inception_sha256": "0" * 64,
    "evaluation.nfe_curve": [5, 10],
    "evaluation.seeds": 3,
    "evaluation.nll_rtol": 1e-4,
    "evaluation.samples": 1000,
    "evaluation.seed": 1,
    "evaluation.solver.num_steps": 31,
    "evaluation.solver.clip_x0": False,
    "evaluation.solver.denoise": False,
    "evaluation.solver.spacing": "karras",
    "evaluation.guidance": {"kind": "autoguidance", "guide": "/models/weak"},
    "evaluation.vlb_draws": 33,
    "evaluation.reference": "/other.npz",
    "evaluation.classifier_seed": 1,
    "parallel.workers": 3,
    "parallel.zero_stage": 3,
    "parallel.device": "cpu",
    "parallel.cpus_per_worker": 0.5,
    "parallel.micro_batch_size": 16,
    "parallel.channels_last": True,
    "parallel.compile": True,
    "parallel.deepspeed.offload_optimizer": "cpu",
    "parallel.deepspeed.offload_parameters": "cpu",
    "parallel.deepspeed.activation_checkpointing": True,
    "parallel.deepspeed.overlap_comm": True,
    "parallel.deepspeed.reduce_bucket_size": 10**6,
    "parallel.deepspeed.allgather_bucket_size": 10**6,
    "parallel.deepspeed.stage3_prefetch_bucket_size": 10**6,
    "parallel.deepspeed.stage3_param_persistence_threshold": 0,
    "run.experiment": "other",
    "run.name": "other",
    "run.storage": "/other",
    "run.tracking_uri": "http://other",
    "run.register_as": "other",
    "run.alias": "other",
    "run.gate.metric": "frechet_classifier",
    "run.gate.sigmas": 3.0,
    "run.gate.likelihood_gap": 0.5,
    "run.checkpoint_every": 100,
    "run.keep_checkpoints": 3,
    "run.evaluate_every": 500,
    "run.log_every": 10,
    "run.keep": "package",
    "run.hang_medians": 5.0,
    "run.hang_floor": 60.0,
    "seed": 1,
}
KINDS = {
    "process": {"kind": "vp"},
    "process.schedule": {"kind": "linear"},
    "network": {"kind": "mlp"},
    "evaluation.solver": {"kind": "ddim", "num_steps": 30},
    "optim.schedule": {"kind": "cosine"},
}
ONE_VALUE_ONLY = {"training.on_nonfinite"}
# what a value cannot be without
STAGE_3 = {"parallel": {"zero_stage": 3}}
WITH = {
    "process.schedule.zero_terminal_snr": {"objective": {"prediction": "v"}},
    "parallel.deepspeed.offload_parameters": STAGE_3,
    "parallel.deepspeed.stage3_prefetch_bucket_size": STAGE_3,
    "parallel.deepspeed.stage3_param_persistence_threshold": STAGE_3,
}


def leaves(values: dict[str, Any], prefix: str = "") -> set[str]:
    paths = set()
    for key, value in values.items():
        paths |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}"}
    return paths


def base(path: str) -> RunConfig:
    return validate(WITH.get(path, {}))


def changed(path: str, value: Any) -> RunConfig:
    values = base(path).model_dump(mode="json")
    *groups, leaf = path.split(".")
    node = values
    for group in groups:
        node = node[group]
    node[leaf] = value
    return validate(values)


def test_every_leaf_is_covered_here():
    kinds = {f"{group}.kind" for group in KINDS}
    assert leaves(RunConfig().model_dump(mode="json")) == set(OTHER) | kinds | ONE_VALUE_ONLY


@pytest.mark.parametrize(("path", "value"), [*OTHER.items(), *KINDS.items()], ids=[*OTHER, *KINDS])
def test_config_digest_sees_every_setting_and_method_digest_only_what_decides_the_result(path, value):
    before, after = base(path), changed(path, value)
    assert after.config_sha256 != before.config_sha256
    assert (after.method_sha256 == before.method_sha256) == path.startswith(OUTSIDE_THE_METHOD)


@pytest.mark.parametrize(("path", "value"), [*OTHER.items(), *KINDS.items()], ids=[*OTHER, *KINDS])
def test_canonical_json_is_read_back_to_the_same_run(path, value):
    config = changed(path, value)
    again = RunConfig.model_validate_json(config.canonical_json())
    assert again == config
    assert (again.config_sha256, again.method_sha256) == (config.config_sha256, config.method_sha256)


def test_guidance_needs_a_network_that_is_also_trained_without_labels():
    guided = {"network": {"classes": 10}, "evaluation": {"guidance": {"kind": "classifier_free", "scale": 2.0}}}
    assert validate(guided).objective.label_dropout > 0
    with pytest.raises(InputError, match=r"allowed: with objective.label_dropout above 0"):
        validate({**guided, "objective": {"label_dropout": 0.0}})


def test_defaults_written_out_are_the_same_run():
    assert validate(json.loads(RunConfig().canonical_json())).config_sha256 == validate({}).config_sha256


def test_an_integer_where_a_number_is_wanted_is_the_same_run():
    assert (
        validate({"optim": {"max_grad_norm": 1}}).config_sha256
        == validate({"optim": {"max_grad_norm": 1.0}}).config_sha256
    )


def test_method_digest_of_the_defaults_is_recorded():
    """A change here renames every unnamed run and orphans its checkpoints: add a field only with that in mind."""
    assert len(RunConfig().method_sha256) == 64
    assert RunConfig().method_sha256 == RECORDED_METHOD


RECORDED_METHOD = "468d3884dc38c370470edada344a5d1999fad2d51313173c9288fb26c561f9b6"

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), json_values), st.randoms())
@settings(deadline=None)
def test_canonical_json_ignores_the_order_of_keys_and_loses_nothing(values, random):
    items = list(values.items())
    random.shuffle(items)
    assert canonical(dict(items)) == canonical(values)
    assert json.loads(canonical(values)) == values
    assert "\n" not in canonical(values)


def models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation, *(m for field in annotation.model_fields.values() for m in models(field.annotation))]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated, tuple):
        return [m for part in typing.get_args(annotation) for m in models(part)]
    return []


MODELS = sorted(set(models(RunConfig)), key=lambda m: m.__name__)


@pytest.mark.parametrize("model", MODELS, ids=[m.__name__ for m in MODELS])
def test_every_part_is_frozen_strict_and_refuses_unknown_keys(model):
    assert {key: model.model_config.get(key) for key in ("extra", "frozen", "strict", "allow_inf_nan")} == {
        "extra": "forbid",
        "frozen": True,
        "strict": True,
        "allow_inf_nan": False,
    }
    with pytest.raises(ValidationError, match="Extra inputs"):
        model.model_validate({"no_such_key": 1})
