"""From an archive of DICOM files to heatmaps, on a real Ray; and no identifier in anything that is left."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rayad import storage
from rayad.datasets import phantom
from rayad.datasets.identity import KEY
from tests.dicoms import mammogram, written

PLANTED = {
    "PatientName": "Zyxwvut^Planted",
    "PatientBirthDate": "19470313",
    "AccessionNumber": "ACC-8812731",
    "StudyID": "STUDY-55817",
    "PatientAddress": "Nowhere Lane 7731",
    "OtherPatientIDs": "OTHER-662718",
    "InstitutionName": "Hospital of Qwertz",
    "ReferringPhysicianName": "Doktor^Planted",
}
PATIENT = "MRN-9021{:03}"


pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

DRIVER = """
import json, sys
import ray
from rayad import cli
from rayad.private import keep_private
keep_private()
ray.init(address="local", num_cpus=6, include_dashboard=False, object_store_memory=300_000_000, _temp_dir=sys.argv[1])
for step in json.loads(sys.argv[2]):
    print("##", step[0], cli.run(step), flush=True)
"""


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """Phantoms as DICOM of 12 bits, full of identifiers, with a table of labels and a damaged file."""
    where = tmp_path_factory.mktemp("archive")
    dataset, rows = phantom.Dataset(patients=30, height=256, width=192), ["image,label,kind,row,col,radius"]
    patients: dict[str, str] = {}
    for number, exam in enumerate(dataset.exams()):
        patient = patients.setdefault(exam.patient_id, PATIENT.format(len(patients)))
        pixels = np.round(dataset.pixels(exam) * 4095).astype(np.uint16)
        facts = {**PLANTED, "PatientID": patient, "ImageLaterality": exam.laterality, "ViewPosition": exam.view}
        file = mammogram(pixels, bits=12, ImagerPixelSpacing=[exam.spacing_mm] * 2, **facts)
        (where / f"{number:03}.dcm").write_bytes(written(file))
        found = [f",{lesion.kind},40,40,12" for lesion in exam.lesions] or ["normal,,,,"]
        rows += [f"{number:03}.dcm,{of}" for of in found]
    (where / "labels.csv").write_text("\n".join(rows) + "\n")
    (where / "damaged.dcm").write_bytes((where / "000.dcm").read_bytes()[:700])
    return where


@pytest.fixture(scope="module")
def job(archive, tmp_path_factory) -> Iterator[tuple[Path, str, Path]]:
    """Every command on the archive: the folder of what they left, what they said, and the cluster's own folder."""
    out, of = tmp_path_factory.mktemp("out"), ["--dataset", "dicom", "--source", str(archive)]
    corpus, cae, spn = str(out / "corpus"), str(out / "cae"), str(out / "spn")
    small = ["--settings", "width=4", "latents=8"]
    steps = [
        ["inspect", *of, "--out", str(out / "page"), "--sheet", "4"],
        ["ingest", *of, "--out", corpus, "--sampling.patches", "12"],
        ["train", "--corpus", corpus, "--out", cae, "--schedule.epochs", "1", *small],
        ["fit-density", "--detector", cae, "--corpus", corpus, "--out", spn, "--settings", "inputs=3", "replicas=3"],
        ["calibrate", "--detector", spn, *of, "--scores", str(out / "scores")],
        ["evaluate", "--detector", spn, *of, "--out", str(out / "report")],
        [
            *("heatmap", "--detector", spn, "--out", str(out / "heatmaps"), "--images"),
            *(str(archive / name) for name in ("001.dcm", "damaged.dcm")),
        ],
    ]
    session = Path(tempfile.mkdtemp(prefix="rayad-"))  # sockets need a short path
    environment = {**os.environ, KEY: "a secret of this test", "RAY_ADDRESS": ""}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(session), json.dumps(steps)],
        capture_output=True,
        text=True,
        timeout=900,
        env=environment,
        check=False,
    )
    yield out, done.stdout + done.stderr, session
    shutil.rmtree(session, ignore_errors=True)


def test_every_command_takes_dicom(job):
    out, said, _ = job
    codes = dict(line.split()[1:] for line in said.splitlines() if line.startswith("## "))
    assert codes == dict.fromkeys(("inspect", "ingest", "train", "fit-density", "calibrate", "evaluate"), "0") | {
        "heatmap": "1"  # one file of two is damaged
    }, said
    manifest = storage.read_json(f"{out}/corpus/manifest.json")
    assert [Path(of["url"]).name for of in manifest["excluded"]] == ["damaged.dcm"]
    assert "left out: 1 x no image (MG)" in said
    with np.load(out / "heatmaps/001.npz") as found:
        assert np.isfinite(found["p_values"][found["tissue"]]).all()
    results = storage.read_json(f"{out}/report/results.json")
    assert all(row["pixel_auc"]["value"] is not None for row in results["rows"])


def test_no_identifier_is_in_anything_that_is_left(job):
    """Corpus, bundles, scores, report, page, heatmaps, what was printed, and the cluster's logs; archives unpacked."""
    out, said, session = job
    files = [path for folder in (out, session / "session_latest" / "logs") for path in folder.rglob("*")]
    texts = {str(path): unpacked(path) for path in files if path.is_file()}
    texts["what was printed"] = said.encode()
    assert len(texts) > 50
    wanted = [*PLANTED.values(), "Zyxwvut", "Planted", "MRN-9021", "Nowhere Lane", "Qwertz"]
    found = [(name, text) for name, data in texts.items() for text in wanted if text.encode() in data]
    assert found == []


def unpacked(path: Path) -> bytes:
    """The bytes of a file; of compressed ones also what they hold."""
    data = path.read_bytes()
    if path.suffix == ".npz":
        with zipfile.ZipFile(path) as archive:
            data += b"".join(archive.read(name) for name in archive.namelist())
    if path.suffix == ".parquet":
        data += pd.read_parquet(path).to_csv().encode()
    return data
