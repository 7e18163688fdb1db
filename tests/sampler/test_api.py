"""The HTTP API, called without Ray."""

import asyncio
import dataclasses
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from diffusion.config import Ddim, Dpmpp2M, evaluations
from diffusion.denoiser import Network
from diffusion.images import grid, to_pixels
from diffusion.solvers import drive
from sampler.api import ImageRequest, Service, create_app
from sampler.models import Model, load, resolve
from tests.sampler.conftest import write_package


@pytest.fixture(scope="module")
def service(model: Model) -> Iterator[Service]:
    service = Service([model])
    yield service
    service.close()


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        yield client


def expected(model: Model, n: int, seed: int, solver: Ddim | None = None) -> np.ndarray:
    with torch.no_grad():
        return to_pixels(drive(model.denoiser, model.solver(solver, seed, range(n))))


def test_npy_holds_the_images_of_the_seed(client: TestClient, model: Model) -> None:
    solver = {"kind": "ddim", "num_steps": 4, "eta": 1.0}
    answer = client.post("/v1/images", json={"n": 5, "seed": 2**63 - 1, "solver": solver, "format": "npy"})
    pixels = np.load(io.BytesIO(answer.content))
    difference = np.abs(pixels.astype(int) - expected(model, 5, 2**63 - 1, Ddim(num_steps=4, eta=1.0)))
    assert pixels.shape == (5, 8, 8, 1)
    assert difference.max() <= 1
    assert answer.headers["X-Model-Version"] == "local"
    assert answer.headers["X-Package-SHA256"] == model.package_sha256


def test_png_is_one_grid_by_the_default_solver(client: TestClient, model: Model) -> None:
    answer = client.post("/v1/images", json={"n": 6, "seed": 1})
    picture = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert answer.headers["content-type"] == "image/png"
    assert picture.shape == grid(expected(model, 6, 1)).shape
    assert np.abs(picture.astype(int) - grid(expected(model, 6, 1))).max() <= 1


def test_models_lists_what_is_served(client: TestClient, model: Model) -> None:
    assert client.get("/v1/models").json() == [
        {
            "model": "tiny",
            "name": "tiny",
            "version": "local",
            "package_sha256": model.package_sha256,
            "image_shape": [1, 8, 8],
            "classes": 0,
            "class_names": [],
            "null_label_trained": None,
            "solver": Dpmpp2M(num_steps=5).model_dump(),
        }
    ]


def test_a_class_is_named_and_guiding_a_model_that_does_not_say_whether_it_can_be_warns(tmp_path: Path) -> None:
    for name, trained in (("said", True), ("unsaid", None)):
        write_package(tmp_path / name, classes=3, null_label_trained=trained, class_names=("ant", "bee", "cat"))
    service = Service([load(resolve(str(tmp_path / name))) for name in ("said", "unsaid")])
    guided = {"n": 2, "seed": 0, "format": "npy", "guidance": {"kind": "classifier_free"}}
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        listed = client.get("/v1/models").json()
        assert [model["class_names"] for model in listed] == [["ant", "bee", "cat"]] * 2
        assert [model["null_label_trained"] for model in listed] == [True, None]
        by_name, by_number, unsaid = (
            client.post("/v1/images", json=guided | {"label": label, "model": name})
            for label, name in (("cat", "said"), (2, "said"), ("cat", "unsaid"))
        )
        assert by_name.content == by_number.content
        assert "X-Warning" not in by_name.headers
        assert "does not say whether it was also trained without labels" in unsaid.headers["X-Warning"]
        wrong = client.post("/v1/images", json=guided | {"label": "dog"})
        assert wrong.json()["detail"] == "label = 'dog': allowed: 0 to 2, or ant, bee, cat"
    service.close()


@pytest.mark.parametrize(
    ("change", "status", "detail"),
    [
        ({"n": 0}, 422, "n = 0: allowed: greater than or equal to 1"),
        ({"n": 1025}, 422, "n = 1025: allowed: less than or equal to 1024"),
        ({"n": "3"}, 422, "n = '3': allowed: a valid integer"),
        ({"seed": 2**63}, 422, "seed = 9223372036854775808: allowed: less than"),
        ({"seed": -1}, 422, "seed = -1: allowed: greater than or equal to 0"),
        ({"seed": None}, 422, "seed = None: allowed: a valid integer"),
        ({"stepz": 3}, 422, "stepz: unknown key; allowed here: model, n, seed, solver, label, guidance, format"),
        ({"format": "jpg"}, 422, "format = 'jpg': allowed: 'png'"),
        ({"solver": {"kind": "magic"}}, 422, "solver.kind = magic: allowed: 'ancestral'"),
        (
            {"solver": {"kind": "ddim", "stepz": 3}},
            422,
            "solver.stepz: unknown key; did you mean solver.num_steps?",
        ),
        ({"solver": {"kind": "ddim", "num_steps": 101}}, 422, "solver.num_steps = 101; allowed: 1 to "),
        (
            {"solver": {"kind": "ddim", "spacing": "karras", "num_steps": 10**6}},
            422,
            "solver: 1000000 evaluations of an image; allowed: at most 10000",
        ),
        ({"label": 3}, 422, "label = 3: allowed: none, this model was trained without classes"),
        ({"label": "cat"}, 422, "label = 'cat': allowed: none, this model was trained without classes"),
        ({"label": -1}, 422, "label = -1: allowed: the number of a class, or its name"),
        ({"label": 1.5}, 422, "label = 1.5: allowed: the number of a class, or its name"),
        ({"label": True}, 422, "label = True: allowed: the number of a class, or its name"),
        ({"label": []}, 422, "label = []: allowed: the number of a class, or its name"),
        ({"guidance": {"kind": "classifier_free"}}, 422, "guidance.kind = classifier_free: needs a label"),
        (
            {"guidance": {"kind": "classifier_free", "scael": 3}},
            422,
            "guidance.scael: unknown key; did you mean guidance.scale?",
        ),
        ({"model": "huge@champion"}, 404, "model: 'huge@champion': not served here; allowed: tiny"),
    ],
)
def test_an_invalid_request_is_named(client: TestClient, change: dict[str, Any], status: int, detail: str) -> None:
    answer = client.post("/v1/images", json={"n": 1, "seed": 0} | change)
    assert answer.status_code == status
    assert answer.json()["detail"].startswith(detail)


def test_a_body_that_is_not_json_is_named(client: TestClient) -> None:
    answer = client.post("/v1/images", content="{", headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["detail"][:15]) == (422, "body: not JSON:")


def test_png_of_four_channels_is_refused(model: Model) -> None:
    config = model.config.model_copy(update={"image_shape": (4, 8, 8)})
    service = Service([dataclasses.replace(model, config=config)])
    answer = TestClient(create_app(service)).post("/v1/images", json={"n": 1, "seed": 0})
    service.close()
    assert (answer.status_code, answer.json()["detail"][:12]) == (422, "format: png:")


def test_a_body_is_bounded(client: TestClient) -> None:
    for content in (b" " * 2**20, iter([b" " * 2**14] * 64)):
        answer = client.post("/v1/images", content=content, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()) == (413, {"detail": "body: more than 65536 bytes"})


def test_long_words_are_cut(client: TestClient) -> None:
    for body in ({"model": "://:" * 10_000, "n": 1, "seed": 0}, {"n": "://:" * 10_000}, {"://:" * 10_000: 1}):
        answer = client.post("/v1/images", json=body)
        assert answer.status_code == 422
        assert len(answer.text) < 2000


def test_large_images_are_few_at_a_time(model: Model) -> None:
    config = model.config.model_copy(update={"image_shape": (3, 4096, 4096)})
    service = Service([dataclasses.replace(model, config=config)])
    answer = TestClient(create_app(service)).post("/v1/images", json={"n": 11, "seed": 0})
    service.close()
    assert (answer.status_code, answer.json()) == (422, {"detail": "n = 11: allowed: at most 10 images of this size"})


def test_busy_is_503_with_retry_after(model: Model) -> None:
    service = Service([model], max_images=4)
    answer = TestClient(create_app(service)).post("/v1/images", json={"n": 5, "seed": 0})
    service.close()
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "1"
    assert answer.json()["detail"].startswith("busy: ")


def with_network(model: Model, network: Network) -> Model:
    """The model with another network."""
    return dataclasses.replace(model, denoiser=dataclasses.replace(model.denoiser, network=network))


def test_an_unexpected_error_says_nothing_of_its_cause(model: Model) -> None:
    def leaky(x: torch.Tensor, time: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
        raise RuntimeError("/secret/path")

    service = Service([with_network(model, leaky)])
    client = TestClient(create_app(service), raise_server_exceptions=False)
    answer = client.post("/v1/images", json={"n": 1, "seed": 0})
    service.close()
    assert (answer.status_code, answer.json()) == (500, {"detail": "internal error; the replica's log has the cause"})


def test_a_model_that_answers_nan_says_so(model: Model) -> None:
    service = Service([with_network(model, lambda x, time, label: x * torch.nan)])
    answer = TestClient(create_app(service)).post("/v1/images", json={"n": 1, "seed": 0})
    service.close()
    assert (answer.status_code, answer.json()["detail"][:22]) == (500, "the model produced NaN")


def test_health_follows_the_engines(model: Model) -> None:
    service = Service([model])
    client = TestClient(create_app(service))
    assert client.get("/healthz").status_code == 200
    service.close()
    assert client.get("/healthz").status_code == 503


def test_a_client_that_goes_away_takes_its_rows_along(model: Model) -> None:
    entered, go_on, rows = threading.Event(), threading.Event(), []

    def held(x: torch.Tensor, time: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
        entered.set()
        assert go_on.wait(30)
        rows.append(len(x))
        return model.denoiser.network(x, time, label)

    async def scenario(service: Service) -> None:
        gone = asyncio.create_task(service.sample(service.engines[0], ImageRequest(n=4, seed=0)))
        assert await asyncio.to_thread(entered.wait, 30)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        go_on.set()
        await service.sample(service.engines[0], ImageRequest(n=1, seed=0))

    service = Service([with_network(model, held)])
    asyncio.run(scenario(service))
    service.close()
    assert rows == [4] + [1] * (evaluations(model.config.solver) or 0)
