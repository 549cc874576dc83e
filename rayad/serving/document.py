"""What the OpenAPI document says of answers: their fields, an example of each, and every problem."""

from http import HTTPStatus
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, Field

from rayad.heatmaps.answers import ANSWER, Answer, example
from rayad.serving.access import PROBES

BINARY = {"type": "string", "format": "binary"}
PROBLEM = "application/problem+json"
ANYWHERE = (400, 401, 403, 404, 405, 408, 413, 421, 422, 429, 500, 502, 503, 504)
"""Problems that any request can meet: on its way to the application, or when a replica fails."""


class ProblemDetails(BaseModel):
    """A problem, RFC 9457."""

    model_config = example({"type": "about:blank", "title": "Unprocessable Entity", "status": 422, "detail": "why"})
    type: Literal["about:blank"]
    title: str
    status: int = Field(ge=400, le=599)
    detail: str = ""


def problems(*more: int) -> dict[int | str, dict[str, Any]]:
    """Responses of an operation that are problems."""
    return {status: _problem(status) for status in sorted((*ANYWHERE, *more))}


def _problem(status: int) -> dict[str, Any]:
    title = HTTPStatus(status).phrase
    content = {
        "schema": _reference("ProblemDetails"),
        "example": {"type": "about:blank", "title": title, "status": status},
    }
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
            app.openapi_schema = _document(app, (ProblemDetails, Answer, *models))
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
        schema = model.model_json_schema(mode="serialization", ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {}) | {model.__name__: schema}
    parts["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, operations in openapi["paths"].items():
        for operation in operations.values():
            operation["security"] = [] if path in PROBES else [{"token": []}]
    return openapi


SCORED = {
    "description": "what was found, in the form that Accept asks for",
    "content": {
        "application/json": {"schema": _reference("Answer"), "example": ANSWER},
        **{kind: {"schema": BINARY} for kind in ("image/png", "application/x-npz", "application/dicom")},
        "multipart/related": {"schema": BINARY},
    },
}
