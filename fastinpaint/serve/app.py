"""The HTTP application: the page, the API, and what both share."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from importlib import resources
from typing import Annotated, Any, cast

from fastapi import FastAPI, Header, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

import fastinpaint
from fastinpaint.inference.inpainter import Inpainter
from fastinpaint.serve import forms
from fastinpaint.serve.guard import Guard
from fastinpaint.serve.metrics import Metrics
from fastinpaint.serve.pictures import FORMATS, Painter, RequestError, Result
from fastinpaint.serve.settings import Settings
from fastinpaint.serve.worker import Cancelled, Job, Worker

_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".jpg": "image/jpeg",
}
_ID = r"^[A-Za-z0-9-]{8,64}$"
RequestId = Annotated[
    str | None, Header(alias="X-Request-ID", pattern=_ID, description="a name of your choice, to ask for progress by")
]


class Problem(BaseModel):
    """Why a request was not served."""

    detail: str


class Encoded(BaseModel):
    """A picture file as JSON carries it; what a request in JSON gets."""

    image: str = Field(description="picture file in base64", json_schema_extra={"format": "byte"})
    format: str
    width: int
    height: int


class Health(BaseModel):
    """What is served."""

    status: str
    version: str
    device: str
    max_upload: int = Field(description="bytes of a request")
    max_pixels: int = Field(description="of a picture")


class Progress(BaseModel):
    """Where a request stands."""

    state: str = Field(description="waiting or running")
    ahead: int = Field(description="requests that come before")
    passes: int = Field(description="how often the generator has run")
    expected: int = Field(description="how often it will run, about; 0 while unknown")


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Problem} for status in statuses}


def _answers() -> dict[int | str, dict[str, Any]]:
    """Describe the answers of routes that return a picture."""
    files: dict[str, Any] = {media: {"schema": {"type": "string", "format": "binary"}} for _, media in FORMATS.values()}
    busy = _problems(429)
    busy[429]["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
    good = {"model": Encoded, "content": files, "description": "a file for a form, JSON for JSON"}
    return {200: good, **_problems(400, 401, 403, 408, 413, 415, 422, 503), **busy}


class Service:
    """What the routes share: painter, worker, counters, limits."""

    def __init__(self, inpainter: Inpainter, settings: Settings) -> None:
        self.settings = settings
        self.painter = Painter(inpainter, settings.max_pixels, settings.batch_size)
        self.worker = Worker(settings.batch_size)
        self.metrics = Metrics()
        self.named: dict[str, Job] = {}
        self._admitted = 0

    def close(self) -> None:
        """Cancel what is left, and end the threads."""
        self.worker.close()
        self.painter.generator.close()

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Hold one of the places from before the body is read, so that memory is bounded; 429 if there is none."""
        if self._admitted >= self.settings.queue + self.settings.batch_size:
            self.metrics.count_job("refused", 0)
            wait = self.metrics.mean_seconds() * self.settings.queue / self.settings.batch_size
            raise HTTPException(429, "too many requests are waiting", {"Retry-After": str(max(round(wait), 1))})
        self._admitted += 1
        try:
            yield
        finally:
            self._admitted -= 1

    @contextmanager
    def _name(self, job: Job, name: str | None) -> Iterator[None]:
        if name is None:
            yield
            return
        if name in self.named:
            raise HTTPException(422, "X-Request-ID: a request of this name is being served")
        self.named[name] = job
        try:
            yield
        finally:
            del self.named[name]

    async def do(self, request: Request, name: str | None, work: Callable[[Job], Result]) -> Result:
        """Do a job; it is cancelled when the client leaves or the time is up."""
        job, start = Job(work), time.perf_counter()
        with self._name(job, name):
            future = asyncio.wrap_future(self.worker.submit(job))
            gone = asyncio.ensure_future(_disconnected(request))
            try:
                await asyncio.wait({future, gone}, timeout=self.settings.timeout, return_when=asyncio.FIRST_COMPLETED)
                late = not future.done() and not gone.done()
                if not future.done():
                    job.cancel()
                    await asyncio.wait({future})  # it keeps its place until the pass that runs has ended
            finally:
                job.cancel()
                gone.cancel()
        return self._outcome(future, late, time.perf_counter() - start)

    def _outcome(self, future: asyncio.Future[Result], late: bool, seconds: float) -> Result:
        result, problem = "failed", None
        try:
            value = future.result()
            result = "done"
            return value
        except Cancelled:
            result = "timeout" if late else "cancelled"
            reason = f"the time of {self.settings.timeout:g} seconds was up" if late else "cancelled"
            problem = HTTPException(503, reason)
        except RequestError as error:
            problem = HTTPException(error.status, error.reason)
        finally:
            self.metrics.count_job(result, seconds)
        raise problem


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def create_app(inpainter: Inpainter, settings: Settings | None = None) -> FastAPI:
    """Return the painter as an ASGI application.

    Args:
        inpainter: Fills the pictures; requests may choose another strategy and ``max_side``.
        settings: Limits; the defaults if None.
    """
    service = Service(inpainter, settings or Settings())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.get_running_loop().run_in_executor(None, service.close)

    app = FastAPI(
        title="fastinpaint", version=fastinpaint.__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        description="Fill holes of pictures.", separate_input_output_schemas=False,
    )  # fmt: skip
    app.state.service = service
    app.add_middleware(Guard, settings=service.settings, metrics=service.metrics)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _failed)
    _add_page(app)
    _add_state(app, service)
    _add_pictures(app, service)
    return app


async def _invalid(_: Request, error: Exception) -> Response:
    return JSONResponse({"detail": forms.describe(cast(RequestValidationError, error).errors())}, 422)


async def _failed(_: Request, __: Exception) -> Response:
    return JSONResponse({"detail": "the server failed; its log says why"}, 500)


def _add_page(app: FastAPI) -> None:
    """Serve the files of the page, read once; names in requests are looked up among them, never used as paths."""
    files = {
        file.name: (file.read_bytes(), _MEDIA_TYPES[suffix])
        for file in (resources.files("fastinpaint.serve") / "page").iterdir()
        if (suffix := "." + file.name.rpartition(".")[2]) in _MEDIA_TYPES
    }

    def answer(name: str) -> Response:
        if name not in files:
            raise HTTPException(404, "no such file")
        data, media_type = files[name]
        return Response(data, media_type=media_type)

    app.add_api_route("/", lambda: answer("index.html"), include_in_schema=False)
    app.add_api_route("/docs", lambda: answer("docs.html"), include_in_schema=False)
    app.add_api_route("/page/{name}", answer, include_in_schema=False)


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/api/v1/health", responses=_problems(403))
    async def health() -> Health:
        """Tell that the server runs, and its limits."""
        limits = service.settings
        return Health(
            status="ok", version=fastinpaint.__version__, device=str(service.painter.defaults.device),
            max_upload=limits.max_upload, max_pixels=limits.max_pixels,
        )  # fmt: skip

    @app.get("/api/v1/progress/{name}", responses=_problems(401, 403, 404, 422))
    async def progress(name: Annotated[str, Path(pattern=_ID)]) -> Progress:
        """Tell where the request with this X-Request-ID stands."""
        job = service.named.get(name)
        if job is None:
            raise HTTPException(404, "no request of this name is being served")
        state = "running" if job.running else "waiting"
        ahead = 0 if job.running else service.worker.ahead_of(job)
        return Progress(state=state, ahead=ahead, passes=job.passes, expected=job.expected)

    @app.get("/metrics", response_class=PlainTextResponse, responses=_problems(401, 403))
    async def metrics() -> PlainTextResponse:
        """Give the counters in the text format of Prometheus."""
        generator = service.painter.generator
        text = service.metrics.text(*service.worker.counts(), generator.passes, generator.calls)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


def _add_pictures(app: FastAPI, service: Service) -> None:
    def add(path: str, kind: Any, work: Callable[..., Result], description: str) -> None:
        async def endpoint(request: Request, name: RequestId = None) -> Response:
            with service.admitted():
                options, is_json = await forms.read_options(request, kind)
                arguments = options.to_arguments()
                result = await service.do(request, name, lambda job: work(job, **arguments))
            return _answer(result, is_json)

        app.add_api_route(
            path, endpoint, methods=["POST"], response_class=Response, responses=_answers(), description=description,
            name=kind.__name__, openapi_extra={"requestBody": forms.request_body(kind)},
        )  # fmt: skip

    painter = service.painter
    add("/api/v1/inpaint", forms.InpaintOptions, painter.inpaint, "Fill the hole of a picture.")
    add("/api/v1/structure", forms.StructureOptions, painter.structure, "Draw the edges or gradients of a filling.")
    add(
        "/api/v1/convert", forms.ConvertOptions, partial(painter.inpaint, mask=None),
        "Write a picture in another format, metadata kept and EXIF orientation applied.",
    )  # fmt: skip


def _answer(result: Result, is_json: bool) -> Response:
    timing = ", ".join(f"{name};dur={1000 * seconds:.1f}" for name, seconds in result.seconds.items())
    headers = {"Server-Timing": timing} if timing else {}
    if is_json:
        image = base64.b64encode(result.data).decode()
        content = {"image": image, "format": result.format, "width": result.width, "height": result.height}
        return JSONResponse(content, headers=headers)
    return Response(result.data, media_type=FORMATS[result.format][1], headers=headers)
