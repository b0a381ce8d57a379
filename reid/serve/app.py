"""The HTTP interface: JSON under /v1, a page, health and metrics."""

import asyncio
import logging
import math
from collections.abc import Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import uvicorn
from fastapi import Depends, FastAPI, File, Form, HTTPException, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, Response
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel
from starlette.datastructures import FormData

from reid.errors import InputError, StoreUnavailable
from reid.files import FULL
from reid.gallery.store import Answers, Only
from reid.report import html, slots
from reid.serve.batches import Busy
from reid.serve.guard import Guard, Protocol, refuse
from reid.serve.service import LONGEST, New, Refused, Service, one_query

logger = logging.getLogger(__name__)

HERE, REPORT = Path(__file__).parent, Path(html.__file__).parent
FILES = {
    "/": HERE / "page.html",
    "/page.css": HERE / "page.css",
    "/page.js": HERE / "page.js",
    "/report.css": REPORT / "report.css",
    "/bands.js": REPORT / "bands.js",
}
CLIENT_LEFT = 499  # nobody reads it; for the metrics
T = TypeVar("T")
Images = Annotated[list[UploadFile], File(description="JPEG, PNG, WebP or BMP")]
Labels = Annotated[list[str], Query()]


async def all_known(request: Request) -> None:
    """Raises Refused for an unknown parameter or field, and for a repeated one that takes one value."""
    schemas = request.app.openapi()
    operation = schemas["paths"][request.scope["route"].path][request.method.lower()]
    parameters = {p["name"]: p["schema"] for p in operation.get("parameters", [])}
    fields: dict[str, Any] = {}
    for content in operation.get("requestBody", {}).get("content", {}).values():
        fields |= schemas["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]["properties"]
    form = await request.form() if fields else FormData()
    for what, given, known in (("parameter", request.query_params, parameters), ("field", form, fields)):
        for name in given:
            if name not in known:
                raise Refused(422, f"unknown {what} {name[:LONGEST]!r}; known are {', '.join(known) or 'none'}")
            if known[name].get("type") != "array" and len(given.getlist(name)) > 1:
                raise Refused(422, f"the {what} {name!r} is given {len(given.getlist(name))} times; expected once")


# the first is for the OpenAPI page: guard.py checks the token
REQUEST = [Depends(HTTPBearer(auto_error=False)), Depends(all_known)]


class Answer(BaseModel):
    """An entry. pid, camid: labels, null where unknown. parts: distance in each slot. thumbnail: data URL or ""."""

    name: str
    pid: str | None
    camid: str | None
    distance: float
    source: str
    parts: list[float] | None = None
    thumbnail: str = ""


class Found(BaseModel):
    """The answers to one image, nearest first."""

    answers: list[Answer]


class FoundMany(BaseModel):
    """The answers to each image, in the order of the images."""

    queries: list[Found]


class Described(BaseModel):
    """One row per image. weights: SHA-256 of the weights file."""

    weights: str
    descriptors: list[list[float]]


class Added(BaseModel):
    added: int
    entries: int


class Removed(BaseModel):
    removed: int


def make_server(service: Service, token: str | None = None) -> uvicorn.Server:
    """A server that is not yet running. Call its run(sockets=[...])."""
    config = uvicorn.Config(
        Guard(make_app(service), service.limits, service.metrics, token),
        http=Protocol,
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(service.limits.seconds),
    )
    return uvicorn.Server(config)


def make_app(service: Service) -> FastAPI:
    """The application of one service, which is closed with it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        yield
        await asyncio.to_thread(service.close)

    about = "Search of a gallery by image. Distances are squared Euclidean, 0 to 4."
    app = FastAPIOffline(
        redoc_url=None,
        title="RRID gallery",
        version="1",
        description=about,
        lifespan=lifespan,
        max_body_size=service.limits.body,
    )
    add_searches(app, service)
    add_changes(app, service)
    add_views(app, service)
    add_errors(app)
    return app


def only_of(pid: Labels = [], camid: Labels = []) -> Only:  # noqa: B006 (FastAPI copies them)
    return Only(tuple(pid), tuple(camid))


def add_searches(app: FastAPI, service: Service) -> None:
    @app.post("/v1/search", dependencies=REQUEST, response_model_exclude_unset=True)
    async def search(
        request: Request,
        image: Images,
        only: Annotated[Only, Depends(only_of)],
        top: Annotated[int, Query(ge=1, le=service.limits.top)] = 10,
        threshold: Annotated[float, Query(ge=0, le=4)] = 4.0,
        multi_query: Literal["none", "mean", "max"] = "none",
        explain: bool = False,
    ) -> Found | FoundMany:
        """The nearest entries of one or more images, of these identities and cameras only if some are given.

        multi_query: search once, with the mean or maximum of all images, which show one identity.
        explain: also the distance in each slot of the descriptor, and a thumbnail.
        """

        async def work() -> list[Found]:
            descriptors = await service.descriptors(await contents(image))
            if multi_query != "none":
                descriptors = one_query(descriptors, multi_query)
            found = await service.search(descriptors, top, threshold, only)
            if not explain:
                return [as_json(answers) for answers in found]
            return [await explained(service, row, answers) for row, answers in zip(descriptors, found)]

        found = await unless_left(request, work())
        return found[0] if len(found) == 1 else FoundMany(queries=found)

    @app.post("/v1/describe", dependencies=REQUEST)
    async def describe(request: Request, image: Images) -> Described:
        """The descriptor of each image: unit length, comparable only with those of the same weights."""

        async def work() -> np.ndarray:
            return await service.descriptors(await contents(image))

        found = await unless_left(request, work())
        return Described(weights=service.mark.weights, descriptors=found.tolist())


def add_changes(app: FastAPI, service: Service) -> None:
    @app.post("/v1/entries", dependencies=REQUEST, status_code=201)
    async def add(
        image: Images,
        name: Annotated[list[str], Form()] = [],  # noqa: B006
        pid: Annotated[str, Form()] = "-1",
        camid: Annotated[str, Form()] = "-1",
    ) -> Added:
        """Adds images of one identity and camera (-1: unknown). name: one per image; default: their file names."""
        images = await contents(image)
        new = New(name or [own for own, _ in images], [content for _, content in images], pid, camid)
        descriptors = await service.descriptors(images)
        return Added(added=len(images), entries=await service.change(service.add, new, descriptors))

    @app.delete("/v1/entries", dependencies=REQUEST)
    async def remove(name: Labels = [], pid: Labels = []) -> Removed:  # noqa: B006
        """Removes entries by their names and all entries of identities, and their kept images. All or none."""
        if not (name or pid) or {"", "-1"} & {*pid}:
            raise Refused(422, "expected the name or the pid of entries; entries without identity have only names")
        return Removed(removed=await service.change(service.remove, name, pid))


def add_views(app: FastAPI, service: Service) -> None:
    @app.get("/v1/gallery", dependencies=REQUEST)
    async def gallery() -> dict[str, Any]:
        """Size and properties of the gallery, the slots of its descriptors, and the limits of this server."""
        count, info = await asyncio.to_thread(lambda: (len(service.gallery), service.gallery.info()))
        bands = None if service.bands is None else slots.places(service.bands)
        fixed = {**service.mark._asdict(), "slots": bands, "threshold": service.setup.threshold}
        return {"entries": count, **info, **fixed, "limits": vars(service.limits)}

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the gallery can be searched."""
        await asyncio.to_thread(len, service.gallery)
        return {"status": "ok"}

    @app.get("/metrics", dependencies=REQUEST, response_class=Response)
    async def metrics() -> Response:
        """Counters in Prometheus' text format."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    def file_of(path: Path):
        async def file() -> FileResponse:
            return FileResponse(path)

        return file

    for address, path in FILES.items():
        app.get(address, include_in_schema=False)(file_of(path))


def add_errors(app: FastAPI) -> None:
    """Every error is one sentence in `detail`, without a path of the server."""

    @app.exception_handler(Busy)
    async def busy(request: Request, e: Exception) -> Response:
        return refuse(503, "too many images are waiting; try again")

    @app.exception_handler(RequestValidationError)
    async def unusable(request: Request, e: Exception) -> Response:
        assert isinstance(e, RequestValidationError)
        first = e.errors()[0]
        place = first["loc"][1] if len(first["loc"]) > 1 else "the request"
        if place == "image":
            return refuse(422, "expected one or more image files in the multipart field `image`")
        return refuse(422, f"{place}: {first['msg']}")

    @app.exception_handler(InputError)
    async def refused(request: Request, e: Exception) -> Response:
        if isinstance(e, Refused):
            return refuse(e.status, str(e))
        logger.warning(str(e))
        if isinstance(e, StoreUnavailable):
            return refuse(503, "the store of the gallery does not answer; try again later")
        if isinstance(e.__cause__, OSError) and e.__cause__.errno in FULL:
            return refuse(507, "the disk of the server is full; nothing was changed")
        return refuse(503, "the gallery cannot be used at the moment; the reason is in the log of the server")


async def contents(images: list[UploadFile]) -> list[tuple[str, bytes]]:
    """(file name, content) of each image."""
    return [(image.filename or "image", await image.read()) for image in images]


async def unless_left(request: Request, work: Awaitable[T]) -> T:
    """The result of the work, which is cancelled when the client closes the connection."""
    task, left = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise HTTPException(CLIENT_LEFT, "the client left")
        return task.result()
    finally:
        task.cancel()
        left.cancel()


def as_json(answers: Answers) -> Found:
    columns = (answers.distances.tolist(), *answers[2:])
    return Found(
        answers=[
            Answer(name=name, pid=pid or None, camid=camid or None, distance=distance, source=source)
            for distance, name, pid, camid, source in zip(*columns)
        ]
    )


async def explained(service: Service, descriptor: np.ndarray, answers: Answers) -> Found:
    found = as_json(answers)
    parts, urls = await asyncio.to_thread(service.explain, descriptor, answers)
    for i, answer in enumerate(found.answers):
        answer.thumbnail = urls[i]
        if parts is not None:
            answer.parts = parts[i].tolist()
    return found
