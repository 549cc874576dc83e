"""Batches: many images through the deployed scoring graph, fed by Ray Data, results to object storage.

How far a batch is stands in its `batch.json` below `out`; what it is, in the service's state folder, which others do
not write. A service that was restarted goes on with those that were running, and does not score again what is there.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from rayad import storage
from rayad.errors import OptionError, RayadError
from rayad.heatmaps.answers import ROW, Batch, BatchRequest, BatchSummary, Failure, Row
from rayad.on_ray.cluster import quiet_data
from rayad.on_ray.graph import Graph, Refused, deployment, refused
from rayad.serving import cards
from rayad.serving.access import Limits
from rayad.serving.api import ServedScore
from rayad.serving.batches import (
    BatchFiles,
    KeptBatch,
    Places,
    images_of,
    new,
    require_own_folder,
    results_there,
)
from rayad.serving.cards import Served
from rayad.serving.fetch import AllowList, fetch
from rayad.serving.problems import Problem
from rayad.serving.settings import Replicas

LOG = logging.getLogger("rayad.serving")
TOGETHER = 4
"""Images that a process asks the graph for at once."""
CALLER = "a batch"
"""Who asks the graph: batches share its time with callers as one more of them."""
EVERY_S = 2.0
"""How often what is known is written down."""
SHARE = 20
"""At least so many times what a writing took passes before the next: long lists take a twentieth of the time."""
AGAIN_S = 15.0
"""After how long an ended batch that could not be written down is tried again."""
MOST_RUNNING = 32
"""Batches that run, or wait for their turn."""
MOST_KEPT = 1000
"""Batches that have ended and are still told of."""


def asking(replicas: Replicas) -> int:
    """How many processes ask for a batch's images: eight images are under way for each replica that works on them."""
    return 2 * max(replicas.pictures, replicas.scorers)


@deployment
class Batches:
    """Runs batches, one after the other, and remembers them."""

    def __init__(self, places: Places, limits: Limits, asking: int) -> None:
        """With so many processes that ask the graph at a time; see `asking`."""
        quiet_data()
        self._asking, self._places, self._limits = asking, places, limits
        self._files, self._reading = BatchFiles(places), AllowList(places.read)
        self._batches: dict[str, KeptBatch] = {}
        self._turn, self._starting = threading.Lock(), asyncio.Lock()
        for batch in self._files.known():
            self._batches[batch.status.id] = batch
            if batch.running:
                self._begin(batch)
            else:
                self._forget(batch)

    async def start(self, request: BatchRequest, served: Served) -> Batch | Refused:
        """Begin one; two cannot share the folder of their results at once."""
        async with self._starting:  # of two that name one folder, one
            return await self._start(request, served)

    async def _start(self, request: BatchRequest, served: Served) -> Batch | Refused:
        running = [other.status.out.rstrip("/") for other in list(self._batches.values()) if other.running]
        if request.out.rstrip("/") in running:
            return Refused(Problem(409, "A batch that still runs writes to this folder."))
        if len(running) >= MOST_RUNNING:
            later = {"Retry-After": "60"}
            return Refused(Problem(429, f"{MOST_RUNNING} batches run or wait, which is the most.", headers=later))
        try:
            await asyncio.to_thread(require_own_folder, request.out, self._places.write)
        except RayadError as error:
            return refused(error)
        batch = new(request, served.name, served.url)
        self._batches[batch.status.id] = batch
        try:
            await asyncio.to_thread(self._files.write, batch, True)
        except RayadError as error:
            del self._batches[batch.status.id]
            return refused(error)
        self._begin(batch)
        return batch.status

    async def every(self) -> tuple[BatchSummary, ...]:
        """All, the newest first, without what came of each image."""
        summaries = [batch.status.summary() for batch in list(self._batches.values())]
        return tuple(sorted(summaries, key=lambda batch: batch.began, reverse=True))

    async def one(self, number: str) -> Batch | None:
        """One of them; what came of the images of one that has ended is read from where it lies."""
        batch = self._batches.get(number)
        if batch is None or batch.running:
            return batch and batch.status
        status = batch.status  # with its rows, if they are not written down yet
        try:
            written = await asyncio.to_thread(self._files.read, status)
        except (RayadError, ValueError):
            return status
        if written.id != status.id or written.state == "running":  # or another batch's results are there by now
            return status
        return status.model_copy(update={"failures": written.failures, "results": written.results})

    async def cancel(self, number: str) -> Batch | None:
        """Stop one: at once if its turn has not come, else with the next image that is through."""
        batch = self._batches.get(number)
        if batch and batch.running:
            batch.stop.set()
            if not batch.begun:
                batch.end("cancelled")
                await asyncio.to_thread(self._files.written, batch)
                self._forget(batch)
        return batch and batch.status

    def _begin(self, batch: KeptBatch) -> None:
        threading.Thread(target=self._run, args=(batch,), daemon=True).start()

    def _run(self, batch: KeptBatch) -> None:
        """In a thread of its own; whatever goes wrong is the batch's state."""
        with self._turn:
            batch.begun = True
            if not batch.running:
                return  # cancelled while it waited, and written down; another batch may have its folder by now
            try:
                batch.end("done" if not batch.stop.is_set() and self._through(batch) else "cancelled")
            except Exception as error:
                if not isinstance(error, RayadError):
                    LOG.exception("batch %s failed", batch.status.id)
                batch.end("failed", _sentence(error))
        while not self._files.written(batch):
            time.sleep(AGAIN_S)
        self._files.forget_images(batch)
        self._forget(batch)

    def _forget(self, batch: KeptBatch) -> None:
        """Keep of one that has ended what is told of it; its rows lie in its folder. Of very many, the newest."""
        batch.status.failures, batch.status.results, batch.request = [], [], None
        batches = list(self._batches.items())  # other threads begin and end batches meanwhile
        ended = sorted((other.status.began, number) for number, other in batches if not other.running)
        for _, number in ended[:-MOST_KEPT]:
            self._batches.pop(number, None)

    def _through(self, batch: KeptBatch) -> bool:
        """Send what is lacking through the graph; whether all were sent before the batch was stopped."""
        request = batch.request
        assert request is not None  # it runs
        served, images = self._served(batch, request), images_of(request)
        changed = self._files.changed(batch, [image for image, _ in images])
        batch.forget(changed)
        if batch.resumed:
            unchanged = [(image, name) for image, name in batch.lacking(images) if image not in changed]
            for row in results_there(batch.status, unchanged):
                batch.add(row)
        lacking, written, pause = batch.lacking(images), time.monotonic(), EVERY_S
        batch.status.total = len(images)
        for row in self._rows(lacking, request, served):
            batch.add(row)
            if time.monotonic() > written + pause:
                began = time.monotonic()
                self._files.written(batch)
                written = time.monotonic()
                pause = max(EVERY_S, SHARE * (written - began))
            if batch.stop.is_set():
                break
        return not batch.lacking(images)

    def _served(self, batch: KeptBatch, request: BatchRequest) -> Served:
        """The detector that it was begun with; RayadError where it is gone, or images may not be read any more."""
        for url in filter(None, [request.prefix, *request.urls]):
            self._reading.check(url)
        served = cards.served(batch.status.detector.name, batch.url)
        if served.name != batch.status.detector:
            raise OptionError(f"detector {served.card.name!r} was replaced after the batch had begun")
        return served

    def _rows(self, images: list[tuple[str, str]], request: BatchRequest, served: Served) -> Iterator[Row]:
        """What came of each image, as they are through."""
        if not images:
            return
        blocks = -(-len(images) // TOGETHER)
        rows = [{"image": image, "name": name} for image, name in images]
        scored_rows = ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
            _Ask,
            fn_constructor_args=(request, served, self._places, self._limits),
            batch_size=TOGETHER,
            compute=ray.data.ActorPoolStrategy(size=min(self._asking, blocks)),
            num_cpus=0,
        )
        for row in scored_rows.iter_rows():
            yield ROW.validate_json(row["row"])


class _Ask:
    """Asks the deployed graph, as its HTTP API does, for some images at once."""

    def __init__(self, request: BatchRequest, served: Served, places: Places, limits: Limits) -> None:
        self._request, self._served, self._limits = request, served, limits
        self._reading, self._writing = AllowList(places.read), AllowList(places.write)
        self._graph = Graph.deployed()

    def __call__(self, images: dict[str, Any]) -> dict[str, Any]:
        rows = asyncio.run(self._all(images["image"], images["name"]))
        return {"row": [row.model_dump_json() for row in rows]}

    async def _all(self, images: Sequence[str], names: Sequence[str]) -> list[Row]:
        return await asyncio.gather(*(self._one(*image) for image in zip(images, names, strict=True)))

    async def _one(self, image: str, name: str) -> Row:
        """A row: what the image scores, or why it does not."""
        try:
            async with asyncio.timeout(self._limits.request_seconds):
                data = await fetch(image, self._reading, self._limits)
                scored = await self._graph.score(self._served, data, self._request.request, CALLER)
                for ending, content in await self._files(scored, data):
                    place = self._writing.check(storage.join(self._request.out, f"{name}{ending}"))
                    await asyncio.to_thread(storage.write_bytes, place, content, through_links=False)
        except Exception as error:  # whatever it is, the other images are scored
            if not isinstance(error, RayadError | RayError | TimeoutError):
                LOG.exception("an image of a batch failed")
            return Failure(image=image, reason=_sentence(error))
        return scored.judged.verdict().of(image, name)

    async def _files(self, scored: ServedScore, data: bytes) -> list[tuple[str, bytes]]:
        """Endings and contents of what is wanted."""
        kinds, files = self._request.results, []
        include = ("counterfactual",) if "counterfactual" in kinds else ()
        if "npz" in kinds:
            files.append((".npz", scored.judged.npz(**await self._graph.arrays(scored, include))))
        if "png" in kinds:
            files.append((".png", await self._graph.png(scored, include)))
        if "dicom" in kinds:
            objects = await self._graph.objects(scored, data)
            files += [(f"-{kind}.dcm", content) for kind, content in objects.items()]
        if "json" in kinds:  # last: whoever finds it knows that the others are there
            files.append((".json", scored.answer().model_dump_json(indent=2).encode()))
        return files


def _sentence(error: Exception) -> str:
    """What a reader may know of it: of what rayad did not raise, its kind."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, TimeoutError):
        return "it took longer than a request may"
    return str(cause) if isinstance(cause, RayadError) else f"the service failed: {type(cause).__name__}"
