"""What is said of images, detectors and batches, as values: each field is defined here and nowhere else.

The HTTP API answers with them, batches and `rayad heatmap` write them as JSON, the client gives them back. A field that
a newer server adds is left out; one that an older server does not know has its default.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, model_validator

from rayad import storage
from rayad.evaluation import RESEARCH_USE
from rayad.heatmaps.images import HeatmapRequest
from rayad.imaging import plausibility
from rayad.imaging.plausibility import Doubt

ResultKind = Literal["json", "npz", "png", "dicom", "counterfactual"]
State = Literal["running", "done", "cancelled", "failed"]


Text = Annotated[str, BeforeValidator(lambda text: storage.encodable(text) if isinstance(text, str) else text)]


class Value(BaseModel):
    """What is said; it does not change."""

    model_config = ConfigDict(
        frozen=True, use_attribute_docstrings=True, json_schema_serialization_defaults_required=True
    )


def example(content: Mapping[str, Any], **more: Any) -> ConfigDict:
    """The settings of a model whose JSON schema has this example."""
    return ConfigDict(json_schema_extra={"examples": [dict(content)], **more})


class DetectorName(Value):
    """A detector by its name and the hash of its bundle."""

    name: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Hash of its bundle's detector.json."""


DETECTOR = {"name": "spn", "sha256": "0123456789abcdef" * 4}


class Card(DetectorName):
    """What a detector is."""

    model_config = example(
        DETECTOR
        | {
            "score": "likelihood",
            "summary": "a sum-product network over the latents of an autoencoder",
            "calibration_patients": 19,
            "p_value_floor": 0.05,
            "step_mm": 3.2,
            "preprocessing": {"kind": "mammogram", "spacing_mm": 0.2},
            "counterfactual": True,
            "provenance": {"corpus": "phantom", "seed": 0},
        }
    )
    score: str
    """Name of its score (docs/formats.md)."""
    summary: str
    """One line on what it is."""
    calibration_patients: int
    """Healthy patients that its p-values come from."""
    p_value_floor: float
    """The smallest p-value that it can give."""
    step_mm: float = 0.0
    """Distance of the places that its p-values are for, mm; 0: an older server does not say it."""
    preprocessing: Mapping[str, Any]
    """What happens to an image before it is scored."""
    counterfactual: bool
    """Whether it draws images as if they were healthy."""
    provenance: Mapping[str, Any]
    """What it was made of."""


class Detectors(Value):
    """All detectors that are served."""

    model_config = example({"detectors": [], "default": "spn", "research_use_only": RESEARCH_USE})
    detectors: tuple[Card, ...]
    default: str
    """Name of the one that scores where nobody names another."""
    research_use_only: str = RESEARCH_USE


class ImageSize(Value):
    """The size of an image as it came."""

    rows: int
    columns: int
    spacing_mm: float
    """mm a pixel."""
    view: str = ""
    """MLO, CC, ... by its file or by who asked; empty: nobody says it."""
    laterality: str = ""
    """L or R by its file; empty: it does not say it."""


class Finding(Value):
    """A connected region of marked places, by its highest one."""

    row: float
    """Row in the image as it came, px."""
    column: float
    """Column in the image as it came, px."""
    size_mm2: float
    """Area of the region."""
    score: float
    p_value: float
    """Of this place by itself."""
    healthy_quantile: float
    """The share of healthy places that score lower."""
    false_discovery_rate: float | None = None
    """The share of healthy findings that is expected among those of the image that score as high; None: the detector
    was calibrated before that was kept."""


class Verdict(Value):
    """What is said of an image as a whole."""

    score: float
    """Higher is more anomalous."""
    p_value: float
    p_value_floor: float = 0.0
    """The smallest p-value that the calibration can give."""
    calibration_patients: int = 0
    """Healthy patients of the calibration."""
    doubts: tuple[Doubt, ...] = ()
    """What may be wrong with the image, and so with its score."""
    verdict: str = ""
    """normal or abnormal; empty: the detector has no rule for that."""
    rule: str = ""
    """When an image is abnormal, in words."""
    threshold: float | None = None
    """The score above which an image is abnormal."""
    patient_p_value: float | None = None
    """Of a patient whose highest image scores this, among healthy patients by their highest; None: an older server."""
    patient_images: int = 0
    """Images of a patient for which `patient_p_value` holds at most: as many as each healthy patient has."""

    def of(self, image: str, name: str) -> "Result":
        """The same as the row of an image of many."""
        return Result(image=image, name=name, **{field: getattr(self, field) for field in Verdict.model_fields})


VERDICT = {
    **{"score": 12.5, "p_value": 0.05, "p_value_floor": 0.05, "calibration_patients": 19, "doubts": []},
    **{"verdict": "abnormal", "rule": "above 0.95 of healthy images", "threshold": 11.9},
    **{"patient_p_value": 0.1, "patient_images": 2},
}
PLACE = {"row": 812.0, "column": 405.5, "size_mm2": 81.9, "score": 12.5, "p_value": 0.05, "healthy_quantile": 0.999}
ANSWER = {
    **VERDICT,
    "research_use_only": RESEARCH_USE,
    "detector": DETECTOR,
    "image": {"rows": 2294, "columns": 1914, "spacing_mm": 0.094},
    "findings": [PLACE],
    "findings_total": 1,
    "seconds": {"prepare": 0.41, "score": 0.73},
}


class Answer(Verdict):
    """What a detector says of an image."""

    model_config = example(ANSWER)
    research_use_only: str = RESEARCH_USE
    detector: DetectorName
    image: ImageSize
    findings: tuple[Finding, ...]
    """The regions that stand out most, the highest first."""
    findings_total: int
    """How many regions there are, listed or not."""
    seconds: Mapping[str, float]
    """What took how long."""


class StudyImage(Value):
    """An image of a study: what is said of it, or why nothing is."""

    answer: Answer | None = None
    problem: str = ""
    """Why it was not scored; empty: it was."""


STUDY = {
    **{"score": 12.5, "p_value": 0.1, "p_value_floor": 0.05, "calibration_patients": 19, "verdict": "abnormal"},
    "images": [{"answer": ANSWER, "problem": ""}],
    "failed": 0,
    "research_use_only": RESEARCH_USE,
}


class Study(Value):
    """What a detector says of the images of one patient together."""

    model_config = example(STUDY)
    score: float
    """The highest of the images'."""
    p_value: float
    """The share of healthy patients of whose images one scores as high; see `rayad.heatmaps.studies`."""
    p_value_floor: float
    """The smallest p-value that the calibration can give for so many images."""
    calibration_patients: int
    """Healthy patients of the calibration."""
    verdict: str = ""
    """abnormal where an image is, else normal; empty: the detector has no rule for that."""
    images: tuple[StudyImage, ...]
    """In the order in which they were sent."""
    failed: int
    """Images that were not scored, of which nothing is known."""
    research_use_only: str = RESEARCH_USE


class Result(Verdict):
    """An image of many that was scored."""

    image: Text
    """Its file or URL."""
    name: Text
    """Name of its files among the results, without their endings."""


class Failure(Value):
    """An image of many that was not scored; of a batch the batch itself, where no image is named."""

    image: Text
    reason: Text


Row = Result | Failure
"""What came of an image of many."""
ROW: TypeAdapter[Row] = TypeAdapter(Row)
"""Reads one from JSON."""


class HowScored(BaseModel):
    """How the images of a batch are scored, and what is written of each."""

    model_config = ConfigDict(use_attribute_docstrings=True)
    prefix: str = Field(default="", max_length=2000)
    """Every image below it, instead of URLs."""
    spacing_mm: float = Field(default=0.0, ge=0, le=10)
    """mm a pixel of images that do not state it."""
    view: Literal["", "MLO", "CC"] = ""
    """View of images that do not say it."""
    step_mm: float = Field(default=0.0, ge=0, le=100)
    """Distance of the places, mm; 0: that of the detector's calibration."""
    force: tuple[plausibility.Kind, ...] = Field(default=(), max_length=len(plausibility.KINDS))
    """Doubts about images that are overruled."""
    results: tuple[ResultKind, ...] = Field(default=("json", "npz", "png"), max_length=5)
    """Files that are written of each image; with counterfactual, npz and png hold its healthy version too."""

    @model_validator(mode="after")
    def _somewhere(self) -> "HowScored":
        if "counterfactual" in self.results and not {"npz", "png"} & set(self.results):
            raise ValueError("counterfactual is a part of npz and png: results has neither")
        return self

    @property
    def request(self) -> HeatmapRequest:
        """The same, of one image."""
        return HeatmapRequest(self.spacing_mm, self.view, self.step_mm, self.force)


class Closed(BaseModel):
    """Has the fields that are named here and no others; millions of others are one error, not as many."""

    model_config = ConfigDict(extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _no_others(cls, given: Any) -> Any:
        if isinstance(given, dict) and not given.keys() <= cls.model_fields.keys():
            raise ValueError(f"the fields are {', '.join(cls.model_fields)}, and no others")
        return given


class BatchRequest(Closed, HowScored):
    """A batch: images, where the results go, and how they are scored."""

    model_config = example(
        {"prefix": "s3://hospital/inbox/", "out": "s3://hospital/results/november"}, additionalProperties=False
    )
    urls: tuple[str, ...] = Field(default=(), max_length=100_000)
    """The images, instead of a prefix."""
    out: str = Field(max_length=2000)
    """Folder of the results."""
    detector: str = Field(default="", max_length=200)
    """Name of the detector; empty: the default."""


BATCH = {
    "id": "0123456789abcdef0123456789abcdef",
    "state": "done",
    "detector": DETECTOR,
    "out": "s3://hospital/results/november",
    "asked": {
        "prefix": "s3://hospital/inbox/",
        "spacing_mm": 0.0,
        "view": "",
        "step_mm": 3.2,
        "force": [],
        "results": ["json", "npz", "png"],
    },
    "total": 2,
    "done": 1,
    "failed": 1,
    "began": "2026-11-26T10:00:00+00:00",
    "updated": "2026-11-26T10:00:09+00:00",
    "research_use_only": RESEARCH_USE,
}


class BatchSummary(BaseModel):
    """How far a batch is."""

    model_config = example(BATCH) | ConfigDict(
        use_attribute_docstrings=True, json_schema_serialization_defaults_required=True
    )
    id: str
    state: State
    detector: DetectorName
    out: str
    """Folder of its results."""
    asked: HowScored
    total: int | None = None
    """Its images; null until they are counted."""
    done: int = 0
    """Images that were scored."""
    failed: int = 0
    """Images that were not."""
    began: str
    """When it began, ISO 8601."""
    updated: str
    """When this was last updated, ISO 8601."""
    research_use_only: str = RESEARCH_USE


class Batch(BatchSummary):
    """A batch with what came of each image."""

    model_config = example(
        BATCH
        | {
            "failures": [{"image": "s3://hospital/inbox/2.dcm", "reason": "the image is empty"}],
            "results": [{**VERDICT, "image": "s3://hospital/inbox/1.dcm", "name": "1"}],
        }
    )
    failures: list[Failure] = []
    results: list[Result] = []

    def summary(self) -> BatchSummary:
        """How far it is, without what came of each image."""
        return BatchSummary(**{name: getattr(self, name) for name in BatchSummary.model_fields})


class BatchList(Value):
    """All batches, the newest first."""

    model_config = example({"batches": [BATCH]})
    batches: tuple[BatchSummary, ...]
