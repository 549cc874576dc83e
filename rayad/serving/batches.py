"""Batches as values: what was asked, how far one is, what lies in its folder. rayad/on_ray/batch.py runs them."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rayad import storage
from rayad.errors import OptionError, RayadError
from rayad.heatmaps.images import files_below, named
from rayad.outputs import require_own

OF_IMAGE = ("score", "p_value", "p_value_floor", "calibration_patients", "doubts")
"""What a batch tells of an image, of all that its answer says."""
OWN = "batch"
"""Name of the file that a batch keeps among its results."""
LONG = ("failures", "results")
"""Lists of a row an image."""
TOLD = ("id", "state", "began", "updated", "total", "done", "failed", *LONG)
"""Entries of its file that a later service takes up."""


@dataclass(frozen=True)
class Places:
    """Where batches are remembered, read and written: `Service.state`, `Service.read`, `Service.write`."""

    state: str
    read: tuple[str, ...]
    write: tuple[str, ...]


@dataclass
class Batch:
    """One batch, running or not."""

    status: dict[str, Any]
    """What is told of it."""
    wanted: dict[str, Any]
    url: str
    """Of the detector's bundle."""
    stop: threading.Event = field(default_factory=threading.Event)
    begun: bool = False
    """Has its turn come?"""
    resumed: bool = False
    """Did a service before this one begin it?"""

    def lacking(self, images: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Those of these images and names that are neither scored nor given up."""
        ended = {row["image"] for row in [*self.status["results"], *self.status["failures"]]}
        return [image for image in images if encodable(image[0]) not in ended]

    def add(self, row: dict[str, Any]) -> None:
        """What came of an image."""
        row = {key: encodable(value) if isinstance(value, str) else value for key, value in row.items()}
        self.status["failures" if "reason" in row else "results"].append(row)
        self.status |= {"done": len(self.status["results"]), "failed": len(self.status["failures"]), "updated": now()}

    def forget(self, images: set[str]) -> None:
        """What came of these images, as far as anything did."""
        names = {encodable(image) for image in images}
        for name in LONG:
            self.status[name] = [row for row in self.status[name] if row["image"] not in names]

    def end(self, state: str, reason: str = "") -> None:
        """It is over; the reason says why, where that is an error."""
        if reason:
            self.status["failures"].append({"image": "", "reason": encodable(reason)})
        self.status |= {"state": state, "updated": now()}


def images_of(batch: Batch) -> list[tuple[str, str]]:
    """URLs and names of a batch's images; OptionError where they cannot be scored as it was begun."""
    prefix = batch.wanted["prefix"]  # URLs of a list are not listed: only `fetch` may ask a web server
    images = named(files_below(prefix) if prefix else batch.wanted["urls"])
    if any(name == OWN for _, name in images):
        raise OptionError(f"an image's results cannot be called {OWN!r}, as the batch's own file is")
    nameless = [image for image, name in images if not name]
    if nameless:
        raise OptionError(f"{nameless[0]}: an image without a name")
    return images


def row_there(batch: Batch, image: str, name: str) -> dict[str, Any] | None:
    """The row of an image whose results are all there, though nobody wrote it down; its JSON is written last."""
    place = storage.join(batch.status["out"], f"{name}.json")
    if "json" not in batch.wanted["results"]:
        return None
    try:
        # object stores know the time to the second, as `began` does
        if storage.modified(place) < datetime.fromisoformat(batch.status["began"]):
            return None
        answer = storage.read_json(place, roots=(batch.status["out"],))
        if answer["detector"]["sha256"] != batch.status["detector"]["sha256"]:
            return None
        return {"image": image, "name": name} | {key: answer[key] for key in OF_IMAGE}
    except (RayadError, KeyError, TypeError):
        return None


def own_file(out: str) -> str:
    """The file that a batch keeps among its results."""
    return storage.join(out, f"{OWN}.json")


def require_own_folder(out: str, roots: Sequence[str]) -> None:
    """OptionError where the folder has what is no batch's, or a batch of another service."""
    require_own(out, "a batch")
    there = storage.read_json(own_file(out), roots=roots) if storage.exists(own_file(out)) else {}
    if there.get("state") == "running":
        raise OptionError(
            f"{out}: batch {there.get('id')} of another service writes there; if that is gone, remove {OWN}.json"
        )


def description_of(wanted: dict[str, Any]) -> dict[str, Any]:
    """What is told of what was asked."""
    return {key: wanted[key] for key in ("prefix", "spacing_mm", "view", "step_mm", "results")}


def encodable(text: str) -> str:
    """A text that can be written: names of files may be in no encoding."""
    return text.encode("utf-8", "backslashreplace").decode()


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
