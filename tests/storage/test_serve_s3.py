"""`rayad serve` on a real S3 server that goes away, and a service that is killed in the middle of a batch."""

import shutil
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
import requests
from faulty import Proxy, faulty
from served import ME, PATIENTS, Served, png, private_folder, serving

from rayad import storage
from rayad.private import keep_private
from tests.storage.conftest import reach

keep_private()
pytestmark = pytest.mark.long
COUNT = 80
BODY_S = 5
"""How long the server waits for an image that a request names."""


@pytest.fixture(scope="module")
def proxy(s3_server) -> Iterator[Proxy]:
    """Before the S3 server, and where the environment says that S3 is."""
    with (
        pytest.MonkeyPatch.context() as environment,
        faulty(s3_server.endpoint, lambda *_: "pass") as one,
    ):
        reach(s3_server, environment)
        environment.setenv("AWS_ENDPOINT_URL", one.endpoint)
        yield one


@pytest.fixture(scope="module")
def served(proxy, tmp_path_factory) -> Iterator[Served]:
    more = ["--read", "s3://rayad/in/", "--write", "s3://rayad/out/", "--state", "s3://rayad/state"]
    with serving(tmp_path_factory.mktemp("served"), *more, "--limits.body-seconds", str(BODY_S)) as server:
        yield server


@pytest.fixture(scope="module")
def images(proxy) -> list[bytes]:
    """Those of the patients, below s3://rayad/in/ over and over."""
    found = [png(PATIENTS, exam) for exam in PATIENTS.exams()]
    for number in range(COUNT):
        storage.write_bytes(f"s3://rayad/in/{number}.png", found[number % len(found)])
    return found


@pytest.fixture(scope="module")
def truth(served, images) -> list[float]:
    """Scores of the images when they are sent."""
    return [served.score(image).json()["score"] for image in images]


def by_url(served: Served, url: str) -> requests.Response:
    query = {"spacing_mm": 0.8, "view": "MLO"}
    return requests.post(f"{served.url}/v1/score", json={"url": url}, params=query, headers=ME, timeout=120)


def begun(served: Served, out: str) -> str:
    wanted = {"prefix": "s3://rayad/in/", "out": out, "spacing_mm": 0.8, "view": "MLO", "results": ["json"]}
    answer = requests.post(f"{served.url}/v1/batches", json=wanted, headers=ME, timeout=60)
    assert answer.status_code == 202, answer.text
    return answer.headers["location"]


def wait(served: Served, place: str, least: int = COUNT) -> dict[str, Any]:
    """The batch when it has ended, or is through with so many images."""
    until = time.monotonic() + 200
    while (batch := served.get(place).json())["state"] == "running" and batch["done"] + batch["failed"] < least:
        assert time.monotonic() < until, batch
        time.sleep(0.2)
    return batch


def test_storage_that_is_away_is_a_problem_within_the_limits(served, proxy, images, truth):
    assert by_url(served, "s3://rayad/in/0.png").json()["score"] == pytest.approx(truth[0], rel=1e-5)
    assert by_url(served, "s3://rayad/in/none.png").status_code == 404
    assert by_url(served, "s3://rayad/other/0.png").status_code == 403
    proxy.leave(15)
    began = time.monotonic()
    answer = by_url(served, "s3://rayad/in/0.png")
    assert time.monotonic() < began + BODY_S + 3
    assert answer.status_code in (502, 504), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert served.score(images[0]).json()["score"] == pytest.approx(truth[0], rel=1e-5)
    time.sleep(max(0.0, began + 16 - time.monotonic()))
    assert by_url(served, "s3://rayad/in/0.png").json()["score"] == pytest.approx(truth[0], rel=1e-5)


def test_a_batch_counts_what_storage_took_from_it_and_goes_on(served, proxy, truth):
    place = begun(served, "s3://rayad/out/away")
    assert wait(served, place, 3)["state"] == "running"
    proxy.leave(10)
    wait(served, place)
    until = time.monotonic() + 60
    while (batch := served.get(place).json())["state"] == "running":
        assert time.monotonic() < until, batch
        time.sleep(0.2)
    assert batch["state"] == "done", batch
    assert batch["done"] + batch["failed"] == batch["total"] == COUNT, batch
    assert batch["done"] > 3
    assert all(row["reason"] for row in batch["failures"])
    are_right(batch, truth)


def are_right(batch: dict[str, Any], truth: list[float]) -> None:
    for row in batch["results"]:
        assert row["score"] == pytest.approx(truth[int(row["name"]) % len(truth)], rel=1e-5)
        assert storage.read_json(f"{batch['out']}/{row['name']}.json")["score"] == row["score"]


def killed(served: Served) -> None:
    """The server and all that it started at once, as when a machine loses its power."""
    everyone = [served.process, *served.process.children(recursive=True)]
    for process in everyone:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(everyone, timeout=30)


def written(out: str) -> dict[str, Any]:
    """When each image's result was written."""
    return {file: storage.modified(file) for file in storage.listing(out) if not file.endswith("/batch.json")}


def test_a_batch_outlives_its_service_and_scores_nothing_twice(served, truth):
    place = begun(served, out := "s3://rayad/out/killed")
    assert wait(served, place, 6)["state"] == "running"
    command, environment = served.process.cmdline(), served.process.environ()
    temporary = private_folder(served.process)
    killed(served)
    shutil.rmtree(temporary)  # whoever would have removed it was killed too
    before = written(out)
    assert 6 <= len(before) < COUNT
    with (served.folder / "log").open("w") as log:
        served.process = psutil.Popen(command, env=environment, stdout=log, stderr=log)
    served.says("rayad serves spn, plain at http://127.0.0.1", 240)
    until = time.monotonic() + 100
    while (batch := served.get(place).json())["state"] == "running":
        assert time.monotonic() < until, batch
        time.sleep(0.2)
    assert (batch["state"], batch["done"], batch["failed"]) == ("done", COUNT, 0), batch
    assert len({row["image"] for row in batch["results"]}) == COUNT
    are_right(batch, truth)
    after = written(out)
    assert {file: after[file] for file in before} == before
