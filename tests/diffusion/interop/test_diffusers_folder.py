"""Folders of diffusers as denoisers and back: the same outputs bit for bit, the same chain, the same samples."""
# diffusers is partly typed, and a denoiser's network is typed as a function:
# pyright: reportPrivateImportUsage=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportFunctionMemberAccess=false

import inspect
import json
import math
import runpy
import sys

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from safetensors.torch import load, load_file, save_file

from diffusion import convert
from diffusion.config import (
    Ancestral,
    ClassifierFree,
    CosineSchedule,
    Ddim,
    DdpmProcess,
    Dpmpp2M,
    LinearSchedule,
    MLPConfig,
    ScaledLinearSchedule,
    SigmoidSchedule,
    TableSchedule,
    UNetConfig,
    VpProcess,
)
from diffusion.denoiser import Denoiser
from diffusion.interop.diffusers_folder import load_diffusers, read_process, save_diffusers, unet_config
from diffusion.interop.diffusers_scheduler import DEFAULT_ENDS, read_scheduler
from diffusion.network import UNet, build_network
from diffusion.package import PackageConfig, load_package, save_package
from diffusion.process.sde import make_process
from diffusion.solvers import solve

SHAPE = (1, 8, 8)
CONFIG = UNetConfig(channels=(8, 16), norm_groups=4)
UNET = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


class Generated:
    """The noise that a diffusers pipeline draws from a generator, draw after draw."""

    def __init__(self, rows, dtype=torch.float32):
        self.generator, self.rows, self.dtype, self.next = torch.Generator().manual_seed(3), rows, dtype, 0

    def draw(self, index):
        assert index == self.next
        self.next += 1
        return torch.randn((self.rows, *SHAPE), generator=self.generator, dtype=self.dtype)


def make_denoiser(prediction="epsilon", variance="beta", schedule=None, steps=20, classes=0, **process):
    schedule = schedule or LinearSchedule(beta_end=0.015)
    chain = DdpmProcess(num_train_timesteps=steps, schedule=schedule, reverse_variance=variance)
    network = build_network(CONFIG.model_copy(update={"classes": classes}), SHAPE, variance == "learned").eval()
    return Denoiser(network, make_process(chain), prediction, null_label=classes or None)


def load_pipeline(folder):
    pipeline = DDPMPipeline.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def write_folder(folder, scheduler=None, **unet):
    """A folder as diffusers writes it; returns its UNet."""
    model = UNet2DModel(**{**UNET, **unet}).eval()
    DDPMPipeline(unet=model, scheduler=scheduler or DDPMScheduler(num_train_timesteps=50)).save_pretrained(folder)
    return model


def edit(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def pipeline_images(pipeline, num_steps):
    with torch.random.fork_rng():
        return pipeline(
            batch_size=2,
            generator=torch.Generator().manual_seed(3),
            num_inference_steps=num_steps,
            output_type="pt",
        ).images


def our_images(denoiser, config, dtype=torch.float32):
    with torch.inference_mode():
        return solve(denoiser, Generated(2, dtype), config) / 2 + 0.5


def in_float64(pipeline, denoiser):
    """Both in float64, diffusers' tables too, which it keeps in float32: what is left is the algebra."""
    pipeline.unet.double()
    denoiser.network.double()
    scheduler = pipeline.scheduler
    scheduler.alphas_cumprod = torch.cumprod(1 - torch.tensor(scheduler.config.trained_betas, dtype=torch.float64), 0)
    scheduler.one = scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)


# --- a denoiser written for diffusers


@pytest.mark.parametrize(
    ("variance", "prediction"),
    [
        *(
            (variance, prediction)
            for variance in ("beta", "beta_tilde")
            for prediction in ("epsilon", "v", "x0", "score")
        ),
        ("learned", "epsilon"),
        *(pytest.param("learned", prediction, marks=pytest.mark.slow) for prediction in ("v", "x0", "score")),
    ],
)
def test_the_real_pipeline_samples_what_ancestral_samples_from_the_same_noise(tmp_path, prediction, variance):
    denoiser = make_denoiser(prediction, variance)
    save_diffusers(denoiser, tmp_path)
    theirs = pipeline_images(load_pipeline(tmp_path), 20)
    rounding = 20 * torch.finfo(torch.float32).eps  # one a step; the test below takes it away
    torch.testing.assert_close(theirs, our_images(denoiser, Ancestral(num_steps=20)), rtol=0, atol=rounding)
    assert float(theirs.std()) > 0.05


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0", "score"])
@pytest.mark.parametrize(
    ("variance", "num_steps"), [("beta", 20), ("beta_tilde", 20), ("beta_tilde", 7), ("learned", 20)]
)
def test_in_float64_the_two_are_one_algorithm(tmp_path, prediction, variance, num_steps):
    denoiser = make_denoiser(prediction, variance, CosineSchedule())
    save_diffusers(denoiser, tmp_path)
    pipeline = load_pipeline(tmp_path)
    in_float64(pipeline, denoiser)
    ours = our_images(denoiser, Ancestral(num_steps=num_steps), torch.float64)
    torch.testing.assert_close(pipeline_images(pipeline, num_steps), ours, rtol=0, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.6])
@pytest.mark.parametrize("num_steps", [20, 10])
@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0", "score"])
def test_a_ddim_scheduler_made_of_the_folder_samples_what_ddim_samples(tmp_path, prediction, num_steps, eta):
    denoiser = make_denoiser(prediction, "beta", CosineSchedule())
    save_diffusers(denoiser, tmp_path)
    pipeline = load_pipeline(tmp_path)
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    pipeline.scheduler = scheduler
    in_float64(pipeline, denoiser)
    scheduler.set_timesteps(num_steps)
    noise = Generated(2, torch.float64)
    x = noise.draw(0)
    with torch.inference_mode():
        for i, t in enumerate(scheduler.timesteps):
            z = noise.draw(i + 1) if eta else None
            x = scheduler.step(
                pipeline.unet(x, t).sample, t, x, eta=eta, use_clipped_model_output=True, variance_noise=z
            ).prev_sample
    ours = our_images(denoiser, Ddim(num_steps=num_steps, eta=eta), torch.float64)
    torch.testing.assert_close(x / 2 + 0.5, ours, rtol=0, atol=1e-9)


def test_a_terminal_snr_of_zero_survives_the_trip(tmp_path):
    denoiser = make_denoiser("v", "beta", LinearSchedule(zero_terminal_snr=True, beta_end=0.015))
    save_diffusers(denoiser, tmp_path)
    pipeline = load_pipeline(tmp_path)
    assert float(pipeline.scheduler.alphas_cumprod[-1]) == 0
    torch.testing.assert_close(
        pipeline_images(pipeline, 20), our_images(denoiser, Ancestral(num_steps=20)), rtol=0, atol=1e-6
    )
    process = load_diffusers(tmp_path).process
    times = process.step_times()
    torch.testing.assert_close(process.alpha(times), denoiser.process.alpha(times), rtol=1e-10, atol=1e-12)
    assert math.isinf(float(process.log_snr(times)[-1]))


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0", "score"])
@pytest.mark.parametrize("variance", ["beta", "beta_tilde", "learned"])
@pytest.mark.parametrize("classes", [0, 3])
def test_a_denoiser_comes_back_as_it_was(tmp_path, prediction, variance, classes):
    denoiser = make_denoiser(prediction, variance, classes=classes)
    save_diffusers(denoiser, tmp_path)
    again = load_diffusers(tmp_path, null_label=classes or None)
    x = torch.randn(4, *SHAPE)
    times = torch.tensor([1, 2, 19, 20])
    for label in [None] + ([torch.tensor([0, 1, 2, 3])] if classes else []):
        for view in ("epsilon", "x0"):
            old, new = (getattr(d, view)(x, times, label) for d in (denoiser, again))
            torch.testing.assert_close(new, old, rtol=1e-6, atol=1e-6)
    assert again.process.reverse_variance == variance
    assert again.null_label == denoiser.null_label
    assert not again.network.training
    steps = again.process.step_times()
    torch.testing.assert_close(again.process.log_snr(steps), denoiser.process.log_snr(steps), rtol=1e-12, atol=1e-12)


def test_writing_a_score_network_leaves_it_as_it_is(tmp_path):
    denoiser = make_denoiser("score", "learned")
    before = {name: tensor.clone() for name, tensor in denoiser.network.state_dict().items()}
    save_diffusers(denoiser, tmp_path)
    assert all(torch.equal(before[name], tensor) for name, tensor in denoiser.network.state_dict().items())
    written = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(written["conv_out.weight"][:1], -before["model.conv_out.weight"][:1])
    assert torch.equal(written["conv_out.weight"][1:], before["model.conv_out.weight"][1:])


def test_what_diffusers_has_not_is_refused(tmp_path):
    denoiser = make_denoiser()
    network, process = denoiser.network, denoiser.process
    mlp = build_network(MLPConfig(width=8, depth=1), SHAPE)
    blocks = {"down_block_types": ("SkipDownBlock2D",) * 2, "up_block_types": ("SkipUpBlock2D",) * 2}
    skip = UNet2DModel(**{**UNET, **blocks, "block_out_channels": (32, 32), "norm_num_groups": 32})
    for wrong, message in [
        (Denoiser(mlp, process, "epsilon"), "network.kind = MLP; allowed: unet"),
        (Denoiser(network, make_process(VpProcess()), "epsilon"), "process.kind = vp; allowed: ddpm"),
        (Denoiser(network, process, "edm"), "prediction = edm; allowed: epsilon, score, x0, v, since .* x_t itself"),
        (Denoiser(UNet(skip), process, "score"), "prediction = score; allowed: another, since SkipUpBlock2D"),
    ]:
        with pytest.raises(ValueError, match=message):
            save_diffusers(wrong, tmp_path / "never")
    assert not (tmp_path / "never").exists()


# --- a folder of diffusers read as a denoiser

SCHEDULERS = [
    ("DDPM", {}),
    ("DDPM", {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.001, "beta_end": 0.012}),
    ("DDPM", {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2", "variance_type": "fixed_large"}),
    ("DDPM", {"num_train_timesteps": 2000, "beta_schedule": "sigmoid", "variance_type": "fixed_small_log"}),
    ("DDPM", {"num_train_timesteps": 3, "trained_betas": [0.1, 0.3, 0.2], "variance_type": "fixed_large_log"}),
    ("DDPM", {"num_train_timesteps": 200, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}),
    ("DDPM", {"num_train_timesteps": 3, "trained_betas": [0.1, 0.3, 0.2], "rescale_betas_zero_snr": True,
              "prediction_type": "sample"}),
    ("DDPM", {"num_train_timesteps": 3, "trained_betas": [0.1, 0.3, 1.0], "prediction_type": "sample"}),
    ("DDIM", {"beta_end": 0.05}),
    ("DPMSolverMultistep", {"prediction_type": "v_prediction"}),
    ("UniPCMultistep", {"prediction_type": "sample"}),
    ("HeunDiscrete", {}),
    ("EulerDiscrete", {"beta_schedule": "scaled_linear"}),
]  # fmt: skip


class Float64Torch:
    """torch to a module of diffusers, which computes betas in float32: all of them in float64."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)

    @staticmethod
    def linspace(start, end, steps, dtype=torch.float64):
        return torch.linspace(start, end, steps, dtype=dtype)


# diffusers' HeunDiscreteScheduler converts its tensors as NumPy 1 did
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
@pytest.mark.parametrize(("name", "settings"), SCHEDULERS)
def test_networks_and_chains_of_diffusers_are_the_same_here(tmp_path, monkeypatch, name, settings):
    kind, settings = getattr(diffusers, f"{name}Scheduler"), {"num_train_timesteps": 60, **settings}
    scheduler = kind(**settings)
    model = write_folder(tmp_path, scheduler)
    denoiser = load_diffusers(tmp_path)
    process, steps = denoiser.process, scheduler.config.num_train_timesteps
    assert process.num_steps == steps
    # In float32 the last digits depend on the processor: rounding 1 - beta and rescaling to a terminal SNR of zero both
    # cancel. diffusers' own formulas in float64 leave T roundings of 2^-53 each, and the rescale's alpha_t - alpha_T.
    monkeypatch.setattr(sys.modules[kind.__module__], "torch", Float64Torch())
    reference = kind(**settings).alphas_cumprod
    assert reference.dtype == torch.float64
    alpha = process.alpha(process.step_times()[1:])
    torch.testing.assert_close(alpha**2, reference, rtol=steps * 2**-50, atol=1e-15)
    x, some = torch.randn(3, *SHAPE), torch.tensor([1, 2, steps])
    with torch.inference_mode():
        ours = denoiser.output(x, some)
        for row, time in enumerate(some):
            at = slice(row, row + 1)
            assert torch.equal(denoiser.output(x[at], some[at]), model(x[at], time - 1).sample)
        assert torch.equal(ours, model(x, some - 1).sample)


@pytest.mark.parametrize(
    ("fields", "schedule"),
    [
        ({}, LinearSchedule(beta_start=1e-4, beta_end=0.02)),
        ({"num_train_timesteps": 500}, LinearSchedule(beta_start=5e-5, beta_end=0.01)),
        ({"_class_name": "HeunDiscreteScheduler"}, LinearSchedule(beta_start=0.00085, beta_end=0.012)),
        ({"beta_schedule": "scaled_linear"}, ScaledLinearSchedule(beta_start=1e-4, beta_end=0.02)),
        ({"beta_schedule": "sigmoid", "beta_end": 0.01}, SigmoidSchedule(beta_start=1e-4, beta_end=0.01)),
        ({"beta_schedule": "squaredcos_cap_v2"}, CosineSchedule()),
        (
            {"trained_betas": [0.1, 0.2], "num_train_timesteps": 2, "rescale_betas_zero_snr": True,
             "prediction_type": "v_prediction"},
            TableSchedule(betas=(0.1, 0.2), zero_terminal_snr=True),
        ),
    ],
)  # fmt: skip
def test_a_schedule_that_this_house_names_is_named(fields, schedule):
    process, _ = read_scheduler({"_class_name": "DDPMScheduler", **fields})
    assert process.schedule == schedule


@pytest.mark.parametrize("name", DEFAULT_ENDS)
def test_a_file_without_betas_means_what_it_means_to_diffusers(name):
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    assert (parameters["beta_start"].default, parameters["beta_end"].default) == DEFAULT_ENDS[name]
    defaults = {"num_train_timesteps": 1000, "beta_schedule": "linear", "prediction_type": "epsilon"}
    assert {field: parameters[field].default for field in defaults} == defaults


@pytest.mark.parametrize(
    ("kind", "ours"),
    [("fixed_small", "beta_tilde"), ("fixed_small_log", "beta_tilde"), ("fixed_large", "beta"),
     ("fixed_large_log", "beta"), ("learned_range", "learned")],
)  # fmt: skip
def test_reverse_variances(kind, ours):
    fields = {"_class_name": "DDPMScheduler", "variance_type": kind}
    assert read_scheduler(fields)[0].reverse_variance == ours


def test_a_learned_range_is_read_as_diffusers_reads_it(tmp_path):
    betas = torch.linspace(0.001, 0.3, 20, dtype=torch.float64).tolist()
    scheduler = DDPMScheduler(num_train_timesteps=20, trained_betas=betas, variance_type="learned_range")
    write_folder(tmp_path, scheduler, out_channels=2)
    denoiser, pipeline = load_diffusers(tmp_path), load_pipeline(tmp_path)
    in_float64(pipeline, denoiser)
    ours = our_images(denoiser, Ancestral(num_steps=20), torch.float64)
    torch.testing.assert_close(pipeline_images(pipeline, 20), ours, rtol=0, atol=1e-9)


@pytest.mark.parametrize("layout", ["flat", "inside", "beside"])
def test_a_bare_unet_with_its_schedulers_configuration(tmp_path, layout):
    model, scheduler = UNet2DModel(**UNET).eval(), DDPMScheduler(num_train_timesteps=50)
    folder = tmp_path / "unet"
    model.save_pretrained(folder)
    scheduler.save_pretrained(
        {"flat": folder, "inside": folder / "scheduler", "beside": tmp_path / "scheduler"}[layout]
    )
    denoiser = load_diffusers(folder)
    x = torch.randn(2, *SHAPE)
    assert torch.equal(denoiser.output(x, torch.tensor([50, 50])), model(x, 49).sample)


def test_half_precision_is_read_as_float32(tmp_path):
    write_folder(tmp_path)
    path = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path)
    assert {p.dtype for p in load_diffusers(tmp_path).network.parameters()} == {torch.float32}


def test_a_class_conditional_network_without_a_null_label_needs_labels(tmp_path):
    model = write_folder(tmp_path, num_class_embeds=4)
    denoiser = load_diffusers(tmp_path)
    assert denoiser.null_label is None
    label = torch.tensor([3, 0])
    x = torch.randn(2, *SHAPE)
    assert torch.equal(denoiser.output(x, torch.tensor([9, 9]), label), model(x, 8, class_labels=label).sample)
    config = Ancestral(num_steps=2)
    with pytest.raises(ValueError, match="needs one for every row"):
        solve(denoiser, Generated(2), config)
    with pytest.raises(ValueError, match=r"guidance\.kind = classifier_free: needs .* one for none"):
        solve(denoiser, Generated(2), config, label, ClassifierFree())
    with torch.inference_mode():
        first = solve(denoiser, Generated(2), config, label)
        assert not torch.equal(first, solve(denoiser, Generated(2), config, 3 - label))
        guided = solve(load_diffusers(tmp_path, null_label=3), Generated(2), config, label, ClassifierFree(scale=1.0))
    torch.testing.assert_close(guided, first)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "_class_name = FlowMatch.*; allowed: DDPMScheduler, "),
        ({"_class_name": ["DDPMScheduler"]}, "scheduler._class_name = "),
        ({"use_flow_sigmas": True}, "scheduler.use_flow_sigmas = True; allowed: false"),
        ({"timestep_type": "continuous"}, "scheduler.timestep_type = continuous; allowed: discrete"),
        ({"prediction_type": "flow_prediction"}, "flow_prediction; allowed: epsilon, sample, v_prediction"),
        ({"num_train_timesteps": 1}, "scheduler.num_train_timesteps = 1; allowed: a whole number from 2"),
        ({"num_train_timesteps": "50"}, "scheduler.num_train_timesteps = 50"),
        (
            {"beta_schedule": "laplace"},
            "scheduler.beta_schedule = laplace; allowed: linear, scaled_linear, sig",
        ),
        ({"beta_start": 0}, "scheduler.beta_start = 0; allowed: between 0 and 1 with 50 steps"),
        ({"beta_end": "0.02"}, "scheduler.beta_end = 0.02"),
        ({"beta_end": 0.5, "num_train_timesteps": 4000}, "beta_end = 0.5; allowed: between 0 and 0.25 with 4000 steps"),
        ({"variance_type": "learned"}, "variance_type = learned; allowed: fixed_small, .*, learned_range"),
        ({"variance_type": None}, "scheduler.variance_type = None"),
        ({"_class_name": "DPMSolverMultistepScheduler", "variance_type": "learned"}, "variance_type = learned"),
        ({"variance_type": "learned_range"}, "unet.out_channels = 1; allowed: 2, .* reverse variance of learned"),
        ({"rescale_betas_zero_snr": True}, "prediction_type = epsilon; allowed: sample, v_prediction where"),
        (
            {"trained_betas": [0.1, 0.2]},
            "trained_betas = 2 entries; allowed: null or .* = 50 numbers",
        ),
        ({"trained_betas": "betas"}, "scheduler.trained_betas = 0 entries"),
        ({"trained_betas": [0.1, "b"], "num_train_timesteps": 2}, "scheduler.trained_betas = 2 entries"),
        ({"trained_betas": [0.1, 1.5], "num_train_timesteps": 2}, "a beta of scheduler.trained_betas = 1.5; allowed"),
    ],
)
def test_schedulers_without_a_counterpart_are_refused(tmp_path, fields, message):
    write_folder(tmp_path)
    edit(tmp_path / "scheduler" / "scheduler_config.json", **fields)
    with pytest.raises(ValueError, match=message):
        load_diffusers(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "unet._class_name = UNet2DConditionModel; allowed: UNet2DModel"),
        ({"cross_attention_dim": 8}, "unet.cross_attention_dim = 8; allowed: the fields of this"),
        ({"time_embedding_type": "fourier"}, "unet.time_embedding_type = fourier; allowed: positional"),
        ({"class_embed_type": "timestep"}, "unet.class_embed_type = timestep; allowed: null"),
        ({"out_channels": 2}, "not a UNet2DModel's folder|do not fit"),
        ({"down_block_types": ["NoBlock", "NoBlock"]}, "not a UNet2DModel's folder"),
    ],
)
def test_unets_without_a_counterpart_are_refused(tmp_path, fields, message):
    write_folder(tmp_path)
    edit(tmp_path / "unet" / "config.json", **fields)
    with pytest.raises(ValueError, match=message):
        load_diffusers(tmp_path)


@pytest.mark.parametrize("null_label", [-1, 4])
def test_a_null_label_that_the_network_has_not_is_refused(tmp_path, null_label):
    write_folder(tmp_path, num_class_embeds=4)
    with pytest.raises(ValueError, match=f"null_label = {null_label}; allowed: below unet.num_class_embeds = 4"):
        load_diffusers(tmp_path, null_label)


def test_pickles_and_broken_folders_are_refused(tmp_path):
    write_folder(tmp_path)
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    with pytest.raises(ValueError, match=r"do not fit the network of config\.json: 1000 bytes for \d+"):
        load_diffusers(tmp_path)
    weights.write_bytes(whole[:-1000])
    with pytest.raises(ValueError, match="not a UNet2DModel's folder"):
        load_diffusers(tmp_path)
    save_file({name: tensor for name, tensor in load(whole).items() if name != "conv_out.bias"}, weights)
    with pytest.raises(ValueError, match=r"do not fit the network of config\.json: .*missing_keys.*conv_out\.bias"):
        load_diffusers(tmp_path)
    weights.unlink()
    with pytest.raises(ValueError, match=r"no diffusion_pytorch_model\.safetensors; allowed: safetensors only"):
        load_diffusers(tmp_path)
    weights.write_bytes(whole)
    scheduler = tmp_path / "scheduler" / "scheduler_config.json"
    for text, message in [("{", "scheduler_config.json: not JSON"), ("[]", "scheduler_config.json: holds no fields")]:
        scheduler.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_diffusers(tmp_path)
    scheduler.unlink()
    with pytest.raises(ValueError, match=r"no scheduler_config\.json; allowed: one in "):
        load_diffusers(tmp_path)
    edit(tmp_path / "model_index.json", _class_name="StableDiffusionPipeline")
    with pytest.raises(ValueError, match="_class_name = StableDiffusionPipeline; allowed: DDPMPipeline, DDIMPipeline"):
        load_diffusers(tmp_path)


def test_a_folder_without_a_unet_says_so(tmp_path):
    DDPMScheduler().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"config\.json: missing"):
        load_diffusers(tmp_path)


# --- the command


def write_package(folder, classes=0, process=None):
    config = PackageConfig(
        process=process or DdpmProcess(num_train_timesteps=20, schedule=LinearSchedule(beta_end=0.015)),
        prediction="v",
        network=CONFIG.model_copy(update={"classes": classes, "dropout": 0.1}),
        image_shape=SHAPE,
    )
    save_package(folder, config, build_network(config.network, SHAPE).state_dict())


@pytest.mark.parametrize("classes", [0, 3])
def test_a_package_goes_to_diffusers_and_comes_back(tmp_path, classes, capsys):
    package, folder, again = (tmp_path / name for name in ("package", "folder", "again"))
    write_package(package, classes)
    null = ["--null-label", "3"] if classes else []
    assert convert.main(["to-diffusers", str(package), str(folder)]) == 0
    assert convert.main(["from-diffusers", str(folder), str(again), *null]) == 0
    (old, old_config), (new, new_config) = load_package(package), load_package(again)
    assert new_config.network == old_config.network
    assert new_config.solver == Dpmpp2M(num_steps=20, clip_x0=True)
    x, t = torch.randn(2, *SHAPE), torch.tensor([1, 20])
    assert torch.equal(old.output(x, t), new.output(x, t))
    torch.testing.assert_close(new.x0(x, t), old.x0(x, t), rtol=1e-6, atol=1e-6)
    if classes:
        assert convert.main(["from-diffusers", str(folder), str(tmp_path / "never"), "--null-label", "1"]) == 2
        assert "--null-label = 1; allowed: 3" in capsys.readouterr().err


def test_a_scheduler_that_does_not_clip_gives_a_solver_that_does_not(tmp_path):
    scheduler = DDPMScheduler(clip_sample=False)
    write_folder(tmp_path / "folder", scheduler, attention_head_dim=None, sample_size=(8, 8))
    assert convert.main(["from-diffusers", str(tmp_path / "folder"), str(tmp_path / "package")]) == 0
    assert load_package(tmp_path / "package")[1].solver == Dpmpp2M(clip_x0=False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"thresholding": True}, "scheduler.thresholding = True; allowed: false"),
        ({"clip_sample_range": 2.0}, "scheduler.clip_sample_range = 2.0; allowed: 1, or clip_sample = false"),
        ({"clip_sample_range": 2.0, "clip_sample": False}, None),
    ],
)
def test_a_scheduler_that_confines_samples_in_another_way_is_refused(tmp_path, capsys, fields, message):
    write_folder(tmp_path / "folder")
    edit(tmp_path / "folder" / "scheduler" / "scheduler_config.json", **fields)
    assert convert.main(["from-diffusers", str(tmp_path / "folder"), str(tmp_path / "package")]) == (
        2 if message else 0
    )
    assert message is None or message in capsys.readouterr().err


def test_what_a_training_script_leaves_converts(tmp_path, capsys):
    """Default attention heads, averages as EMAModel writes them, and the scheduler beside the checkpoint's folder."""
    model = UNet2DModel(**{**UNET, "sample_size": 8}).eval()
    averaged = EMAModel(model.parameters(), model_cls=UNet2DModel, model_config=model.config)
    with torch.no_grad():
        for each in averaged.shadow_params:
            each.add_(0.01)
    averaged.save_pretrained(tmp_path / "checkpoint-5" / "unet_ema")
    model.save_pretrained(tmp_path / "checkpoint-5" / "unet")
    DDPMScheduler(num_train_timesteps=50).save_pretrained(tmp_path / "scheduler")
    for source, network in (
        ("checkpoint-5", model),
        ("checkpoint-5/unet_ema", UNet2DModel(**{**UNET, "sample_size": 8})),
    ):
        if network is not model:
            averaged.copy_to(network.parameters())
        package = tmp_path / source.replace("/", "-")
        package = package.with_name(f"{package.name}-package")
        assert convert.main(["from-diffusers", str(tmp_path / source), str(package)]) == 0
        assert ("has averaged weights" in capsys.readouterr().out) == (network is model)
        denoiser, config = load_package(package)
        assert config.network.head_width == 8
        x = torch.randn(2, *SHAPE)
        assert torch.equal(denoiser.output(x, torch.tensor([50, 50])), network.eval()(x, 49).sample)


def test_variants_and_shards_are_read(tmp_path, capsys):
    model = UNet2DModel(**UNET).eval()
    x = torch.randn(2, *SHAPE)
    DDPMScheduler(num_train_timesteps=50).save_pretrained(tmp_path / "scheduler")

    def output(name, variant=None):
        return load_diffusers(tmp_path / name, variant=variant).output(x, torch.tensor([50, 50]))

    model.save_pretrained(tmp_path / "shards", max_shard_size="20kB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    model.save_pretrained(tmp_path / "variant", variant="fp16")
    model.save_pretrained(tmp_path / "both", variant="ema", max_shard_size="20kB")
    expected = model(x, 49).sample
    assert all(torch.equal(output(name), expected) for name in ("shards", "variant", "both"))
    model.save_pretrained(tmp_path / "both", variant="fp16")
    assert torch.equal(output("both", "ema"), expected)
    for variant, message in ((None, "several variants of weights; allowed: a variant of ema, fp16"),
                             ("fp8", "variant = fp8; allowed: ema, fp16")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            output("both", variant)
    model.save_pretrained(tmp_path / "both")
    assert torch.equal(output("both"), expected)
    capsys.readouterr()
    assert convert.main(["from-diffusers", str(tmp_path / "variant"), str(tmp_path / "p"), "--variant", "x"]) == 2
    assert "variant = x; allowed: fp16" in capsys.readouterr().err


def test_a_class_conditional_network_without_a_label_for_none_says_so_in_its_package(tmp_path, capsys):
    model = write_folder(tmp_path / "folder", num_class_embeds=4, sample_size=8)
    assert convert.main(["from-diffusers", str(tmp_path / "folder"), str(tmp_path / "package")]) == 0
    assert "its 4 labels are all classes, so samples need one (or --null-label 3)" in capsys.readouterr().out
    denoiser, config = load_package(tmp_path / "package")
    assert (config.network.classes, config.null_label_trained, denoiser.needs_label) == (4, False, True)
    x, label = torch.randn(2, *SHAPE), torch.tensor([3, 0])
    assert torch.equal(denoiser.output(x, torch.tensor([9, 9]), label), model(x, 8, class_labels=label).sample)


@pytest.mark.parametrize(
    ("unet", "message"),
    [
        ({"attention_head_dim": 5}, "unet.attention_head_dim = 5; allowed: a divisor of "),
        ({"sample_size": None}, "unet.sample_size = None; allowed: the height and width"),
        ({"attention_head_dim": None, "norm_eps": 1e-6}, "unet.norm_eps = 1e-06; allowed: 1e-05"),
        ({"attention_head_dim": None, "up_block_types": ("UpBlock2D",) * 2}, "unet.up_block_types = "),
    ],
)
def test_an_architecture_without_a_configuration_is_refused(tmp_path, unet, message, capsys):
    write_folder(tmp_path / "folder", **unet)
    assert convert.main(["from-diffusers", str(tmp_path / "folder"), str(tmp_path / "package")]) == 2
    assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match=message.split(";")[0]):
        unet_config(load_diffusers(tmp_path / "folder").network.model)
    assert read_process(tmp_path / "folder")[0].num_train_timesteps == 50


def test_help_has_examples(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["convert", "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(convert.__file__, run_name="__main__")
    assert "python -m diffusion.convert from-diffusers ddpm-digits/ package/" in capsys.readouterr().out


def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys):
    write_package(tmp_path / "package")
    (tmp_path / "file").write_text("mine")
    for arguments in [
        ("to-diffusers", tmp_path / "package", tmp_path / "package"),
        ("to-diffusers", tmp_path / "package", tmp_path / "file"),
        ("to-diffusers", tmp_path / "nothing", tmp_path / "folder"),
    ]:
        assert convert.main([str(argument) for argument in arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"
