"""The service: an HTTP API before the scoring graph, as one Ray Serve application."""

import asyncio
import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import ray
from ray import serve
from ray.exceptions import OutOfMemoryError, RayActorError, RayError

from rayad import local
from rayad.bounds import Bounds
from rayad.errors import OptionError, RayadError
from rayad.heatmaps.answers import Batch, BatchRequest, BatchSummary
from rayad.heatmaps.images import HeatmapRequest
from rayad.on_ray import metrics
from rayad.on_ray.batch import TOGETHER, Batches, asking
from rayad.on_ray.graph import Drawer, Graph, Pictures, Scorer, deployment, steadily, unless_refused
from rayad.serving import api, cards
from rayad.serving.access import Access, Guard, Limits
from rayad.serving.batches import Places
from rayad.serving.cards import Served
from rayad.serving.exchange import Application, Message, Receive, Scope, Send
from rayad.serving.fetch import AllowList
from rayad.serving.problems import Problem
from rayad.serving.settings import Replicas
from rayad.serving.shares import Shares

SILENT_S = 30.0
"""After which a service that is asked and answers nothing is not ready."""


@dataclass(frozen=True)
class Service:
    """What is served, and to whom."""

    detectors: dict[str, str]
    """Name -> URL of a bundle; the first is the default."""
    read: tuple[str, ...] = ()
    """Prefixes of URLs from which images may be fetched."""
    write: tuple[str, ...] = ()
    """Prefixes of URLs below which batches may write."""
    audit: str = ""
    """File to which a line of JSON a request is added; "": the replica's log."""
    state: str = ""
    """Folder or URL in which batches are remembered; "": they are forgotten when the service ends."""
    listed: tuple[str, ...] = ()
    """Lines of tokens besides, which hold hashes of them."""
    access: Access = field(default_factory=Access)
    limits: Limits = field(default_factory=Limits)
    bounds: Bounds = field(default_factory=Bounds)
    """Of an image."""
    replicas: Replicas = field(default_factory=Replicas)


class Pulse:
    """Since when nothing that was asked has had an answer."""

    def __init__(self) -> None:
        self._waiting, self._last = 0, 0.0

    @contextmanager
    def asked(self) -> Iterator[None]:
        """While one answer is waited for; an error of rayad's is an answer too, its sender's going away is none."""
        if not self._waiting:
            self._last = time.monotonic()
        self._waiting += 1
        try:
            yield
        except RayadError:
            self._last = time.monotonic()
            raise
        else:
            self._last = time.monotonic()
        finally:
            self._waiting -= 1

    @property
    def silent_seconds(self) -> float:
        """How long nothing has been answered, while something is waited for."""
        return time.monotonic() - self._last if self._waiting else 0.0


class Offered(Graph):
    """The graph with the detectors that are served, and its batches: an `api.Backend`."""

    def __init__(self, queue: int, batches: Any, *handles: Any) -> None:
        super().__init__(*handles)
        self.served: Mapping[str, Served] = {}
        self._places, self._batches, self._pulse = Shares(queue), batches, Pulse()

    async def offer(self, detectors: dict[str, str]) -> None:
        """Serve these from now on; until they are loaded, and if one cannot be, what is served stays."""
        offered = {}
        for name, url in detectors.items():
            offered[name] = await asyncio.to_thread(cards.served, name, url)
            await self.warm(offered[name])
        self.served = offered

    def check_room(self, caller: str) -> None:
        """Problem where there is no place for one more image of a caller."""
        if not self._places.has_room(caller, 1):
            raise _too_many()

    @contextmanager
    def room(self, caller: str) -> Iterator[None]:
        """For one image of a caller, from its bytes to its answer."""
        if not self._places.take(caller, 1):
            raise _too_many()
        metrics.show("served_waiting", self._places.held)
        try:
            yield
        finally:
            self._places.give_back(caller, 1)
            metrics.show("served_waiting", self._places.held)

    async def score(self, served: Served, data: bytes, request: HeatmapRequest, caller: str) -> api.ServedScore:
        """As the graph does, counted."""
        began, result = time.perf_counter(), "failed"
        try:
            with self._pulse.asked():
                scored = await super().score(served, data, request, caller)
            result = "scored"
        except RayadError:
            result = "refused"
            raise
        finally:
            metrics.count("served_images", 1, result=result)
        metrics.observe("served_latency", time.perf_counter() - began)
        for part, seconds in scored.seconds.items():
            metrics.count("served_seconds", seconds, part=part)
        return scored

    async def ready(self) -> bool:
        """Is there a detector, and have those that score answered of late?"""
        return bool(self.served) and self._pulse.silent_seconds < SILENT_S

    async def metrics(self) -> str:
        """Of every node."""
        series = []
        try:
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
                for node in ray.nodes():
                    if node["Alive"]:
                        where = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
                        async with session.get(where) as answer:
                            series.append(await answer.text())
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Problem(503, "A node does not tell its metrics now.", headers={"Retry-After": "5"}) from error
        return "".join(series)

    async def start(self, request: BatchRequest, served: Served) -> Batch:
        """Start a batch."""
        try:
            return unless_refused(await self._batches.start.remote(request, served))
        except (RayActorError, OutOfMemoryError) as error:
            lost = "The batches' process died; this batch may have begun."
            raise Problem(503, lost, headers={"Retry-After": "30"}) from error

    async def batches(self) -> tuple[BatchSummary, ...]:
        """All batches."""
        return await steadily(lambda: self._batches.every.remote())

    async def batch(self, number: str) -> Batch | None:
        """One batch."""
        return await steadily(lambda: self._batches.one.remote(number))

    async def cancel(self, number: str) -> Batch | None:
        """Stop a batch."""
        return await steadily(lambda: self._batches.cancel.remote(number))


@deployment
@serve.ingress()
class Api:
    """HTTP: who may ask, what is asked, how it is answered."""

    def __init__(self, service: Service, pictures: Any, scorer: Any, drawer: Any, batches: Any) -> None:
        self.service, self.graph = service, Offered(service.replicas.queue, batches, pictures, scorer, drawer)
        if service.audit:
            logging.getLogger("rayad.audit").addHandler(logging.FileHandler(local.private(service.audit)))

    def __serve_build_asgi_app__(self) -> Any:
        reading, writing = AllowList(self.service.read), AllowList(self.service.write)
        app = api.build(self.graph, reading, writing, self.service.limits)
        return _hearing(Guard(app, self.service.access, self.service.limits, self.service.listed))

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Other detectors: the old ones answer until the new ones are loaded."""
        await self.graph.offer(config["detectors"])


def _too_many() -> Problem:
    return Problem(503, "too many images are waiting", headers={"retry-after": "2"})


def _hearing(app: Application) -> Application:
    """An application for which a client has gone when Ray's proxy has no more of its request."""

    async def hearing(scope: Scope, receive: Receive, send: Send) -> None:
        async def heard() -> Message:
            try:
                return await receive()
            except RayError:  # the proxy cancels what still asks for a body when its client hangs up
                return {"type": "http.disconnect"}

        await app(scope, heard, send)

    return hearing


def application(service: Service, generation: int = 0) -> Any:
    """The graph, for `serve.run`.

    Args:
        generation: another one reads the detectors again.
    """
    r, limits = service.replicas, service.bounds
    one: dict[str, Any] = {"num_cpus": 1}
    # all that waits, batches' images too, waits in the replicas, which know whose turn it is; Serve's routers do not
    most = {"max_ongoing_requests": r.queue + asking(r) * TOGETHER}
    pictures = Pictures.options(num_replicas=r.pictures, ray_actor_options=one, **most).bind(limits)
    scorer = Scorer.options(num_replicas=r.scorers, ray_actor_options=one | {"num_gpus": r.gpu}, **most).bind(limits)
    drawer = Drawer.options(num_replicas=r.drawers, ray_actor_options=one, **most).bind(limits)
    places = Places(service.state, service.read, service.write)
    batches = Batches.options(ray_actor_options={"num_cpus": 0}).bind(places, service.limits, asking(r))
    return Api.options(
        user_config={"detectors": service.detectors, "generation": generation},
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=1000,
        graceful_shutdown_timeout_s=math.ceil(service.limits.request_seconds),
    ).bind(service, pictures, scorer, drawer, batches)


def app(args: dict[str, Any]) -> Any:
    """The graph from a Serve config file: `import_path: rayad.on_ray.serve:app`; `args` are the fields of `Service`.

    Raises:
        OptionError: there is neither a token nor an issuer of them, and `args` do not say `open_to_all`.
    """
    args = dict(args)
    everybody = args.pop("open_to_all", False)
    kinds = {"access": Access, "limits": Limits, "bounds": Bounds, "replicas": Replicas}
    fields: dict[str, Any] = {
        k: kinds[k](**v) if k in kinds else tuple(v) if isinstance(v, list) else v for k, v in args.items()
    }
    service = Service(**fields)
    if not (everybody or service.listed or service.access.asks()):
        raise OptionError("the service needs tokens or an issuer of tokens, or open_to_all: true in its args")
    return application(service)
