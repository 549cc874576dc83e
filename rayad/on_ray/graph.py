"""The scoring graph: Pictures -> Scorer, and Drawer where a picture is asked for; Ray Serve deployments.

Each scales by itself, and gives all who ask the same time of it. Pixels go from Pictures to Scorer and Drawer by
reference. What a replica refuses (a damaged image) comes back as a value, so that Ray writes no account of it, with its
words, to a log. What a replica that died had not answered is asked of another.
"""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from typing import Any, TypeVar

import numpy as np
import torch
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.handle import DeploymentHandle

from rayad import bounds
from rayad.errors import RayadError
from rayad.heatmaps.answers import Card
from rayad.heatmaps.drawing import Written, arrays_and_picture
from rayad.heatmaps.images import HeatmapRequest
from rayad.heatmaps.judgement import Judgement, judge
from rayad.imaging import raster
from rayad.imaging.picture import Prepared, Preprocessing
from rayad.scoring.detector import Detector
from rayad.serving import cards, parts, problems
from rayad.serving.api import ServedScore
from rayad.serving.cards import Served
from rayad.serving.problems import Problem
from rayad.serving.threads import ended, unless_gone, while_wanted
from rayad.serving.turns import Turns

T = TypeVar("T")
deployment: Any = serve.deployment
multiplexed: Any = serve.multiplexed
batched: Any = serve.batch  # what these decorators make, Ray's annotations do not say
LOG = logging.getLogger("rayad.serving")
APP = "rayad"
"""Name of the Serve application."""
NAME = "image"
"""What errors call an image: its own name may be a patient's."""
SCORED_TOGETHER = 8
"""Images that a scorer scores at once."""
KEPT = 4
"""Detectors that a replica keeps."""
PLACES = 6250
"""That are scored in one turn of a scorer: of 3.2 mm the largest mammogram has 7,000."""
PAUSES_S = (0.2, 1.0, 3.0)
"""Before another replica is asked for what one had not answered when it died."""


@dataclass(frozen=True)
class Refused:
    """An error of rayad's, as a value: what it is to who asked, since its cause stays behind."""

    problem: Problem


def refused(error: RayadError) -> Refused:
    """An error as a value."""
    return Refused(problems.of(error))


def unless_refused(answer: Any) -> Any:
    """The answer of a replica; a refusal is raised."""
    if isinstance(answer, Refused):
        raise answer.problem
    return answer


@dataclass(frozen=True)
class Picture:
    """An image on its way to be scored."""

    prepared: Prepared
    caller: str
    """Who asked for it."""
    seconds: float
    """That it took to decode and prepare."""

    def turns(self, step_mm: float) -> int:
        """How many of a scorer's turns the image needs."""
        step = max(1, round(step_mm / self.prepared.spacing_mm))  # px; what is less than one is refused
        return max(1, math.ceil(np.count_nonzero(self.prepared.tissue) / step**2 / PLACES))


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

    def __init__(self, limits: bounds.Bounds) -> None:
        bounds.use(limits)
        self._turns = Turns(2)  # a replica has one core: one image at a time, and one of another caller
        self._threads = ThreadPoolExecutor(2)

    @_refusing
    async def prepare(
        self, data: bytes, preprocessing: Preprocessing, request: HeatmapRequest, whole: bool, caller: str
    ) -> Picture:
        """The image at the detector's working resolution.

        Args:
            whole: keep the pixels as they came, for members that prepare the image themselves.
        """
        work = partial(_timed, parts.prepared, data, preprocessing, request, NAME)
        async with self._turns.taken(caller):
            prepared, took = await while_wanted(self._threads, work)
        if not whole:  # nobody looks at them: only how many there are
            slim = np.zeros((*prepared.source.pixels.shape[:2], 0), np.float32)
            prepared = replace(prepared, source=replace(prepared.source, pixels=slim))
        return Picture(prepared, caller, took)


def _timed(function: Callable[..., T], *arguments: Any) -> tuple[T, float]:
    """What it returns, and the seconds that it took."""
    began = time.perf_counter()
    return function(*arguments), time.perf_counter() - began


class Held:
    """Detectors that a replica keeps at hand, by the key of their card."""

    @multiplexed(max_num_models_per_replica=KEPT)
    async def detector(self, key: str) -> Detector:
        """Load one; Problem where it cannot be, which is no fault of the image."""
        try:
            loaded = await asyncio.to_thread(cards.load, key)
        except RayadError as error:
            LOG.error("a detector cannot be loaded: %s", error)
            raise Problem(503, "The detector cannot be loaded now.", headers={"Retry-After": "30"}) from error
        return loaded.on("cuda") if torch.cuda.is_available() else loaded


@dataclass(frozen=True)
class WaitingImage:
    """An image that waits to be scored."""

    picture: Picture
    step_mm: float
    gone: threading.Event = field(default_factory=threading.Event)
    """Set when nobody waits for it any more."""
    work: list[asyncio.Future[Any]] = field(default_factory=list)
    """The thread that scores it, once it has begun."""


@deployment
class Scorer(Held):
    """Encoder and density; images that wait are scored together, those of one caller beside those of another."""

    def __init__(self, limits: bounds.Bounds) -> None:
        bounds.use(limits)
        self._turns = Turns(2 * SCORED_TOGETHER)

    async def warm(self) -> None:
        """Load the detector of this request."""
        await self.detector(serve.get_multiplexed_model_id())

    @_refusing
    async def judge(self, picture: Picture, request: HeatmapRequest) -> Judged | Refused:
        """What the detector of this request says."""
        waiting = WaitingImage(picture, request.step_mm)
        async with self._turns.taken(picture.caller, picture.turns(request.step_mm)):
            try:
                return await self._together(waiting)
            finally:
                waiting.gone.set()
                for work in waiting.work:
                    await ended(work)

    @batched(max_batch_size=SCORED_TOGETHER, batch_wait_timeout_s=0.005, max_concurrent_batches=2)
    async def _together(self, images: list[WaitingImage]) -> list[Judged | Refused]:
        """Ray Serve puts images of one detector together."""
        try:
            detector = await self.detector(serve.get_multiplexed_model_id())
        except RayadError as error:
            return [refused(error)] * len(images)
        work = asyncio.get_running_loop().run_in_executor(None, judged_together, detector, images)
        for image in images:
            image.work.append(work)
        return await asyncio.shield(work)


def judged_together(detector: Detector, images: Sequence[WaitingImage]) -> list[Judged | Refused]:
    """Judge images, those of one grid in one pass; each gets what it would get alone."""
    answers: list[Judged | Refused] = [Refused(Problem(503, "Nobody waits for this image any more."))] * len(images)
    by_step: dict[float, list[int]] = {}
    for number, image in enumerate(images):
        if not image.gone.is_set():
            by_step.setdefault(image.step_mm, []).append(number)
    for step_mm, numbers in by_step.items():
        for number, answer in zip(numbers, _judged(detector, [images[i] for i in numbers], step_mm), strict=True):
            answers[number] = answer
    return answers


def _judged(detector: Detector, images: Sequence[WaitingImage], step_mm: float) -> list[Judged | Refused]:
    assert detector.calibration is not None  # a card saw to it
    began, pictures, waiting = (
        time.perf_counter(),
        [image.picture for image in images],
        [image.gone for image in images],
    )
    seconds = bounds.current().score_seconds
    try:
        step = detector.step(step_mm)
        with bounds.while_wanted(lambda: unless_gone(waiting)), bounds.within(seconds, "score_seconds"):
            heatmaps = detector.heatmaps([picture.prepared for picture in pictures], step)
            judged = [
                judge(scored_picture.prepared, at, detector.calibration, detector.rule)
                for scored_picture, at in zip(pictures, heatmaps, strict=True)
            ]
    except Exception as error:
        if len(images) > 1:  # whichever it is, the others are scored
            return [one for image in images for one in _judged(detector, [image], step_mm)]
        if not isinstance(error, RayadError | bounds.NotWanted):
            LOG.exception("an image cannot be scored")
        return [Refused(problems.of(error))]
    took = (time.perf_counter() - began) / len(pictures)
    return [
        Judged(scored_picture, {"prepare": picture.seconds, "score": took})
        for scored_picture, picture in zip(judged, pictures, strict=True)
    ]


@deployment
class Drawer(Held):
    """Overlays, healthy versions, DICOM objects: what takes longer than the score and is asked for less."""

    def __init__(self, limits: bounds.Bounds) -> None:
        bounds.use(limits)
        self._turns = Turns(4)
        self._threads = ThreadPoolExecutor(4)

    @_refusing
    async def png(self, picture: Picture, judged: Judgement, counterfactual: bool) -> bytes:
        """The overlay, and the healthy version."""
        detector = await self.detector(serve.get_multiplexed_model_id())
        job = NAME, picture.prepared, judged, detector, Written(counterfactual=counterfactual)
        async with self._turns.taken(picture.caller):
            _, png = await while_wanted(self._threads, arrays_and_picture, *job)
        return png

    @_refusing
    async def arrays(self, picture: Picture, data: bytes, request: HeatmapRequest, include: Sequence[str]) -> Any:
        """Pixels of the image as it came, and what it would look like if it were healthy."""
        detector = await self.detector(serve.get_multiplexed_model_id())
        async with self._turns.taken(picture.caller):
            return await while_wanted(
                self._threads, parts.arrays, detector, picture.prepared, data, request, include, NAME
            )

    @_refusing
    async def objects(
        self, data: bytes, judged: Judgement, card: Card, request: HeatmapRequest, caller: str
    ) -> dict[str, bytes]:
        """DICOM objects by kind."""
        async with self._turns.taken(caller):
            return await while_wanted(self._threads, parts.dicom_files, data, judged, card, request, NAME)


@dataclass(frozen=True)
class _Under:
    """The picture of an image that was scored, where it lies, what it was made of and for whom."""

    picture: Any
    data: bytes
    request: HeatmapRequest
    caller: str

    @property
    def again(self) -> tuple[bytes, HeatmapRequest, str]:
        """What it can be made of once more."""
        return self.data, self.request, self.caller


class Graph:
    """The deployments, as whoever asks them sees them: an HTTP API or a batch."""

    def __init__(self, pictures: DeploymentHandle, scorer: DeploymentHandle, drawer: DeploymentHandle) -> None:
        self._pictures, self._scorer, self._drawer = pictures, scorer, drawer

    @staticmethod
    def deployed() -> "Graph":
        """The one that is served on this cluster."""
        return Graph(*(serve.get_deployment_handle(name, app_name=APP) for name in ("Pictures", "Scorer", "Drawer")))

    async def warm(self, served: Served) -> None:
        """Let a scorer load a detector."""
        await self._for(self._scorer, served).warm.remote()

    async def score(self, served: Served, data: bytes, request: HeatmapRequest, caller: str) -> ServedScore:
        """Decode, prepare, score; callers get equal parts of the time of those that do it.

        Raises:
            RayadError: what the image lacks.
        """

        request = replace(request, step_mm=request.step_mm or served.card.step_mm)

        async def ask() -> ServedScore:
            picture = self._picture(served, data, request, caller)
            judged = unless_refused(await self._for(self._scorer, served).judge.remote(picture, request))
            return ServedScore(served, judged.judged, judged.seconds, _Under(picture, data, request, caller))

        return await steadily(ask)

    async def png(self, scored: ServedScore, include: Sequence[str]) -> bytes:
        """The overlay, and the healthy version if `include` names it."""
        healthy = "counterfactual" in include
        return await self._drawn(scored, lambda drawer, picture: drawer.png.remote(picture, scored.judged, healthy))

    async def arrays(self, scored: ServedScore, include: Sequence[str]) -> dict[str, np.ndarray]:
        """Pixels as they came, and the healthy version: what `include` names."""
        if not include:
            return {}
        data, request = scored.picture.data, scored.picture.request
        arrays = await self._drawn(
            scored, lambda drawer, picture: drawer.arrays.remote(picture, data, request, tuple(include))
        )
        return dict(arrays)

    async def objects(self, scored: ServedScore, data: bytes) -> dict[str, bytes]:
        """DICOM objects by kind; Problem where the image did not come as DICOM."""
        if raster.is_raster(data):
            raise Problem(406, "DICOM objects refer to a DICOM image; this one is none")
        source = scored.picture
        return await self._drawn(
            scored,
            lambda drawer, _: drawer.objects.remote(
                data, scored.judged, scored.served.card, source.request, source.caller
            ),
        )

    async def _drawn(self, scored: ServedScore, ask: Callable[[Any, Any], Awaitable[T]]) -> T:
        """What the drawer makes; the picture may have died with whoever prepared it, and is prepared again."""
        drawer, pictures = self._for(self._drawer, scored.served), [scored.picture.picture]

        async def once() -> T:
            picture = pictures.pop() if pictures else self._picture(scored.served, *scored.picture.again)
            return unless_refused(await ask(drawer, picture))

        return await steadily(once)

    def _picture(self, served: Served, data: bytes, request: HeatmapRequest, caller: str) -> Any:
        return self._pictures.prepare.remote(data, served.preprocessing, request, served.whole, caller)

    @staticmethod
    def _for(handle: DeploymentHandle, served: Served) -> Any:
        """A deployment's replicas, those first that keep this detector."""
        return handle.options(multiplexed_model_id=served.key)


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
        raise Problem(503, "Every replica that was asked died before it answered.", headers=later) from error
