"""The book of a sweep: `sweep.json`, its database, its table and page, kept up to date while trials end.

rayad/on_ray/sweep.py runs the trials.
"""

import math
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from rayad import search, storage
from rayad.errors import OptionError, StorageError, TrainingError
from rayad.evaluation import trials
from rayad.fingerprint import fingerprint
from rayad.patches.corpus import Corpus
from rayad.pipeline import winner
from rayad.pipeline.sweep_task import SharedLatents, Task

DATABASE, SUMMARY = "optuna.db", "sweep.json"
SCHEMA = 2
"""Of `sweep.json`. In those without one a trial that was stopped early could be the best."""


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


def stored(url: str) -> dict[str, Any]:
    """The sweep that is at the URL, empty where there is none; OptionError where it is of another rayad."""
    where = storage.join(url, SUMMARY)
    summary = storage.read_json(where) if storage.exists(where) else {}
    if summary and summary.get("schema") != SCHEMA:
        raise OptionError(f"{url}: the sweep that is here is of another version of rayad; name another folder")
    return summary


class SweepBook:
    """What is known of a sweep, kept in `sweep.json` and, where the sweep is not on a local disk, its database too."""

    def __init__(
        self, name: str, task: Task, data: SharedLatents | None, most_trials: int, url: str, folder: str
    ) -> None:
        self.url, self.folder = url, folder
        content = [Corpus.open(task.corpus).manifest["content"], data and data.fingerprint]
        made_of = fingerprint([task.made_of, content])
        self.summary: dict[str, Any] = stored(url)
        if self.summary and self.summary["made_of"] != made_of:
            fields = ", ".join(f"{name} {dimension}" for name, dimension in self.summary["space"].items())
            raise OptionError(f"{url}: another sweep is here (over {fields}, or of other settings, corpus or detector)")
        self.rows: list[dict[str, Any]] = self.summary.get("rows", [])
        began = {"schema": SCHEMA, "name": name, "began": _now(), "made_of": made_of, "rows": self.rows}
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
    def best(self) -> Mapping[str, Any] | None:
        """The row of the lowest value among the trials that came to their end."""
        return winner.best_trial(self.rows)

    def best_settings(self) -> dict[str, Any]:
        """The settings of the best trial.

        Raises:
            TrainingError: no trial came to its end.
        """
        if self.best is None:
            why = next((row["error"] for row in reversed(self.rows) if row["error"]), "")
            why = why or ("all were stopped early" if self.rows else "there were too few minutes")
            raise TrainingError(f"no trial of {len(self.rows)} came to an end: {why}")
        return self.best["settings"]

    def add(self, number: int, settings: dict[str, Any], result: dict[str, Any] | None) -> str:
        """A trial has ended; returns how: whole, stopped or failed."""
        outcome = result or {"how": "failed", "value": math.inf, "error": "its worker was lost, or time was over"}
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

    def keep_seeds(self, ended: Sequence[tuple[float | None, str]]) -> None:
        """Write down what the best settings and those without a search ended with, seed by seed, and which win."""
        candidates = winner.candidates(self.best_settings(), self.summary["base"])
        each = len(ended) // len(candidates)
        seeds = {
            name: trials.of_seeds(settings, ended[number * each : (number + 1) * each])
            for number, (name, settings) in enumerate(candidates.items())
        }
        self.keep(seeds=seeds, winner=winner.winner(seeds), verdict=winner.sentence(seeds))

    def write_page(self, pictures: dict[str, bytes]) -> None:
        """The table, the page and its pictures."""
        for picture, png in pictures.items():
            storage.write_bytes(storage.join(self.url, f"{picture}.png"), png)
        storage.write_bytes(storage.join(self.url, "trials.csv"), trials.csv(self.summary).encode())
        storage.write_bytes(storage.join(self.url, "index.html"), trials.page(self.summary, pictures).encode())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
