"""The scoring graph: Pictures -> Scorer, and Drawer where a picture is asked for; Ray Serve deployments.

Each scales by itself. Pixels go from Pictures to Scorer and Drawer by reference. What a replica refuses (a damaged
image) comes back as a value, so that Ray writes no account of it, with its words, to a log. What a replica that died
had not answered is asked of another.
"""

import asyncio
import logging
import os
import resource
import time
import zlib
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import wraps
from typing import Any, TypeVar

import numpy as np
import torch
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.handle import DeploymentHandle

from rayad.errors import ImageError, RayadError
from rayad.evaluation import heatmap
from rayad.evaluation.judgement import Judgement, judge
from rayad.imaging import dicom, raster
from rayad.imaging.picture import Prepared, Preprocessing, step_px
from rayad.scoring.detector import Detector
from rayad.serving import cards, codestream, objects, problems
from rayad.serving.api import Scored
from rayad.serving.cards import Card
from rayad.serving.problems import Problem

T = TypeVar("T")
deployment: Any = serve.deployment
multiplexed: Any = serve.multiplexed
batched: Any = serve.batch  # what these decorators make, Ray's annotations do not say
LOG = logging.getLogger("rayad.serving")
APP = "rayad"
"""Name of the Serve application."""
NAME = "image"
"""What errors call an image: its own name may be a patient's."""
KEPT = 4
"""Detectors that a replica keeps."""
DECODER_BYTES = 8 * 2**30
"""Memory that decoding may take beside what a replica has at its start: a damaged image can ask for any size."""
DAMAGE = (MemoryError, RuntimeError, zlib.error)
"""What decoders raise besides what `rayad.imaging` knows; imagecodecs' own errors do not even reach another process."""
PAUSES_S = (0.2, 1.0, 3.0)
"""Before another replica is asked for what one had not answered when it died."""


@dataclass(frozen=True)
class Refused:
    """An error of rayad's, as a value: what it is to who asked, since its cause stays behind."""

    problem: Problem


def refused(error: RayadError) -> Refused:
    """An error as a value."""
    return Refused(problems.of(error))


def unless_refused(said: Any) -> Any:
    """What a replica said; what it refused is raised."""
    if isinstance(said, Refused):
        raise said.problem
    return said


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
            return refused(error)

    return guarded


@deployment
class Pictures:
    """Decodes an image and finds its tissue."""

    def __init__(self, largest: int) -> None:
        raster.LARGEST = largest
        self._one = ThreadPoolExecutor(1)  # a replica has one core; several images at once would share it
        _bound_memory()

    @_refusing
    async def prepare(
        self, data: bytes, preprocessing: Preprocessing, request: heatmap.Request, whole: bool
    ) -> Picture:
        """The image at the detector's working resolution.

        Args:
            whole: keep the pixels as they came, for members that prepare the image themselves.
        """
        prepared, took = await asyncio.get_running_loop().run_in_executor(
            self._one, _timed, prepared_image, data, preprocessing, request
        )
        if not whole:  # nobody looks at them: only how many there are
            slim = np.zeros((*prepared.source.pixels.shape[:2], 0), np.float32)
            prepared = replace(prepared, source=replace(prepared.source, pixels=slim))
        return Picture(prepared, took)


def prepared_image(data: bytes, preprocessing: Preprocessing, request: heatmap.Request) -> Prepared:
    """An image from the bytes of its file, as a detector sees it."""
    try:
        codestream.check(data, NAME)
        source = heatmap.decoded(data, NAME, preprocessing.channels, request)
    except DAMAGE as error:
        raise ImageError(f"{NAME}: damaged, or too large for the service: {type(error).__name__}") from error
    height, width = source.pixels.shape[:2]
    growth = (source.spacing_mm / preprocessing.spacing_mm) ** 2
    if height * width * growth > raster.LARGEST:
        raise ImageError(
            f"{NAME}: {height} x {width} pixels of {source.spacing_mm:g} mm are more than {raster.LARGEST} "
            f"of the detector's {preprocessing.spacing_mm:g} mm"
        )
    return preprocessing.prepare(source)


def _timed(function: Callable[..., T], *arguments: Any) -> tuple[T, float]:
    """What it returns, and the seconds that it took."""
    began = time.perf_counter()
    return function(*arguments), time.perf_counter() - began


def _bound_memory() -> None:
    """Let allocations fail where a decoder asks for more than an image can need."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[5]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_DATA, (now + DECODER_BYTES, resource.getrlimit(resource.RLIMIT_DATA)[1]))


class Held:
    """Detectors that a replica keeps at hand, by the key of their card."""

    @multiplexed(max_num_models_per_replica=KEPT)
    async def detector(self, key: str) -> Detector:
        """Load one; Problem where it cannot be, which is no fault of the image."""
        try:
            found = await asyncio.to_thread(cards.load, key)
        except RayadError as error:
            LOG.error("a detector cannot be loaded: %s", error)
            raise Problem(503, "The detector cannot be loaded now.", headers={"Retry-After": "30"}) from error
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
            return [refused(error)] * len(pictures)
        return await asyncio.to_thread(judged_together, detector, pictures, requests)


def judged_together(
    detector: Detector, pictures: Sequence[Picture | Refused], requests: Sequence[heatmap.Request]
) -> list[Judged | Refused]:
    """Judge images, those of one grid in one pass; each gets what it would get alone."""
    found: list[Judged | Refused] = [of if isinstance(of, Refused) else Refused(Problem(500)) for of in pictures]
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
        judged = [judge(of.prepared, at, detector.calibration) for of, at in zip(pictures, heatmaps, strict=True)]
    except Exception as error:
        if len(pictures) > 1:  # whichever it is, the others are scored
            return [one for picture in pictures for one in _judged(detector, [picture], step_mm)]
        if not isinstance(error, RayadError):
            LOG.exception("an image cannot be scored")
        return [Refused(problems.of(error))]
    took = (time.perf_counter() - began) / len(pictures)
    seconds = [{"prepare": of.seconds, "score": took} for of in pictures]
    return [Judged(*of) for of in zip(judged, seconds, strict=True)]


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

    @property
    def again(self) -> tuple[bytes, heatmap.Request]:
        """What it can be made of once more."""
        return self.data, self.request


class Graph:
    """The deployments, as whoever asks them sees them: an HTTP API or a batch."""

    def __init__(self, pictures: DeploymentHandle, scorer: DeploymentHandle, drawer: DeploymentHandle) -> None:
        self._pictures, self._scorer, self._drawer = pictures, scorer, drawer

    @staticmethod
    def deployed() -> "Graph":
        """The one that is served on this cluster."""
        return Graph(*(serve.get_deployment_handle(name, app_name=APP) for name in ("Pictures", "Scorer", "Drawer")))

    async def warm(self, card: Card) -> None:
        """Let a scorer load a detector."""
        await self._for(self._scorer, card).warm.remote()

    async def score(self, card: Card, data: bytes, request: heatmap.Request) -> Scored:
        """Decode, prepare, score.

        Raises:
            RayadError: what the image lacks.
        """

        async def ask() -> Scored:
            picture = self._picture(card, data, request)
            said = unless_refused(await self._for(self._scorer, card).judge.remote(picture, request))
            return Scored(card, said.judged, said.seconds, _Under(picture, data, request))

        return await steadily(ask)

    async def png(self, scored: Scored) -> bytes:
        """The overlay."""
        return await self._drawn(scored, lambda drawer, picture: drawer.png.remote(picture, scored.judged))

    async def arrays(self, scored: Scored, include: Sequence[str]) -> dict[str, np.ndarray]:
        """Pixels as they came, and the healthy version: what `include` names."""
        if not include:
            return {}
        data, request = scored.picture.data, scored.picture.request
        found = await self._drawn(
            scored, lambda drawer, picture: drawer.arrays.remote(picture, data, request, tuple(include))
        )
        return dict(found)

    async def objects(self, scored: Scored, data: bytes) -> dict[str, bytes]:
        """DICOM objects by kind; Problem where the image did not come as DICOM."""
        if raster.is_raster(data):
            raise Problem(406, "DICOM objects refer to a DICOM image; this one is none")
        request = scored.picture.request
        return await self._drawn(
            scored, lambda drawer, _: drawer.objects.remote(data, scored.judged, scored.card, request)
        )

    async def _drawn(self, scored: Scored, ask: Callable[[Any, Any], Awaitable[T]]) -> T:
        """What the drawer makes; the picture may have died with whoever prepared it, and is prepared again."""
        drawer, pictures = self._for(self._drawer, scored.card), [scored.picture.picture]

        async def once() -> T:
            picture = pictures.pop() if pictures else self._picture(scored.card, *scored.picture.again)
            return unless_refused(await ask(drawer, picture))

        return await steadily(once)

    def _picture(self, card: Card, data: bytes, request: heatmap.Request) -> Any:
        return self._pictures.prepare.remote(data, card.preprocessing, request, card.whole)

    @staticmethod
    def _for(handle: DeploymentHandle, card: Card) -> Any:
        """A deployment's replicas, those first that keep this detector."""
        return handle.options(multiplexed_model_id=card.key)


async def steadily(ask: Callable[[], Awaitable[T]]) -> T:
    """What is asked; again, if a replica died over it."""
    for pause in PAUSES_S:
        try:
            return await ask()
        except RayError as error:
            if isinstance(error, RayTaskError) and not isinstance(error.cause, RayError):
                raise  # an error in the code of a replica that lives
            await asyncio.sleep(pause)
    try:
        return await ask()
    except RayError as error:
        if isinstance(error, RayTaskError) and not isinstance(error.cause, RayError):
            raise
        later = {"Retry-After": "30"}
        raise Problem(503, "Whoever should have answered died, each time.", headers=later) from error
