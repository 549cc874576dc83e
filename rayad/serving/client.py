"""A client of a rayad server's HTTP API (docs/serving.md), with values in place of JSON.

What may be asked twice is asked again where the server says when (503 and 429 with Retry-After) or cannot be reached,
a few times. Starting a batch is not: who lost the answer looks at `batches`.
"""

import io
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.message import Message
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar, Unpack

import numpy as np
import pydicom
import requests
from pydantic import BaseModel, ValidationError
from pydicom import Dataset

from rayad import bounded
from rayad.errors import FormatError, ImageError, ServiceError, StorageError
from rayad.heatmaps.answers import Answer, Batch, BatchList, BatchSummary, Card, Detectors, ResultKind, Study
from rayad.imaging.dicom import explained
from rayad.imaging.plausibility import Kind

T = TypeVar("T", bound=BaseModel)
TIMEOUT_S = (10.0, 600.0)
"""For a connection to the server, and for its answer."""
PAUSE_S = 0.5
"""Before a server that could not be reached is asked again; each time twice as long."""
LONGEST_S = 60.0
"""The longest Retry-After that is waited for."""
BUSY = (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS)
JSON, PNG, NPZ, DICOM = "application/json", "image/png", "application/x-npz", "application/dicom"


class ScoreOptions(TypedDict, total=False):
    """How an image is scored; the server has a default for what is left out."""

    detector: str
    """Its name at the server."""
    spacing_mm: float
    """mm a pixel, of images that do not say it."""
    view: Literal["", "MLO", "CC"]
    """Of images that do not say it."""
    step_mm: float
    """Distance of the places that are scored."""
    force: Sequence[Kind]
    """Doubts about images that are overruled."""


@dataclass(frozen=True)
class HeatmapAnswer:
    """An answer with its arrays."""

    answer: Answer
    arrays: Mapping[str, np.ndarray]
    """By their names in the npz (docs/formats.md)."""


@dataclass(frozen=True)
class Client:
    """A server. Everything raises ServiceError for its refusals, StorageError where it cannot be reached."""

    url: str
    """Such as http://127.0.0.1:8000."""
    token: str = field(default="", repr=False)
    """"": the server wants none."""
    attempts: int = 4
    """How often a request is made at most."""

    def detectors(self) -> tuple[Card, ...]:
        """Those that are served, the default first."""
        served = self._asked(Detectors, "GET", "/v1/detectors")
        return tuple(sorted(served.detectors, key=lambda card: card.name != served.default))

    def score(self, image: str | Path | bytes = b"", *, url: str = "", **options: Unpack[ScoreOptions]) -> Answer:
        """Score an image.

        Args:
            image: a file, or the bytes of one.
            url: of an image that the server fetches, in place of `image`.
            options: see `ScoreOptions`.
        """
        return _understood(Answer, self._scored(JSON, image, url, options).content)

    def study(
        self,
        images: Sequence[str | Path | bytes] = (),
        *,
        urls: Sequence[str] = (),
        **options: Unpack[ScoreOptions],
    ) -> Study:
        """Score the images of one patient together.

        Args:
            images: files, or the bytes of some.
            urls: of images that the server fetches, in place of `images`.
            options: see `ScoreOptions`.
        """
        if bool(images) == bool(urls):
            raise ImageError("a study is files, bytes or URLs, one of them")
        form = [("image", (f"{number}", _bytes(image))) for number, image in enumerate(images)]
        body: dict[str, Any] = {"json": {"urls": list(urls)}} if urls else {"files": form}
        return self._asked(Study, "POST", "/v1/studies", params=_query(options), **body)

    def heatmap(
        self,
        image: str | Path | bytes = b"",
        *,
        url: str = "",
        include: Sequence[Literal["pixels", "counterfactual"]] = (),
        **options: Unpack[ScoreOptions],
    ) -> HeatmapAnswer:
        """Score an image, with the numbers of every place.

        Args:
            image: as for `score`.
            url: as for `score`.
            include: pixels: of the image as it came; counterfactual: the image as if it were healthy, and the change.
            options: see `ScoreOptions`.
        """
        answer = self._scored(NPZ, image, url, options, include=",".join(include))
        try:
            arrays = bounded.load_npz(answer.content, "its arrays")
            content = arrays.pop("answer").tobytes()
        except (FormatError, KeyError) as error:
            raise FormatError(f"the server's answer is none of rayad's: {error}") from error
        return HeatmapAnswer(_understood(Answer, content), arrays)

    def overlay(
        self,
        image: str | Path | bytes = b"",
        *,
        url: str = "",
        include: Sequence[Literal["counterfactual"]] = (),
        **options: Unpack[ScoreOptions],
    ) -> bytes:
        """The image under its heatmap, as PNG; with the image as if it were healthy beside it, if `include` says so.

        Other arguments as of `score`.
        """
        return self._scored(PNG, image, url, options, include=",".join(include)).content

    def objects(
        self, image: str | Path | bytes = b"", *, url: str = "", **options: Unpack[ScoreOptions]
    ) -> list[Dataset]:
        """The DICOM objects of a DICOM image; arguments as of `score`."""
        answer = self._scored(DICOM, image, url, options)
        try:
            with explained("an object"):
                return [pydicom.dcmread(io.BytesIO(file)) for file in parts(answer.content, _kind(answer))]
        except ImageError as error:
            raise FormatError(f"{self.url} answers with what is no DICOM: {error}") from error

    def start_batch(
        self,
        out: str,
        *,
        prefix: str = "",
        urls: Sequence[str] = (),
        results: Sequence[ResultKind] = ("json", "npz", "png"),
        **options: Unpack[ScoreOptions],
    ) -> Batch:
        """Let the server score many images.

        Args:
            out: folder of the results, a URL.
            prefix: every image below it.
            urls: images, in place of a prefix.
            results: files of each image.
            options: see `ScoreOptions`.
        """
        body = {"out": out, "prefix": prefix, "urls": list(urls), "results": list(results), **options}
        return self._asked(Batch, "POST", "/v1/batches", json=body)

    def batches(self) -> tuple[BatchSummary, ...]:
        """All of them, the newest first."""
        return self._asked(BatchList, "GET", "/v1/batches").batches

    def batch(self, number: str) -> Batch:
        """One of them, by its id."""
        return self._asked(Batch, "GET", f"/v1/batches/{number}")

    def wait(self, number: str, timeout_s: float = float("inf"), poll_s: float = 1.0) -> Batch:
        """A batch as it has ended; as it is, if that takes too long."""
        until = time.monotonic() + timeout_s
        while (batch := self.batch(number)).state == "running" and time.monotonic() < until:
            time.sleep(poll_s)
        return batch

    def cancel(self, number: str) -> Batch:
        """Stop a batch, as soon as the images that are on their way are through; what is written stays."""
        return self._asked(Batch, "DELETE", f"/v1/batches/{number}")

    def _scored(
        self, kind: str, image: str | Path | bytes, url: str, options: Mapping[str, Any], **more: str
    ) -> requests.Response:
        if bool(image) == bool(url):
            raise ImageError("an image is a file, bytes or a URL, one of them")
        body: dict[str, Any] = {"json": {"url": url}} if url else {"data": _bytes(image)}
        return self._ask("POST", "/v1/score", params=_query(options) | more, headers={"Accept": kind}, **body)

    def _asked(self, kind: type[T], method: str, path: str, **request: Any) -> T:
        return _understood(kind, self._ask(method, path, **request).content)

    def _ask(self, method: str, path: str, **request: Any) -> requests.Response:
        """What the server answers, in the end."""
        repeatable = (method, path) != ("POST", "/v1/batches")
        for attempt in range(1, self.attempts + 1):
            try:
                return self._once(method, path, request)
            except StorageError:
                if attempt == self.attempts or not repeatable:
                    raise
                wait = PAUSE_S * 2 ** (attempt - 1)
            except ServiceError as problem:
                # a batch may have begun where the answer is late (503), never where the guard refuses it (429)
                busy = problem.status in (BUSY if repeatable else BUSY[1:]) and 0 < problem.retry_after <= LONGEST_S
                if attempt == self.attempts or not busy:
                    raise
                wait = problem.retry_after
            time.sleep(wait * random.uniform(1, 1.5))  # so that those who were refused together come back apart
        raise AssertionError("attempts are at least 1")

    def _once(self, method: str, path: str, request: Mapping[str, Any]) -> requests.Response:
        server = self.url.rstrip("/")
        try:
            answer = requests.request(
                method, server + path, auth=self._sign, timeout=TIMEOUT_S, allow_redirects=False, **request
            )
        except requests.RequestException as error:
            raise StorageError(f"cannot reach {server}: {type(error).__name__}") from error
        if not 200 <= answer.status_code < 300:
            raise _problem(answer)
        return answer

    def _sign(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Also without a token: requests would take one from ~/.netrc."""
        if self.token:
            request.headers["Authorization"] = f"Bearer {self.token}"
        return request


def parts(body: bytes, content_type: str) -> list[bytes]:
    """The files in an answer of the media type multipart/related (RFC 2387), or the one of application/dicom.

    Raises:
        FormatError: another media type, or a body that ends too early.
    """
    message = Message()
    message["Content-Type"] = content_type
    if message.get_content_type() == DICOM:
        return [body]
    boundary = message.get_boundary()
    if message.get_content_type() != "multipart/related" or not boundary:
        raise FormatError(f"multipart/related expected, not {content_type!r}")
    pieces = (b"\r\n" + body).split(b"\r\n--" + boundary.encode())[1:]
    if not pieces or not pieces[-1].startswith(b"--"):
        raise FormatError(f"multipart/related of {len(body)} bytes without its end")
    return [piece.partition(b"\r\n\r\n")[2] for piece in pieces[:-1]]


def _understood(kind: type[T], content: bytes) -> T:
    """What the server says; FormatError where that is not what the API promises."""
    try:
        return kind.model_validate(bounded.parse_json(content, "its JSON"))
    except FormatError as error:
        raise FormatError(f"the server's answer is none of rayad's: {error}") from error
    except ValidationError as error:
        (first, *_) = error.errors()
        field = ".".join(map(str, first["loc"])) or kind.__name__
        raise FormatError(f"the server's answer is none of rayad's: {field}: {first['msg']}") from error


def _problem(answer: requests.Response) -> ServiceError:
    """What problem+json (RFC 9457) says, or the status alone, which a proxy may have sent."""
    retry_after = answer.headers.get("Retry-After", "")
    title, detail = answer.reason or "", ""
    try:
        content = bounded.parse_json(answer.content, "its JSON")
        title, detail = str(content["title"]), str(content.get("detail", ""))
    except (FormatError, KeyError, TypeError, AttributeError):
        pass  # a page of something in between
    return ServiceError(
        answer.status_code, title[:200], detail[:500], float(retry_after) if retry_after.isdecimal() else 0.0
    )


def _query(options: Mapping[str, Any]) -> dict[str, Any]:
    """How an image is scored, as the API takes it."""
    query = dict(options)
    if forced := query.pop("force", ()):
        query["force"] = ",".join(forced)
    return query


def _bytes(image: str | Path | bytes) -> bytes:
    if isinstance(image, bytes):
        return image
    try:
        return Path(image).read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {image}: {error}") from error


def _kind(answer: requests.Response) -> str:
    return answer.headers.get("Content-Type", "")
