"""A bundle is replaced as a whole or not at all, and nothing but the files of a bundle is ever removed."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from rayad import storage
from rayad.errors import FormatError, StorageError
from rayad.imaging.mammogram import Preprocessing
from rayad.scoring import bundle
from rayad.scoring.calibrate import calibrate
from rayad.scoring.detector import Combined, Detector
from rayad.scoring.scores import Floor


def floor(name: str, seed: int = 0) -> Detector:
    """A detector without parts; the seed makes its calibration."""
    calibration = calibrate({"a": [np.random.default_rng(seed).random((9, 9))]})
    origin = {"made_of": f"{seed}"}
    return Detector(name, Floor("brightness"), Preprocessing(), calibration=calibration, provenance=origin)


def both(seed: int) -> Detector:
    members = floor("one", seed), floor("two", seed)
    return Detector("both", Combined("fisher", members), Preprocessing(), provenance={"made_of": f"{seed}"})


def listed(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*")}


@pytest.mark.parametrize("made", [both, lambda seed: floor("d", seed)])
@pytest.mark.parametrize("failing", range(6))
def test_whatever_write_fails_the_old_bundle_or_the_new_one_is_whole(tmp_path, monkeypatch, made, failing):
    url, write, calls = str(tmp_path), storage.write_bytes, []
    bundle.save(made(0), url)

    def breaks(place: str, data: bytes) -> None:
        calls.append(place)
        if len(calls) > failing:
            raise StorageError(f"cannot write {place}: no space")
        write(place, data)

    monkeypatch.setattr(storage, "write_bytes", breaks)
    try:
        bundle.save(made(1), url)
    except StorageError:
        assert bundle.load(url).provenance == {"made_of": "0"}
    else:
        assert bundle.load(url).provenance == {"made_of": "1"}
    monkeypatch.undo()
    bundle.save(made(1), url)
    again = tmp_path / "fresh"
    bundle.save(made(1), str(again))
    assert listed(tmp_path) - {"fresh", *(f"fresh/{name}" for name in listed(again))} == listed(again)


def test_what_is_no_file_of_a_bundle_stays(tmp_path):
    url = str(tmp_path)
    bundle.save(both(0), url)
    theirs = ["notes.txt", "members/notes.txt", "model.pt", "strips/epoch-0001.png", "members/one/photo.png"]
    theirs += ["calibration-of-2020.safetensors", "old/detector.json", "shard-1.npy"]
    for name in theirs:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    bundle.save(floor("d"), url)
    assert all((tmp_path / name).read_text() == "mine" for name in theirs)
    assert {name for name in listed(tmp_path) if name.startswith("members/")} == {
        "members/notes.txt",
        "members/one",
        "members/one/photo.png",
    }


def test_a_reader_who_is_overtaken_reads_the_new_bundle(tmp_path, monkeypatch):
    url, read, overtaken = str(tmp_path), storage.read_bytes, []
    bundle.save(both(0), url)

    def late(place: str, roots: tuple[str, ...] = ()) -> bytes:
        if "calibration" in place and not overtaken:
            overtaken.append(place)
            bundle.save(both(1), url)
        return read(place, roots)

    monkeypatch.setattr(storage, "read_bytes", late)
    assert bundle.load(url).provenance == {"made_of": "1"}
    assert overtaken


def test_a_member_of_another_bundle_is_refused(tmp_path):
    bundle.save(both(0), str(tmp_path))
    folder = next(tmp_path.glob("members/one-*"))
    said = json.loads((folder / "detector.json").read_text())
    (folder / "detector.json").write_text(json.dumps(said | {"score": "top-hat"}))
    with pytest.raises(FormatError, match=r"one-\w+/detector\.json: altered or truncated"):
        bundle.load(str(tmp_path))
    outer = json.loads((tmp_path / "detector.json").read_text())
    del outer["sha256"]["members/one"]
    (tmp_path / "detector.json").write_text(json.dumps(outer))
    with pytest.raises(FormatError, match="has a member one, but no hash of it"):
        bundle.load(str(tmp_path))


def test_names_of_files_have_their_hashes(tmp_path):
    bundle.save(both(0), str(tmp_path))
    for file in tmp_path.rglob("*.safetensors"):
        assert file.name == f"calibration-{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}.safetensors"
