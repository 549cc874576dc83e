"""Real mammograms on s3://, two nodes, and every stage between: mini-MIAS is learned from, CBIS-DDSM is judged."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rayad import storage
from rayad.datasets import cbis_ddsm, mias
from rayad.imaging import dicom
from rayad.patches.corpus import Corpus, Ingest
from rayad.patches.sample import Sampling
from tests.dicoms import mammogram, written
from tests.storage.conftest import reach

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]

NODES = """
import json, os, sys
from rayad.private import keep_private
keep_private()
os.environ["RAY_TMPDIR"] = sys.argv[1]
import ray
from rayad import cli
from ray.cluster_utils import Cluster
small = {"object_store_memory": 150 * 2**20, "num_cpus": 3}
cluster = Cluster(initialize_head=True, head_node_args={**small, "num_cpus": 0, "include_dashboard": False})
cluster.add_node(**small)
cluster.add_node(**small)
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
print("nodes", sum(1 for node in ray.nodes() if node["Resources"].get("CPU")), flush=True)
for step in json.loads(sys.argv[2]):
    print("##", step[0], cli.run(step), flush=True)
ray.shutdown()
cluster.shutdown()
"""
"""A head that does no work, and two nodes of three workers each."""


@pytest.fixture(scope="module")
def place(s3_server, real_data: Path) -> Iterator[str]:
    """A prefix on the server with mini-MIAS and the two mammograms of CBIS-DDSM, its tables and masks of discs."""
    with pytest.MonkeyPatch.context() as patch:
        reach(s3_server, patch)
        root = f"s3://{s3_server.bucket}/real"
        for folder, name in (("mini-mias", "mias"), ("cbis-ddsm-dicom", "cbis"), ("cbis-ddsm-metadata", "cbis")):
            for file in (of for of in (real_data / folder).rglob("*") if of.is_file()):
                storage.write_bytes(f"{root}/{name}/{file.relative_to(real_data / folder)}", file.read_bytes())
        _write_masks(f"{root}/cbis")
        yield root


def _write_masks(source: str) -> None:
    """A disc of 10 mm in the middle of each mammogram's brightest part, as the mask of its first row."""
    rows = cbis_ddsm.read_tables(source)
    for exam in cbis_ddsm.Dataset(source).exams():
        image = dicom.read(exam.url)
        coarse = image[: len(image) // 100 * 100, : image.shape[1] // 100 * 100]
        blocks = coarse.reshape(len(coarse) // 100, 100, -1, 100).mean((1, 3))
        row, col = np.argwhere(blocks == blocks.max())[0] * 100 + 50
        rr, cc = np.ogrid[: image.shape[0], : image.shape[1]]
        disc = np.where(np.hypot(rr - row, cc - col) < 100, 255, 0).astype(np.uint8)
        series = dicom.header(exam.url).series
        of = next(of for of in rows if cbis_ddsm._uid(of["image file path"]) == series)
        uid = cbis_ddsm._uid(of["ROI mask file path"])
        storage.write_bytes(f"{source}/{exam.exam_id}.dcm", written(mammogram(disc, SeriesInstanceUID=uid)))


@pytest.fixture(scope="module")
def said(place: str) -> Iterator[str]:
    """What every command said on two nodes, with each place on s3://."""
    mias_set, cbis_set = (["--dataset", name, "--source", f"{place}/{of}"] for name, of in SETS)
    corpus, cae, spn, out = (f"{place}/out/{name}" for name in ("corpus", "cae", "cae-spn", "report"))
    steps = [
        ["inspect", *cbis_set, "--out", f"{place}/out/page"],
        ["ingest", *mias_set, "--out", corpus, "--sampling.patches", "20", "--shard-patches", "120"],
        [*("train", "--corpus", corpus, "--out", cae, "--schedule.epochs", "1"), "--settings", "width=4", "latents=8"],
        [
            *("fit-density", "--detector", cae, "--corpus", corpus, "--out", spn, "--em.epochs", "2"),
            *("--settings", "inputs=3", "replicas=3"),
        ],
        ["calibrate", "--detector", spn, *mias_set, "--scores", f"{place}/out/scores"],
        ["evaluate", "--detector", spn, *cbis_set, "--out", out],
        [
            *("heatmap", "--detector", spn, "--out", f"{place}/out/maps", "--spacing-mm", "0.05", "--images"),
            *(exam.url for exam in cbis_ddsm.Dataset(f"{place}/cbis").exams()),
        ],
    ]
    session = tempfile.mkdtemp(prefix="rayad-")  # sockets need a short path
    done = subprocess.run(
        [sys.executable, "-c", NODES, session, json.dumps(steps)],
        capture_output=True,
        text=True,
        timeout=1200,
        env={**os.environ, "RAY_ADDRESS": ""},
        check=False,
    )
    yield done.stdout + done.stderr
    shutil.rmtree(session, ignore_errors=True)


SETS = (("mias", "mias"), ("cbis_ddsm", "cbis"))


def test_every_stage_works_on_two_nodes_and_s3(said: str) -> None:
    assert "nodes 2" in said
    codes = dict(line.split()[1:] for line in said.splitlines() if line.startswith("## "))
    stages = ("inspect", "ingest", "train", "fit-density", "calibrate", "evaluate", "heatmap")
    assert codes == dict.fromkeys(stages, "0"), said


def test_the_report_says_what_the_tables_say(said: str, place: str) -> None:
    results = storage.read_json(f"{place}/out/report/results.json")
    assert [row["lesion"] for row in results["rows"]] == ["mass"]
    assert 0 < results["rows"][0]["pixel_auc"]["value"] < 1
    names = {image["exam_id"]: image["lesions"] for image in results["images"]}
    assert names.items() <= {"P_00173-LEFT-CC": ["mass"], "P_00820-RIGHT-CC": ["mass"]}.items()
    counts = storage.read_json(f"{place}/out/page/inspection.json")["facts"]
    assert counts["view"] == {"CC": 2}
    assert counts["side"] == {"L": 1, "R": 1}
    maps = {url.rsplit("/", 1)[1] for url in storage.listing(f"{place}/out/maps")}
    assert maps == {"heatmaps.jsonl", *(f"{name}.{end}" for name in ("1-130", "1-282") for end in ("npz", "png"))}


def test_two_nodes_write_the_corpus_that_one_process_writes(said: str, place: str, real_data: Path, tmp_path) -> None:
    from rayad.on_ray.pool import connected
    from rayad.pipeline.ingest import ingest

    settings = Ingest(sampling=Sampling(patches=20), shard_patches=120)
    with connected() as pool:
        alone = ingest(pool, mias.Dataset(str(real_data / "mini-mias")), str(tmp_path / "alone"), settings, {})
    there = Corpus.open(f"{place}/out/corpus")
    assert there.manifest["content"] == alone["content"]
    assert there.index().equals(Corpus.open(str(tmp_path / "alone")).index())
