"""The server keeps to its own OpenAPI document, whatever schemathesis thinks of."""

import time
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import requests
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from served import ME, PATIENTS, Served, png, serving

PROMISES: list[Any] = [
    *(not_a_server_error, status_code_conformance, content_type_conformance),
    response_schema_conformance,
]
pytestmark = pytest.mark.long
OPERATIONS = [
    *(("GET", "/v1/detectors"), ("GET", "/v1/detectors/{name}"), ("POST", "/v1/score"), ("POST", "/v1/studies")),
    ("POST", "/v1/batches"),
    *(("GET", "/v1/batches"), ("GET", "/v1/batches/{number}"), ("DELETE", "/v1/batches/{number}")),
    *(("GET", "/v1/health"), ("GET", "/v1/ready"), ("GET", "/metrics")),
]


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("schema")) as server:
        yield server


@pytest.fixture(scope="module")
def schema(served) -> Any:
    return schemathesis.openapi.from_url(f"{served.url}/v1/openapi.json", headers=ME)


def test_every_operation_is_tried(schema):
    found = {(of.ok().method.upper(), of.ok().path) for of in schema.get_all_operations()}
    assert found == set(OPERATIONS)


@pytest.mark.parametrize(("method", "path"), OPERATIONS, ids=lambda part: str(part))
def test_an_operation_answers_as_the_document_says(schema, method, path):
    statuses = set()

    @hypothesis.seed(0)
    @hypothesis.settings(
        max_examples=20,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=schema[path][method].as_strategy())
    def promised(case: Any) -> None:
        answer = case.call(headers=ME, timeout=60)
        case.validate_response(answer, checks=PROMISES)
        statuses.add(answer.status_code)

    promised()
    assert statuses, "nothing was asked"
    assert not statuses & {401, 421, 429}  # refused before the operation is reached, nothing is tested


def test_a_real_answer_is_as_the_document_says(served, schema):
    image = png(PATIENTS, next(iter(PATIENTS.exams())))
    for accept in ("application/json", "image/png", "application/x-npz"):
        answer = served.score(image, accept)
        assert answer.status_code == 200, answer.text
        case = schema["/v1/score"]["POST"].Case(method="POST")
        case.validate_response(answer, checks=PROMISES)


def test_a_real_batch_is_as_the_document_says(served, schema):
    image = png(PATIENTS, next(iter(PATIENTS.exams())))
    (served.folder / "in" / "a.png").write_bytes(image)
    place = f"file://{served.folder}"
    wanted = {"urls": [f"{place}/in/a.png", f"{place}/in/none.png"], "out": f"{place}/out/b", "spacing_mm": 0.8}
    begun = requests.post(f"{served.url}/v1/batches", json=wanted, headers=ME, timeout=60)
    schema["/v1/batches"]["POST"].Case(method="POST").validate_response(begun, checks=PROMISES)
    assert begun.status_code == 202, begun.text
    until = time.monotonic() + 60
    while (answer := served.get(begun.headers["location"])).json()["state"] == "running":
        assert time.monotonic() < until, answer.text
        time.sleep(0.3)
    assert (answer.json()["done"], answer.json()["failed"]) == (1, 1)
    one = schema["/v1/batches/{number}"]
    one["GET"].Case(method="GET", path_parameters={"number": "x"}).validate_response(answer, checks=PROMISES)
    gone = requests.delete(served.url + begun.headers["location"], headers=ME, timeout=60)
    assert gone.status_code == 202
    one["DELETE"].Case(method="DELETE", path_parameters={"number": "x"}).validate_response(gone, checks=PROMISES)
    every = served.get("/v1/batches")
    assert every.json()["batches"]
    schema["/v1/batches"]["GET"].Case(method="GET").validate_response(every, checks=PROMISES)
