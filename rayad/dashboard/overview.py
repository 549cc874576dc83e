"""What the page of `rayad dashboard` is about: runs, sweeps, corpora and faults."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class Figure:
    """An AUC with its 95 % interval."""

    name: str
    """pixel AUC, or exam AUC where no lesion has a known place."""
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Found:
    """A detector, or a row of a report whose detector lies elsewhere."""

    name: str
    kind: str
    """What it learns and by which score it judges."""
    when: datetime
    commit: str
    minutes: float | None
    """Of training; None: not known, or nothing is learned."""
    url: str
    """Of the JSON file that says so."""

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return self.url.split("/")[-2]


@dataclass
class RunRow:
    """Detectors of one folder and the reports on them."""

    name: str
    dataset: str = ""
    reports: list[str] = field(default_factory=list)
    """URLs of pages, of results.json where there is no page."""
    detectors: list[Found] = field(default_factory=list)
    judged: dict[str, Found] = field(default_factory=dict)
    """Rows of the reports, by the detector's name."""
    figures: dict[tuple[str, str], Figure] = field(default_factory=dict)
    """By detector and lesion."""

    @property
    def when(self) -> datetime:
        """When the last detector was written."""
        return max(detector.when for detector in self.detectors)

    @property
    def lesions(self) -> list[str]:
        """In the order of the reports."""
        return list(dict.fromkeys(lesion for _, lesion in self.figures))

    @property
    def measures(self) -> list[str]:
        """Which figures there are: pixel AUC, exam AUC."""
        return list(dict.fromkeys(figure.name for figure in self.figures.values()))

    def best(self, lesion: str) -> float:
        """The highest figure of a kind of lesion."""
        return max(figure.value for (_, kind), figure in self.figures.items() if kind == lesion)


@dataclass(frozen=True)
class SweepRow:
    """A search for settings, running or ended."""

    place: str
    url: str
    """Of sweep.json."""
    said: dict[str, Any]
    """What sweep.json says."""
    page: str
    """URL of its report; "" before it is done."""
    storage: str
    """Path of Optuna's storage; "" where it is not on this machine."""

    @property
    def ended(self) -> int:
        """Trials that ended, in whatever way."""
        return sum(self.said["trials"].values())


@dataclass(frozen=True)
class CorpusRow:
    """A patch corpus."""

    place: str
    url: str
    when: datetime
    dataset: str
    patches: int
    images: int
    failures: int
    excluded: int


@dataclass(frozen=True)
class FaultRow:
    """Something that went wrong, and where it is written."""

    where: str
    what: str
    url: str
    when: str = ""
    """UTC, ISO 8601; "": not known."""


@dataclass
class Overview:
    """Everything that the page says."""

    runs: list[RunRow] = field(default_factory=list)
    sweeps: list[SweepRow] = field(default_factory=list)
    corpora: list[CorpusRow] = field(default_factory=list)
    faults: list[FaultRow] = field(default_factory=list)
    events: dict[str, str] = field(default_factory=dict)
    """Local folders of TensorBoard's event files, by their places."""
    folders: set[str] = field(default_factory=set)
    """URLs of the folders that the page leads to."""
