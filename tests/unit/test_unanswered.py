"""rayad.serving.unanswered: before an application that ends like Ray Serve's proxy does when a replica dies."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import requests
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from rayad.serving import unanswered
from rayad.serving.problems import Problem
from rayad.serving.unanswered import Unanswered


class Dying:
    """Answers with the request's body; the first so many times, as the proxy of a replica that died."""

    def __init__(self, deaths: int = 0, status: int = 500) -> None:
        self.deaths, self.status, self.bodies = deaths, status, []
        paths = ("/v1/score", "/v1/batches", "/v1/detectors", "/-/healthz")
        self.app = Starlette(routes=[Route(path, self.answer, methods=["GET", "POST"]) for path in paths])

    async def answer(self, request: Request) -> Response:
        self.bodies.append(await request.body())
        if len(self.bodies) <= self.deaths:
            return PlainTextResponse("Internal Server Error", self.status)
        response = Response(self.bodies[-1], headers={"x-request-id": "of the API"})
        response.headers.append("X-Request-ID", "of the proxy")
        return response


@contextmanager
def running(app: Any) -> Iterator[str]:
    """An application before a port; its address."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, ws="none", lifespan="off", log_config=None, loop="asyncio"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)
        listening.close()


@pytest.fixture
def served() -> Iterator[Callable[[Any], str]]:
    with ExitStack() as stack:
        yield lambda app: stack.enter_context(running(Unanswered(app)))


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(unanswered, "PAUSES_S", (0.0, 0.0, 0.0))


def is_problem(answer: Any, status: int) -> None:
    assert (answer.status_code, answer.json()["status"]) == (status, status)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("status", [500, 503])
@pytest.mark.parametrize("deaths", [0, 1, 3])
def test_the_next_replica_gets_the_whole_request(served, deaths, status):
    service = Dying(deaths, status)
    answer = requests.post(served(service.app) + "/v1/score", data=iter([b"an ", b"image"]))
    assert (answer.status_code, answer.content) == (200, b"an image")
    assert service.bodies == [b"an image"] * (deaths + 1)
    assert answer.headers["x-request-id"] == "of the API"


def test_in_the_end_it_is_a_problem(served):
    service = Dying(9)
    answer = requests.post(served(service.app) + "/v1/score", data=b"an image")
    is_problem(answer, 503)
    assert answer.headers["retry-after"] == "30"
    assert len(service.bodies) == 4


def test_a_batch_is_not_begun_twice(served):
    service = Dying(1)
    answer = requests.post(served(service.app) + "/v1/batches", data=b"{}")
    is_problem(answer, 503)
    assert "may have begun" in answer.json()["detail"]
    assert len(service.bodies) == 1


def test_silence_is_an_error_too(served):
    async def silent(scope: Any, receive: Any, send: Any) -> None:
        await receive()

    answer = requests.post(served(silent) + "/v1/score", data=b"an image")
    is_problem(answer, 503)


def test_what_is_too_much_to_keep_is_not_asked_again(served, monkeypatch):
    monkeypatch.setattr(unanswered, "MOST_KEPT", 10)
    service = Dying(1)
    is_problem(requests.post(served(service.app) + "/v1/score", data=b"more than ten"), 503)
    assert len(service.bodies) == 1


def test_room_is_given_back(served, monkeypatch):
    monkeypatch.setattr(unanswered, "MOST_KEPT", 10)
    service = Dying(1)
    url = served(service.app)
    is_problem(requests.post(url + "/v1/score", data=b"more than ten"), 503)
    for number in range(3):
        service.deaths = len(service.bodies) + 1
        assert requests.post(url + "/v1/score", data=b"just ten b").status_code == 200, number


def test_an_answer_of_the_api_passes_even_if_it_is_an_error(served):
    asked = []

    async def failing(request: Request) -> Response:
        asked.append(request)
        return Problem(500, "its own").response()

    app = Starlette(routes=[Route("/v1/score", failing, methods=["POST"])])
    answer = requests.post(served(app) + "/v1/score")
    assert (answer.status_code, answer.json()["detail"], len(asked)) == (500, "its own", 1)


def test_other_plain_errors_are_problems_and_asked_once(served):
    service = Dying(9, 404)
    is_problem(requests.get(served(service.app) + "/v1/detectors"), 404)
    assert len(service.bodies) == 1


def test_the_pages_of_the_proxy_stay_as_they_are(served):
    answer = requests.get(served(Dying(9, 503).app) + "/-/healthz")
    assert (answer.status_code, answer.text) == (503, "Internal Server Error")


def test_its_other_pages_are_not_shown(served):
    is_problem(requests.get(served(Dying().app) + "/-/routes"), 404)


def test_a_client_gives_the_proxy_no_orders(served):
    seen: list[Any] = []

    async def listening(request: Request) -> Response:
        seen.extend(name for name, _ in request.scope["headers"])
        return PlainTextResponse("well")

    orders = {
        "X-Request-ID": "1",
        "serve_multiplexed_model_id": "other",
        "Serve-Multiplexed-Model-Id": "other",
        "X-Session-Id": "\xff",
        "X-Request-Timeout-Seconds": "0.001",
        "X-Request-Disconnect-Disabled": "?1",
    }
    url = served(Starlette(routes=[Route("/v1/detectors", listening)])) + "/v1/detectors"
    assert requests.get(url, headers=orders | {"X-Mine": "1"}).text == "well"
    assert b"x-mine" in seen
    assert not [name for name in seen if b"request" in name or b"session" in name or b"model" in name]


def test_a_proxy_that_fails_is_a_problem(served):
    async def failing(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise RuntimeError

    is_problem(requests.post(served(failing) + "/v1/score", data=b"an image"), 503)


def test_the_sender_of_a_large_body_reads_why_nobody_took_it(served):
    async def deaf(scope: Any, receive: Any, send: Any) -> None:
        await receive()

    is_problem(requests.post(served(deaf) + "/v1/batches", data=b"0" * 5_000_000), 503)


def test_a_large_answer_comes_whole(served):
    large = bytes(range(256)) * 40_000

    async def drawing(request: Request) -> Response:
        return Response(large)

    url = served(Starlette(routes=[Route("/v1/score", drawing, methods=["POST"])]))
    assert requests.post(url + "/v1/score").content == large


def test_who_does_not_read_an_answer_is_cut_off(served, monkeypatch):
    monkeypatch.setattr(unanswered, "ANSWER_S", 0.5)

    async def drawing(request: Request) -> Response:
        return Response(bytes(100_000_000))

    url = served(Starlette(routes=[Route("/v1/score", drawing)]))
    with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as client:
        client.sendall(b"GET /v1/score HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(2)
        client.settimeout(10)
        size = 0
        with contextlib.suppress(ConnectionError):
            while part := client.recv(1 << 20):
                size += len(part)
    assert size < 50_000_000


def test_who_went_away_is_not_asked_for_again():
    asked = []

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        asked.append([(await receive())["type"], (await receive())["type"]])
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"Internal Server Error"})

    came = iter([{"type": "http.request", "body": b"an", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(came)

    async def send(message: Any) -> None:
        pass

    scope = {"type": "http", "method": "POST", "path": "/v1/score", "headers": []}
    asyncio.run(Unanswered(proxy)(scope, receive, send))
    assert asked == [["http.request", "http.disconnect"]]


SECRET = "what the front proves itself by"


@pytest.mark.parametrize("given", [None, "", "guess", f"{SECRET}x", "\xff"])
def test_who_goes_around_the_front_is_not_asked_for(given):
    service = Dying()
    with running(Unanswered(service.app, SECRET)) as url:
        headers = {} if given is None else {"X-Rayad-Front": given}
        is_problem(requests.post(f"{url}/v1/score", data=b"an image", headers=headers), 421)
        assert requests.get(f"{url}/-/healthz").status_code == 200
    assert service.bodies == [b""]


def test_who_comes_by_the_front_is_and_the_api_does_not_see_its_secret():
    seen: list[Any] = []

    async def listening(request: Request) -> Response:
        seen.extend(request.scope["headers"])
        return PlainTextResponse("well")

    with running(Unanswered(Starlette(routes=[Route("/", listening)]), SECRET)) as url:
        assert requests.get(url, headers={"X-Rayad-Front": SECRET}).text == "well"
    assert seen
    assert SECRET.encode() not in dict(seen).values()


def test_ray_takes_what_is_given():
    from ray.serve._private.http_util import validate_http_proxy_callback_return

    assert validate_http_proxy_callback_return(unanswered.middlewares())


def test_what_comes_after_the_body_is_no_header():
    """uvicorn appends trailers to the headers, and takes the last X-Forwarded-For for the client."""
    before = [
        (b"host", b"a"),
        (b"x-forwarded-for", b"192.0.2.1"),
        (b"x-forwarded-proto", b"https"),
        (b"x-rayad-front", b"s"),
    ]
    trailers = [(b"X-Forwarded-For", b"198.51.100.7"), (b"authorization", b"Bearer x"), (b"X-Rayad-Front", b"s")]
    scope = {"type": "http", "client": ("198.51.100.7", 0), "scheme": "http", "headers": [*before, *trailers]}
    cleaned = unanswered._without_trailers(scope)
    assert cleaned["headers"] == before
    assert cleaned["client"][0] == "192.0.2.1"
    assert cleaned["scheme"] == "https"
    assert unanswered._without_trailers({**scope, "headers": [(b"host", b"a")]})["headers"] == []
