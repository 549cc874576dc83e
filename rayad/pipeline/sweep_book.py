"""The book of a sweep: `sweep.json`, its database, its table and page, kept up to date while trials end.

rayad/on_ray/sweep.py runs the trials.
"""

import math
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from rayad import search, storage
from rayad.errors import OptionError, StorageError
from rayad.evaluation import trials
from rayad.fingerprint import fingerprint
from rayad.patches.corpus import Corpus
from rayad.pipeline.trial import SharedLatents, Task

DATABASE, SUMMARY = "optuna.db", "sweep.json"


@contextmanager
def at_hand(url: str) -> Iterator[str]:
    """A local folder for Optuna's database: the sweep's own, or one with a copy of it."""
    if "://" not in url:
        storage.make_folder(url)
        yield url
        return
    with tempfile.TemporaryDirectory(prefix="rayad-") as folder:
        there = storage.join(url, DATABASE)
        if storage.exists(there):
            storage.write_bytes(f"{folder}/{DATABASE}", storage.read_bytes(there))
        yield folder


class SweepBook:
    """What is known of a sweep, kept in `sweep.json` and, where the sweep is not on a local disk, its database too."""

    def __init__(
        self, name: str, task: Task, data: SharedLatents | None, most_trials: int, url: str, folder: str
    ) -> None:
        self.url, self.folder = url, folder
        content = [Corpus.open(task.corpus).manifest["content"], data and data.fingerprint]
        made_of = fingerprint(
            [task.parts, {name: asdict(dimension) for name, dimension in task.space.items()}, content]
        )
        where = storage.join(url, SUMMARY)
        self.summary: dict[str, Any] = storage.read_json(where) if storage.exists(where) else {}
        if self.summary and self.summary["made_of"] != made_of:
            fields = ", ".join(f"{name} {dimension}" for name, dimension in self.summary["space"].items())
            raise OptionError(f"{url}: another sweep is here (over {fields}, or of other settings, corpus or detector)")
        self.rows: list[dict[str, Any]] = self.summary.get("rows", [])
        began = {"name": name, "began": _now(), "made_of": made_of, "rows": self.rows}
        facts = {
            "corpus": task.corpus,
            "objective": task.objective,
            "space": {k: str(v) for k, v in task.space.items()},
        }
        self.summary = (
            began | self.summary | facts | {"base": search.base(task.parts, task.space), "wanted": most_trials}
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        """Say that the sweep runs, and then how it ended."""
        self.keep(state="running")
        try:
            yield
        except BaseException as error:
            with suppress(StorageError):  # what failed may be the storage
                self.keep(state="stopped" if isinstance(error, KeyboardInterrupt) else "failed")
            raise
        self.keep(state="done")

    @property
    def best(self) -> dict[str, Any] | None:
        """The row of the lowest value."""
        ended = [row for row in self.rows if row["value"] is not None]
        return min(ended, key=lambda row: row["value"], default=None)

    def add(self, number: int, settings: dict[str, Any], result: dict[str, Any] | None) -> str:
        """A trial has ended; returns how: whole, stopped or failed."""
        outcome = result or {"how": "failed", "value": math.inf, "error": "its worker was lost"}
        value = float(outcome["value"])
        row = {"number": number, "settings": settings, "value": value if math.isfinite(value) else None}
        row |= {
            "epochs": outcome.get("epoch", 0),
            "seconds": round(outcome.get("time_total_s", 0.0), 1),
            "how": outcome["how"],
        }
        self.rows.append(row | {"error": outcome.get("error", "")})
        self.keep()
        return outcome["how"]

    def keep(self, **news: Any) -> None:
        """Write down what is known now."""
        counts = Counter(row["how"] for row in self.rows)
        self.summary |= {"updated": _now(), "trials": {how: counts[how] for how in ("whole", "stopped", "failed")}}
        self.summary |= {"best": self.best and {k: self.best[k] for k in ("number", "value", "settings")}, **news}
        storage.write_json(storage.join(self.url, SUMMARY), self.summary)
        database = os.path.join(self.folder, DATABASE)
        if self.folder != self.url and os.path.exists(database):
            storage.write_bytes(storage.join(self.url, DATABASE), storage.read_bytes(database))

    def write_page(self, pictures: dict[str, bytes]) -> None:
        """The table, the page and its pictures."""
        for picture, png in pictures.items():
            storage.write_bytes(storage.join(self.url, f"{picture}.png"), png)
        storage.write_bytes(storage.join(self.url, "trials.csv"), trials.csv(self.summary).encode())
        storage.write_bytes(storage.join(self.url, "index.html"), trials.page(self.summary, pictures).encode())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
