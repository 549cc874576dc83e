"""rayad.serving.problems: what an error says to who asked, and what it never says."""

import json
import pickle

import pytest
from fastapi.exceptions import RequestValidationError
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException

from rayad import storage
from rayad.errors import FormatError, ImageError, OptionError, RayadError, StorageError
from rayad.serving import problems
from rayad.serving.problems import Problem


def storage_error(cause: Exception) -> StorageError:
    error = StorageError("cannot read s3://bucket/a.png: reason")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ImageError("a.png: the image is partly transparent"), 422),
        (OptionError("step_mm must be positive"), 422),
        (storage_error(FileNotFoundError()), 404),
        (storage_error(PermissionError()), 403),
        (storage_error(TimeoutError()), 504),
        (storage_error(ConnectionRefusedError()), 502),
        (HTTPException(406, "no such kind of answer"), 406),
        (FormatError("/srv/detectors/cae: manifest.json is damaged"), 500),
        (RuntimeError("inside"), 500),
        (Problem(429, headers={"Retry-After": "7"}), 429),
    ],
)
def test_an_error_has_its_status(error: Exception, status: int) -> None:
    response = problems.of(error).response()
    body = json.loads(bytes(response.body))
    assert response.status_code == status == body["status"]
    assert response.headers["content-type"] == "application/problem+json"
    assert body["type"] == "about:blank"
    assert body["title"]


def test_storage_says_what_it_is_about() -> None:
    with pytest.raises(StorageError) as caught:
        storage.read_bytes("/nowhere/at/all.png")
    assert problems.of(caught.value).status == 404


@pytest.mark.parametrize(
    "error", [RuntimeError("password=hunter2"), FormatError("/srv/x: hunter2"), KeyError("hunter2")]
)
def test_nothing_is_told_of_the_inside(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    response = problems.answer(error)
    assert b"hunter2" not in bytes(response.body)
    assert "hunter2" in caplog.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cannot read https://me:secret@host/a.png: no", "cannot read https://host/a.png: no"),
        ("cannot read https://host/a.png?X-Amz-Signature=0f: no", "cannot read https://host/a.png: no"),
        ("a\r\nSet-Cookie: x\x00\u202e", "a Set-Cookie: x "),
        ("what is it? 5 mm", "what is it? 5 mm"),
    ],
)
def test_secrets_and_control_characters_are_left_out(text: str, expected: str) -> None:
    assert problems.told(text) == expected


@given(st.text())
def test_what_is_told_is_printable_and_short(text: str) -> None:
    told = problems.told(text)
    assert len(told) <= problems.LONGEST
    assert not any(ord(one) < 32 or 0xD800 <= ord(one) < 0xE000 for one in told)
    told.encode()


@given(st.dictionaries(st.text(), st.text()))
def test_no_header_is_injected(headers: dict[str, str]) -> None:
    raw = Problem(429, headers={**headers, "Retry-After": "3"}).response().raw_headers
    assert (b"retry-after", b"3") in raw
    assert not any(byte in part for pair in raw for part in pair for byte in b"\r\n\0")


def test_a_wrong_value_is_not_repeated() -> None:
    row = {
        "type": "float",
        "loc": ("query", "spacing_mm"),
        "msg": "Input should be a valid number",
        "input": "Doe^Jane",
    }
    problem = problems.of(RequestValidationError([row]))
    assert problem.status == 422
    assert problem.detail == "query.spacing_mm: Input should be a valid number"


def test_a_problem_comes_whole_out_of_another_process() -> None:
    problem = Problem(413, "too large", headers={"Retry-After": "3"})
    again = pickle.loads(pickle.dumps(problem))
    assert (again.status, again.title, again.detail, again.headers, str(again)) == (
        413,
        problem.title,
        "too large",
        {"Retry-After": "3"},
        "too large",
    )
    assert isinstance(again, RayadError)
