"""`rayad serve` against what is slow, damaged, malicious or too much: refused by a problem, and others are served."""

import io
import json
import os
import signal
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psutil
import pytest
import requests
from malicious import BAD
from PIL import Image
from served import ME, PATIENTS, TOKEN, Served, png, serving

from rayad.serving.client import Client

pytestmark = pytest.mark.long
HEAD = f"Authorization: Bearer {TOKEN}\r\nHost: 127.0.0.1\r\n"
MEANT = (502, 503, 504)
"""Server errors that say something."""


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Served]:
    more = ("--replicas.queue", "8", "--limits.body-seconds", "4", "--limits.max-body-mb", "30")
    with serving(tmp_path_factory.mktemp("faults"), *more) as server:
        yield server


@pytest.fixture(scope="module")
def image() -> bytes:
    return png(PATIENTS, next(iter(PATIENTS.exams())))


@pytest.fixture(scope="module")
def truth(served, image) -> float:
    """The score before anything happens."""
    return served.score(image).json()["score"]


@pytest.fixture(autouse=True)
def unharmed(served, image, truth) -> Iterator[None]:
    """After every test a good image has its score."""
    yield
    answer = served.score(image)
    assert answer.status_code == 200, answer.text
    assert answer.json()["score"] == pytest.approx(truth, rel=1e-5)


def is_problem(answer: requests.Response, *statuses: int) -> None:
    assert answer.status_code in statuses, (answer.status_code, answer.text)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == answer.status_code
    assert answer.json()["title"]


def line(served: Served) -> socket.socket:
    port = int(served.url.rsplit(":", 1)[1])
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def everything(of: socket.socket) -> bytes:
    parts = []
    while part := of.recv(65536):
        parts.append(part)
    return b"".join(parts)


def test_a_trickling_body_is_408_and_others_are_served_meanwhile(served, image):
    with line(served) as slow:
        slow.sendall(f"POST /v1/score HTTP/1.1\r\n{HEAD}Content-Length: 100000\r\n\r\n".encode())
        began = time.monotonic()
        while time.monotonic() < began + 2:
            slow.sendall(b"x")
            time.sleep(0.2)
        assert served.score(image).status_code == 200
        said = everything(slow)
    assert said.startswith(b"HTTP/1.1 408 ")
    assert b"application/problem+json" in said
    assert time.monotonic() < began + 15


def test_a_client_that_hangs_up_harms_nobody(served, image):
    query = "spacing_mm=0.8&view=MLO&include=counterfactual"
    head = f"POST /v1/score?{query} HTTP/1.1\r\n{HEAD}Accept: application/x-npz\r\nContent-Length: "
    for sent, size in ((bytes(200_000), 400_000), (image, len(image))):
        with line(served) as client:
            client.sendall(f"{head}{size}\r\n\r\n".encode() + sent)
            if sent != image:
                time.sleep(1)  # until it is known of
            else:
                assert client.recv(12) == b"HTTP/1.1 200"
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not an end
    until = time.monotonic() + 10
    while 499 not in (statuses := [json.loads(row)["status"] for row in audit(served)]):
        assert time.monotonic() < until, statuses
        time.sleep(0.2)
    assert 500 not in statuses


def audit(served: Served) -> list[str]:
    return (served.folder / "audit").read_text().splitlines()


def test_a_chunked_body_is_counted_while_it_comes(served):
    before = memory(served)
    answer = served.score(bytes(100_000) for _ in range(2000))
    is_problem(answer, 413)
    assert memory(served) < before + 1e9


@pytest.mark.parametrize("kind", BAD)
def test_a_malicious_file_is_refused(served, kind):
    began = time.monotonic()
    is_problem(served.score(BAD[kind]()), 422)
    assert time.monotonic() < began + 15


@pytest.mark.parametrize("asked", ["spacing_mm=nan", "step_mm=nan", "step_mm=1e-300", "spacing_mm=1e-9", "step_mm=inf"])
def test_an_impossible_number_is_refused(served, image, asked):
    name, _, value = asked.partition("=")
    is_problem(served.score(image, **{name: value}), 422)


def test_a_small_image_of_large_pixels_does_not_grow_without_end(served):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (1000, 1000), dtype=np.uint8)).save(buffer, "png")
    answer = served.score(buffer.getvalue(), spacing_mm=10)
    is_problem(answer, 422)


def named(served: Served, url: object) -> requests.Response:
    return requests.post(f"{served.url}/v1/score", json={"url": url}, headers=ME, timeout=60)


@pytest.mark.parametrize(
    "path",
    [
        *("/etc/passwd", "{in}/../spn/detector.json", "{in}/%2e%2e/audit", "{in}/..;/audit", "{in}//etc/passwd"),
        *(
            "{in}/a\\..\\audit",
            "{in}x/a",
            "{in}/link",
            "{in}/\0a",
            "{in}/a?b",
            "{in}/a#b",
            "{in}/\uff0e\uff0e/audit",
            "{in}/",
        ),
    ],
)
def test_no_path_leads_out_of_what_may_be_read(served, path):
    link = served.folder / "in" / "link"
    if not link.exists():
        link.symlink_to("/etc/passwd")
    is_problem(named(served, "file://" + path.replace("{in}", str(served.folder / "in"))), 403, 404, 422)


@pytest.mark.parametrize(
    "url",
    [
        *("http://169.254.169.254/latest/meta-data/", "http://[::1]:80/a.png", "http://localhost/a.png"),
        *("http://2130706433/a.png", "http://0x7f.1/a.png", "http://127.1/a.png", "http://user@example.org/a.png"),
        *(
            "s3://rayad/in/../secret",
            "s3://other/a",
            "gopher://a/b",
            "ftp://a/b",
            "data:,a",
            "a.png",
            "",
            "::",
            None,
            1,
        ),
        *("simplecache::file:///etc/passwd", "memory://a", "file://host/etc/passwd", "http://example.org\r\nA: b/"),
    ],
)
def test_no_url_leads_into_the_network(served, url):
    is_problem(named(served, url), 403, 422)


@pytest.mark.parametrize("name", ["..%2fserving%2fapi.py", "%2e%2e/api.py", "__init__.py", "x%00.js", "..\\api.py"])
def test_the_viewer_s_files_are_no_way_in(served, name):
    is_problem(requests.get(f"{served.url}/web/{name}", headers=ME, timeout=60), 404)


def test_nothing_of_a_request_becomes_a_header(served, image):
    evil = "a\r\nX-Evil: yes"
    url = f"{served.url}/v1/score"
    answers = [
        served.score(image, detector=evil),
        named(served, f"file://{served.folder}/in/{evil}"),
        requests.post(url, files={"image": (evil, image)}, params={"spacing_mm": 0.8}, headers=ME, timeout=60),
        requests.get(f"{served.url}/v1/detectors/{evil}", headers=ME, timeout=60),
        requests.get(f"{served.url}/v1/batches/{evil}", headers=ME, timeout=60),
    ]
    assert [answer.status_code for answer in answers] == [404, 422, 200, 404, 404]
    assert not any("x-evil" in answer.headers for answer in answers)
    with line(served) as client:
        client.sendall(f"GET /v1/detectors HTTP/1.1\r\n{HEAD}Accept: a\rb\r\nConnection: close\r\n\r\n".encode())
        assert b"x-evil" not in everything(client).lower()


def test_a_name_in_no_encoding_is_a_failure_of_its_own(served, image):
    source = served.folder / "in" / "latin"
    source.mkdir()
    (source / "good.png").write_bytes(image)
    with open(bytes(source) + b"/M\xfcller.png", "wb") as file:
        file.write(image)
    wanted = {"prefix": f"file://{source}/", "out": f"file://{served.folder}/out/latin", "spacing_mm": 0.8}
    begun = requests.post(f"{served.url}/v1/batches", json=wanted | {"view": "MLO"}, headers=ME, timeout=60)
    until = time.monotonic() + 120
    while (said := served.get(begun.headers["location"]).json())["state"] == "running":
        assert time.monotonic() < until, said
        time.sleep(0.3)
    assert (said["state"], said["done"], said["failed"]) == ("done", 1, 1), said
    assert "ller.png" in said["failures"][0]["image"]


def test_a_token_is_one_and_the_right_one(served):
    wrong = ["", "Bearer", "Bearer ", f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN} {TOKEN}", TOKEN]
    for text in (*wrong, "Bearer " + "a" * 9000, f"Bearer {TOKEN}, Bearer {TOKEN}"):
        answer = requests.get(f"{served.url}/v1/detectors", headers={"authorization": text}, timeout=60)
        is_problem(answer, 401)
        assert answer.headers["www-authenticate"].startswith("Bearer")
    assert requests.get(f"{served.url}/v1/detectors", params={"token": TOKEN}, timeout=60).status_code == 401
    with line(served) as client:
        client.sendall(f"GET /v1/detectors HTTP/1.1\r\n{HEAD}{HEAD}Connection: close\r\n\r\n".encode())
        assert everything(client).split()[1] in (b"401", b"421")


def test_methods_and_types_are_not_confused(served, image):
    for method, path in (
        ("PUT", "/v1/score"),
        ("GET", "/v1/score"),
        ("POST", "/v1/detectors"),
        ("PATCH", "/v1/batches"),
    ):
        is_problem(requests.request(method, served.url + path, headers=ME, timeout=60), 405)
    url = f"{served.url}/v1/score"
    for kind, body in {
        "application/json": image,
        "multipart/form-data": image,
        "multipart/form-data; boundary=x": b"--x\r\nContent-Disposition: form-data; name=image\r\n\r\nabc\r\n--x--",
        "application/json; charset=utf-16": b"[" * 100_000,
    }.items():
        answer = requests.post(url, data=body, headers=ME | {"content-type": kind}, timeout=60)
        is_problem(answer, 400, 413, 422)
    for body in (b"null", b"[]", b'{"out": 1}', b"[" * 100_000, b'{"out": "a", "spacing_mm": NaN}'):
        answer = requests.post(f"{served.url}/v1/batches", data=body, headers=ME, timeout=60)
        is_problem(answer, 400, 415, 422)


def memory(served: Served) -> int:
    """Bytes that the server's processes have for themselves."""
    total = 0
    for process in [served.process, *served.process.children(recursive=True)]:
        try:
            total += process.memory_info().rss - process.memory_info().shared
        except psutil.NoSuchProcess:
            continue
    return total


def test_too_many_requests_at_once_are_told_to_come_back_and_none_is_lost(served, image, truth):
    before, most, found = memory(served), [0], []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            most[0] = max(most[0], memory(served))

    def ask() -> None:
        found.append(served.score(image))

    watcher = threading.Thread(target=watch)
    watcher.start()
    threads = [threading.Thread(target=ask) for _ in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    watcher.join()
    counts = Counter(answer.status_code for answer in found)
    assert len(found) == 200, counts
    assert set(counts) == {200, 503}, counts
    for answer in found:
        if answer.status_code == 503:
            is_problem(answer, 503)
            assert int(answer.headers["retry-after"]) > 0
        else:
            assert answer.json()["score"] == pytest.approx(truth, rel=1e-5)
    assert most[0] < before + 2e9


def test_a_killed_door_loses_no_request(served, image, truth):
    """The only replica of the API; what it had not answered is asked of the next one."""
    found: list[Any] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answer = served.score(image)
            found.append(answer.json()["score"] if answer.status_code == 200 else answer.text)

    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(ask) for _ in range(3)]
        time.sleep(2)
        names = {of.pid: " ".join(of.cmdline()) for of in served.process.children(recursive=True)}
        before = len(found)
        os.kill(next(pid for pid, name in names.items() if "ServeReplica:rayad:Api" in name), signal.SIGKILL)
        time.sleep(30)
        stop.set()
    assert 0 < before < len(found) - 3
    assert [of.result() for of in asked] == [None] * 3
    assert found == [pytest.approx(truth, rel=1e-5)] * len(found)


def test_a_killed_keeper_of_batches_is_asked_again(served):
    names = {of.pid: " ".join(of.cmdline()) for of in served.process.children(recursive=True)}
    os.kill(next(pid for pid, name in names.items() if "ServeReplica:rayad:Batches" in name), signal.SIGKILL)
    answer = served.get("/v1/batches")
    assert answer.status_code == 200, answer.text


def test_an_image_that_changes_while_the_keeper_of_batches_is_away_is_scored_anew(served, image, truth):
    folder, asked = served.folder / "in" / "changing", {"spacing_mm": 0.8, "view": "MLO"}
    folder.mkdir(parents=True)
    files = [folder / f"{number:02}.png" for number in range(60)]
    for file in files:
        file.write_bytes(image)
    other = png(PATIENTS, list(PATIENTS.exams())[1])
    client = Client(served.url, TOKEN)
    batch = client.start_batch(f"file://{served.folder}/out/changing", prefix=f"file://{folder}/", **asked)
    until = time.monotonic() + 60
    while not (done := client.batch(batch.id).results):
        assert time.monotonic() < until
        time.sleep(0.05)
    names = {of.pid: " ".join(of.cmdline()) for of in served.process.children(recursive=True)}
    os.kill(next(pid for pid, name in names.items() if "ServeReplica:rayad:Batches" in name), signal.SIGKILL)
    changed = folder / f"{done[0].name}.png"
    changed.write_bytes(other)
    ended = client.wait(batch.id, timeout_s=200, poll_s=0.5)
    assert (ended.state, ended.done, ended.failed) == ("done", 60, 0)
    scores = {row.name: row.score for row in ended.results}
    assert scores[changed.stem] == client.score(other, **asked).score
    assert {score for name, score in scores.items() if name != changed.stem} == {client.score(image, **asked).score}
    assert not list((served.folder / "state" / "images").glob("*"))


def test_who_is_no_operator_gives_the_proxy_no_orders(served, image):
    port = int(served.url.rsplit(":", 1)[1])
    for name in (b"X-Request-ID", b"serve_multiplexed_model_id", b"X-Session-Id", b"X-Request-Timeout-Seconds"):
        with socket.create_connection(("127.0.0.1", port)) as line:
            head = b"GET /v1/health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
            line.sendall(head + name + b": \xff\r\n\r\n")
            assert line.makefile("rb").readline() == b"HTTP/1.1 200 OK\r\n", name
    assert served.get("/-/routes").status_code == 404


def test_no_request_ended_in_an_error_that_nobody_meant(served):
    statuses = {json.loads(row)["status"] for row in audit(served)}
    assert not {status for status in statuses if status >= 500} - set(MEANT)
    assert "Traceback" not in served.log()
