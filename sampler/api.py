"""The HTTP API as a FastAPI application: requests, responses, and errors of one line.

Does not use Ray: `service.py` puts it behind Ray Serve, tests call it directly. Errors are `{"detail": "..."}`: 422 for
an invalid request, 404 for a model that is not served, 503 with Retry-After when busy; an unexpected error does not
reveal its cause to the client.
"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, get_args

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BeforeValidator, Field
from pydantic_core import ErrorDetails, PydanticCustomError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from diffusion.config import ClassifierFree, Config, SolverConfig, check_evaluations
from diffusion.config.errors import describe_problem, shown
from diffusion.images import to_pixels
from sampler.batcher import Batcher, BusyError
from sampler.encode import ENCODERS, Pixels, check_format
from sampler.models import UNSAID, Model
from sampler.requests import NonFiniteError

MAX_IMAGES = 1024
MAX_VALUES = 2**29  # of the images that one model has in progress: 2 GiB in float32
MAX_BODY_BYTES = 2**16
MAX_NAME_LENGTH = 256
SOLVER_MODELS: dict[str, type[Config]] = {
    member.model_fields["kind"].default: member for member in get_args(get_args(SolverConfig)[0])
}
MEDIA_TYPES = {"png": "image/png", "npy": "application/x-npy"}


def _class(value: object) -> object:
    """A field's validator: a class by its number or its name, or None."""
    is_number = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if value is None or is_number or (isinstance(value, str) and len(value) <= MAX_NAME_LENGTH):
        return value
    raise PydanticCustomError("class", "allowed: the number of a class, or its name")


class ImageRequest(Config):
    """Body of `POST /v1/images`: images 0..n-1 of a seed, which do not depend on other requests.

    A `label` that is text is the name of a class or, where no class has that name, its number.
    """

    model: Annotated[str, Field(max_length=MAX_NAME_LENGTH)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)]
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    solver: SolverConfig | None = None
    label: Annotated[int | str | None, BeforeValidator(_class)] = None
    guidance: ClassifierFree | None = None
    format: Literal["png", "npy"] = "png"


@dataclass(frozen=True)
class Engine:
    """A served model, the batcher that evaluates it, and how many of its images have MAX_VALUES together."""

    model: Model
    batcher: Batcher
    most: int


class ApiError(Exception):
    """A response other than 200, with the detail that the client is shown."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        """An HTTP status and one line."""
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers


class Service:
    """The models served, each with an engine of its own.

    Args:
        models: at least one; the first is the default.
        max_rows: largest batch of one network evaluation.
        max_images: limit of unfinished images per model; lower where they have more than MAX_VALUES together.
    """

    def __init__(self, models: Sequence[Model], max_rows: int = 64, max_images: int = 4 * MAX_IMAGES) -> None:
        """Start the engines."""
        self.engines: list[Engine] = []
        for model in models:
            most = max(1, MAX_VALUES // math.prod(model.config.image_shape))
            batcher = Batcher(model.denoiser.output, max_rows, min(max_images, most))
            self.engines.append(Engine(model, batcher, most))

    def close(self) -> None:
        """Stop the engines; unfinished requests are cancelled."""
        for engine in self.engines:
            engine.batcher.close()

    @property
    def healthy(self) -> bool:
        """Whether every engine still works."""
        return all(engine.batcher.alive for engine in self.engines)

    def find(self, name: str | None) -> Engine:
        """The engine of a model, by its reference or its bare name; None means the first.

        Raises:
            ApiError: 404: not served.
        """
        for engine in self.engines:
            if name in (None, engine.model.source.reference, engine.model.source.name):
                return engine
        served = ", ".join(engine.model.source.reference for engine in self.engines)
        raise ApiError(404, f"model: {shown(name)}: not served here; allowed: {served}")

    async def sample(self, engine: Engine, request: ImageRequest) -> Pixels:
        """Sample images, uint8 [n, H, W, C]; if the caller cancels, their rows leave the engine.

        Raises:
            ApiError: 422 for settings the model cannot take, 503 if busy, 500 for non-finite output.
        """
        start = partial(
            engine.model.solver, request.solver, request.seed, label=request.label, guidance=request.guidance
        )
        try:
            if request.n > engine.most:
                raise ValueError(f"n = {request.n}: allowed: at most {engine.most} images of this size")
            check_format(request.format, engine.model.config.image_shape[0])
            check_evaluations(request.solver or engine.model.config.solver)
            start(())
        except ValueError as error:
            raise ApiError(422, str(error)) from error
        try:
            x = await asyncio.wrap_future(engine.batcher.submit(start, range(request.n)))
        except BusyError as error:
            raise ApiError(503, f"busy: {error}", {"Retry-After": "1"}) from error
        except NonFiniteError as error:
            raise ApiError(500, str(error)) from error
        return to_pixels(x)


def create_app(service: Service) -> FastAPI:
    """The application: `GET /healthz`, `GET /v1/models`, `POST /v1/images`."""
    app = FastAPI(title="DualView sampler", docs_url=None, redoc_url=None)
    app.add_middleware(_BoundedBody)
    app.add_exception_handler(RequestValidationError, _respond_invalid)
    app.add_exception_handler(ApiError, _respond_error)
    app.add_exception_handler(Exception, _respond_unexpected)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        if not service.healthy:
            raise ApiError(503, "an engine has stopped")
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> list[dict[str, Any]]:
        return [describe(engine.model) for engine in service.engines]

    @app.post("/v1/images", response_class=Response)
    async def images(request: ImageRequest) -> Response:
        engine = service.find(request.model)
        pixels = await service.sample(engine, request)
        content = await asyncio.to_thread(ENCODERS[request.format], pixels)
        headers = {"X-Model-Version": engine.model.source.version, "X-Package-SHA256": engine.model.package_sha256}
        if request.guidance is not None and engine.model.config.null_label_trained is None:
            headers["X-Warning"] = f"the model {UNSAID}"
        return Response(content, media_type=MEDIA_TYPES[request.format], headers=headers)

    return app


class _BoundedBody:
    """ASGI middleware that reads no more than MAX_BODY_BYTES of a request's body: nothing before it counts."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        read = 0

        async def bounded() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > MAX_BODY_BYTES:
                raise HTTPException(413, f"body: more than {MAX_BODY_BYTES} bytes")
            return message

        await self._app(scope, bounded, send)


def describe(model: Model) -> dict[str, Any]:
    """A model as `GET /v1/models` lists it; `model` is its name in a request."""
    return {
        "model": model.source.reference,
        "name": model.source.name,
        "version": model.source.version,
        "package_sha256": model.package_sha256,
        "image_shape": model.config.image_shape,
        "classes": model.config.network.classes,
        "class_names": model.config.class_names,
        "null_label_trained": model.config.null_label_trained,
        "solver": model.config.solver.model_dump(),
    }


async def _respond_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse({"detail": error.detail}, error.status, error.headers)


async def _respond_unexpected(_: Request, __: Exception) -> Response:
    return JSONResponse({"detail": "internal error; the replica's log has the cause"}, 500)


async def _respond_invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return JSONResponse({"detail": "; ".join(_explain(problem) for problem in error.errors()[:5])}, 422)


def _explain(problem: ErrorDetails) -> str:
    """One validation problem as a line: `field = value: what is allowed`."""
    if problem["type"] == "json_invalid":
        return f"body: not JSON: {problem.get('ctx', {}).get('error', problem['msg'])}"
    if len(problem["loc"]) == 1:
        return f"body: {problem['msg']}"
    return describe_problem({**problem, "loc": problem["loc"][1:]}, ImageRequest)
