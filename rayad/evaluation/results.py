"""What an evaluation found, as a value: results.json, of which a report's page is made."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from rayad.errors import FormatError
from rayad.terminal import shortened

SCHEMA = 1
"""Of results.json; those that say none are of this one too."""
MIXED, TAUGHT = "learned from diseased patients too", "patients taught it"
"""How a remark on a row says that its detector was shown lesions: in training, or by labels."""
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Results:
    """The figures of some detectors on a data set, and what a reader needs to know of them."""

    dataset: str
    recipe: str
    commit: str
    rows: list[Row]
    """A row a detector and kind of lesion (rayad/evaluation/table.py)."""
    comparisons: list[Row]
    """Tests of one detector against another (table.py)."""
    schema: int = SCHEMA
    request: str = ""
    """Fingerprint of what they were made of."""
    calibration_patients: int = 0
    """K, the healthy patients behind every p-value; 0: scores were not calibrated."""
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    """Split -> its images, patients, ..."""
    images: list[Row] = field(default_factory=list)
    """An image: `exam_id`, `patient_id`, `diseased`, `lesions` (kinds), `thumbnail` (name of a picture), `p` (detector
    -> p of the image and of the exam), `findings` (rayad/heatmaps/findings.py, and the circle `row`, `col`, `radius` in
    px of the image as it came), `more_findings` (those not listed), `shape` (rows and columns of the image as it came),
    `verdict` (normal or abnormal) where the detector has a rule."""
    scores: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Detector -> `score`, the mean of the highest hundredth of its places, `image_p` and `exam_p` of each of `images`,
    in their order; `exam_p` is of all images of the patient."""
    rule: str = ""
    """When an image is abnormal, in words."""
    heatmap_detector: str = ""
    """Whose heatmaps the thumbnails show."""
    heatmap_sha256: str = ""
    """Hash of that detector's bundle; empty: not known."""
    settings: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    row_provenance: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Detector -> where its rows come from."""
    notes: list[str] = field(default_factory=list)
    """Sentences below the tables."""
    failures: list[Row] = field(default_factory=list)
    """Images that could not be used: `exam_id` or `url` or `image`, and `reason`."""
    groups: dict[str, str] = field(default_factory=dict)
    """Detector -> heading under which the table has it."""
    remarks: dict[str, str] = field(default_factory=dict)
    """Detector -> how it differs from what was published under its name, or what else it learned from."""
    costs: dict[str, dict[str, float]] = field(default_factory=dict)
    """Detector -> `train_minutes`, `score_seconds`."""
    literature: list[Row] = field(default_factory=list)
    """Figures that others reported: `detector`, `lesion`, `dataset`, `pixel_auc`, `source`."""
    group_rows: list[Row] = field(default_factory=list)
    """Figures for groups of images, such as dense ones (table.py)."""
    group_tests: list[Row] = field(default_factory=list)
    folds: list[str] = field(default_factory=list)
    """Fingerprints of the results of folds of the healthy patients, of which the next two are."""
    cross_fit: list[Row] = field(default_factory=list)
    """Figures against healthy patients that no detector learned from (cross_fit.py)."""
    cross_fit_comparisons: list[Row] = field(default_factory=list)
    """Tests of one detector against another by these figures."""
    seeds: list[Row] = field(default_factory=list)
    """The spread of the figures over seeds (seeds.py)."""
    verdicts: list[Row] = field(default_factory=list)
    """Rules for whole images (verdicts.py)."""
    ranks: dict[str, Any] = field(default_factory=dict)
    """Kind of lesion -> mean ranks of the detectors (ranks.py)."""
    captions: dict[str, str] = field(default_factory=dict)
    """Name of a picture -> text below it."""
    figures: list[str] = field(default_factory=list)
    """Names of the pictures in their order."""
    pictures: dict[str, str] = field(default_factory=dict)
    """Name -> WebP in base64, so that the page can be made again of this file alone."""

    def to_json(self) -> dict[str, Any]:
        """Its fields, the schema first."""
        return {"schema": self.schema} | {f.name: getattr(self, f.name) for f in fields(self)}


def read(content: Mapping[str, Any], where: str) -> Results:
    """Results from JSON.

    Args:
        where: the content comes from, for messages.

    Raises:
        FormatError: they are of a newer schema, lack an entry, or have one that no results have.
    """
    schema = content.get("schema", SCHEMA)
    if type(schema) is not int or schema > SCHEMA:
        raise FormatError(f"{where}: results of schema {SCHEMA} are wanted, not of {shortened(schema)}")
    required = [f.name for f in fields(Results) if f.default is MISSING and f.default_factory is MISSING]
    if missing := [name for name in required if name not in content]:
        raise FormatError(f"{where}: results need {', '.join(required)}; {', '.join(missing)} are missing")
    if unknown := [name for name in content if name not in {f.name for f in fields(Results)}]:
        raise FormatError(f"{where}: no results have {shortened(unknown[0])}")
    return Results(**content)
