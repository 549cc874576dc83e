"""The scoring graph on Ray Serve: Api -> Pictures -> Scorer, and Drawer where a picture is asked for.

Each deployment scales by itself. Pixels go from Pictures to Scorer and Drawer by reference, not through Api. What a
replica refuses (a damaged image) comes back as a value, so that Ray writes no account of it, with its words, to a log.
"""

import asyncio
import logging
import math
import os
import resource
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import wraps
from typing import Any

import aiohttp
import numpy as np
import ray
import torch
from ray import serve
from ray.serve.handle import DeploymentHandle

from rayad.errors import RayadError
from rayad.evaluation import heatmap
from rayad.evaluation.judgement import Judgement, judge
from rayad.imaging import dicom, raster
from rayad.imaging.picture import Prepared, Preprocessing, step_px
from rayad.on_ray import metrics
from rayad.on_ray.batch import Batches, Refused, unless_refused
from rayad.on_ray.resources import Replicas
from rayad.scoring.detector import Detector
from rayad.serving import api, cards, objects
from rayad.serving.access import Access, Guard, Limits
from rayad.serving.cards import Card
from rayad.serving.fetch import AllowList
from rayad.serving.problems import Problem

deployment: Any = serve.deployment
multiplexed: Any = serve.multiplexed
batched: Any = serve.batch  # what these decorators make, Ray's annotations do not say
NAME = "image"
"""What errors call an image: its own name may be a patient's."""
KEPT = 4
"""Detectors that a replica keeps."""
DECODER_BYTES = 8 * 2**30
"""Memory that decoding may take beside what a replica has at its start: a damaged image can ask for any size."""


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
    replicas: Replicas = field(default_factory=Replicas)


@dataclass(frozen=True)
class Picture:
    """An image on its way to be scored."""

    prepared: Prepared
    seconds: float
    """That it took to decode and prepare."""


@dataclass(frozen=True)
class Judged:
    """What a scorer says."""

    judged: Judgement
    seconds: dict[str, float]


def _refusing(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """A replica's method that returns what goes wrong on purpose, also of the step before it."""

    @wraps(method)
    async def guarded(self: Any, first: Any, *rest: Any) -> Any:
        if isinstance(first, Refused):
            return first
        try:
            return await method(self, first, *rest)
        except RayadError as error:
            return Refused(type(error).__name__, str(error))

    return guarded


@deployment
class Pictures:
    """Decodes an image and finds its tissue."""

    def __init__(self, largest: int) -> None:
        raster.LARGEST = largest
        _bound_memory()

    @_refusing
    async def prepare(
        self, data: bytes, preprocessing: Preprocessing, request: heatmap.Request, whole: bool
    ) -> Picture:
        """The image at the detector's working resolution.

        Args:
            whole: keep the pixels as they came, for members that prepare the image themselves.
        """
        began = time.perf_counter()
        prepared = await asyncio.to_thread(prepared_image, data, preprocessing, request)
        if not whole:  # nobody looks at them: only how many there are
            slim = np.zeros((*prepared.source.pixels.shape[:2], 0), np.float32)
            prepared = replace(prepared, source=replace(prepared.source, pixels=slim))
        return Picture(prepared, time.perf_counter() - began)


def prepared_image(data: bytes, preprocessing: Preprocessing, request: heatmap.Request) -> Prepared:
    """An image from the bytes of its file, as a detector sees it."""
    return preprocessing.prepare(heatmap.decoded(data, NAME, preprocessing.channels, request))


def _bound_memory() -> None:
    """Let allocations fail where a decoder asks for more than an image can need."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[5]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_DATA, (now + DECODER_BYTES, resource.getrlimit(resource.RLIMIT_DATA)[1]))


class Held:
    """Detectors that a replica keeps at hand, by the key of their card."""

    @multiplexed(max_num_models_per_replica=KEPT)
    async def detector(self, key: str) -> Detector:
        """Load one."""
        found = await asyncio.to_thread(cards.load, key)
        return found.on("cuda") if torch.cuda.is_available() else found


@deployment
class Scorer(Held):
    """Encoder and density; images that wait are scored together."""

    async def warm(self) -> None:
        """Load the detector of this request."""
        await self.detector(serve.get_multiplexed_model_id())

    @batched(max_batch_size=8, batch_wait_timeout_s=0.005, max_concurrent_batches=1)
    async def judge(self, pictures: list[Picture | Refused], requests: list[heatmap.Request]) -> list[Judged | Refused]:
        """What the detector of these requests says; Ray Serve puts requests of one detector together."""
        try:
            detector = await self.detector(serve.get_multiplexed_model_id())
        except RayadError as error:
            return [Refused(type(error).__name__, str(error))] * len(pictures)
        return await asyncio.to_thread(judged_together, detector, pictures, requests)


def judged_together(
    detector: Detector, pictures: Sequence[Picture | Refused], requests: Sequence[heatmap.Request]
) -> list[Judged | Refused]:
    """Judge images, those of one grid in one pass; each gets what it would get alone."""
    found: list[Judged | Refused] = [of if isinstance(of, Refused) else Refused("", "") for of in pictures]
    of_step: dict[float, list[int]] = {}
    for number, picture in enumerate(pictures):
        if isinstance(picture, Picture):
            of_step.setdefault(requests[number].step_mm, []).append(number)
    for step_mm, numbers in of_step.items():
        for number, one in zip(numbers, _judged(detector, [pictures[i] for i in numbers], step_mm), strict=True):
            found[number] = one
    return found


def _judged(detector: Detector, pictures: Sequence[Any], step_mm: float) -> list[Judged | Refused]:
    assert detector.calibration is not None  # a card saw to it
    began = time.perf_counter()
    try:
        step = step_px(detector.preprocessing, step_mm)
        heatmaps = detector.heatmaps([picture.prepared for picture in pictures], step)
    except RayadError as error:
        if len(pictures) > 1:  # whichever it is, the others are scored
            return [one for picture in pictures for one in _judged(detector, [picture], step_mm)]
        return [Refused(type(error).__name__, str(error))]
    took = (time.perf_counter() - began) / len(pictures)
    return [
        Judged(judge(of.prepared, found, detector.calibration), {"prepare": of.seconds, "score": took})
        for of, found in zip(pictures, heatmaps, strict=True)
    ]


@deployment
class Drawer(Held):
    """Overlays, healthy versions, DICOM objects: what takes longer than the score and is asked for less."""

    def __init__(self, largest: int) -> None:
        raster.LARGEST = largest
        _bound_memory()

    @_refusing
    async def png(self, picture: Picture, judged: Judgement) -> bytes:
        """The overlay."""
        detector = await self.detector(serve.get_multiplexed_model_id())
        return (await asyncio.to_thread(heatmap.drawn, NAME, picture.prepared, judged, detector))[1]

    @_refusing
    async def arrays(self, picture: Picture, data: bytes, request: heatmap.Request, include: Sequence[str]) -> Any:
        """Pixels of the image as it came, and what it would look like if it were healthy."""
        detector = await self.detector(serve.get_multiplexed_model_id())
        return await asyncio.to_thread(_arrays, detector, picture.prepared, data, request, include)

    @_refusing
    async def objects(self, data: bytes, judged: Judgement, card: Card, request: heatmap.Request) -> dict[str, bytes]:
        """DICOM objects by kind."""
        return await asyncio.to_thread(_objects, data, judged, card, request)


def _objects(data: bytes, judged: Judgement, card: Card, request: heatmap.Request) -> dict[str, bytes]:
    usual = heatmap.Request()
    asked = {k: str(v) for k, v in asdict(request).items() if v != getattr(usual, k)}
    by = objects.Algorithm(card.name, card.sha256)
    made = objects.objects(dicom.attributes(data, NAME), dicom.decode(data, NAME), judged, by, asked)
    return {kind: objects.to_bytes(dataset) for kind, dataset in made.items()}


def _arrays(
    detector: Detector, prepared: Prepared, data: bytes, request: heatmap.Request, include: Sequence[str]
) -> dict[str, np.ndarray]:
    found = {}
    if "pixels" in include:
        pixels = heatmap.decoded(data, NAME, detector.preprocessing.channels, request).pixels
        full, kind = (65535, np.uint16) if pixels.ndim == 2 else (255, np.uint8)
        found["pixels"] = np.round(pixels * full).astype(kind)
    if "counterfactual" in include:
        healthy = heatmap.if_healthy(detector, prepared)
        found |= {"counterfactual": healthy.pixels, "change": healthy.change}
    return found


@dataclass(frozen=True)
class _Under:
    """The picture of an image that was scored, where it lies, and what it was made of."""

    picture: Any
    data: bytes
    request: heatmap.Request


class Graph:
    """The other deployments as the API sees them: an `api.Backend`."""

    def __init__(self, service: Service, pictures: Any, scorer: Any, drawer: Any, batches: Any) -> None:
        self.service = service
        self._pictures, self._scorer, self._drawer, self._batches = pictures, scorer, drawer, batches
        self.cards: Mapping[str, Card] = {}
        self._under_way = 0

    async def offer(self, detectors: dict[str, str]) -> None:
        """Serve these from now on; until they are loaded, and if one cannot be, what is served stays."""
        found = {}
        for name, url in detectors.items():
            found[name] = await asyncio.to_thread(cards.card, name, url)
            await self._for(self._scorer, found[name]).warm.remote()
        self.cards = found

    async def score(self, card: Card, data: bytes, request: heatmap.Request) -> api.Scored:
        """Decode, prepare, score."""
        if self._under_way >= self.service.replicas.queue:
            raise Problem(503, "too many images are waiting", headers={"retry-after": "2"})
        began = time.perf_counter()
        self._wait(1)
        try:
            picture = self._pictures.prepare.remote(data, card.preprocessing, request, card.whole)
            said = await self._for(self._scorer, card).judge.remote(picture, request)
        finally:
            self._wait(-1)
        metrics.count("served_images", 1, result="refused" if isinstance(said, Refused) else "scored")
        said = unless_refused(said)
        metrics.observe("served_latency", time.perf_counter() - began)
        for part, seconds in said.seconds.items():
            metrics.count("served_seconds", seconds, part=part)
        return api.Scored(card, said.judged, said.seconds, _Under(picture, data, request))

    def _wait(self, more: int) -> None:
        self._under_way += more
        metrics.show("served_waiting", self._under_way)

    async def png(self, scored: api.Scored) -> bytes:
        """The overlay."""
        drawer = self._for(self._drawer, scored.card)
        return unless_refused(await drawer.png.remote(scored.picture.picture, scored.judged))

    async def arrays(self, scored: api.Scored, include: Sequence[str]) -> dict[str, np.ndarray]:
        """Pixels, healthy version."""
        if not include:
            return {}
        of, drawer = scored.picture, self._for(self._drawer, scored.card)
        return dict(unless_refused(await drawer.arrays.remote(of.picture, of.data, of.request, tuple(include))))

    async def objects(self, scored: api.Scored, data: bytes) -> dict[str, bytes]:
        """DICOM objects by kind."""
        if raster.is_raster(data):
            raise Problem(406, "DICOM objects refer to a DICOM image; this one is none")
        drawer = self._for(self._drawer, scored.card)
        return unless_refused(await drawer.objects.remote(data, scored.judged, scored.card, scored.picture.request))

    async def ready(self) -> bool:
        """Is there a detector?"""
        return bool(self.cards)

    async def metrics(self) -> str:
        """Of every node."""
        found = []
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            for node in ray.nodes():
                if node["Alive"]:
                    where = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
                    async with session.get(where) as answer:
                        found.append(await answer.text())
        return "".join(found)

    async def start(self, wanted: dict[str, Any], card: Card) -> dict[str, Any]:
        """Start a batch."""
        return unless_refused(await self._batches.start.remote(wanted, card))

    async def batches(self) -> list[dict[str, Any]]:
        """All batches."""
        return await self._batches.every.remote()

    async def batch(self, number: str) -> dict[str, Any] | None:
        """One batch."""
        return await self._batches.one.remote(number)

    async def cancel(self, number: str) -> dict[str, Any] | None:
        """Stop a batch."""
        return await self._batches.cancel.remote(number)

    @staticmethod
    def _for(deployment: DeploymentHandle, card: Card) -> Any:
        """A deployment's replicas, those first that keep this detector."""
        return deployment.options(multiplexed_model_id=card.key)


@deployment
@serve.ingress()
class Api:
    """HTTP: who may ask, what is asked, how it is answered."""

    def __init__(self, service: Service, pictures: Any, scorer: Any, drawer: Any, batches: Any) -> None:
        self.service, self.graph = service, Graph(service, pictures, scorer, drawer, batches)
        if service.audit:
            logging.getLogger("rayad.audit").addHandler(logging.FileHandler(service.audit))

    def __serve_build_asgi_app__(self) -> Any:
        reading, writing = AllowList(self.service.read), AllowList(self.service.write)
        app = api.build(self.graph, reading, writing, self.service.limits)
        return Guard(app, self.service.access, self.service.limits, self.service.listed)

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Other detectors: the old ones answer until the new ones are loaded."""
        await self.graph.offer(config["detectors"])


def application(service: Service, generation: int = 0) -> Any:
    """The graph, for `serve.run`.

    Args:
        generation: another one reads the detectors again.
    """
    r, largest = service.replicas, service.limits.max_pixels
    one = {"num_cpus": 1}
    pictures = Pictures.options(num_replicas=r.pictures, ray_actor_options=one, max_ongoing_requests=8).bind(largest)
    scorer = Scorer.options(
        num_replicas=r.scorers, ray_actor_options=one | {"num_gpus": r.gpu}, max_ongoing_requests=16
    ).bind()
    drawer = Drawer.options(num_replicas=r.drawers, ray_actor_options=one, max_ongoing_requests=4).bind(largest)
    batches = Batches.options(ray_actor_options={"num_cpus": 0}).bind(service.state, service.read, service.limits)
    return Api.options(
        user_config={"detectors": service.detectors, "generation": generation},
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=1000,
        graceful_shutdown_timeout_s=math.ceil(service.limits.request_seconds),
    ).bind(service, pictures, scorer, drawer, batches)


def app(args: dict[str, Any]) -> Any:
    """The graph from a Serve config file: `import_path: rayad.on_ray.serve:app`; `args` are the fields of `Service`."""
    kinds = {"access": Access, "limits": Limits, "replicas": Replicas}
    fields: dict[str, Any] = {
        k: kinds[k](**v) if k in kinds else tuple(v) if isinstance(v, list) else v for k, v in args.items()
    }
    return application(Service(**fields))
