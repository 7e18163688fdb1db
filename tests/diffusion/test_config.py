"""Configuration of the theory: strict, frozen, finite, torch-free."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from diffusion.config import (
    Ancestral,
    CosineSchedule,
    Ddim,
    Dpmpp2M,
    LinearSchedule,
    MLPConfig,
    ObjectiveConfig,
    ProcessConfig,
    SimpleWeighting,
    SolverConfig,
    StratifiedTime,
    UNetConfig,
    UniformTime,
    VlbWeighting,
)

betas = st.floats(1e-9, 0.9)
processes = st.builds(
    ProcessConfig,
    num_train_timesteps=st.integers(1000, 10**6),
    schedule=st.one_of(
        st.builds(LinearSchedule, beta_start=betas, beta_end=betas), st.builds(CosineSchedule, s=st.floats(1e-6, 1))
    ),
    reverse_variance=st.sampled_from(["beta", "beta_tilde"]),
)
objectives = st.builds(
    ObjectiveConfig,
    prediction=st.sampled_from(["epsilon", "score", "x0", "v"]),
    weighting=st.sampled_from([SimpleWeighting(), VlbWeighting()]),
    time_sampling=st.sampled_from([UniformTime(), StratifiedTime()]),
)
steps = st.integers(1, 10**6)
solvers = st.one_of(
    st.builds(Ancestral, num_steps=steps, clip_x0=st.booleans()),
    st.builds(Ddim, num_steps=steps, eta=st.floats(0, 1), clip_x0=st.booleans()),
    st.builds(Dpmpp2M, num_steps=steps, clip_x0=st.booleans()),
)
networks = st.one_of(
    st.builds(MLPConfig, width=st.integers(2, 10**6), depth=steps),
    st.integers(1, 5).flatmap(
        lambda n: st.builds(
            UNetConfig,
            channels=st.lists(st.integers(1, 64).map(lambda c: 8 * c), min_size=n, max_size=n).map(tuple),
            attention=st.lists(st.booleans(), min_size=n, max_size=n).map(tuple),
        )
    ),
)


@given(st.one_of(processes, objectives, solvers, networks))
def test_json_round_trip_is_exact(config):
    assert type(config).model_validate_json(config.model_dump_json()) == config


@given(solvers)
def test_kind_alone_chooses_the_variant(config):
    assert TypeAdapter(SolverConfig).validate_json(config.model_dump_json()) == config


def test_values_cannot_be_changed_after_validation():
    with pytest.raises(ValidationError, match="frozen"):
        ProcessConfig().num_train_timesteps = 5


@pytest.mark.parametrize(
    ("model", "json", "message"),
    [
        (ProcessConfig, '{"num_train_timesteps": 1}', "greater than or equal to 2"),
        (ProcessConfig, '{"num_train_timesteps": "1000"}', "valid integer"),
        (ProcessConfig, '{"num_train_timesteps": 1000.0}', "valid integer"),
        (ProcessConfig, '{"num_train_timesteps": true}', "valid integer"),
        (ProcessConfig, '{"steps": 1000}', "Extra inputs"),
        (ProcessConfig, '{"schedule": {"kind": "logistic"}}', "does not match any of the expected tags"),
        (ProcessConfig, '{"schedule": {"kind": "linear", "beta_end": 1.0}}', "less than 1"),
        (ProcessConfig, '{"schedule": {"kind": "linear", "beta_end": NaN}}', "finite"),
        (ProcessConfig, '{"schedule": {"kind": "cosine", "s": Infinity}}', "finite"),
        (
            ProcessConfig,
            '{"schedule": {"kind": "linear"}, "num_train_timesteps": 20}',
            "use more steps or a smaller beta_end",
        ),
        (ObjectiveConfig, '{"prediction": "u"}', "'epsilon', 'score', 'x0' or 'v'"),
        (Ddim, '{"eta": 1.5}', "less than or equal to 1"),
        (Ddim, '{"num_steps": 0}', "greater than or equal to 1"),
    ],
)
def test_bad_values_are_refused_with_what_is_allowed(model, json, message):
    with pytest.raises(ValidationError, match=message):
        model.model_validate_json(json)


@pytest.mark.parametrize("module", ["diffusion", "diffusion.config"])
def test_configuration_loads_no_torch(module):
    code = f"import sys, {module}; print(sorted({{'torch', 'numpy', 'diffusers', 'ray'}} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
