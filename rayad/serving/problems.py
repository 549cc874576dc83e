"""What went wrong, as an answer: problem details (RFC 9457) in application/problem+json.

The details of rayad's own errors are told, since they were written for who asks; control characters, passwords in
URLs and queries are not. Of everything else the answer says only that it happened; the log has the rest.
"""

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from typing import Any

from botocore.exceptions import NoCredentialsError
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from rayad.errors import ImageError, OptionError, RayadError, StorageError
from rayad.terminal import UNPRINTABLE

LOG = logging.getLogger("rayad.serving")
LONGEST = 500
"""Characters of a detail."""
_PASSWORD = re.compile(r"//[^/@\s]*@")
_QUERY = re.compile(r"(\w://[^\s?#]*)[?#]\S*?(?=:?(?:\s|$))")
_TOKEN = re.compile(r"[A-Za-z0-9-]{1,64}")


class Problem(RayadError):  # noqa: N818, the word of RFC 9457
    """An answer that says why there is no other one."""

    def __init__(
        self, status: int, detail: str = "", title: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        """What to answer.

        Args:
            status: of HTTP, 400 to 599.
            detail: a sentence for a reader; it is cleaned as `told` does.
            title: of the kind of problem; empty: the status's phrase.
            headers: that go with it, such as Retry-After, in seconds.
        """
        super().__init__(status, detail, title, dict(headers or {}))
        self.status, self.title = status, title or _phrase(status)
        self.detail = told(detail)
        self.headers = dict(_harmless(headers or {}))

    def __str__(self) -> str:
        return self.detail or self.title

    def response(self) -> Response:
        """The answer."""
        document: dict[str, Any] = {"type": "about:blank", "title": self.title, "status": self.status}
        if self.detail:
            document["detail"] = self.detail
        return JSONResponse(document, self.status, self.headers, media_type="application/problem+json")


def of(error: Exception) -> Problem:
    """The problem that an error is to who asked; of an unknown one it says nothing.

    Storage that does not let the service in is 403, a place without a file 404, one that does not answer in time
    504, all other failures of storage 502. What an image or an option lacks is 422.
    """
    match error:
        case Problem():
            return error
        case ImageError() | OptionError():
            return Problem(422, str(error))
        case StorageError():
            return Problem(_of_storage(error.__cause__), str(error))
        case HTTPException():
            detail = error.detail if isinstance(error.detail, str) else ""
            told_anyway = detail == _phrase(error.status_code)
            return Problem(error.status_code, "" if told_anyway else detail, headers=error.headers)
        case ClientDisconnect():
            return Problem(400, "The request ended before its end.")
        case RequestValidationError():
            return Problem(422, "; ".join(_wishes(error)))
        case _:
            return Problem(500, "The service failed; its log says more under this answer's X-Request-Id.")


def answer(error: Exception, request_id: str = "-") -> Response:
    """The answer to a request that ended in an error; what nobody expected is logged under the request's id."""
    problem = of(error)
    if problem.status == 500:
        LOG.error("request %s failed", request_id, exc_info=error)
    return problem.response()


def install(app: FastAPI) -> None:
    """From now on every error of an application is answered by a problem."""
    handled: tuple[type[Exception], ...] = (RayadError, HTTPException, RequestValidationError, Exception)
    for kind in handled:
        app.add_exception_handler(kind, _handler())


def told(text: str) -> str:
    """A text without control characters, without passwords and queries in URLs, and not too long."""
    clean = _QUERY.sub(r"\1", _PASSWORD.sub("//", UNPRINTABLE.sub(" ", text)))
    return clean if len(clean) <= LONGEST else clean[: LONGEST - 1] + "…"


def _handler() -> Callable[[Request, Exception], Any]:
    async def handle(request: Request, error: Exception) -> Response:
        return answer(error, request.scope.get("state", {}).get("request_id", "-"))

    return handle


def _of_storage(cause: BaseException | None) -> int:
    match cause:
        case FileNotFoundError() | NotADirectoryError() | IsADirectoryError():
            return 404
        case NoCredentialsError():
            return 502
        case PermissionError():
            return 403
        case TimeoutError():
            return 504
        case _:
            return 502


def _wishes(error: RequestValidationError) -> Iterator[str]:
    """What each field should be; never what came, which may be a patient's."""
    for row in error.errors()[:5]:
        place = ".".join(str(part)[:40] for part in row["loc"])
        yield f"{place}: {row['msg']}"


def _harmless(headers: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Headers that can be nothing but themselves."""
    for name, value in headers.items():
        if _TOKEN.fullmatch(name) and value.isascii() and not UNPRINTABLE.search(value):
            yield name, value


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"
