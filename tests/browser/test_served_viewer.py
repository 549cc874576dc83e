"""The viewer and the batch page in a real browser, on the server that `rayad serve` starts."""

import io
import json
import re
from contextlib import contextmanager

import numpy as np
import pydicom
import pytest
from PIL import Image
from playwright.sync_api import expect

from rayad.serving import RESEARCH_USE
from rayad.serving.exchange import SAFE
from tests.browser.test_viewer import press
from tests.served import PATIENTS, TOKEN, dicom, png, serving

pytestmark = pytest.mark.long
WAIT_MS = 60_000
BATCH_MS = 240_000  # its processes take minutes to start on a machine that does other work
EXAM = next(exam for exam in PATIENTS.exams() if exam.lesions)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("served")) as server:
        yield server


@contextmanager
def opened(chromium, served, path="/"):
    """A page that has its token; what the console says beside refused requests, and who is asked, is checked."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    expect.set_options(timeout=WAIT_MS)
    said, asked = [], []
    page.on("console", lambda message: message.type == "error" and said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    answer = page.goto(served.url + path)
    assert answer.headers["content-security-policy"] == SAFE[b"content-security-policy"].decode()
    page.locator("#token input").fill(TOKEN)
    page.keyboard.press("Enter")
    yield page
    context.close()
    expect.set_options(timeout=5_000)
    assert [text for text in said if not re.search("status of (401|403|422)", text)] == []
    assert [url for url in asked if not url.startswith((served.url + "/", "data:", "blob:"))] == []


def give(page, name, content):
    page.set_input_files("#files", {"name": name, "mimeType": "application/octet-stream", "buffer": content})


def is_scored(page):
    expect(page.locator("#result .figures")).to_be_visible()
    expect(page.locator("#status")).to_be_empty()


def saved(page, name):
    with page.expect_download() as got:
        page.get_by_role("button", name=name, exact=True).click()
    return got.value.path().read_bytes()


def test_an_image_without_spacing_is_mended_compared_explained_and_saved(chromium, served):
    with opened(chromium, served) as page:
        give(page, "one.png", png(PATIENTS, EXAM))
        expect(page.locator(".pane .message")).to_contain_text("no pixel spacing")
        expect(page.locator(".pane .message")).to_contain_text("Give mm a pixel above")
        page.locator("#spacing").fill("0.8")
        page.locator("#projection").select_option("MLO")
        page.get_by_role("button", name="Score again").click()
        is_scored(page)
        truth = served.score(png(PATIENTS, EXAM)).json()
        expect(page.locator("#result")).to_contain_text(f"{truth['score']:.3g}")
        expect(page.locator("#findings li")).to_have_count(len(truth["findings"]))
        page.locator("#choose-1").check()
        press(page, "c")
        expect(page.locator(".pane .top.left span").last).to_contain_text("score")
        press(page, "w")
        expect(page.locator(".pane .message").first).to_be_empty()
        expect(page.locator(".pane .message").last).to_have_text("This detector has no such picture of this image.")
        press(page, "qd")
        page.locator("#limit").fill("0")
        floor = truth["p_value_floor"]
        expect(page.locator("#limit-text")).to_have_text(f"p ≤ {floor:.2g}")
        arrays = np.load(io.BytesIO(saved(page, "npz")))
        assert np.array_equal(arrays["pixels"], np.asarray(Image.open(io.BytesIO(png(PATIENTS, EXAM)))))
        assert json.loads(saved(page, "JSON"))["score"] == pytest.approx(truth["score"], rel=1e-5)
        assert Image.open(io.BytesIO(saved(page, "PNG"))).width > 192
        expect(page.locator("#research")).to_have_text(RESEARCH_USE)


def test_a_dicom_image_is_dropped_and_a_broken_one_says_why(chromium, served):
    data = dicom(EXAM)
    (served.folder / "in" / "named.dcm").write_bytes(data)
    with opened(chromium, served) as page:
        expect(page.locator("#detectors li")).to_have_count(2)
        drop = """(bytes) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "one.dcm"));
            const event = new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true });
            document.getElementById("viewport").dispatchEvent(event);
        }"""
        page.evaluate(drop, list(data))
        is_scored(page)
        assert pydicom.dcmread(io.BytesIO(saved(page, "DICOM SR"))).Modality == "SR"
        shown = page.locator("#result").inner_text()
        give(page, "broken.png", png(PATIENTS, EXAM)[:200])
        expect(page.locator(".pane .message.problem")).not_to_be_empty()
        press(page, ["Delete", "u"])
        page.get_by_label("URLs, one a line").fill(f"file://{served.folder}/in/named.dcm\nfile:///etc/passwd.dcm")
        with page.expect_response(lambda answer: "/v1/score" in answer.url and answer.status == 200):
            page.get_by_role("button", name="Open", exact=True).click()
        is_scored(page)
        expect(page.locator("#result")).to_have_text(shown, use_inner_text=True)
        press(page, ["PageDown"])
        expect(page.locator(".pane .message.problem")).not_to_be_empty()


def test_a_batch_goes_on_to_its_end_and_one_is_cancelled(chromium, served):
    inbox = served.folder / "in" / "batch"
    inbox.mkdir()
    for exam in PATIENTS.exams():
        (inbox / f"{exam.exam_id}.png").write_bytes(png(PATIENTS, exam))
    (inbox / "broken.png").write_bytes(b"no image")
    with opened(chromium, served, "/batches") as page:
        expect(page.locator("[name=detector] option")).to_have_count(2)
        page.get_by_label("URL that all images are below").fill(f"file://{inbox}/")
        page.get_by_label("Results go to").fill("file:///etc")
        page.locator("[name=spacing_mm]").fill("0.8")
        page.get_by_role("button", name="Start").click()
        expect(page.locator("#refused")).not_to_be_empty()
        page.get_by_label("Results go to").fill(f"file://{served.folder}/out/first")
        page.get_by_role("button", name="Start").click()
        row = page.locator("#batches tbody tr")
        expect(row.locator(".state")).to_have_text("done", timeout=BATCH_MS)
        count = len(PATIENTS.exams())
        expect(row).to_contain_text(f"{count + 1} of {count + 1}")
        expect(page.locator("#results tbody tr")).to_have_count(count)
        expect(page.locator("#failures tbody tr")).to_have_count(1)
        expect(page.locator("#failures")).to_contain_text("broken.png")
        image = (inbox / f"{EXAM.exam_id}.png").read_bytes()
        for number in range(300):  # it is not at its end before somebody cancels it
            (inbox / f"{number}.png").write_bytes(image)
        page.get_by_label("Results go to").fill(f"file://{served.folder}/out/second")
        page.get_by_role("button", name="Start").click()
        page.get_by_role("button", name="cancel").first.click()
        expect(row.first.locator(".state")).to_have_text("cancelled", timeout=BATCH_MS)
