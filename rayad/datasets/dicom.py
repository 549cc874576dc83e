"""Mammograms in DICOM: any folder, bucket or DICOMweb server of them.

Side, view and spacing come from the attributes. A table (labels.py), ``labels.csv`` in the folder or wherever `table`
says, may say more: its column ``image`` names a file below the folder, or an SOP instance UID. Segmentation objects are
the lesions of the images that they were drawn on. What is no mammogram of a whole breast (tomosynthesis, magnification,
spot views, raw images, other modalities, damaged files) is left out and listed with its reason.

Patient ids are keyed hashes (identity.py); an exam is called by that hash, side, view and a hash of its instance UID.
Files are named in manifests and reports as they are called: a name in a path is its owner's to change.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from rayad import storage
from rayad.arrays import Mask, Pixels
from rayad.datasets import labels
from rayad.datasets.exam import Exam, Excluded, Lesion, in_order, marked, plausible, shortened
from rayad.datasets.identity import pseudonym, warn_of_odd
from rayad.datasets.labels import LABELS, Facts
from rayad.errors import DatasetError, ImageError
from rayad.imaging import dicom, dicomweb, segmentation
from rayad.imaging.dicom import ForProcessing, Header
from rayad.imaging.files import kind_of
from rayad.imaging.plausibility import forced
from rayad.options import SpacingOrNone

KINDS = {"mass": "mass", "calcif": "calcification", "distort": "distortion", "asymm": "asymmetry"}
"""Part of a segment's name -> kind of the lesion."""
READERS = 16
"""Threads that read headers: on s3:// they wait, most of the time."""


@dataclass(frozen=True)
class Dataset:
    """Mammograms in DICOM: any folder or URL; labels.csv and segmentations in it are optional."""

    source: str = ""
    """The folder, files in folders below it count too; or the URL of a DICOMweb server (imaging/dicomweb.py)."""
    spacing_mm: SpacingOrNone = 0.0
    """Pixel spacing of images that do not say theirs; 0: there must be none."""
    healthy: bool = False
    """Images without a label are healthy; otherwise nobody knows, and they neither train nor test."""
    for_processing: ForProcessing = "refuse"
    """Raw images of the detector: refuse, or convert (their logarithm)."""
    patient_ids: Literal["hashed", "plain"] = "hashed"
    """hashed: with the key in RAYAD_PATIENT_KEY; plain: as they are."""
    table: str = ""
    """URL of a table of labels; empty: labels.csv in the folder, if there is one."""

    def exams(self) -> list[Exam]:
        """An exam a mammogram.

        Raises:
            DatasetError: there is no mammogram, labels.csv cannot be understood, or a spacing is missing.
            OptionError: patient ids are to be hashed and there is no key.
        """
        return self.listed()[0]

    def excluded(self) -> list[Excluded]:
        """Files that are no mammogram of a whole breast, and why."""
        return self.listed()[1]

    def pixels(self, exam: Exam) -> Pixels:
        """The image at full depth."""
        return dicom.read(exam.url, self.for_processing)

    def lesion_mask(self, exam: Exam, lesion: Lesion) -> Mask:
        """The lesion's segment, outline or circle; DatasetError if it has none, or one of another size."""
        header = dicom.header(exam.url)
        shape = (header.rows, header.columns)
        url, _, number = lesion.mask_url.partition("#")
        if url:
            mask = segmentation.mask(url, int(number), header.instance)
            if mask.shape != shape:
                raise DatasetError(f"{url}: a segment of {mask.shape} px for {exam.url} of {shape} px")
            return mask
        return plausible(marked(exam, lesion, shape), f"{exam.exam_id}: the outline of this {lesion.kind}")

    def listed(self) -> tuple[list[Exam], list[Excluded]]:
        """Both, with every header read once."""
        files, excluded = self._files()
        headers = dict(_headers(files))
        table = self._table(files, headers)
        images: dict[str, tuple[str, Header]] = {}  # by instance
        segments: dict[str, list[Lesion]] = {}  # by instance of the image
        for path, header in headers.items():
            url = files[path]
            if isinstance(header, Excluded):
                excluded.append(header)
            elif header.sop_class == segmentation.STORAGE:
                excluded += _add_segments(url, segments)
            elif reason := self._unsuitable(header, table.get(path, [])):
                excluded.append(Excluded(url, reason))
            elif header.instance in images:
                excluded.append(Excluded(url, f"a copy of {files[images[header.instance][0]]}"))
            else:
                images[header.instance] = path, header
        if not images:
            reasons = shortened({exclusion.reason.removeprefix(f"{exclusion.url}: ") for exclusion in excluded})
            raise DatasetError(
                f"{self.source}: no mammogram among {len(files):,} files" + f": {reasons}" * bool(excluded)
            )
        facts = {instance: labels.facts(path, table.get(path, []), {}) for instance, (path, _) in images.items()}
        exams = [
            self._exam(files[path], header, facts[instance], segments.get(instance, []))
            for instance, (path, header) in images.items()
        ]
        warn_of_odd([facts[instance].patient or header.patient_id for instance, (_, header) in images.items()])
        if without_spacing := [exam.url for exam in exams if exam.spacing_mm == 0]:
            fault = next((f"; {header.spacing_fault}" for _, header in images.values() if header.spacing_fault), "")
            raise DatasetError(
                f"{shortened(without_spacing)}: no pixel spacing, in the file, {LABELS} or the option spacing_mm{fault}"
            )
        return in_order(exams), excluded

    def _files(self) -> tuple[dict[str, str], list[Excluded]]:
        """Path below the source -> URL, of all that may be DICOM; and what else is there."""
        folder = storage.join(self.source, "")
        if dicomweb.is_web(self.source):
            return {url.removeprefix(folder): url for url in dicomweb.instances(self.source)}, []
        urls = [url for url in storage.listing(self.source) if url not in (storage.join(folder, LABELS), self.table)]
        kinds = {url: "dicom" if dicom.is_candidate(url) else kind_of(url) for url in urls}
        left_out = [
            Excluded(url, "an image, not DICOM" if kind == "raster" else kind)
            for url, kind in kinds.items()
            if kind != "dicom"
        ]
        return {url.removeprefix(folder): url for url, kind in kinds.items() if kind == "dicom"}, left_out

    def _table(self, files: dict[str, str], headers: dict[str, Header | Excluded]) -> dict[str, list[labels.Row]]:
        """Path -> what the table says of it, under its path or its instance."""
        url = self.table or ("" if dicomweb.is_web(self.source) else storage.join(self.source, LABELS))
        if not url or not (self.table or storage.exists(url)):
            return {}
        paths = {header.instance: path for path, header in headers.items() if isinstance(header, Header)}
        labelled = labels.read(url, {*files, *paths})
        return {paths.get(name, name): rows for name, rows in labelled.items()}

    def _unsuitable(self, header: Header, rows: list[labels.Row]) -> str:
        converted = header.unsuitable == dicom.RAW and self.for_processing == "convert"
        if header.unsuitable and not converted and "kind" not in forced():
            return header.unsuitable
        has_patient = header.patient_id or any(row["patient"] for row in rows)
        return "" if has_patient else f"no patient, in (0010,0020) or {LABELS}"

    def _exam(self, url: str, header: Header, facts: Facts, segments: list[Lesion]) -> Exam:
        lesions = (*facts.lesions, *segments)
        if segments and facts.anomalous is False:
            raise DatasetError(f"{LABELS}: {url} is normal and has a segmentation")
        patient, instance = facts.patient or header.patient_id, header.instance
        if self.patient_ids == "hashed":
            patient, instance = pseudonym(patient), pseudonym(instance)
        laterality, view = facts.laterality or header.laterality, facts.view or header.view
        anomalous = (False if self.healthy else None) if facts.anomalous is None else facts.anomalous
        return Exam(
            exam_id="-".join(filter(None, [patient, laterality, view, instance.replace(".", "")[-8:]])),
            patient_id=patient,
            url=url,
            anomalous=True if lesions else anomalous,
            view=view,
            laterality=laterality,
            density=facts.density,
            spacing_mm=header.spacing_mm or facts.spacing_mm or self.spacing_mm,
            lesions=lesions,
            scanner=header.scanner,
            doubts=() if header.unsuitable == dicom.RAW else dicom.doubts(header),
            wall=header.wall,
        )


def _headers(files: dict[str, str]) -> Iterator[tuple[str, Header | Excluded]]:
    """Path and header of every file, or why it cannot be read."""
    with ThreadPoolExecutor(READERS) as pool:
        yield from zip(files, pool.map(_header, files.values()), strict=True)


def _header(url: str) -> Header | Excluded:
    try:
        return dicom.header(url)
    except ImageError as error:
        return Excluded(url, str(error))


def _add_segments(url: str, segments: dict[str, list[Lesion]]) -> list[Excluded]:
    """The segments of a file to the lesions of their images; returns it if it cannot be read."""
    try:
        in_file = segmentation.segments(url)
    except ImageError as error:
        return [Excluded(url, str(error))]
    for segment in (segment for segment in in_file if not segment.anatomy):
        kind = next((kind for part, kind in KINDS.items() if part in segment.label.lower()), labels.UNNAMED)
        for instance in segment.images:
            lesion = Lesion(kind, segment.label, mask_url=f"{url}#{segment.number}")
            segments.setdefault(instance, []).append(lesion)
    return []
