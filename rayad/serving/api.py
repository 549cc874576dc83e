"""The HTTP API, version 1, as a FastAPI application; what scores is a `Backend` (rayad/on_ray/serve.py).

Answers follow the request's Accept header; errors are problem details (problems.py).
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from email.utils import formatdate
from importlib.resources import files
from typing import Annotated, Any, Literal, Protocol
from uuid import uuid4

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request, Response
from fastapi.responses import PlainTextResponse
from starlette.concurrency import run_in_threadpool

from rayad.errors import ImageError, OptionError
from rayad.heatmaps import answers, studies
from rayad.heatmaps.answers import (
    Answer,
    Batch,
    BatchList,
    BatchRequest,
    BatchSummary,
    Card,
    Detectors,
    Study,
    StudyImage,
)
from rayad.heatmaps.images import HeatmapRequest
from rayad.heatmaps.judgement import Judgement
from rayad.imaging import plausibility
from rayad.outputs import require_apart
from rayad.serving import RESEARCH_USE, document, problems, uploads
from rayad.serving.access import Limits
from rayad.serving.cards import Served
from rayad.serving.fetch import PORTS, AllowList
from rayad.serving.problems import Problem

JSON, PNG, NPZ, DICOM = "application/json", "image/png", "application/x-npz", "application/dicom"
KINDS = (JSON, PNG, NPZ, DICOM)


@dataclass(frozen=True)
class ServedScore:
    """An image that was scored, and what the backend needs to draw it."""

    served: Served
    """What scored it."""
    judged: Judgement
    seconds: dict[str, float]
    picture: Any = field(repr=False, default=None)
    """The backend's own: the prepared image, wherever it is."""

    def answer(self) -> Answer:
        """What is said of it."""
        return self.judged.answer(self.served.name, self.seconds)


class Backend(Protocol):
    """What the API asks for; errors are those of rayad.errors, or a Problem."""

    @property
    def served(self) -> Mapping[str, Served]:
        """The detectors that are served now, by name; the first is the default."""
        ...

    def check_room(self, caller: str) -> None:
        """Problem where too many images wait, so that one more of this caller is not even received."""
        ...

    def room(self, caller: str) -> AbstractContextManager[None]:
        """Held while an image of this caller is scored and its answer made; Problem where too many images wait."""
        ...

    async def score(self, served: Served, data: bytes, request: HeatmapRequest, caller: str) -> ServedScore:
        """Score the image in the bytes of a file, for a caller."""
        ...

    async def png(self, scored: ServedScore, include: Sequence[str]) -> bytes:
        """The overlay, and the image's healthy version."""
        ...

    async def arrays(self, scored: ServedScore, include: Sequence[str]) -> dict[str, np.ndarray]:
        """The image's pixels, its healthy version."""
        ...

    async def objects(self, scored: ServedScore, data: bytes) -> dict[str, bytes]:
        """DICOM objects by kind, of an image that came as DICOM."""
        ...

    async def ready(self) -> bool:
        """Would an image be scored now?"""
        ...

    async def metrics(self) -> str:
        """In Prometheus' text format."""
        ...

    async def start(self, request: BatchRequest, served: Served) -> Batch:
        """Start a batch."""
        ...

    async def batches(self) -> tuple[BatchSummary, ...]:
        """All batches, the newest first."""
        ...

    async def batch(self, number: str) -> Batch | None:
        """One of them."""
        ...

    async def cancel(self, number: str) -> Batch | None:
        """Stop one."""
        ...


FORCE = f"^(({'|'.join(plausibility.KINDS)})(,|$))*$"


def build(backend: Backend, reading: AllowList, writing: AllowList, limits: Limits) -> FastAPI:
    """The application, without the guard that decides who may ask.

    Args:
        reading: what images may be fetched from.
        writing: where batches may write.
    """
    app = FastAPI(
        title="rayad",
        version="1",
        summary="Heatmaps, p-values and findings of medical images, by detectors that learned from healthy images",
        description=RESEARCH_USE,
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        responses=document.problems(),
    )
    document.complete(app, uploads.ImageUrl, uploads.StudyUrls)
    problems.install(app)
    app.include_router(_scoring(backend, reading, limits), prefix="/v1")
    app.include_router(_batches(backend, reading, writing), prefix="/v1")
    app.include_router(_state(backend))
    app.include_router(_pages())
    return app


STEP = "distance of the places, mm; 0: that of the detector's calibration, which p-values are for"
Number = Annotated[str, Path(description="id of a batch", examples=[answers.BATCH["id"]])]
Detector = Annotated[str, Query(max_length=200, description="name of a detector; empty: the default")]


async def _asked(
    spacing_mm: Annotated[float, Query(ge=0, le=10, description="mm a pixel, if the image does not say it")] = 0.0,
    view: Annotated[Literal["", "MLO", "CC"], Query(description="if the image does not say it")] = "",
    step_mm: Annotated[float, Query(ge=0, le=100, description=STEP)] = 0.0,
    force: Annotated[str, Query(pattern=FORCE, description="doubts about the image that are overruled")] = "",
) -> HeatmapRequest:
    """How images are scored, by the query."""
    return HeatmapRequest(spacing_mm, view, step_mm, tuple(filter(None, force.split(","))))


Asked = Annotated[HeatmapRequest, Depends(_asked)]
SCORE = {
    "requestBody": {
        "required": True,
        "content": {
            **{kind: {"schema": document.BINARY} for kind in ("application/octet-stream", DICOM, PNG)},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": {"type": "string", "format": "binary"}},
                }
            },
            JSON: {
                "schema": {"$ref": "#/components/schemas/ImageUrl"},
                "example": {"url": "s3://hospital/inbox/0001.dcm"},
            },
        },
    }
}


STUDY = {
    "requestBody": {
        "required": True,
        "content": {
            uploads.FORM: {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": {"type": "array", "items": document.BINARY, "maxItems": studies.MOST}},
                }
            },
            uploads.BY_URL: {"schema": {"$ref": "#/components/schemas/StudyUrls"}},
        },
    }
}


def _scoring(backend: Backend, reading: AllowList, limits: Limits) -> APIRouter:
    router = APIRouter(tags=["scoring"])

    @router.get("/detectors")
    async def detectors() -> Detectors:
        """The detectors that are served, with their cards."""
        cards = tuple(served.card for served in backend.served.values())
        return Detectors(detectors=cards, default=next(iter(backend.served), ""))

    @router.get("/detectors/{name}")
    async def detector(name: Annotated[str, Path(examples=["spn"])]) -> Card:
        """The card of one."""
        return _chosen(backend, name).card

    responses: dict[int | str, dict[str, Any]] = {200: document.SCORED, **document.problems(406)}

    @router.post("/score", openapi_extra=SCORE, response_class=Response, responses=responses)
    async def score(
        http: Request,
        request: Asked,
        detector: Detector = "",
        include: Annotated[str, Query(pattern="^((pixels|counterfactual)(,|$))*$", description="of npz, png")] = "",
        object: Annotated[Literal["", "sc", "seg", "sr", "pm"], Query(description="one DICOM object alone")] = "",
    ) -> Response:
        """Score one image: the body is its file, a form with the field image, or {"url": ...}."""
        kind = _kind(http.headers.get("accept", ""))
        served = _chosen(backend, detector)
        extra = tuple(filter(None, include.split(",")))
        _require_able(served, extra)
        caller = http.state.caller
        backend.check_room(caller)
        data = await uploads.image(http, reading, limits)
        with backend.room(caller):
            scored = await backend.score(served, data, request, caller)
            return await _answer(backend, scored, kind, data, extra, object)

    @router.post("/studies", openapi_extra=STUDY, responses=document.problems(415))
    async def study(http: Request, request: Asked, detector: Detector = "") -> Study:
        """Score the images of one patient together: a form with a field image for each file, or {"urls": [...]}."""
        served, caller = _chosen(backend, detector), http.state.caller
        backend.check_room(caller)

        async def score(data: bytes) -> ServedScore:
            if not data:
                raise Problem(422, "the image is empty")
            with backend.room(caller):
                return await backend.score(served, data, request, caller)

        images = await uploads.images(http, reading, limits)
        return _together(await asyncio.gather(*map(score, images), return_exceptions=True))

    return router


def _together(scored: Sequence[ServedScore | BaseException]) -> Study:
    """The study of images that were scored or not; only what an image lacks is its own fault."""
    images = []
    for one in scored:
        if isinstance(one, ServedScore):
            images.append(StudyImage(answer=one.answer()))
        elif isinstance(one, Problem | ImageError | OptionError) and problems.of(one).status == 422:
            images.append(StudyImage(problem=problems.of(one).detail))
        else:
            raise one
    studies.require_one_patient(one.judged.patient for one in scored if isinstance(one, ServedScore))
    return studies.study(images)


async def _answer(
    backend: Backend, scored: ServedScore, kind: str, data: bytes, include: Sequence[str], object_kind: str
) -> Response:
    """In the form that was asked for."""
    if kind == JSON:
        return Response(scored.answer().model_dump_json(), media_type=JSON)
    if kind == PNG:
        return Response(await backend.png(scored, include), media_type=PNG)
    if kind == NPZ:
        arrays = await backend.arrays(scored, include)
        arrays["answer"] = np.frombuffer(scored.answer().model_dump_json().encode(), np.uint8)
        arrays["healthy_quantile"] = scored.judged.healthy_quantile.astype(np.float32)
        return Response(await run_in_threadpool(scored.judged.npz, **arrays), media_type=NPZ)
    objects = await backend.objects(scored, data)
    if object_kind and object_kind not in objects:
        raise Problem(422, f"there is no object {object_kind!r} of this image, only {', '.join(objects)}")
    if object_kind:
        return Response(objects[object_kind], media_type=DICOM)
    body, boundary = multipart(list(objects.values()))
    return Response(body, headers={"content-type": f'multipart/related; type="{DICOM}"; boundary={boundary}'})


def multipart(parts: Sequence[bytes]) -> tuple[bytes, str]:
    """DICOM objects in one body as DICOMweb sends them (PS3.18, 8.6.1.2), and its boundary."""
    boundary = uuid4().hex
    head = f"--{boundary}\r\nContent-Type: {DICOM}\r\n\r\n".encode()
    return b"".join([head + part + b"\r\n" for part in parts] + [f"--{boundary}--\r\n".encode()]), boundary


def _require_able(served: Served, results: Sequence[str]) -> None:
    """Problem where a healthy version is asked of a detector that draws none."""
    if "counterfactual" in results and not served.card.counterfactual:
        raise Problem(422, f"detector {served.card.name!r} draws no healthy version of an image")


def _chosen(backend: Backend, name: str) -> Served:
    served = backend.served
    if not name and served:
        return next(iter(served.values()))
    if name not in served:
        raise Problem(404, f"there is no such detector; there are {', '.join(served)}")
    return served[name]


def _kind(accept: str) -> str:
    """The first of ours that the Accept header takes, by its weights (RFC 9110, 12.5.1)."""
    preferences = []
    for position, part in enumerate(accept.lower().split(",")):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        weights = [parameter[2:] for parameter in parameters if parameter.startswith("q=")]
        try:
            weight = float(weights[0]) if weights else 1.0
        except ValueError:
            weight = 0.0
        related = name == "multipart/related" and any(DICOM in parameter for parameter in parameters)
        preferences.append((-weight, position, DICOM if related else name))
    for weight, _, name in sorted(preferences):
        for kind in KINDS:
            if weight and name in (kind, kind.split("/")[0] + "/*", "*/*", ""):
                return kind
    raise Problem(406, f"an answer is {', '.join(KINDS)}")


def _batches(backend: Backend, reading: AllowList, writing: AllowList) -> APIRouter:
    router = APIRouter(tags=["batches"])

    @router.post("/batches", status_code=202, responses=document.problems(409))
    async def start(request: BatchRequest, response: Response) -> Batch:
        """Score many images; the results are written below `out`."""
        served = _chosen(backend, request.detector)
        if bool(request.urls) == bool(request.prefix):
            raise Problem(422, "a batch takes urls or a prefix, one of them")
        _require_able(served, request.results)
        batch = await backend.start(await run_in_threadpool(_allowed, request, reading, writing), served)
        response.headers["location"] = f"/v1/batches/{batch.id}"
        return batch

    @router.get("/batches")
    async def every() -> BatchList:
        """All batches, the newest first."""
        return BatchList(batches=await backend.batches())

    @router.get("/batches/{number}")
    async def one(number: Number) -> Batch:
        """How far one is, what it found, what failed and why."""
        return _known(await backend.batch(number))

    @router.delete("/batches/{number}", status_code=202)
    async def cancel(number: Number) -> Batch:
        """Stop one; what is written stays."""
        return _known(await backend.cancel(number))

    return router


def _allowed(request: BatchRequest, reading: AllowList, writing: AllowList) -> BatchRequest:
    """The batch, into the folder that the links of `out` lead to; Problem where it may not read or write."""
    if request.prefix and reading.place(request.prefix).scheme in PORTS:
        raise Problem(422, "what a web server has is not known; give urls instead of a prefix")
    inputs = [reading.check(url) for url in filter(None, [request.prefix, *request.urls])]
    out = writing.check(request.out)
    try:
        require_apart(out, inputs)
    except OptionError as error:
        raise Problem(422, f"{error}.") from error
    return request.model_copy(update={"out": out})


def _known(batch: Batch | None) -> Batch:
    if batch is None:
        raise Problem(404, "there is no such batch")
    return batch


def _state(backend: Backend) -> APIRouter:
    router = APIRouter(tags=["state"])

    @router.get("/v1/health")
    async def health() -> dict[str, str]:
        """The server is alive."""
        return {"status": "alive", "time": formatdate(usegmt=True)}

    @router.get("/v1/ready")
    async def ready() -> dict[str, str]:
        """An image would be scored now; else 503."""
        if not await backend.ready():
            raise Problem(503, "no detector is ready yet", headers={"retry-after": "5"})
        return {"status": "ready"}

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Of rayad and Ray Serve, in Prometheus' text format."""
        return Response(await backend.metrics(), media_type="text/plain; version=0.0.4")

    return router


TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}


def _pages() -> APIRouter:
    """The viewer: files of the package, each by its exact name."""
    router = APIRouter(include_in_schema=False)
    web = files("rayad") / "web"
    pages = {file.name: file.read_bytes() for file in web.iterdir() if file.name.rpartition(".")[2] in TYPES}

    def page(name: str) -> Response:
        if name not in pages:
            raise Problem(404, "there is no such page")
        return Response(pages[name], media_type=TYPES[name.rpartition(".")[2]])

    @router.get("/")
    async def viewer() -> Response:
        return page("index.html")

    @router.get("/batches")
    async def batches() -> Response:
        return page("batches.html")

    @router.get("/web/{name}")
    async def static(name: str) -> Response:
        return page(name)

    return router
