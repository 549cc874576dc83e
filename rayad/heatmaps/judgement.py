"""What a detector says of one image: scores and p-values of its places, of the image, and what stands out."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from rayad.arrays import Grid, GridMask
from rayad.evaluation import RESEARCH_USE
from rayad.heatmaps.answers import Answer, DetectorName, Finding, ImageSize, Verdict
from rayad.heatmaps.findings import MarkedRegion, findings
from rayad.imaging.picture import Prepared
from rayad.imaging.plausibility import Doubt
from rayad.scoring.calibrate import Calibration, image_score
from rayad.scoring.detector import Heatmap
from rayad.scoring.regions import ALARM
from rayad.scoring.rule import ABNORMAL, NORMAL, Rule


@dataclass(frozen=True)
class Judgement:
    """Of one image, by one detector that is calibrated."""

    scores: Grid
    """gh gw, higher is more anomalous; nan outside the tissue."""
    p_values: Grid
    """Of each place by itself, float32; nan outside the tissue."""
    healthy_quantile: Grid
    """The share of healthy places that score lower; nan outside the tissue."""
    rows: Float[np.ndarray, " gh"]
    """Rows of the places' centres, px of the image as it came, float32."""
    cols: Float[np.ndarray, " gw"]
    tissue: GridMask
    score: float
    """Of the image."""
    p: float
    """Of the image."""
    p_floor: float
    """The smallest p that the calibration can give, 1 / (K + 1)."""
    patients: int
    """K, healthy patients of the calibration."""
    findings: tuple[MarkedRegion, ...]
    """The most unusual marked regions, with places in mm."""
    marked_regions: int
    """How many there are in all."""
    spacing_mm: float
    """mm a px of the image as it came."""
    shape: tuple[int, int]
    """Rows and columns of the image as it came."""
    step_mm: float
    """Distance of neighbouring places."""
    doubts: tuple[Doubt, ...] = ()
    """What may be wrong with the image."""
    rule: Rule | None = None
    """By which it is normal or abnormal."""
    threshold: float | None = None
    """The score above which it is abnormal."""
    patient_p: float = 1.0
    """Of a patient whose highest image this is."""
    patient_images: int = 0
    """Images of a patient for which that holds at most."""
    view: str = ""
    """MLO, CC, ... or empty."""
    laterality: str = ""
    """L, R or empty."""
    patient: str = field(default="", repr=False)
    """Hash of the patient's identifier; empty: the file has none."""

    @property
    def word(self) -> str:
        """normal or abnormal; empty: there is no rule."""
        return "" if self.threshold is None else (ABNORMAL if self.score > self.threshold else NORMAL)

    @property
    def mask(self) -> GridMask:
        """The places that are marked: above 99 of 100 healthy ones."""
        return np.nan_to_num(self.healthy_quantile) > ALARM

    def npz(self, **more: np.ndarray) -> bytes:
        """A heatmap's arrays as a file (docs/formats.md)."""
        named = {name: getattr(self, name) for name in ("scores", "p_values", "rows", "cols", "tissue")}
        named["research_use_only"] = np.frombuffer(RESEARCH_USE.encode(), np.uint8)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **named, **more)
        return buffer.getvalue()

    def verdict(self) -> Verdict:
        """What is said of the image as a whole."""
        return Verdict(**self._whole())

    def answer(self, detector: DetectorName, seconds: Mapping[str, float]) -> Answer:
        """All but the places; rows and columns of findings in px of the image as it came.

        Args:
            seconds: what took how long.
        """
        return Answer(
            **self._whole(),
            detector=detector,
            image=ImageSize(
                rows=self.shape[0],
                columns=self.shape[1],
                spacing_mm=self.spacing_mm,
                view=self.view,
                laterality=self.laterality,
            ),
            findings=tuple(map(self._finding, self.findings)),
            findings_total=self.marked_regions,
            seconds={name: round(value, 4) for name, value in seconds.items()},
        )

    def _whole(self) -> dict[str, Any]:
        """The fields of `Verdict`."""
        return {
            "score": self.score,
            "p_value": self.p,
            "p_value_floor": self.p_floor,
            "calibration_patients": self.patients,
            "doubts": self.doubts,
            "verdict": self.word,
            "rule": self.rule.sentence if self.rule else "",
            "threshold": self.threshold,
            "patient_p_value": self.patient_p,
            "patient_images": self.patient_images,
        }

    def _finding(self, region: MarkedRegion) -> Finding:
        """The place of a peak is the centre of a grid's cell."""
        row, column = int(region.row_mm / self.step_mm), int(region.col_mm / self.step_mm)
        return Finding(
            row=float(self.rows[row]),
            column=float(self.cols[column]),
            size_mm2=region.size_mm2,
            score=region.score,
            p_value=float(self.p_values[row, column]),
            healthy_quantile=region.healthy_quantile,
            false_discovery_rate=region.false_discovery_rate,
        )


def judge(prepared: Prepared, heatmap: Heatmap, calibration: Calibration, rule: Rule | None = None) -> Judgement:
    """Turn a heatmap into a judgement: p-values, the score of the whole image, findings.

    Args:
        rule: by which the image is normal or abnormal; None: nothing is said of that.
    """
    shape = prepared.source.pixels.shape
    scale = np.array(shape[:2]) / np.array(prepared.stored.shape)
    quantile = calibration.healthy_quantile(heatmap.scores)
    step_mm = _step(heatmap) * prepared.spacing_mm
    listed, number = findings(heatmap.scores, quantile, ALARM, step_mm, calibration=calibration)
    score = image_score(heatmap.scores)
    return Judgement(
        scores=heatmap.scores,
        p_values=calibration.place_p(heatmap.scores).astype(np.float32),
        healthy_quantile=quantile,
        rows=((heatmap.rows + 0.5) * scale[0] - 0.5).astype(np.float32),
        cols=((heatmap.columns + 0.5) * scale[1] - 0.5).astype(np.float32),
        tissue=heatmap.tissue,
        score=score,
        p=calibration.image_p(score),
        p_floor=calibration.floor,
        patients=calibration.patients,
        findings=tuple(listed),
        marked_regions=number,
        spacing_mm=prepared.source.spacing_mm,
        shape=(shape[0], shape[1]),
        step_mm=step_mm,
        doubts=(*prepared.doubts, *([Doubt("far", far)] if (far := calibration.far(heatmap.scores)) else ())),
        rule=rule,
        threshold=rule.threshold(calibration) if rule else None,
        patient_p=calibration.exam_p(score),
        patient_images=calibration.images_each,
        view=prepared.source.view,
        laterality=prepared.source.laterality,
        patient=prepared.source.patient,
    )


def _step(heatmap: Heatmap) -> int:
    """Distance of the places, px of the working resolution; the first is at half of it."""
    places = heatmap.rows if len(heatmap.rows) > 1 else heatmap.columns
    return int(places[1] - places[0]) if len(places) > 1 else 2 * int(heatmap.rows[0]) + 1
