"""The pictures of a heatmap: the overlay, and what the image would look like if it were healthy."""

from dataclasses import dataclass

import numpy as np

from rayad import bounds
from rayad.evaluation.shown import DetectorMap, Healthy, View
from rayad.heatmaps.judgement import Judgement
from rayad.imaging.picture import Prepared
from rayad.scoring import counterfactual
from rayad.scoring.detector import Detector


@dataclass(frozen=True)
class Written:
    """What is written of an image beside its scores and p-values."""

    picture: bool = True
    """NAME.png, the overlay."""
    counterfactual: bool = False
    """What the image would look like if it were healthy: most of the time."""


USUAL = Written()
"""What nobody has to ask for."""


def arrays_and_picture(
    name: str, prepared: Prepared, judged: Judgement, detector: Detector, written: Written
) -> tuple[dict[str, np.ndarray], bytes]:
    """Arrays of the healthy version and the picture, as far as they are wanted.

    Raises:
        OptionError: a healthy version of a detector that has none.
    """
    from rayad.evaluation import figures  # with matplotlib, when the first picture is drawn

    if written.counterfactual:
        healthy = if_healthy(detector, prepared)
        arrays = {"counterfactual": healthy.pixels, "change": healthy.change}
        return arrays, figures.explained(*pictured(name, prepared, judged), healthy) if written.picture else b""
    return {}, figures.overlay(*pictured(name, prepared, judged)) if written.picture else b""


def if_healthy(detector: Detector, prepared: Prepared) -> Healthy:
    """The healthy counterfactual as figures take it.

    Raises:
        OptionError: the detector is lacking a decoder or a density.
    """
    with bounds.within(bounds.current().score_seconds, "score_seconds"):
        healthy = counterfactual.image(detector, prepared)
    return Healthy(healthy.pixels, healthy.change, detector.preprocessing.intensity)


def pictured(name: str, prepared: Prepared, judged: Judgement) -> tuple[View, DetectorMap]:
    """The image and the map as figures take them."""
    no_truth = np.zeros(prepared.stored.shape, bool)
    scale = np.array(prepared.stored.shape) / np.array(judged.shape)
    rows, columns = (
        (places + 0.5) * factor - 0.5 for places, factor in zip((judged.rows, judged.cols), scale, strict=True)
    )
    view = View(
        name,
        prepared.shown,
        prepared.spacing_mm,
        rows.round().astype(np.int64),
        columns.round().astype(np.int64),
        no_truth,
    )
    return view, DetectorMap(judged.healthy_quantile, judged.mask)
