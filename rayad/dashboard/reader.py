"""What lies below some roots, from the JSON files that the stages leave; docs/formats.md has every one of them.

A run is a folder with detectors and reports below it.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from rayad import storage
from rayad.dashboard.overview import CorpusRow, FaultRow, Figure, Found, Overview, RunRow, SweepRow
from rayad.errors import RayadError
from rayad.terminal import shortened

BUNDLES = ("detectors", "densities", "models")
"""Folders of a recipe's bundles; one in an earlier folder hides those of its name in the later ones."""
KEPT = ("dataset", "rows", "row_provenance")
"""What is kept of results.json, which holds pictures too."""
SWEEP = ("name", "state", "began", "updated", "corpus", "objective", "space", "wanted", "trials", "best")
"""What sweep.json says."""
SETTLED = timedelta(seconds=3)
"""A file is read again until it is so old: where times are whole seconds, a second change could hide in the first."""


@dataclass(frozen=True)
class _Document:
    """A JSON file below a root."""

    url: str
    place: tuple[str, ...]
    """Names of the folders from the root's own to the file's."""
    when: datetime
    said: dict[str, Any]

    @property
    def where(self) -> str:
        return "/".join(self.place)

    @property
    def folder(self) -> str:
        return self.url.rsplit("/", 1)[0]


class Reader:
    """Looks below the roots again and again; a file is read again when it was written again."""

    def __init__(self, roots: Iterable[str]) -> None:
        self.roots = list(dict.fromkeys(roots))
        short_names = [root.rstrip("/").rsplit("/", 1)[-1] for root in self.roots]
        self._names = {
            r: n if short_names.count(n) == 1 else r.strip("/") for r, n in zip(self.roots, short_names, strict=True)
        }
        self._kept: dict[str, tuple[datetime, dict[str, Any]]] = {}

    def look(self) -> Overview:
        """What is there now; a file that cannot be read is a fault, and so is a link that leads out of all roots.

        Raises:
            StorageError: a root does not exist, or cannot be listed.
        """
        look = _Look()
        for root in self.roots:
            urls = storage.listing(root, roots=self.roots)
            outside_urls = {url for url in urls if storage.leads_out(url, self.roots)}
            look.names = {url.removeprefix(storage.join(root, "")) for url in urls if url not in outside_urls}
            for url in sorted(outside_urls):
                place = "/".join((self._names[root], url.removeprefix(storage.join(root, ""))))
                look.fault(place, "a link that leads out of the roots is not followed", url)
            for name in sorted(look.names):
                self._see(look, root, name)
        return look.done()

    def _see(self, look: "_Look", root: str, name: str) -> None:
        *folders, file = name.split("/")
        url, place = storage.join(root, name), (self._names[root], *folders)
        if "tfevents" in file and "://" not in url:
            look.events["/".join(place)] = url.rsplit("/", 1)[0]
        read = look.reader(folders, file)
        if read is None:
            return
        try:
            read(_Document(url, place, *self._read(url)))
        except RayadError as error:
            look.fault("/".join(place), str(error), url)
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            message = f"{file} is not what docs/formats.md says: {type(error).__name__} {error}"
            look.fault("/".join(place), message, url)

    def _read(self, url: str) -> tuple[datetime, dict[str, Any]]:
        when = storage.modified(url)
        cached = self._kept.get(url)
        if cached is not None and cached[0] == when:
            return cached
        content = storage.read_json(url, roots=self.roots)
        if url.endswith("/results.json"):
            content = {name: content[name] for name in KEPT if name in content}
        if datetime.now(UTC) - when > SETTLED:
            self._kept[url] = when, content
        return when, content


class _Runs:
    """Runs by the place of their folder, as their files are seen."""

    def __init__(self) -> None:
        self._at: dict[tuple[str, ...], RunRow] = {}
        self._bundles: dict[tuple[tuple[str, ...], str], tuple[int, Found]] = {}

    def at(self, home: tuple[str, ...]) -> RunRow:
        """The run whose folder this is."""
        return self._at.setdefault(home, RunRow("/".join(home)))

    def add(self, document: _Document, detector: Found) -> None:
        """A bundle: of a recipe below the run's folder, or in that folder beside others."""
        *home, kind, name = ("", "", *document.place)
        rank = BUNDLES.index(kind) if kind in BUNDLES else 0
        key = tuple(filter(None, home if kind in BUNDLES else [*home, kind])) or document.place[:1], name
        if key not in self._bundles or rank < self._bundles[key][0]:
            self._bundles[key] = rank, detector

    def sorted(self) -> list[RunRow]:
        """The newest first; their detectors in the order of the report, the others behind."""
        for (home, _), (_, detector) in self._bundles.items():
            self.at(home).detectors.append(detector)
        for run in self._at.values():
            names, order = {detector.name for detector in run.detectors}, list(run.judged)
            run.detectors += [judged for name, judged in run.judged.items() if name not in names]
            run.detectors.sort(
                key=lambda detector: order.index(detector.name) if detector.name in order else len(order)
            )
        return sorted((run for run in self._at.values() if run.detectors), key=lambda run: run.when, reverse=True)


class _Look:
    """One look: what is made of each file."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        """Of the files below the root that is looked at."""
        self._overview, self._runs = Overview(), _Runs()
        self.events = self._overview.events

    def reader(self, folders: list[str], file: str) -> Callable[[_Document], None] | None:
        """What to do with a file; None: nothing."""
        if "members" in folders:
            return None
        if folders[-1:] == ["faults"] and file.endswith(".json"):
            return self._lost
        readers = {
            "detector.json": self._detector,
            "results.json": self._results,
            "manifest.json": self._corpus,
            "sweep.json": self._sweep,
        }
        return readers.get(file)

    def done(self) -> Overview:
        """All of it, the newest first."""
        overview = self._overview
        overview.runs = self._runs.sorted()
        overview.sweeps.sort(key=lambda sweep: str(sweep.said["began"]), reverse=True)
        overview.faults = sorted(_once(overview.faults), key=lambda fault: fault.when, reverse=True)
        overview.folders = {url.rsplit("/", 1)[0] for url in _linked(overview)}
        return overview

    def fault(self, place: str, message: str, url: str, when: str = "") -> None:
        """Something went wrong."""
        self._overview.faults.append(FaultRow(place, message, url, when))

    def _detector(self, document: _Document) -> None:
        content, origin = document.said, document.said["provenance"]
        minutes = None if origin.get("train_minutes") is None else _number(origin["train_minutes"])
        name, commit = _text(content["name"]), _text(origin.get("commit", ""))
        detector = Found(name, _kind(content), document.when, commit, minutes, document.url)
        self._runs.add(document, detector)
        for fault in origin.get("faults", []):
            self._lost(replace(document, said=fault))

    def _lost(self, document: _Document) -> None:
        fault = document.said
        message = f"learning {fault['stage']}: {fault['error']}"
        self.fault(document.where, message, document.url, _text(fault["when"]))

    def _results(self, document: _Document) -> None:
        run, content = self._runs.at(document.place[:-1] or document.place), document.said
        run.dataset = run.dataset or _text(content["dataset"])
        page = self._beside(document, "index.html")
        run.reports.append(page or document.url)
        for row in content["rows"]:
            name = _text(row["detector"])
            commit = _text(content.get("row_provenance", {}).get(name, {}).get("commit", ""))
            run.judged.setdefault(name, Found(name, "", document.when, commit, None, document.url))
            figure = _figure(row)
            if figure:
                run.figures.setdefault((name, _text(row["lesion"])), figure)

    def _corpus(self, document: _Document) -> None:
        manifest, when = document.said, document.when
        counts = (
            int(manifest["patches"]),
            int(manifest["images"]),
            len(manifest["failures"]),
            len(manifest.get("excluded", [])),
        )
        self._overview.corpora.append(
            CorpusRow(document.where, document.url, when, _text(manifest["dataset"]), *counts)
        )
        for failure in manifest["failures"]:
            message = f"{failure['exam_id']}: {failure['reason']}"
            self.fault(document.where, message, document.url, when.isoformat(timespec="seconds"))

    def _sweep(self, document: _Document) -> None:
        summary = {name: document.said[name] for name in SWEEP}
        for name in ("name", "state", "began", "updated", "corpus", "objective"):
            _text(summary[name])
        for count in (summary["wanted"], *(summary["trials"][outcome] for outcome in ("whole", "stopped", "failed"))):
            _number(count)
        for settings in (summary["space"], summary["best"]["settings"] if summary["best"] else {}):
            dict.items(settings)
        database = self._beside(document, "optuna.db")
        path = "" if "://" in database else database
        self._overview.sweeps.append(
            SweepRow(document.where, document.url, summary, self._beside(document, "index.html"), path)
        )
        failed = summary["trials"]["failed"]
        if failed:
            message = f"{failed} of {sum(summary['trials'].values())} trials of {summary['name']} failed"
            self.fault(document.where, message, document.url, summary["updated"])

    def _beside(self, document: _Document, file: str) -> str:
        """The URL of a file in the same folder; "" where there is none."""
        name = "/".join([*document.place[1:], file])
        return storage.join(document.folder, file) if name in self.names else ""


def _kind(content: dict[str, Any]) -> str:
    """Such as "cae, spn: likelihood"."""
    if content.get("members"):
        return f"{content['score']} of {', '.join(content['members'])}"
    parts = [content[part]["name"] for part in ("model", "density") if content.get(part)]
    aggregation = content["aggregation"]
    places = "" if aggregation["kind"] == "none" else f", {aggregation['kind']} of {aggregation['size_mm']:g} mm"
    adjusted = ", adjusted for the place" if content.get("adjustment") else ""
    return f"{', '.join(parts) or 'learns nothing'}: {content['score']}{places}{adjusted}"


def _figure(row: dict[str, Any]) -> Figure | None:
    for name in ("pixel_auc", "exam_auc"):
        estimate = row.get(name) or {}
        if estimate.get("value") is not None:
            low, high = (None if estimate.get(end) is None else _number(estimate[end]) for end in ("low", "high"))
            return Figure(name.replace("_auc", " AUC"), _number(estimate["value"]), low, high)
    return None


def _text(value: Any) -> str:
    """A text of a file that may be a stranger's; TypeError where it is none."""
    if not isinstance(value, str):
        raise TypeError(f"{shortened(value)} is no text")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{shortened(value)} is no number")
    return value


def _once(faults: Iterable[FaultRow]) -> list[FaultRow]:
    """A trained model's faults stand in every detector that was made of it: each once."""
    return list({(fault.when, fault.what) if fault.when else fault: fault for fault in faults}.values())


def _linked(overview: Overview) -> Iterator[str]:
    """The URLs that the page leads to."""
    for run in overview.runs:
        yield from run.reports
        yield from (detector.url for detector in run.detectors)
    yield from (row.url for row in (*overview.sweeps, *overview.corpora, *overview.faults))
