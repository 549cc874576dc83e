"""The page of a report, made from its results alone: one that a radiologist would be shown.

The page needs no font and no file but the pictures beside it. A small script of its own (reading.js) keeps a reader's
answers to the findings; without scripts everything else is the same.
"""

import base64
import io
import posixpath
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image

from rayad import storage
from rayad.errors import FormatError
from rayad.evaluation import images_of, svg
from rayad.evaluation.results import MIXED, TAUGHT, Results, read
from rayad.terminal import shortened

QUALITY = 85
"""Of the pictures, 0 to 100."""
SIGNIFICANT = 0.01
"""Of a test against a model alone, as Dietrichstein et al. (2022) have it."""
FEW = 3
"""Fewer detectors are not drawn side by side."""
CAPTIONS = {
    "panel": (
        "Each row is one image: the image, the annotated lesion (blue), then for each detector its heatmap and the "
        "places it marks, the highest hundredth of the image (yellow; dashed: the annotated lesion; in brackets the "
        "Hausdorff distance of both, px of the grid, as in the table). Color is the same in every image: the "
        "share of healthy places that score lower. Nothing is scaled to the single image. Where the first detector by "
        "likelihood can draw, there are two more columns: the picture that the model sees as it would look if the "
        "latents that surprise were as the others let expect, and the difference of the picture to it (red: brighter "
        "than expected; fine texture is only what the model cannot draw). They explain the score; they are no pictures "
        "of the patient."
    ),
    "distributions": (
        "Scores of healthy places of the test images, those around lesions included (gray), and of places inside "
        "lesions (lines). The further a line lies to the right of the gray area, the better the detector tells such "
        "lesions from healthy tissue."
    ),
}
NAMES = {
    "pixel_auc": "pixel AUC",
    "image_wise_auc": "image-wise AUC",
    "exam_auc": "exam AUC",
    "image_auc": "image AUC",
    "any": "any lesion",
}


def build(results: Results, figures: Mapping[str, bytes], url: str) -> str:
    """Write pictures, results.json and index.html, in this order: a page that is there is whole.

    Args:
        figures: name -> PNG; "thumbnail" of an image names one of them, the others are shown in this order.
        url: the folder to write to.

    Returns:
        The URL of index.html.

    Raises:
        FormatError: the results name a figure that is not given.
        StorageError: the folder cannot be written.
    """
    pictures = {name: base64.b64encode(webp(png)).decode() for name, png in figures.items()}
    page = render(results, list(figures))
    return _write(replace(results, figures=list(figures), pictures=pictures), page, url)


def rebuild(url: str) -> str:
    """Write pictures and page again from results.json alone; return the URL of the page.

    Args:
        url: the folder that holds results.json.

    Raises:
        FormatError: there is none, or it is not of results, or of a newer schema.
    """
    results_url = storage.join(url, "results.json")
    if not storage.exists(results_url):
        raise FormatError(f"{url}: no results.json here to make a page from")
    return write(read(storage.read_json(results_url), results_url), url)


def write(results: Results, url: str) -> str:
    """Write results that have their pictures, and their page; see `build`."""
    return _write(results, render(results, results.figures), url)


def _write(results: Results, page: str, url: str) -> str:
    for name, text in results.pictures.items():
        if posixpath.normpath(name) != name or name.startswith(("/", "..")):
            raise FormatError(f"{url}: results.json has a picture {shortened(name)}, which would lie elsewhere")
        storage.write_bytes(storage.join(url, f"{name}.webp"), base64.b64decode(text))
    storage.write_json(storage.join(url, "results.json"), results.to_json())
    index = storage.join(url, "index.html")
    storage.write_bytes(index, page.encode())
    return index


def webp(png: bytes) -> bytes:
    """The picture as WebP, which is a tenth of the size."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(buffer, "WEBP", quality=QUALITY)
    return buffer.getvalue()


def drawings(results: Results) -> dict[str, list[tuple[str, Markup]]]:
    """Kind of lesion -> forest plots and ranks, with their titles; nothing where there are few detectors."""
    rows, drawings_by_kind = results.rows, {}
    spread = {(row["detector"], row["lesion"]): row for row in results.seeds}
    for kind in dict.fromkeys(row["lesion"] for row in rows):
        kind_rows, titled_drawings = [row for row in rows if row["lesion"] == kind], []
        if len(kind_rows) < FEW:
            continue
        for figure in ("pixel_auc", "image_wise_auc", "image_auc"):
            seeds = {d: row[figure]["values"] for (d, k), row in spread.items() if k == kind}
            title = f"{called(figure)} with its 95 % interval by patient" + ("; ticks: other seeds" if seeds else "")
            titled_drawings.append((title, Markup(svg.forest(kind_rows, figure, seeds))))
        ranked = results.ranks.get(kind)
        if ranked:
            p = p_value(ranked["p"])
            title = (
                f"Mean ranks of the detectors over {ranked['patients']} patients (1 is best; Friedman p {p}); bars "
                "join detectors that do not differ (Wilcoxon, adjusted by Holm, 0.05)"
            )
            titled_drawings.append((title, Markup(svg.ranking(ranked))))
        drawings_by_kind[kind] = [(title, drawing) for title, drawing in titled_drawings if drawing]
    return {kind: titled_drawings for kind, titled_drawings in drawings_by_kind.items() if titled_drawings}


def render(results: Results, figures: list[str]) -> str:
    """The page as HTML; text from files and corpora is escaped.

    Raises:
        FormatError: the results name a figure that is not given.
    """
    thumbnails = {image["thumbnail"] for image in results.images if image.get("thumbnail")}
    if thumbnails - set(figures):
        raise FormatError(f"results name the figure {min(thumbnails - set(figures))!r}, which is not given")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "called": called, "p_value": p_value}
    template = resources.files("rayad.evaluation").joinpath("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        results=results,
        images_of=images_of(results.dataset, str(results.provenance.get("source", ""))),
        rows=results.rows,
        kinds=list(dict.fromkeys(row["lesion"] for row in results.rows)),
        detectors=list(dict.fromkeys(row["detector"] for row in results.rows)),
        images=results.images,
        figures=[name for name in figures if name not in thumbnails],
        captions=CAPTIONS | results.captions,
        reasons=reasons([*results.rows, *results.cross_fit]),
        groups=results.groups,
        costs=results.costs,
        drawings=drawings(results),
        beside=beside(results),
        shown_lesions=any(word in remark for remark in results.remarks.values() for word in (MIXED, TAUGHT)),
        answerable=any(image.get("findings") or image.get("shape") for image in results.images),
        reader_script=reader_script(),
    )


def reader_script() -> Markup:
    """The script that keeps a reader's answers: the viewer's table of readings, and what this page does with it."""
    package = resources.files("rayad")
    texts = [(package / file).read_text(encoding="utf-8") for file in ("web/readings.js", "evaluation/reading.js")]
    return Markup("(() => {\n" + "\n".join(texts).replace("\nexport ", "\n") + "})();")


def beside(results: Results) -> list[dict]:
    """Rows of the table of which others reported figures: theirs, and whether ours is better than the model alone.

    "significant": Wilcoxon's test of the image-wise AUC against the same model without its density has p < 0.01.
    """
    reported = {(row["detector"], row["lesion"]): row for row in results.literature}
    tests = {
        (row["a"], row["b"], row["lesion"]): row for row in results.comparisons if row["figure"] == "image_wise_auc"
    }
    rows = []
    for row in results.rows:
        if theirs := reported.get((row["detector"], row["lesion"])):
            test = tests.get((row["detector"], row["detector"].removesuffix("-spn"), row["lesion"]), {})
            p, difference = test.get("p"), test.get("difference")
            is_better = p is not None and p < SIGNIFICANT and (difference or 0) > 0
            rows.append({"ours": row, "theirs": theirs, "significant": is_better})
    return rows


def number(value: float | None, digits: int = 2) -> str:
    """A figure of fixed digits; a dash for none."""
    return "–" if value is None else f"{value:.{digits}f}"  # noqa: RUF001  an en dash is meant


def p_value(value: float | None) -> str:
    """Two significant digits, but never 0 or 1.0 for a p that is not."""
    if value is None:
        return "–"  # noqa: RUF001
    return "< 0.0001" if value < 1e-4 else "> 0.99" if 0.995 <= value < 1 else f"{value:.2g}"


def called(name: str) -> str:
    """The name of a figure or of a kind of lesion in prose."""
    return NAMES.get(name, name)


def reasons(rows: list[dict]) -> dict[str, int]:
    """Why a figure or its interval is missing -> the number of its footnote."""
    cells = [cell for row in rows for cell in row.values() if isinstance(cell, dict)]
    cells += [cell for row in rows if "froc" in row for cell in (row["froc"]["sensitivity"] or {}).values()]
    cells += [cell for row in rows for cell in row.get("false_positive_rate", {}).values()]
    texts = dict.fromkeys(cell["reason"] for cell in cells if cell.get("reason"))
    return {text: i for i, text in enumerate(texts, 1)}
