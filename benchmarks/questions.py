"""Questions of the literature as experiments, each a small table.

    python benchmarks/questions.py --source mini-mias --out questions
    python benchmarks/questions.py --source mini-mias --out questions --only contamination
    python benchmarks/questions.py --show

Everything is trained, fitted and scored as the recipe `mias` does it (a CAE, and a RAT-SPN on its latents); one thing
is varied at a time. Figures are of the test half. Stages that are done are not run again.

resolution      does a higher resolution lift calcifications, as Dietrichstein et al. 2022 suppose?
contamination   what do 1 to 10 % of patches from lesions do to the training, as in Mukesh et al. 2024?
density         does it matter whether one learns from dense or from other breasts, as many of each?
uncertainty     is the disagreement of three seeds a score?
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from table import cell

from rayad import catalog, storage
from rayad.arrays import Image, Mask
from rayad.datasets.exam import Exam, Images, Lesion, source_of
from rayad.datasets.splits import assign
from rayad.density.em import EM
from rayad.evaluation import table
from rayad.fingerprint import fingerprint
from rayad.fit import Schedule
from rayad.imaging.mammogram import Preprocessing
from rayad.imaging.spacing import resample_mask
from rayad.on_ray.pool import connected
from rayad.patches.corpus import FULL_SCALE, SHARD, Corpus, Ingest, packed
from rayad.patches.sample import cut, generator
from rayad.pipeline.combine import combine
from rayad.pipeline.fit_density import fit_detector
from rayad.pipeline.ingest import write_corpus
from rayad.pipeline.requests import DensityRequest, TrainRequest
from rayad.pipeline.score import exams_of, score
from rayad.pipeline.train import train_detector
from rayad.pool import Pool, Workers
from rayad.private import keep_private
from rayad.scoring.detector import Detector

STEP_MM = 3.2
KINDS = ("mass", "calcification")
RESULTS = Path(__file__).parent / "results" / "questions.json"
SHARES = (0.0, 0.01, 0.05, 0.10)
LESION_PATCHES = 40
"""Patches that are taken from each lesion of the development half."""


@dataclass(frozen=True)
class Options:
    """What is asked, and where."""

    source: str = ""
    """Folder or URL of mini-MIAS."""
    out: str = "questions"
    """Where corpora, detectors and scores go."""
    show: bool = False
    """Print the tables of the figures that are known, and do nothing."""
    only: tuple[str, ...] = ()
    """Questions; empty: all."""
    workers: Workers = Workers(2)


@dataclass(frozen=True)
class Learning:
    """The images of a data set, learned from in part: those of some classes of tissue, so many of them."""

    base: Images
    classes: str
    images: int

    def exams(self) -> list[Exam]:
        exams = self.base.exams()
        splits = assign(exams)
        learned = [e for e in exams if splits[e.exam_id] == "train"]
        chosen = {e.exam_id for e in [e for e in learned if e.density in self.classes][: self.images]}
        return [e for e in exams if splits[e.exam_id] != "train" or e.exam_id in chosen]

    def pixels(self, exam: Exam) -> Image:
        return self.base.pixels(exam)

    def lesion_mask(self, exam: Exam, lesion: Lesion) -> Mask:
        return self.base.lesion_mask(exam, lesion)


class Bench:
    """Trains and scores one variation after the other."""

    def __init__(self, options: Options, pool: Pool) -> None:
        self.options, self.pool, self.url = options, pool, storage.absolute(options.out)
        self.dataset: Images = catalog.configure("datasets", "mias", {"source": options.source})

    def corpus(self, preprocessing: Preprocessing, dataset: Images | None = None) -> Corpus:
        ingest, images = Ingest(preprocessing, shard_patches=2048), dataset or self.dataset
        name = fingerprint([asdict(ingest), [e.exam_id for e in images.exams()]])
        return write_corpus(self.pool, "mias", self.options.source, images, ingest, self._at(f"corpus-{name}"))

    def learned(self, corpus: Corpus, seed: int = 0) -> list[Detector]:
        """A CAE by reconstruction, and by the likelihood of its latents."""
        name = fingerprint([corpus.manifest["content"], seed])
        request = TrainRequest("cae", schedule=Schedule(epochs=6, seed=seed))
        trained = train_detector(self.pool, "cae", corpus, request, self._at(f"cae-{name}"))
        density = DensityRequest(em=EM(seed=seed))
        fitted = fit_detector(self.pool, "cae-spn", corpus, trained, density, self._at(f"cae-spn-{name}"))
        return [trained, fitted]

    def rows(self, detectors: Sequence[Detector], **said: Any) -> list[dict[str, Any]]:
        """Pixel and image-wise AUC of the test half, with what was varied."""
        exams = exams_of(self.dataset, "test")
        images, _ = score(self.pool, detectors, self.dataset, exams, STEP_MM, self._at("scores"), "test images")
        found = []
        for d in detectors:
            found += [
                {
                    **said,
                    "detector": d.name,
                    "lesion": row["lesion"],
                    **{k: row[k] for k in ("pixel_auc", "image_wise_auc")},
                }
                for row in table.rows(d.name, [i.of(d.name) for i in images], KINDS)
            ]
        for row in found:
            print(json.dumps(row), flush=True)
        return found

    def _at(self, name: str) -> str:
        return storage.join(self.url, name)


def resolution(bench: Bench) -> list[dict[str, Any]]:
    """Stored intensities and how much brighter a place is than around, at 0.2 (the film's own), 0.3, 0.4 and 0.8 mm."""
    found = []
    for intensity in ("stored", "relative"):
        for spacing_mm in (0.2, 0.3, 0.4, 0.8):
            corpus = bench.corpus(Preprocessing(spacing_mm, intensity=intensity))
            found += bench.rows(bench.learned(corpus), intensity=intensity, spacing_mm=spacing_mm)
    return found


def contamination(bench: Bench) -> list[dict[str, Any]]:
    """A share of the training patches lies in lesions of the development half."""
    clean = bench.corpus(Preprocessing(intensity="relative"))
    lesions = lesion_patches(bench.dataset, Preprocessing(intensity="relative"))
    found = []
    for share in SHARES:
        corpus = contaminated(clean, lesions, share, f"{clean.url}-{share:g}") if share else clean
        found += bench.rows(bench.learned(corpus), share=share)
    return found


def density(bench: Bench) -> list[dict[str, Any]]:
    """Learned from dense breasts (D), from others (F, G), and from as many of both."""
    exams, splits = bench.dataset.exams(), assign(bench.dataset.exams())
    train = [e for e in exams if splits[e.exam_id] == "train"]
    number = min(sum(e.density == "D" for e in train), sum(e.density != "D" for e in train))
    found = []
    for name, classes in (("dense", "D"), ("non-dense", "FG"), ("both", "FGD")):
        corpus = bench.corpus(Preprocessing(intensity="relative"), Learning(bench.dataset, classes, number))
        found += bench.rows(bench.learned(corpus), learned_from=name, images=number)
    return found


def uncertainty(bench: Bench) -> list[dict[str, Any]]:
    """Mean and spread of the rarities of three seeds."""
    corpus = bench.corpus(Preprocessing(intensity="relative"))
    seeds = [replace(bench.learned(corpus, seed)[1], name=f"cae-spn-{seed}") for seed in range(3)]
    together = [
        combine(bench.pool, rule, rule, seeds, bench.dataset, STEP_MM, storage.join(bench.url, "scores"))
        for rule in ("mean", "fisher", "spread")
    ]
    return bench.rows([*seeds, *together])


def lesion_patches(dataset: Images, preprocessing: Preprocessing) -> np.ndarray:
    """Patches whose centre lies in a lesion of the development half, uint16."""
    found = []
    for exam in exams_of(dataset, "development"):
        for number, lesion in enumerate(exam.lesions):
            if lesion.located:
                prepared = preprocessing.prepare(source_of(dataset, exam))
                mask = resample_mask(dataset.lesion_mask(exam, lesion), prepared.stored.shape) & prepared.tissue
                places = generator(0, f"{exam.exam_id}-{number}").permutation(np.argwhere(mask))[:LESION_PATCHES]
                found.append(cut(prepared.pixels, places[:, 0], places[:, 1]))
    return np.round(np.concatenate(found) * FULL_SCALE).astype(np.uint16)


def contaminated(clean: Corpus, lesions: np.ndarray, share: float, url: str) -> Corpus:
    """The corpus with patches of lesions in the place of a share of its training patches."""
    shards = []
    for shard in clean.manifest["shards"]:
        patches, random = clean.read(shard["name"]).copy(), generator(0, f"{shard['name']}-{share}")
        if shard["split"] == "train":
            at = random.choice(len(patches), round(share * len(patches)), replace=False)
            patches[at] = lesions[random.integers(len(lesions), size=len(at))]
        data, facts = packed(patches)
        storage.write_bytes(storage.join(url, shard["name"] + SHARD), data)
        shards.append({**shard, **facts})
    index = storage.read_bytes(storage.join(clean.url, "index.parquet"))
    storage.write_bytes(storage.join(url, "index.parquet"), index)
    content = fingerprint([shard["npy_sha256"] for shard in shards])
    manifest = {**clean.manifest, "shards": shards, "content": content, "contamination": share}
    storage.write_json(storage.join(url, "manifest.json"), manifest)
    return Corpus.open(url)


QUESTIONS: Mapping[str, Callable[[Bench], list[dict[str, Any]]]] = {
    "contamination": contamination,
    "density": density,
    "uncertainty": uncertainty,
    "resolution": resolution,
}


def shown(rows: Sequence[dict[str, Any]]) -> str:
    """A table of a question: what was varied, and both figures of each kind of lesion."""
    varied = [name for name in rows[0] if name not in ("lesion", "pixel_auc", "image_wise_auc")]
    by_kind = {kind: [row for row in rows if row["lesion"] == kind] for kind in KINDS}
    columns = [f"{kind}: {name}" for kind in KINDS for name in ("pixel AUC", "image-wise AUC")]
    lines = [" | ".join([*varied, *columns]), "|".join(["---"] * (len(varied) + len(columns)))]
    for of in zip(*by_kind.values(), strict=True):
        figures = [cell(row, figure) for row in of for figure in ("pixel_auc", "image_wise_auc")]
        lines.append(" | ".join([*(f"{of[0][name]}" for name in varied), *figures]))
    return "\n".join(f"| {line} |" if "---" not in line else f"|{line}|" for line in lines)


def main(options: Options) -> None:
    """Answer the questions, print every figure, add them to the results."""
    if options.show:
        for name, rows in json.loads(RESULTS.read_text()).items():
            print(f"{name}\n\n{shown(rows)}\n")
        return
    with connected(workers=options.workers) as pool:
        bench = Bench(options, pool)
        for name in options.only or QUESTIONS:
            rows = QUESTIONS[name](bench)
            known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
            RESULTS.write_text(json.dumps(known | {name: rows}, indent=2) + "\n")


if __name__ == "__main__":
    keep_private()
    main(tyro.cli(Options))
