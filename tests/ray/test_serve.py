"""`rayad serve`, asked over HTTP, beside the library."""

import email
import io
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import requests
from PIL import Image
from ports import WITHOUT, WITNESS, is_loopback, listening, refusals
from served import ME, OTHER, PATIENTS, TOKEN, Served, dicom, made, png, private_folder, serving

from rayad.heatmaps.drawing import Written
from rayad.heatmaps.images import HeatmapRequest, decoded
from rayad.heatmaps.judgement import judge
from rayad.imaging.picture import step_px
from rayad.pipeline.heatmap import write_heatmaps
from rayad.pool import Here
from rayad.scoring import bundle
from rayad.scoring.detector import Detector
from rayad.serving import RESEARCH_USE


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Served]:
    """In an environment that would open all ports of Ray; killed in the end, which leaves nothing."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in WITHOUT.items():
            patch.setenv(name, value)
        with serving(tmp_path_factory.mktemp("served"), killed=True) as server:
            yield server


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    return [png(PATIENTS, exam) for exam in PATIENTS.exams()]


def judged(detector: Detector, data: bytes, step_mm: float = 3.2) -> Any:
    """What the library says."""
    prepared = detector.preprocessing.prepare(decoded(data, "x", 1, HeatmapRequest(0.8, "MLO")))
    return judge(prepared, detector.heatmap(prepared, step_px(detector.preprocessing, step_mm)), detector.calibration)


@pytest.mark.long
def test_many_long_images_of_one_caller_hold_up_nobody_else(served, images):
    """What another one asks is answered before what was asked long before him, though each of that is permitted."""
    answered: list[int] = []

    def ask() -> None:
        answered.append(served.score(images[0], who=OTHER, detector="plain", step_mm=0.8).status_code)

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    while not answered:
        time.sleep(0.05)
    for data in images[1:4]:
        assert served.score(data).status_code == 200
    meanwhile = len(answered)
    for thread in threads:
        thread.join()
    assert answered == [200] * 12
    assert meanwhile <= 6


def test_ray_answers_nobody_without_the_service_s_token(served):
    sockets = listening(served.process)
    elsewhere = {port for (address, port) in sockets if not is_loopback(address)}
    assert len(sockets) > 10
    assert elsewhere, "Ray Serve's replicas listen on the loopback now: these tests can be simpler"
    assert [port for port in elsewhere if not all(refusals(port))] == []
    assert not os.path.exists(WITNESS)
    assert private_folder(served.process).stat().st_mode & 0o777 == 0o700


def test_the_numbers_are_the_library_s_whatever_is_scored_beside(served, images):
    wanted = [(name, data, step) for name in served.detectors for data in images for step in (3.2, 6.4)]
    found: dict[int, requests.Response] = {}

    def ask(number: int) -> None:
        name, data, step = wanted[number]
        found[number] = served.score(data, "application/x-npz", detector=name, step_mm=step, include="pixels")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(wanted))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, (name, data, step) in enumerate(wanted):
        assert found[number].status_code == 200, found[number].text
        truth, arrays = judged(served.detectors[name], data, step), np.load(io.BytesIO(found[number].content))
        for field in ("scores", "p_values", "rows", "cols", "healthy_quantile"):
            np.testing.assert_allclose(arrays[field], getattr(truth, field), rtol=1e-5, atol=1e-5, err_msg=field)
        np.testing.assert_array_equal(arrays["tissue"], truth.tissue)
        np.testing.assert_array_equal(arrays["pixels"], np.asarray(Image.open(io.BytesIO(data))))
        answer = json.loads(arrays["answer"].tobytes())
        assert answer["score"] == pytest.approx(truth.score, rel=1e-5)
        assert answer["p_value"] == truth.p
        assert answer["research_use_only"] == RESEARCH_USE


def test_an_answer_is_json_a_picture_or_arrays(served, images):
    answer = served.score(images[0])
    assert answer.headers["content-type"] == "application/json"
    size = {"rows": 256, "columns": 192, "spacing_mm": 0.8}
    assert answer.json()["image"] == size | {"view": "MLO", "laterality": ""}
    assert answer.json()["detector"]["name"] == "spn"
    picture = served.score(images[0], "image/png;q=0.9, text/plain")
    assert picture.headers["content-type"] == "image/png"
    width, height = Image.open(io.BytesIO(picture.content)).size
    assert height > width > 192
    explained = served.score(images[0], "image/png", include="counterfactual")
    assert Image.open(io.BytesIO(explained.content)).width > height  # four pictures side by side
    healthy = served.score(images[0], "application/x-npz", include="counterfactual")
    assert np.load(io.BytesIO(healthy.content))["counterfactual"].shape == (256, 192)
    assert served.score(images[0], "text/html").status_code == 406
    refused = served.score(images[0], "application/x-npz", detector="plain", include="counterfactual")
    assert (refused.status_code, refused.headers["content-type"]) == (422, "application/problem+json")


def test_an_image_comes_as_a_body_as_a_form_or_by_its_url(served, images):
    (served.folder / "in" / "one.png").write_bytes(images[1])
    alone = served.score(images[1]).json()["score"]
    query, url = {"spacing_mm": 0.8, "view": "MLO"}, f"{served.url}/v1/score"
    form = requests.post(url, files={"image": images[1]}, params=query, headers=ME, timeout=60)
    by_url = {"url": f"file://{served.folder}/in/one.png"}
    named = requests.post(url, json=by_url, params=query, headers=ME, timeout=60)
    assert form.json()["score"] == named.json()["score"] == alone
    outside = requests.post(url, json={"url": "file:///etc/passwd"}, params=query, headers=ME, timeout=60)
    assert outside.status_code == 403


def test_the_images_of_a_patient_are_one_study(served, images):
    alone = [served.score(image).json() for image in images[:2]]
    query, url = {"spacing_mm": 0.8, "view": "MLO"}, f"{served.url}/v1/studies"

    def asked(**body: Any) -> requests.Response:
        return requests.post(url, params=query, headers=ME, timeout=60, **body)

    form = asked(files=[("image", image) for image in (images[0], b"no image", images[1])])
    study = form.json()
    assert form.status_code == 200
    assert [one["answer"] and one["answer"]["score"] for one in study["images"]] == [
        alone[0]["score"],
        None,
        alone[1]["score"],
    ]
    assert "no image" not in study["images"][1]["problem"]
    assert study["failed"] == 1
    highest = max(alone, key=lambda answer: answer["score"])
    assert (study["score"], study["p_value"]) == (highest["score"], highest["patient_p_value"])
    assert highest["patient_images"] == 2
    for number, image in enumerate(images[:2]):
        (served.folder / "in" / f"study-{number}.png").write_bytes(image)
    named = asked(json={"urls": [f"file://{served.folder}/in/study-{number}.png" for number in (0, 1)]}).json()
    assert (named["score"], named["p_value"], named["failed"]) == (study["score"], study["p_value"], 0)
    assert asked(json={"urls": ["file:///etc/passwd"]}).status_code == 403
    assert asked(files={"image": b"no image"}).status_code == 422
    assert asked(data=images[0]).status_code == 415
    first, second = PATIENTS.exams()[0], PATIENTS.exams()[2]
    mine, hers = dicom(first, PatientID="1"), dicom(second, PatientID="2")
    mixed = asked(files=[("image", mine), ("image", hers)])
    assert (mixed.status_code, mixed.json()["detail"]) == (
        422,
        "the images of a study are of one patient; the files name 2",
    )
    own = asked(files=[("image", mine), ("image", mine)]).json()
    assert {one["answer"]["image"]["laterality"] for one in own["images"]} <= {"L", "R"}


def test_a_dicom_image_is_answered_by_dicom_objects(served):
    exam = next(exam for exam in PATIENTS.exams() if exam.lesions)
    data = dicom(exam)
    answer = served.score(data, 'multipart/related; type="application/dicom"')
    assert answer.status_code == 200, answer.text
    head = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode()
    parts = email.message_from_bytes(head + answer.content).get_payload()
    found = [pydicom.dcmread(io.BytesIO(part.get_payload(decode=True))) for part in parts]
    assert {of.Modality for of in found} >= {"OT", "SR"}
    source = pydicom.dcmread(io.BytesIO(data))
    assert {of.StudyInstanceUID for of in found} == {source.StudyInstanceUID}
    again = served.score(data, "application/dicom", object="sr")
    assert pydicom.dcmread(io.BytesIO(again.content)).SOPInstanceUID in {of.SOPInstanceUID for of in found}
    assert served.score(png(PATIENTS, exam), "application/dicom").status_code == 406


@pytest.mark.parametrize(
    ("data", "status", "said"),
    [
        (b"", 422, "empty"),
        (b"not an image", 422, "not a DICOM file"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 100, 422, "damaged image"),
        (b"P5 60000 60000 255\n", 422, "more than"),
        (b"P5 64 64 255\n" + bytes(10), 422, "damaged"),
        (bytes(6_000_000), 413, ""),
    ],
    ids=["empty", "text", "broken png", "pixel bomb", "truncated", "too large"],
)
def test_what_is_no_image_is_answered_by_a_problem(served, data, status, said):
    answer = served.score(data)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert said in answer.json().get("detail", "")


def test_only_who_has_a_token_may_ask(served, images):
    url = f"{served.url}/v1/score"
    assert requests.post(url, data=images[0], timeout=60).status_code == 401
    wrong = {"authorization": "Bearer " + TOKEN[:-1] + "x"}
    assert requests.get(f"{served.url}/v1/detectors", headers=wrong, timeout=60).status_code == 401
    assert requests.get(f"{served.url}/metrics", timeout=60).status_code == 401
    assert requests.get(f"{served.url}/v1/ready", timeout=60).status_code == 200
    assert requests.get(served.url, timeout=60).text.startswith("<!doctype html>")


def test_a_batch_leaves_what_rayad_heatmap_leaves(served, images, tmp_path):
    source = served.folder / "in" / "batch"
    source.mkdir()
    for number, data in enumerate(images[:4]):
        (source / f"{number}.png").write_bytes(data)
    (source / "broken.png").write_bytes(b"no image")
    wanted = {
        "prefix": f"file://{source}/",
        "out": f"file://{served.folder}/out/batch",
        "spacing_mm": 0.8,
        "view": "MLO",
        "results": ["json", "npz", "png", "counterfactual"],
    }
    begun = requests.post(f"{served.url}/v1/batches", json=wanted, headers=ME, timeout=60)
    assert begun.status_code == 202, begun.text
    place = begun.headers["location"]
    until = time.monotonic() + 180
    while (batch := served.get(place).json())["state"] == "running":
        assert time.monotonic() < until, batch
        time.sleep(0.3)
    assert (batch["state"], batch["total"], batch["done"], batch["failed"]) == ("done", 5, 4, 1), batch
    assert "broken.png" in batch["failures"][0]["image"]
    assert {key: batch["asked"][key] for key in ("prefix", "spacing_mm", "view")}.items() <= wanted.items()
    detector, out = bundle.load(str(served.folder / "spn-1")), served.folder / "out/batch"
    both = Written(counterfactual=True)
    list(write_heatmaps(Here(), detector, [str(source)], HeatmapRequest(0.8, "MLO"), str(tmp_path / "maps"), both))
    for number in range(4):
        with (
            np.load(tmp_path / f"maps/{number}.npz") as one,
            np.load(served.folder / f"out/batch/{number}.npz") as other,
        ):
            assert one.keys() == other.keys()
            for name in one:
                np.testing.assert_allclose(other[name], one[name], rtol=1e-5, atol=1e-5, err_msg=name)
        assert json.loads((out / f"{number}.json").read_text())["research_use_only"] == RESEARCH_USE
        assert Image.open(out / f"{number}.png").text["Comment"] == RESEARCH_USE
        assert bytes(np.load(out / f"{number}.npz")["research_use_only"]).decode() == RESEARCH_USE
        assert (out / f"{number}.png").read_bytes().startswith(b"\x89PNG")
    assert {mode(file) for file in (out, *out.iterdir(), served.folder / "state")} == {0o600, 0o700}
    assert {mode(file) for file in (served.folder / "state" / "batches").iterdir()} == {0o600}
    assert place.rsplit("/", 1)[-1] in {of["id"] for of in served.get("/v1/batches").json()["batches"]}
    unable = requests.post(f"{served.url}/v1/batches", json=wanted | {"detector": "plain"}, headers=ME, timeout=60)
    assert (unable.status_code, unable.json()["detail"]) == (
        422,
        "detector 'plain' draws no healthy version of an image",
    )
    for out, status in (("/tmp/elsewhere", 403), (f"{served.folder}/out/../in", 422)):
        refused = wanted | {"out": f"file://{out}"}
        assert requests.post(f"{served.url}/v1/batches", json=refused, headers=ME, timeout=60).status_code == status


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def begun(served, **wanted: Any) -> dict[str, Any]:
    """A batch that was started."""
    answer = requests.post(f"{served.url}/v1/batches", json=wanted, headers=ME, timeout=60)
    assert answer.status_code == 202, answer.text
    return answer.json()


def test_a_batch_whose_folder_becomes_a_link_writes_nothing_elsewhere(served, images):
    (served.folder / "in" / "turned").mkdir()
    (served.folder / "elsewhere").mkdir()
    for number in range(4):
        (served.folder / "in" / "turned" / f"{number}.png").write_bytes(images[0])
    here = f"file://{served.folder}"
    batch = begun(served, prefix=f"{here}/in/turned/", out=f"{here}/out/turned", spacing_mm=0.8, view="MLO")
    (served.folder / "out" / "turned").rename(served.folder / "out" / "was")
    (served.folder / "out" / "turned").symlink_to(served.folder / "elsewhere")
    until = time.monotonic() + 120
    while (said := served.get(f"/v1/batches/{batch['id']}").json())["state"] == "running":
        assert time.monotonic() < until, said
        time.sleep(0.3)
    assert said["failed"] > 0
    assert "link" in said["failures"][0]["reason"]
    assert list((served.folder / "elsewhere").iterdir()) == []


@pytest.mark.long
def test_a_batch_that_waits_is_cancelled_at_once_and_one_without_images_says_why(served, images):
    (served.folder / "in" / "long").mkdir()
    for number in range(12):
        (served.folder / "in" / "long" / f"{number}.png").write_bytes(images[0])
    here = f"file://{served.folder}"
    first = begun(served, prefix=f"{here}/in/long/", out=f"{here}/out/long", spacing_mm=0.8, view="MLO")
    second = begun(served, prefix=f"{here}/in/long/", out=f"{here}/out/again", spacing_mm=0.8, view="MLO")
    lost = begun(served, prefix=f"{here}/in/nowhere/", out=f"{here}/out/lost")
    place = f"{served.url}/v1/batches/"
    assert requests.delete(place + second["id"], headers=ME, timeout=60).json()["state"] == "cancelled"
    assert json.loads((served.folder / "out/again/batch.json").read_text())["state"] == "cancelled"
    until = time.monotonic() + 120
    while (said := served.get(f"/v1/batches/{lost['id']}").json())["state"] == "running":
        assert time.monotonic() < until, said
        time.sleep(0.3)
    assert said["state"] == "failed"
    assert "cannot list" in said["failures"][0]["reason"]
    assert served.get(f"/v1/batches/{first['id']}").json()["done"] == 12
    assert sorted(path.name for path in (served.folder / "out/again").iterdir()) == ["batch.json"]


@pytest.mark.long
def test_a_detector_is_replaced_under_load_and_no_request_is_lost(served, images):
    old, new = served.detectors["spn"], made(2)
    bundle.save(replace(new, name="spn"), str(served.folder / "spn-2"))
    truth = [judged(of, images[0]).score for of in (old, new)]
    found: list[float] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answer = served.score(images[0])
            assert answer.status_code == 200, answer.text
            found.append(answer.json()["score"])

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    (served.folder / "link").symlink_to(served.folder / "spn-2")
    (served.folder / "link").rename(served.folder / "spn")
    served.process.send_signal(signal.SIGHUP)
    try:
        served.says("rayad serves again")
        time.sleep(1)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    which = [int(np.argmin([abs(score - of) for of in truth])) for score in found]
    assert all(score == pytest.approx(truth[one], rel=1e-5) for score, one in zip(found, which, strict=True))
    assert which[0] == 0
    assert which[-1] == 1
    shutil.rmtree(served.folder / "spn-1")
    assert served.score(images[0]).json()["score"] == pytest.approx(truth[1], rel=1e-5)
    served.detectors["spn"] = new


def test_a_detector_that_cannot_be_read_replaces_nothing(served, images):
    link, before = served.folder / "spn", served.score(images[0]).json()
    target = link.readlink()
    link.unlink()
    served.process.send_signal(signal.SIGHUP)
    try:
        served.says("the detectors stay as they are: ")
    finally:
        link.symlink_to(target)
    assert served.score(images[0]).json()["score"] == before["score"]


BROKEN = """
from served import PATIENTS, made, png

from rayad.heatmaps.images import HeatmapRequest
from rayad.on_ray.graph import WaitingImage, Picture, judged_together
from rayad.serving.parts import prepared
from rayad.scoring.detector import Detector

detector, asked, really = made(0), HeatmapRequest(0.8, "MLO"), Detector.heatmaps
files = [png(PATIENTS, exam) for exam in PATIENTS.exams()[:2]]
broken, whole = (Picture(prepared(file, detector.preprocessing, asked, "image"), "jane", 0.0) for file in files)
(alone,) = judged_together(detector, [WaitingImage(whole, asked.step_mm)])

def heatmaps(self, images, step):
    if any(image is broken.prepared for image in images):
        raise RuntimeError
    return really(self, images, step)

Detector.heatmaps = heatmaps
one, other = judged_together(detector, [WaitingImage(broken, asked.step_mm), WaitingImage(whole, asked.step_mm)])
print(one.problem.status, other.judged.score == alone.judged.score)
"""
"""What a replica says of two images at once, the first of which breaks the detector."""


LEFT = """
import threading
import time

from served import PATIENTS, made, png

from rayad.heatmaps.images import HeatmapRequest
from rayad.on_ray.graph import WaitingImage, Picture, judged_together
from rayad.serving.parts import prepared

detector = made(1, "reconstruction")
data, asked = png(PATIENTS, PATIENTS.exams()[0]), HeatmapRequest(0.8, "MLO")
picture = Picture(prepared(data, detector.preprocessing, asked, "image"), "jane", 0.0)

def seconds(image):
    began = time.monotonic()
    (answer,) = judged_together(detector, [image])
    return answer, time.monotonic() - began

whole, took = seconds(WaitingImage(picture, 0.8))
left = WaitingImage(picture, 0.8)
threading.Timer(took / 10, left.gone.set).start()
refused, until = seconds(left)
never, at_once = seconds(left)
print(hasattr(whole, "judged"), hasattr(refused, "problem"), hasattr(never, "problem"), until < took / 2, at_once < 0.1)
"""
"""What a replica does for who goes while an image is scored, or before."""


def replica_says(script: str) -> str:
    command, env = [sys.executable, "-c", script], os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    return done.stdout or done.stderr


def test_an_image_that_breaks_the_detector_breaks_no_other():
    assert replica_says(BROKEN) == "500 True\n"


@pytest.mark.long
def test_what_nobody_waits_for_is_not_scored_to_its_end():
    assert replica_says(LEFT).split() == ["True"] * 5


@pytest.mark.long
def test_a_service_whose_scorers_are_silent_is_not_ready(served, images):
    scorers = [of for of in served.process.children(recursive=True) if "ServeReplica:rayad:Scorer" in of.cmdline()[0]]
    assert served.get("/v1/ready").status_code == 200
    for scorer in scorers:
        scorer.suspend()
    try:
        asking = threading.Thread(target=served.score, args=(images[0],))
        asking.start()
        time.sleep(32)
        assert served.get("/v1/ready").status_code == 503
    finally:
        for scorer in scorers:
            scorer.resume()
    asking.join()
    assert served.score(images[0]).status_code == 200
    assert served.get("/v1/ready").status_code == 200


def test_a_killed_replica_loses_no_request(served, images):
    found: list[int] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            found.append(served.score(images[0]).status_code)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(2)
    named = {of.pid: " ".join(of.cmdline()) for of in served.process.children(recursive=True)}
    victims = [pid for pid, name in named.items() if "ServeReplica:rayad:Scorer" in name]
    os.kill(victims[0], signal.SIGKILL)
    time.sleep(8)
    stop.set()
    for thread in threads:
        thread.join()
    assert len(found) > 5
    assert set(found) == {200}


def test_the_log_of_requests_names_nobody(served):
    assert mode(served.folder / "audit") == 0o600
    lines = [json.loads(line) for line in (served.folder / "audit").read_text().splitlines()]
    assert {line["who"] for line in lines} >= {"tests"}
    assert {line["path"] for line in lines} >= {"/v1/score", "/v1/batches"}
    assert not any(word in json.dumps(lines) for word in ("one.png", TOKEN, "Doe", "spacing"))


def test_metrics_are_there(served):
    deadline = time.monotonic() + 30
    while "ray_rayad_served_images_total" not in (text := served.get("/metrics").text):
        assert time.monotonic() < deadline
        time.sleep(1)
    for name in ("served_seconds_total", "served_latency_bucket", "served_waiting"):
        assert f"ray_rayad_{name}" in text
