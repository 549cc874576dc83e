"""The Python client beside what `rayad serve` says over HTTP."""

import hashlib
import io
import json
import threading
from collections.abc import Iterator

import numpy as np
import pydicom
import pytest
from PIL import Image
from served import PATIENTS, TOKEN, Served, dicom, png, serving

from rayad.errors import ServiceError
from rayad.serving import RESEARCH_USE
from rayad.serving.client import Client, ScoreOptions

pytestmark = pytest.mark.long
SCARCE = "a token with one request a minute"
ASKED: ScoreOptions = {"spacing_mm": 0.8, "view": "MLO"}


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Served]:
    """A server where one image is under way at a time."""
    folder = tmp_path_factory.mktemp("served")
    tokens = folder / "tokens"
    tokens.write_text(f"scarce {hashlib.sha256(SCARCE.replace(' ', '-').encode()).hexdigest()} 1\n")
    tokens.chmod(0o600)
    with serving(folder, "--replicas.queue", "1", "--access.tokens", str(tokens)) as server:
        yield server


@pytest.fixture(scope="module")
def client(served) -> Client:
    return Client(served.url + "/", TOKEN)


@pytest.fixture(scope="module")
def exam():
    return next(exam for exam in PATIENTS.exams() if exam.lesions)


@pytest.fixture(scope="module")
def image(exam) -> bytes:
    return png(PATIENTS, exam)


def test_detectors_are_those_that_are_served(client, served):
    said = served.get("/v1/detectors").json()
    offered = client.detectors()
    assert [one.name for one in offered] == ["spn", "plain"]
    assert [one.sha256 for one in offered] == [card["sha256"] for card in said["detectors"]]
    assert [one.counterfactual for one in offered] == [True, False]
    assert offered[0].preprocessing["spacing_mm"] == 0.8


def test_an_answer_is_what_http_says(client, served, image, tmp_path):
    said = served.score(image, step_mm=6.4, detector="plain").json()
    answer = client.score(image, detector="plain", step_mm=6.4, **ASKED)
    assert (answer.score, answer.p_value) == (said["score"], said["p_value"])
    assert (answer.detector.name, answer.detector.sha256) == ("plain", said["detector"]["sha256"])
    assert (answer.image.rows, answer.image.columns, answer.image.spacing_mm) == (256, 192, 0.8)
    assert [vars(finding) for finding in answer.findings] == said["findings"]
    assert answer.research_use_only == RESEARCH_USE
    (tmp_path / "image.png").write_bytes(image)
    (served.folder / "in" / "image.png").write_bytes(image)
    whole = client.score(image, **ASKED)
    assert client.score(tmp_path / "image.png", **ASKED).score == whole.score
    assert client.score(str(tmp_path / "image.png"), **ASKED).score == whole.score
    assert client.score(url=f"file://{served.folder}/in/image.png", **ASKED).score == whole.score


def test_a_study_is_that_of_http(served, image, tmp_path):
    (tmp_path / "image.png").write_bytes(image)
    with serving(tmp_path, "--replicas.queue", "4") as wider:
        client = Client(wider.url, TOKEN)
        study = client.study([image, tmp_path / "image.png"], **ASKED)
        assert [one.answer and one.answer.score for one in study.images] == [client.score(image, **ASKED).score] * 2
    with pytest.raises(ServiceError, match="too many images are waiting"):
        Client(served.url, TOKEN, attempts=1).study([image] * 3, **ASKED)


def test_arrays_pictures_and_objects_are_those_of_http(client, served, image, exam):
    heatmap = client.heatmap(image, include=("pixels", "counterfactual"), **ASKED)
    answer = served.score(image, "application/x-npz", include="pixels,counterfactual")
    with np.load(io.BytesIO(answer.content)) as arrays:
        assert {*heatmap.arrays, "answer"} == {*arrays}
        for name, array in heatmap.arrays.items():
            np.testing.assert_array_equal(array, arrays[name], err_msg=name)
        assert heatmap.answer.score == json.loads(arrays["answer"].tobytes())["score"]
    with Image.open(io.BytesIO(client.overlay(image, **ASKED))) as picture:
        assert picture.format == "PNG"
    data = dicom(exam)
    objects = client.objects(data, **ASKED)
    study = pydicom.dcmread(io.BytesIO(data)).StudyInstanceUID
    assert {one.StudyInstanceUID for one in objects} == {study}
    assert {one.Modality for one in objects} >= {"OT", "SR"}


def test_what_is_refused_says_why(client, served, image):
    cases = [
        (lambda: client.score(b"no image"), 422, "not a DICOM file"),
        (lambda: client.score(image, detector="none"), 404, "there are spn, plain"),
        (lambda: client.objects(image, **ASKED), 406, "refer to a DICOM image"),
        (lambda: client.score(url="file:///etc/passwd"), 403, "not allowed"),
        (lambda: client.batch("none"), 404, "no such batch"),
        (lambda: Client(served.url, "wrong" * 5).detectors(), 401, "not known"),
        (lambda: Client(served.url).detectors(), 401, "bearer token"),
    ]
    for ask, status, said in cases:
        with pytest.raises(ServiceError, match=said) as caught:
            ask()
        assert caught.value.status == status


def test_a_token_that_asked_often_enough_is_told_when_it_may_again(served):
    scarce = Client(served.url, SCARCE.replace(" ", "-"), attempts=1)
    scarce.detectors()
    with pytest.raises(ServiceError, match="More than 1 requests in a minute") as caught:
        scarce.detectors()
    assert caught.value.status == 429
    assert 0 < caught.value.retry_after <= 60


def test_a_busy_server_is_asked_again(served, image):
    def together(attempts: int) -> list[object]:
        found: list[object] = []

        def ask() -> None:
            try:
                found.append(Client(served.url, TOKEN, attempts).score(image, **ASKED).score)
            except ServiceError as problem:
                found.append((problem.status, problem.retry_after))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    assert (503, 2.0) in together(1)
    assert len({*together(8)}) == 1  # all have the score


def test_a_batch_is_started_waited_for_and_cancelled(client, served, image):
    place = f"file://{served.folder}"
    source = served.folder / "in" / "batch"
    source.mkdir()
    (source / "a.png").write_bytes(image)
    (source / "b.png").write_bytes(b"no image")
    batch = client.start_batch(f"{place}/out/a", prefix=f"{place}/in/batch/", results=["json"], **ASKED)
    ended = client.wait(batch.id, timeout_s=120, poll_s=0.2)
    assert (ended.state, ended.total, ended.done, ended.failed) == ("done", 2, 1, 1)
    (result,), (failure,) = ended.results, ended.failures
    assert result.p_value_floor == 1 / (result.calibration_patients + 1) <= result.p_value
    assert result.doubts == ()
    assert (result.name, result.score) == ("a", client.score(image, **ASKED).score)
    assert failure.image.endswith("b.png")
    assert failure.reason
    assert (served.folder / "out/a/a.json").exists()
    many = [source / f"{number}.png" for number in range(60)]
    for file in many:
        file.write_bytes(image)
    more = client.start_batch(f"{place}/out/b", urls=[f"file://{file}" for file in many], **ASKED)
    assert client.wait(more.id, timeout_s=0).state == "running"
    client.cancel(more.id)
    assert client.wait(more.id, timeout_s=60, poll_s=0.2).state == "cancelled"
    assert [one.id for one in client.batches()][:1] == [more.id]
