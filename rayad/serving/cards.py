"""Which detectors are served: a name, the bundle behind it, and its card."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rayad import storage
from rayad.errors import OptionError
from rayad.imaging.picture import Preprocessing, described
from rayad.scoring import bundle, counterfactual
from rayad.scoring.detector import STEP_MM, Detector


@dataclass(frozen=True)
class Card:
    """One detector as it is offered; it stays what it is while a request is under way, whatever replaces it."""

    name: str
    """By which it is asked for."""
    url: str
    """Of its bundle; "" in what is told to the outside."""
    sha256: str
    """Of detector.json, which holds the hashes of all that belongs to it."""
    score: str
    summary: str
    calibration_patients: int
    p_value_floor: float
    step_mm: float
    """Distance of the places that its p-values are for."""
    preprocessing: Preprocessing
    counterfactual: bool
    """Can it draw the image as if it were healthy?"""
    whole: bool
    """Does it need the image as it came? Members of a combination may prepare it in ways of their own."""
    provenance: dict[str, Any]

    @property
    def key(self) -> str:
        """Bundle and content: what replicas keep it by."""
        return f"{self.sha256} {self.url}"

    def described(self) -> dict[str, Any]:
        """For JSON; where the bundle lies and where its corpus came from stay inside."""
        calibrated = ("calibration_patients", "p_value_floor", "step_mm")
        names = ("name", "sha256", "score", "summary", *calibrated, "counterfactual")
        provenance = {k: v for k, v in self.provenance.items() if k in TOLD}
        return {k: getattr(self, k) for k in names} | {
            "preprocessing": described(self.preprocessing),
            "provenance": provenance,
        }


TOLD = ("dataset", "corpus", "made_of", "seed", "commit", "versions", "train_minutes")
"""Of a bundle's provenance; machines, faults and places of whoever trained it are not told."""


def load(key: str) -> Detector:
    """The detector of a card's key.

    Raises:
        OptionError: another bundle is there by now.
        StorageError, FormatError: it cannot be read.
    """
    sha256, _, url = key.partition(" ")
    detector = bundle.load(url)
    if (current := bundle.sha256(url)) != sha256:
        raise OptionError(f"{url}: another detector is there by now ({current[:12]}, was {sha256[:12]})")
    return detector


def card(name: str, url: str) -> Card:
    """The card of a bundle; of a link to one, what it leads to now: the link may be turned while replicas still load.

    Raises:
        OptionError: it is not calibrated, so it has no p-values.
        StorageError, FormatError: it cannot be read.
    """
    url = url if "://" in url else os.path.realpath(url)
    bundle.describe(url)  # it is there, and not too large to be read
    sha256 = bundle.sha256(url)
    detector = load(f"{sha256} {url}")
    if detector.calibration is None:
        raise OptionError(f"detector {name!r} at {url} is not calibrated, so it has no p-values: run rayad calibrate")
    return Card(
        name=name,
        url=url,
        sha256=sha256,
        score=detector.score.name,
        summary=detector.summary(),
        calibration_patients=detector.calibration.patients,
        p_value_floor=detector.calibration.floor,
        step_mm=detector.provenance.get("step_mm", STEP_MM),
        preprocessing=detector.preprocessing,
        counterfactual=not counterfactual.lacking(detector),
        whole=bool(detector.members),
        provenance=detector.provenance,
    )


def named(urls: Iterable[str]) -> dict[str, str]:
    """Name -> URL of bundles that are given as NAME=URL, or as a URL whose folder gives the name.

    Raises:
        OptionError: none, or two of one name.
    """
    urls_by_name: dict[str, str] = {}
    for text in urls:
        name, equals, url = text.partition("=")
        if not equals or "/" in name:
            name, url = text.rstrip("/").rsplit("/", 1)[-1], text
        if name in urls_by_name:
            raise OptionError(f"two detectors are called {name!r}; give another name as NAME=URL")
        urls_by_name[name] = storage.absolute(url)
    if not urls_by_name:
        raise OptionError("a server needs at least one detector, as URL or NAME=URL")
    return urls_by_name
