"""What the OpenAPI document says of answers: their fields, an example of each, and every problem."""

from http import HTTPStatus
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, Field

from rayad.serving import RESEARCH_USE

BINARY = {"type": "string", "format": "binary"}
PROBLEM = "application/problem+json"
ANYWHERE = (400, 401, 403, 404, 405, 408, 413, 421, 422, 429, 500, 502, 503, 504)
"""Problems that any request can meet: on its way to the application, or when a replica fails."""
OPEN = ("/v1/health", "/v1/ready")
DETECTOR = {"name": "spn", "sha256": "0123456789abcdef" * 4}
BATCH = {
    "id": "0123456789abcdef0123456789abcdef",
    "state": "done",
    "detector": DETECTOR,
    "out": "s3://hospital/results/november",
    "asked": {
        "prefix": "s3://hospital/inbox/",
        "spacing_mm": 0.0,
        "view": "",
        "step_mm": 3.2,
        "results": ["json", "npz", "png"],
    },
    "total": 2,
    "done": 1,
    "failed": 1,
    "began": "2026-11-26T10:00:00+00:00",
    "updated": "2026-11-26T10:00:09+00:00",
    "research_use_only": RESEARCH_USE,
}
RESULT = {
    "image": "s3://hospital/inbox/1.dcm",
    "name": "1",
    "score": 12.5,
    "p_value": 0.05,
    "p_value_floor": 0.05,
    "calibration_patients": 19,
    "doubts": [],
}
CARD = DETECTOR | {
    "score": "likelihood",
    "summary": "a sum-product network over the latents of an autoencoder",
    "calibration_patients": 19,
    "p_value_floor": 0.05,
    "step_mm": 3.2,
    "preprocessing": {"kind": "mammogram", "spacing_mm": 0.2},
    "counterfactual": True,
    "provenance": {"corpus": "phantom", "seed": 0},
}
ANSWER = {
    "research_use_only": RESEARCH_USE,
    "detector": DETECTOR,
    "image": {"rows": 2294, "columns": 1914, "spacing_mm": 0.094},
    "score": 12.5,
    "p_value": 0.05,
    "p_value_floor": 0.05,
    "calibration_patients": 19,
    "findings": [
        {"row": 812.0, "column": 405.5, "size_mm2": 81.9, "score": 12.5, "p_value": 0.05, "healthy_quantile": 0.999}
    ],
    "findings_total": 1,
    "doubts": [],
    "seconds": {"prepare": 0.41, "score": 0.73},
}


def _example(of: dict[str, Any]) -> Any:
    return {"json_schema_extra": {"examples": [of]}}


class Told(BaseModel):
    """A problem, RFC 9457."""

    model_config = _example({"type": "about:blank", "title": "Unprocessable Entity", "status": 422, "detail": "why"})
    type: Literal["about:blank"]
    title: str
    status: int = Field(ge=400, le=599)
    detail: str = ""


class Named(BaseModel):
    """A detector by its name and the hash of its bundle."""

    name: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class CardTold(Named):
    """What a detector is."""

    model_config = _example(CARD)
    score: str
    summary: str
    calibration_patients: int
    p_value_floor: float
    step_mm: float
    preprocessing: dict[str, Any]
    counterfactual: bool
    provenance: dict[str, Any]


class Detectors(BaseModel):
    """All that are served."""

    model_config = _example({"detectors": [CARD], "default": "spn", "research_use_only": RESEARCH_USE})
    detectors: list[CardTold]
    default: str
    research_use_only: str


class Size(BaseModel):
    """Of an image as it came."""

    rows: int
    columns: int
    spacing_mm: float


class FindingTold(BaseModel):
    """A place that stands out, in px of the image as it came."""

    row: float
    column: float
    size_mm2: float
    score: float
    p_value: float
    healthy_quantile: float


class DoubtTold(BaseModel):
    """What may be wrong with an image."""

    kind: str
    sentence: str


class Answer(BaseModel):
    """What a detector says of an image."""

    model_config = _example(ANSWER)
    research_use_only: str
    detector: Named
    image: Size
    score: float
    p_value: float
    p_value_floor: float
    calibration_patients: int
    findings: list[FindingTold]
    findings_total: int
    doubts: list[DoubtTold]
    seconds: dict[str, float]


class Failure(BaseModel):
    """An image that was not scored, and why; the batch itself where no image is named."""

    image: str
    reason: str


class Result(BaseModel):
    """An image that was scored, and what its files are called."""

    image: str
    name: str
    score: float
    p_value: float
    p_value_floor: float = 0.0
    calibration_patients: int = 0
    doubts: list[DoubtTold] = []


class Asked(BaseModel):
    """How the images of a batch are scored, and what is written of each."""

    prefix: str = Field(description="empty where the images were listed")
    spacing_mm: float
    view: str
    step_mm: float
    results: list[str]


class BatchShort(BaseModel):
    """How far a batch is."""

    model_config = _example(BATCH)
    id: str
    state: Literal["running", "done", "cancelled", "failed"]
    detector: Named
    out: str
    asked: Asked
    total: int | None = Field(description="null until the images are counted")
    done: int
    failed: int
    began: str
    updated: str
    research_use_only: str


class BatchWhole(BatchShort):
    """A batch with all that is known."""

    model_config = _example(
        BATCH
        | {
            "failures": [{"image": "s3://hospital/inbox/2.dcm", "reason": "the image is empty"}],
            "results": [RESULT],
        }
    )
    failures: list[Failure]
    results: list[Result]


class Batches(BaseModel):
    """All batches, the newest first."""

    model_config = _example({"batches": [BATCH]})
    batches: list[BatchShort]


def problems(*more: int) -> dict[int | str, dict[str, Any]]:
    """Responses of an operation that are problems."""
    return {status: _problem(status) for status in sorted((*ANYWHERE, *more))}


def _problem(status: int) -> dict[str, Any]:
    title = HTTPStatus(status).phrase
    content = {"schema": _reference("Told"), "example": {"type": "about:blank", "title": title, "status": status}}
    return {"description": title, "content": {PROBLEM: content}}


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def complete(app: FastAPI, *models: type[BaseModel]) -> None:
    """Let an application's document define what it refers to, and say which operations want a token.

    Args:
        models: that no signature has.
    """

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, (Told, Answer, Size, FindingTold, Named, *models))
        return app.openapi_schema

    app.openapi = document


def _document(app: FastAPI, models: tuple[type[BaseModel], ...]) -> dict[str, Any]:
    openapi = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=app.description,
        routes=app.routes,
    )
    parts = openapi.setdefault("components", {})
    schemas = parts.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for model in models:
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {}) | {model.__name__: schema}
    parts["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, operations in openapi["paths"].items():
        for operation in operations.values():
            operation["security"] = [] if path in OPEN else [{"token": []}]
    return openapi


SCORED = {
    "description": "what was found, in the form that Accept asks for",
    "content": {
        "application/json": {"schema": _reference("Answer"), "example": ANSWER},
        **{kind: {"schema": BINARY} for kind in ("image/png", "application/x-npz", "application/dicom")},
        "multipart/related": {"schema": BINARY},
    },
}
