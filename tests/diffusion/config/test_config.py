"""Configuration of the theory: strict, frozen, finite, torch-free; what cannot be is refused with the way out."""

import subprocess
import sys

import pytest
from hypothesis import given, strategies as st
from pydantic import TypeAdapter, ValidationError

from diffusion.config import (
    AdaptiveWeighting,
    Ancestral,
    Autoguidance,
    ClassifierFree,
    CosineSchedule,
    Ddim,
    DdpmProcess,
    DiTConfig,
    Dpmpp2M,
    Dpmpp2MSde,
    Dpmpp3M,
    EdmSchedule,
    EdmStochastic,
    EdmWeighting,
    Euler,
    EulerMaruyama,
    GeometricSchedule,
    GuidanceConfig,
    Heun,
    ImportanceTime,
    LaplaceSchedule,
    LearnedSchedule,
    LikelihoodWeighting,
    LinearSchedule,
    MinSnrWeighting,
    MLPConfig,
    NetworkConfig,
    ObjectiveConfig,
    P2Weighting,
    PredictorCorrector,
    ProcessConfig,
    QuadraticSchedule,
    Rk45,
    ScaledLinearSchedule,
    SigmoidSchedule,
    SigmoidWeighting,
    SimpleWeighting,
    SnrWeighting,
    SolverConfig,
    StratifiedTime,
    SubVpProcess,
    TableSchedule,
    UNetConfig,
    UniformTime,
    UniPC,
    VeProcess,
    VlbWeighting,
    VpProcess,
    check_guidance,
    check_objective,
    check_solver,
    evaluations,
)
from diffusion.config.solver import limit_nfe
from diffusion.gaussian import GaussianData
from diffusion.process.sde import make_process
from diffusion.solvers import ImageNoise, make_solver

PROCESSES = TypeAdapter(ProcessConfig)
ZERO_SNR = DdpmProcess(schedule=CosineSchedule(zero_terminal_snr=True))
betas = st.floats(1e-9, 0.9)
positive = st.floats(1e-6, 1e6)
beta_schedules = st.sampled_from([LinearSchedule, QuadraticSchedule, ScaledLinearSchedule, SigmoidSchedule]).flatmap(
    lambda kind: st.builds(kind, beta_start=betas, beta_end=betas)
)
fixed_schedules = st.one_of(
    beta_schedules,
    st.builds(CosineSchedule, s=st.floats(1e-6, 1)),
    st.builds(LaplaceSchedule, mean=st.floats(-9, 9), scale=positive),
    st.builds(EdmSchedule, p_mean=st.floats(-9, 9), p_std=positive),
    st.just(GeometricSchedule()),
)
log_snr_ends = {"log_snr_max": st.floats(1, 1e3), "log_snr_min": st.floats(-1e3, 0.5)}
steps, widths, depths = st.integers(1, 10**6), st.integers(1, 65536), st.integers(1, 1000)
processes = st.one_of(
    st.builds(
        DdpmProcess,
        num_train_timesteps=st.integers(1000, 10**6),
        schedule=fixed_schedules,
        reverse_variance=st.sampled_from(["beta", "beta_tilde", "learned"]),
        **log_snr_ends,
    ),
    st.lists(betas, min_size=2, max_size=9).map(
        lambda table: DdpmProcess(num_train_timesteps=len(table), schedule=TableSchedule(betas=tuple(table)))
    ),
    st.sampled_from([VpProcess, SubVpProcess, VeProcess]).flatmap(
        lambda kind: st.builds(
            kind,
            num_train_timesteps=st.integers(2, 10**6),
            schedule=st.one_of(fixed_schedules, st.builds(LearnedSchedule, width=st.integers(1, 4096))),
            reverse_variance=st.sampled_from(["beta", "beta_tilde"]),
            **log_snr_ends,
        )
    ),
)
weightings = st.one_of(
    st.sampled_from([SimpleWeighting(), VlbWeighting(), LikelihoodWeighting(), SnrWeighting(), EdmWeighting()]),
    st.builds(MinSnrWeighting, gamma=positive),
    st.builds(P2Weighting, k=positive, gamma=st.floats(0, 9)),
    st.builds(SigmoidWeighting, bias=st.floats(-9, 9)),
    st.builds(AdaptiveWeighting, knots=st.integers(2, 99)),
)
objectives = st.builds(
    ObjectiveConfig,
    prediction=st.sampled_from(["epsilon", "score", "x0", "v", "edm"]),
    weighting=weightings,
    time_sampling=st.one_of(
        st.sampled_from([UniformTime(), StratifiedTime()]),
        st.builds(ImportanceTime, bins=st.integers(2, 999), decay=st.floats(0.01, 0.999), uniform=st.floats(1e-6, 1)),
    ),
    sigma_data=positive,
    label_dropout=st.floats(0, 0.99),
)
grids = {"num_steps": steps, "clip_x0": st.booleans(), "spacing": st.sampled_from(["uniform", "log_snr", "karras"])}
solvers = st.one_of(
    st.sampled_from([Ancestral, Dpmpp2M, Dpmpp3M, Dpmpp2MSde, Euler, EulerMaruyama, Heun, PredictorCorrector]).flatmap(
        lambda kind: st.builds(kind, **grids)
    ),
    st.builds(Ddim, **grids, eta=st.floats(0, 1)),
    st.builds(EdmStochastic, **grids, s_churn=st.floats(0, 99)),
    st.builds(UniPC, **grids, order=st.integers(1, 3)),
    st.builds(Rk45, rtol=positive, atol=positive),
)
networks = st.one_of(
    st.builds(MLPConfig, width=st.integers(2, 65536), depth=depths, classes=st.integers(0, 999)),
    st.builds(
        DiTConfig, patch_size=widths, layers=depths, heads=depths, head_width=st.integers(1, 99).map(lambda n: 4 * n)
    ),
    st.integers(1, 5).flatmap(
        lambda n: st.builds(
            UNetConfig,
            channels=st.lists(st.integers(1, 64).map(lambda c: 8 * c), min_size=n, max_size=n).map(tuple),
            attention=st.lists(st.booleans(), min_size=n, max_size=n).map(tuple),
            classes=st.integers(0, 999),
        )
    ),
)
guidances = st.one_of(
    st.builds(ClassifierFree, scale=positive),
    st.builds(Autoguidance, scale=positive, guide=st.text(min_size=1, max_size=9)),
)


@given(st.one_of(processes, objectives, solvers, networks, guidances))
def test_json_round_trip_is_exact(config):
    assert type(config).model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("union", "strategy"),
    [(ProcessConfig, processes), (SolverConfig, solvers), (NetworkConfig, networks), (GuidanceConfig, guidances)],
    ids=["process", "solver", "network", "guidance"],
)
@given(data=st.data())
def test_kind_alone_chooses_the_variant(union, strategy, data):
    config = data.draw(strategy)
    actual = TypeAdapter(union).validate_json(config.model_dump_json())
    assert (type(actual), actual) == (type(config), config)


def test_values_cannot_be_changed_after_validation():
    with pytest.raises(ValidationError, match="frozen"):
        DdpmProcess().num_train_timesteps = 5


@pytest.mark.parametrize(
    ("model", "json", "message"),
    [
        (DdpmProcess, '{"num_train_timesteps": 1}', "greater than or equal to 2"),
        (DdpmProcess, '{"num_train_timesteps": "1000"}', "valid integer"),
        (DdpmProcess, '{"num_train_timesteps": 1000.0}', "valid integer"),
        (DdpmProcess, '{"num_train_timesteps": true}', "valid integer"),
        (DdpmProcess, '{"steps": 1000}', "Extra inputs"),
        (DdpmProcess, '{"schedule": {"kind": "logistic"}}', "does not match any of the expected tags"),
        (DdpmProcess, '{"schedule": {"kind": "linear", "beta_end": 1.0}}', "less than 1"),
        (DdpmProcess, '{"schedule": {"kind": "linear", "beta_end": NaN}}', "finite"),
        (DdpmProcess, '{"schedule": {"kind": "cosine", "s": Infinity}}', "finite"),
        (DdpmProcess, '{"schedule": {"kind": "laplace", "scale": 0}}', "greater than 0"),
        (DdpmProcess, '{"schedule": {"kind": "table", "betas": [0.1]}}', "at least 2"),
        (DdpmProcess, '{"schedule": {"kind": "table", "betas": [0.1, 1.0]}}', "less than 1"),
        (
            DdpmProcess,
            '{"schedule": {"kind": "linear"}, "num_train_timesteps": 20}',
            "use more steps or a smaller beta_end",
        ),
        (
            DdpmProcess,
            '{"schedule": {"kind": "quadratic", "beta_start": 0.9, "beta_end": 0.001}, "num_train_timesteps": 900}',
            "largest beta to 1; betas must be below 1: use more steps",
        ),
        (DdpmProcess, '{"schedule": {"kind": "learned"}}', "continuous time; use process.kind = vp, sub_vp or ve"),
        (VpProcess, '{"reverse_variance": "learned"}', "'beta' or 'beta_tilde'"),
        (VpProcess, '{"log_snr_max": -3, "log_snr_min": -3.0}', "log_snr_min = -3 is not below log_snr_max = -3"),
        (VeProcess, '{"log_snr_max": -8.0}', "log-SNR must fall"),
        (DdpmProcess, '{"log_snr_max": -20.0}', "log-SNR must fall"),
        (UNetConfig, '{"attention": [true]}', "one per entry of channels, 2"),
        (ObjectiveConfig, '{"prediction": "u"}', "'epsilon', 'score', 'x0', 'v' or 'edm'"),
        (ObjectiveConfig, '{"sigma_data": 0}', "greater than 0"),
        (ObjectiveConfig, '{"label_dropout": 1}', "less than 1"),
        (ObjectiveConfig, '{"time_sampling": {"kind": "importance", "uniform": 0}}', "greater than 0"),
        (ObjectiveConfig, '{"time_sampling": {"kind": "importance", "decay": 1}}', "less than 1"),
        (ObjectiveConfig, '{"weighting": {"kind": "adaptive", "knots": 1}}', "greater than or equal to 2"),
        (ObjectiveConfig, '{"weighting": {"kind": "min_snr", "gamma": 0}}', "greater than 0"),
        (Ddim, '{"eta": 1.5}', "less than or equal to 1"),
        (Ddim, '{"num_steps": 0}', "greater than or equal to 1"),
        (UniPC, '{"order": 4}', "less than or equal to 3"),
        (Heun, '{"spacing": "linear"}', "'uniform', 'log_snr' or 'karras'"),
        (ClassifierFree, '{"scale": -1}', "greater than or equal to 0"),
        (Autoguidance, '{"guide": ""}', "at least 1 character"),
    ],
)
def test_bad_values_are_refused_with_what_is_allowed(model, json, message):
    with pytest.raises(ValidationError, match=message):
        model.model_validate_json(json)


@pytest.mark.parametrize("kind", ["vp", "sub_vp", "ve"])
def test_a_terminal_snr_of_zero_is_for_chains(kind):
    schedule = {"kind": "cosine", "zero_terminal_snr": True}
    with pytest.raises(ValidationError, match=r"use process\.kind = ddpm, or a lower process\.log_snr_min"):
        PROCESSES.validate_python({"kind": kind, "schedule": schedule})
    assert PROCESSES.validate_python({"kind": "ddpm", "schedule": schedule}).schedule.zero_terminal_snr


ZERO_SNR = DdpmProcess(schedule=CosineSchedule(zero_terminal_snr=True))
LEARNED = VpProcess(schedule=LearnedSchedule())


@pytest.mark.parametrize(
    ("process", "objective", "message"),
    [
        (
            SubVpProcess(),
            {"prediction": "v"},
            r"prediction = v needs alpha\^2 \+ sigma\^2 = 1, which process\.kind = sub_vp does not keep; use epsilon",
        ),
        (VeProcess(), {"prediction": "v"}, r"process\.kind = ve does not keep; use epsilon, score, x0 or edm"),
        *(
            (
                ZERO_SNR,
                {"prediction": kind},
                f"prediction = {kind} says nothing of x_0 .* zero; use v or x0, or process",
            )
            for kind in ("epsilon", "score", "edm")
        ),
        *(
            (LEARNED, {"weighting": weighting}, rf"weighting\.kind = {weighting.kind}: a learned schedule .*; use vlb")
            for weighting in (SimpleWeighting(), AdaptiveWeighting(), SnrWeighting(), EdmWeighting())
        ),
        (
            LEARNED,
            {"weighting": VlbWeighting(), "time_sampling": ImportanceTime()},
            r"time_sampling\.kind = importance: a learned schedule does that work; use stratified",
        ),
    ],
)
def test_objectives_that_a_process_does_not_define_are_refused_with_the_way_out(process, objective, message):
    with pytest.raises(ValueError, match=message):
        check_objective(process, ObjectiveConfig(**objective))


@pytest.mark.parametrize(
    ("process", "predictions"),
    [
        (DdpmProcess(), ("epsilon", "score", "x0", "v", "edm")),
        (VpProcess(), ("epsilon", "score", "x0", "v", "edm")),
        (SubVpProcess(), ("epsilon", "score", "x0", "edm")),
        (VeProcess(), ("epsilon", "score", "x0", "edm")),
        (ZERO_SNR, ("x0", "v")),
    ],
    ids=["ddpm", "vp", "sub_vp", "ve", "zero-snr"],
)
def test_all_other_objectives_are_allowed(process, predictions):
    for prediction in predictions:
        check_objective(process, ObjectiveConfig(prediction=prediction, time_sampling=ImportanceTime()))
    for weighting in (VlbWeighting(), LikelihoodWeighting()):
        check_objective(LEARNED, ObjectiveConfig(weighting=weighting))


@pytest.mark.parametrize(
    ("config", "allowed", "refused", "message"),
    [
        (UNetConfig(channels=(8, 8, 8), attention=(False,) * 3), (4, 8), (4, 6), "divisible by 4"),
        (DiTConfig(patch_size=4), (8, 8), (8, 4), "square images whose side it divides; the images are 8 x 4"),
        (DiTConfig(patch_size=4), (12, 12), (6, 6), "use another patch_size, or network.kind = unet"),
    ],
)
def test_images_that_a_network_cannot_take_are_refused_without_building_it(config, allowed, refused, message):
    config.check_image(*allowed)
    MLPConfig().check_image(*refused)
    with pytest.raises(ValueError, match=message):
        config.check_image(*refused)


@pytest.mark.parametrize("module", ["diffusion", "diffusion.config"])
def test_configuration_loads_no_torch(module):
    code = f"import sys, {module}; print(sorted({{'torch', 'numpy', 'diffusers', 'ray'}} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


@pytest.mark.parametrize(
    ("process", "solver", "message"),
    [
        (DdpmProcess(num_train_timesteps=50), Ddim(num_steps=51), r"^here\.num_steps = 51; allowed: at most 50"),
        (DdpmProcess(num_train_timesteps=50), Ddim(num_steps=50, denoise=False), "= 50; allowed: at most 49"),
        (ZERO_SNR, Heun(), r"^here\.kind = heun: cannot start where the SNR is zero; allowed: ancestral, ddim"),
        (ZERO_SNR, Rk45(), "kind = rk45: cannot start"),
        (ZERO_SNR, Ddim(spacing="log_snr"), "with spacing = uniform"),
    ],
)
def test_a_solver_that_the_process_cannot_take_is_refused(process, solver, message):
    with pytest.raises(ValueError, match=message):
        check_solver(process, solver, "here")


@pytest.mark.parametrize(
    ("process", "solver"),
    [
        (DdpmProcess(num_train_timesteps=50), Ddim(num_steps=50)),
        (DdpmProcess(num_train_timesteps=50), Ddim(num_steps=51, spacing="karras")),
        (DdpmProcess(num_train_timesteps=50), Rk45()),
        (VpProcess(num_train_timesteps=50), Ddim(num_steps=51)),
        (ZERO_SNR, Ddim()),
    ],
)
def test_a_solver_that_the_process_can_take_passes(process, solver):
    assert check_solver(process, solver) is None


def test_classifier_free_guidance_needs_classes():
    with pytest.raises(ValueError, match=r"^here\.kind = classifier_free: needs network\.classes > 0"):
        check_guidance(ClassifierFree(), 0, "here")
    for guidance, classes in ((None, 0), (Autoguidance(guide="/weak"), 0), (ClassifierFree(), 3)):
        assert check_guidance(guidance, classes) is None


@pytest.mark.parametrize(
    ("solver", "count"),
    [
        (Ddim(num_steps=7), 7),
        (Heun(num_steps=7), 13),
        (Heun(num_steps=7, denoise=False), 14),
        (EdmStochastic(num_steps=7), 13),
        (PredictorCorrector(num_steps=7, corrector_steps=2), 19),
        (Rk45(), None),
    ],
)
def test_evaluations_are_counted_as_the_solver_asks_for_them(solver, count):
    assert evaluations(solver) == count
    if count is not None:
        denoiser = GaussianData(0.0, 0.25).denoiser(make_process(VpProcess()))
        sampler, asked = make_solver(solver, denoiser, ImageNoise(0, [0], (1, 1, 1))), 0
        while (query := sampler.want()) is not None:
            sampler.feed(denoiser.output(*query))
            asked += 1
        assert asked == count


@pytest.mark.parametrize("denoise", [True, False])
@pytest.mark.parametrize("kind", [Ddim, Heun, EdmStochastic, PredictorCorrector])
def test_as_many_steps_as_a_number_of_evaluations_allows(kind, denoise):
    def count(steps: int) -> int:
        return evaluations(kind(num_steps=steps, denoise=denoise)) or 0

    def allowed(nfe: int) -> int:
        return limit_nfe(kind(denoise=denoise), nfe).model_dump()["num_steps"]

    one = count(1)
    for nfe in (one, one + 1, 10, 11, 10**5):
        assert count(allowed(nfe)) <= nfe < count(allowed(nfe) + 1)
    with pytest.raises(ValueError, match=f"{one - 1}; allowed: at least {one}"):
        allowed(one - 1)
    assert allowed(10**400) == 10**6
