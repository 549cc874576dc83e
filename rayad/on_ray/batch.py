"""Batches: many images through the deployed scoring graph, fed by Ray Data, results to object storage.

How far a batch is stands in its `batch.json` below `out`; what it is, in the service's state folder, which others do
not write. A service that was restarted goes on with those that were running, and does not score again what is there.
"""

import asyncio
import json
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any
from uuid import uuid4

import ray
from ray.exceptions import RayError, RayTaskError

from rayad import storage
from rayad.errors import OptionError, RayadError
from rayad.heatmaps.images import HeatmapRequest
from rayad.on_ray.cluster import quiet_data
from rayad.on_ray.graph import Graph, Refused, deployment, refused
from rayad.serving import RESEARCH_USE, cards
from rayad.serving.access import Limits
from rayad.serving.api import Scored
from rayad.serving.batches import (
    LONG,
    OF_IMAGE,
    TOLD,
    Batch,
    Places,
    description_of,
    encodable,
    images_of,
    now,
    own_file,
    require_own_folder,
    row_there,
)
from rayad.serving.cards import Card
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
        self._asking = asking
        self._places, self._state, self._limits = places, places.state, limits
        self._reading, self._writing = AllowList(places.read), AllowList(places.write)
        self._batches: dict[str, Batch] = {}
        self._turn, self._starting = threading.Lock(), asyncio.Lock()
        for batch in self._known():
            self._batches[batch.status["id"]] = batch
            if batch.status["state"] == "running":
                self._begin(batch)
            else:
                self._forget(batch)

    async def start(self, wanted: dict[str, Any], card: Card) -> dict[str, Any] | Refused:
        """Begin one; two cannot share the folder of their results at once."""
        async with self._starting:  # of two that name one folder, one
            return await self._start(wanted, card)

    async def _start(self, wanted: dict[str, Any], card: Card) -> dict[str, Any] | Refused:
        every = list(self._batches.values())
        running = [other.status["out"].rstrip("/") for other in every if other.status["state"] == "running"]
        if wanted["out"].rstrip("/") in running:
            return Refused(Problem(409, "A batch that still runs writes to this folder."))
        if len(running) >= MOST_RUNNING:
            later = {"Retry-After": "60"}
            return Refused(Problem(429, f"{MOST_RUNNING} batches run or wait, which is the most.", headers=later))
        try:
            await asyncio.to_thread(require_own_folder, wanted["out"], self._writing.prefixes)
        except RayadError as error:
            return refused(error)
        description = {"id": uuid4().hex, "state": "running", "detector": {"name": card.name, "sha256": card.sha256}}
        description |= {"out": wanted["out"], "asked": description_of(wanted), "began": now(), "updated": now()}
        description |= {"total": None, "done": 0, "failed": 0, "research_use_only": RESEARCH_USE}
        batch = Batch(description | {"failures": [], "results": []}, wanted, card.url)
        self._batches[batch.status["id"]] = batch
        try:
            await asyncio.to_thread(self._remember, batch, True)
        except RayadError as error:
            del self._batches[batch.status["id"]]
            return refused(error)
        self._begin(batch)
        return batch.status

    async def every(self) -> list[dict[str, Any]]:
        """All, the newest first, without what came of each image."""
        short = [{k: v for k, v in batch.status.items() if k not in LONG} for batch in list(self._batches.values())]
        return sorted(short, key=lambda said: said["began"], reverse=True)

    async def one(self, number: str) -> dict[str, Any] | None:
        """One of them; what came of the images of one that has ended is read from where it lies."""
        batch = self._batches.get(number)
        if batch is None or batch.status["state"] == "running":
            return batch and batch.status
        said = dict(batch.status)  # with its rows, if they are not written down yet
        try:
            written = await asyncio.to_thread(self._written, batch)
        except RayadError:
            written = {}
        rows = said if written.get("state", "running") == "running" else written
        return said | {name: rows.get(name, said[name]) for name in LONG}

    def _written(self, batch: Batch) -> dict[str, Any]:
        """What its folder says of it; nothing where another batch's results are there by now."""
        written = storage.read_json(own_file(self._writing.check(batch.status["out"])), roots=self._writing.prefixes)
        return written if written.get("id") == batch.status["id"] else {}

    async def cancel(self, number: str) -> dict[str, Any] | None:
        """Stop one: at once if its turn has not come, else with the next image that is through."""
        batch = self._batches.get(number)
        if batch and batch.status["state"] == "running":
            batch.stop.set()
            if not batch.begun:
                batch.end("cancelled")
                await asyncio.to_thread(self._remembered, batch)
                self._forget(batch)
        return batch and batch.status

    def _begin(self, batch: Batch) -> None:
        threading.Thread(target=self._run, args=(batch,), daemon=True).start()

    def _run(self, batch: Batch) -> None:
        """In a thread of its own; whatever goes wrong is the batch's state."""
        with self._turn:
            batch.begun = True
            if batch.status["state"] != "running":
                return  # cancelled while it waited, and written down; another batch may have its folder by now
            try:
                batch.end("done" if not batch.stop.is_set() and self._through(batch) else "cancelled")
            except Exception as error:
                if not isinstance(error, RayadError):
                    LOG.exception("batch %s failed", batch.status["id"])
                batch.end("failed", _sentence(error))
        while not self._remembered(batch):
            time.sleep(AGAIN_S)
        with suppress(RayadError):
            if self._state:
                storage.remove(storage.join(self._state, "images", f"{batch.status['id']}.json"))
        self._forget(batch)

    def _forget(self, batch: Batch) -> None:
        """Keep of one that has ended what is told of it; its rows lie in its folder. Of very many, the newest."""
        batch.status |= {name: [] for name in LONG}
        batch.wanted = {}
        batches = list(self._batches.items())  # other threads begin and end batches meanwhile
        ended = sorted(
            (other.status["began"], number) for number, other in batches if other.status["state"] != "running"
        )
        for _, number in ended[:-MOST_KEPT]:
            self._batches.pop(number, None)

    def _through(self, batch: Batch) -> bool:
        """Send what is lacking through the graph; whether all were sent before the batch was stopped."""
        card, images = self._card(batch), images_of(batch)
        changed = self._changed(batch, [image for image, _ in images])
        batch.forget(changed)
        if batch.resumed:
            for image, name in batch.lacking(images):
                if image not in changed and (row := row_there(batch, image, name)):
                    batch.add(row)
        lacking, written, pause = batch.lacking(images), time.monotonic(), EVERY_S
        batch.status["total"] = len(images)
        for row in self._rows(lacking, batch.wanted, card):
            batch.add(row)
            if time.monotonic() > written + pause:
                began = time.monotonic()
                self._remembered(batch)
                written = time.monotonic()
                pause = max(EVERY_S, SHARE * (written - began))
            if batch.stop.is_set():
                break
        return not batch.lacking(images)

    def _changed(self, batch: Batch, images: Sequence[str]) -> set[str]:
        """The images that are others than when a service before this one began the batch; remembers what they are now.

        Of the web's nobody knows, and of none where storage is away.
        """
        if not self._state:
            return set()
        place = storage.join(self._state, "images", f"{batch.status['id']}.json")
        try:
            versions = storage.versions(image for image in images if not image.startswith(("http://", "https://")))
            before = storage.read_json(place) if storage.exists(place) else {}
            storage.write_json(place, {encodable(image): version for image, version in versions.items()})
        except RayadError:
            return set()
        return {image for image, version in versions.items() if before.get(encodable(image), version) != version}

    def _card(self, batch: Batch) -> Card:
        """The detector that it was begun with; RayadError where it is gone, or images may not be read any more."""
        for url in filter(None, [batch.wanted["prefix"], *batch.wanted["urls"]]):
            self._reading.check(url)
        card = cards.card(batch.status["detector"]["name"], batch.url)
        if card.sha256 != batch.status["detector"]["sha256"]:
            raise OptionError(f"detector {card.name!r} was replaced after the batch had begun")
        return card

    def _rows(self, images: list[tuple[str, str]], wanted: dict[str, Any], card: Card) -> Iterator[dict[str, Any]]:
        """What came of each image, as they are through."""
        if not images:
            return
        blocks = -(-len(images) // TOGETHER)
        rows = [{"image": image, "name": name} for image, name in images]
        scored_rows = ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
            _Ask,
            fn_constructor_args=(wanted, card, self._places, self._limits),
            batch_size=TOGETHER,
            compute=ray.data.ActorPoolStrategy(size=min(self._asking, blocks)),
            num_cpus=0,
        )
        for row in scored_rows.iter_rows():
            yield json.loads(row["row"])

    def _remembered(self, batch: Batch) -> bool:
        """Whether it could be written down; a batch outlives storage that is away."""
        try:
            self._remember(batch)
        except RayadError:
            return False
        return True

    def _remember(self, batch: Batch, begun: bool = False) -> None:
        storage.write_json(self._writing.check(own_file(batch.status["out"])), batch.status, through_links=False)
        if begun and self._state:
            what = {"id": batch.status["id"], "wanted": batch.wanted, "url": batch.url}
            place = storage.join(self._state, "batches", f"{batch.status['id']}.json")
            storage.write_json(place, what | {"detector": batch.status["detector"]})

    def _known(self) -> Iterator[Batch]:
        """Batches of a service before this one."""
        folder = storage.join(self._state, "batches") if self._state else ""
        for file in storage.listing(folder) if folder and storage.exists(folder) else []:
            try:
                what = storage.read_json(file)
                status = storage.read_json(
                    own_file(self._writing.check(what["wanted"]["out"])), roots=self._writing.prefixes
                )
                if status["id"] != what["id"]:
                    continue  # another batch's results are there by now
                description = {key: status[key] for key in TOLD} | {"out": what["wanted"]["out"]}
                description |= {
                    "detector": what["detector"],
                    "asked": description_of(what["wanted"]),
                    "research_use_only": RESEARCH_USE,
                }
                yield Batch(description, what["wanted"], what["url"], resumed=True)
            except (RayadError, KeyError, TypeError) as error:
                LOG.warning("a batch is not taken up again: %s: %s", file, _sentence(error))


class _Ask:
    """Asks the deployed graph, as its HTTP API does, for some images at once."""

    def __init__(self, wanted: dict[str, Any], card: Card, places: Places, limits: Limits) -> None:
        self._wanted, self._card, self._limits = wanted, card, limits
        self._reading, self._writing = AllowList(places.read), AllowList(places.write)
        self._request = HeatmapRequest(
            wanted["spacing_mm"], wanted["view"], wanted["step_mm"], tuple(wanted.get("force", ()))
        )
        self._graph = Graph.deployed()

    def __call__(self, images: dict[str, Any]) -> dict[str, Any]:
        rows = asyncio.run(self._all(images["image"], images["name"]))
        return {"row": [json.dumps(row) for row in rows]}

    async def _all(self, images: Sequence[str], names: Sequence[str]) -> list[dict[str, Any]]:
        return await asyncio.gather(*(self._one(*image) for image in zip(images, names, strict=True)))

    async def _one(self, image: str, name: str) -> dict[str, Any]:
        """A row: what the image scores, or why it does not."""
        try:
            async with asyncio.timeout(self._limits.request_seconds):
                data = await fetch(image, self._reading, self._limits)
                scored = await self._graph.score(self._card, data, self._request, CALLER)
                for ending, content in await self._files(scored, data):
                    place = self._writing.check(storage.join(self._wanted["out"], f"{name}{ending}"))
                    await asyncio.to_thread(storage.write_bytes, place, content, through_links=False)
        except Exception as error:  # whatever it is, the other images are scored
            if not isinstance(error, RayadError | RayError | TimeoutError):
                LOG.exception("an image of a batch failed")
            return {"image": image, "reason": _sentence(error)}
        answer = scored.judged.described()
        return {"image": image, "name": name} | {key: answer[key] for key in OF_IMAGE}

    async def _files(self, scored: Scored, data: bytes) -> list[tuple[str, bytes]]:
        """Endings and contents of what is wanted."""
        kinds, files = self._wanted["results"], []
        if "npz" in kinds:
            more = await self._graph.arrays(scored, ("counterfactual",) * self._card.counterfactual)
            files.append((".npz", scored.judged.npz(**more)))
        if "png" in kinds:
            files.append((".png", await self._graph.png(scored)))
        if "dicom" in kinds:
            objects = await self._graph.objects(scored, data)
            files += [(f"-{kind}.dcm", content) for kind, content in objects.items()]
        if "json" in kinds:  # last: whoever finds it knows that the others are there
            files.append((".json", json.dumps(scored.answer(), indent=2).encode()))
        return files


def _sentence(error: Exception) -> str:
    """What a reader may know of it: of what rayad did not raise, its kind."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, TimeoutError):
        return "it took longer than a request may"
    return str(cause) if isinstance(cause, RayadError) else f"the service failed: {type(cause).__name__}"
