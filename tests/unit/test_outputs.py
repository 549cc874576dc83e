"""No command writes over an input or over what rayad did not write, and two do not write to one place at once."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ray._private.runtime_env.packaging import get_uri_for_directory

from rayad import cli, outputs, storage
from rayad.errors import OptionError, StorageError
from rayad.imaging.mammogram import Preprocessing
from rayad.outputs import MARK, SIGNS, claimed, require_apart
from rayad.scoring import bundle
from rayad.scoring.calibrate import calibrate
from rayad.scoring.detector import Detector
from rayad.scoring.scores import Floor

HOLDS = """
import sys
from rayad.outputs import claimed
with claimed(sys.argv[1], "a corpus"):
    print("held", flush=True)
    sys.stdin.read()
"""


def floor(url: Path | str) -> str:
    healthy = calibrate({"a": [np.random.default_rng(0).random((9, 9))]})
    bundle.save(
        Detector("d", Floor("brightness"), Preprocessing(), calibration=healthy, provenance={"made_of": "x"}), str(url)
    )
    return str(url)


@pytest.fixture(params=["disk", "memory"])
def place(request, tmp_path) -> str:
    """A folder that is not there yet."""
    return str(tmp_path / "out") if request.param == "disk" else f"memory://{tmp_path.name}/out"


@pytest.mark.parametrize("kind", SIGNS)
def test_a_place_is_ours_when_it_is_empty_or_holds_the_same(place, kind):
    with claimed(place, kind):
        storage.write_bytes(f"{place}/result", b"1")
    with claimed(place, kind):
        storage.write_bytes(f"{place}/result", b"2")
    assert storage.read_bytes(f"{place}/result") == b"2"
    assert storage.read_json(f"{place}/{MARK}") == {"holds": kind}


@pytest.mark.parametrize("theirs", ["notes.txt", "a/b/photo.png", "members/x", "index.html"])
def test_a_place_with_files_of_the_user_is_refused_and_left_alone(place, theirs):
    storage.write_bytes(f"{place}/{theirs}", b"mine")
    with (
        pytest.raises(OptionError, match="holds files that are not a detector of rayad, such as"),
        claimed(place, "a detector"),
    ):
        pytest.fail("it was let in")
    assert storage.listing(place) == [f"{place}/{theirs}"]
    assert not storage.exists(f"{place}/{MARK}")


@pytest.mark.parametrize(("kind", "sign"), [(kind, sign) for kind, signs in SIGNS.items() for sign in signs])
def test_what_was_written_before_there_were_marks_is_known(place, kind, sign):
    storage.write_bytes(f"{place}/{sign}", b"{}")
    with claimed(place, kind):
        pass
    other = "a sweep" if kind == "a corpus" else "a corpus"
    with pytest.raises(OptionError, match=f"holds {kind}; name a place of its own for {other}"), claimed(place, other):
        pytest.fail("it was let in")


def test_what_came_to_nothing_leaves_nothing(place):
    with pytest.raises(RuntimeError), claimed(place, "a corpus"):
        raise RuntimeError
    assert not storage.exists(place)


def test_an_empty_folder_of_the_user_stays(tmp_path):
    with claimed(str(tmp_path), "a corpus"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_second_command_says_who_writes(place):
    with claimed(place, "a corpus"):
        with (
            pytest.raises(OptionError, match=r"another command writes there \(.*process \d+ on .* since 2"),
            claimed(place, "a corpus"),
        ):
            pytest.fail("it was let in")
        storage.write_bytes(f"{place}/result", b"1")
    with claimed(place, "a corpus"):
        pass


def test_a_command_of_another_process_holds_its_place_until_it_is_killed(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    try:
        with pytest.raises(OptionError, match=f"process {holder.pid} on"), claimed(str(tmp_path), "a corpus"):
            pytest.fail("it was let in")
    finally:
        holder.kill()
        holder.communicate()
    with claimed(str(tmp_path), "a corpus"):
        pass


def test_a_killed_command_of_this_machine_holds_nothing_in_an_object_store(tmp_path):
    url = f"memory://{tmp_path.name}/out"
    gone = outputs._this() | {"process": 2**22 + 1, "started": "1", "id": "x", "beat": 3}
    storage.write_json(f"{url}/{MARK}", {"holds": "a corpus", "writer": gone})
    with claimed(url, "a corpus"):
        pass
    reused = outputs._this() | {"started": "1", "id": "x", "beat": 3}  # another process has its number by now
    storage.write_json(f"{url}/{MARK}", {"holds": "a corpus", "writer": reused})
    with claimed(url, "a corpus"):
        pass


def test_a_command_of_another_machine_is_watched(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "BEAT_S", 0.05)
    url = f"memory://{tmp_path.name}/out"
    other = outputs._this() | {"host": "elsewhere", "id": "x", "beat": 3}
    storage.write_json(f"{url}/{MARK}", {"holds": "a corpus", "writer": other})
    with claimed(url, "a corpus"):  # nobody counts
        storage.write_bytes(f"{url}/result", b"1")
        monkeypatch.setattr(outputs, "_this", lambda: other | {"host": "third"})
        with pytest.raises(OptionError, match="another command writes there"), claimed(url, "a corpus"):
            pytest.fail("it was let in")


def test_of_two_that_begin_at_once_one_writes(tmp_path, monkeypatch):
    url, write = f"memory://{tmp_path.name}/out", storage.write_json

    def overtaken(where: str, said: dict, **how) -> None:
        write(where, said, **how)
        write(where, {"holds": "a corpus", "writer": outputs._this() | {"id": "faster", "beat": 0}}, **how)

    monkeypatch.setattr(storage, "write_json", overtaken)
    with pytest.raises(OptionError, match="another command writes there"), claimed(url, "a corpus"):
        pytest.fail("it was let in")


@pytest.mark.parametrize("out", ["in", "in/", "in/below", ".", "link", "link/below", "in/../in"])
def test_no_output_lies_in_above_or_below_an_input(tmp_path, out):
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to("in")
    with pytest.raises(OptionError, match="in, above or below the input"):
        require_apart(str(tmp_path / out), ["", str(tmp_path / "in")])
    require_apart(str(tmp_path / "out"), [str(tmp_path / "in"), str(tmp_path / "ou")])


@pytest.mark.parametrize("out", ["s3://b/in", "s3://b/in/x", "s3://b"])
def test_nor_in_an_object_store(out):
    with pytest.raises(OptionError, match="in, above or below the input"):
        require_apart(out, ["s3://b/in/"])
    require_apart("s3://b/in2", ["s3://b/in", "/b/in2"])


def test_commands_that_make_detectors_of_detectors_delete_nothing(tmp_path, capsys):
    detector = floor(tmp_path / "d")
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.tex").write_text("mine")
    rescore = ["rescore", "--detector", detector, "--name", "x", "--score", "top-hat", "--out"]
    combine = ["combine", "--detector", detector, detector, "--name", "x", "--dataset", "phantom"]
    adjust = ["adjust", "--detector", detector, "--name", "x", "--dataset", "phantom", "--out"]
    for command in (rescore, adjust, [*combine, "--scores", str(tmp_path / "scores"), "--out"]):
        assert cli.run([*command, str(tmp_path / "home")]) == 2
        assert "holds files that are not a detector of rayad, such as thesis.tex" in capsys.readouterr().err
        assert cli.run([*command, detector]) == 2
        assert "in, above or below the input" in capsys.readouterr().err
    assert (tmp_path / "home/thesis.tex").read_text() == "mine"
    assert bundle.load(detector).score == Floor("brightness")
    assert cli.run([*rescore, str(tmp_path / "new")]) == 0
    assert cli.run([*rescore, str(tmp_path / "new")]) == 0
    assert bundle.load(str(tmp_path / "new")).score == Floor("top-hat")


def test_heatmaps_do_not_take_the_place_of_images(tmp_path, capsys):
    detector, images = floor(tmp_path / "d"), tmp_path / "images"
    images.mkdir()
    (images / "a.png").write_bytes(b"mine")
    (tmp_path / "more").mkdir()
    (tmp_path / "more/a.png").write_bytes(b"mine")
    command = ["heatmap", "--detector", detector, "--spacing-mm", "0.2", "--images"]
    for source, out in (("images", "images"), ("images", "images/out"), ("images/a.png", "images"), ("images", ".")):
        assert cli.run([*command, str(tmp_path / source), "--out", str(tmp_path / out)]) == 2
        assert "in, above or below the input" in capsys.readouterr().err
    assert cli.run([*command, str(images), "--out", str(tmp_path / "more")]) == 2
    assert "holds files that are not heatmaps of rayad, such as a.png" in capsys.readouterr().err
    assert (images / "a.png").read_bytes() == (tmp_path / "more/a.png").read_bytes() == b"mine"
    assert sorted(file.name for file in images.iterdir()) == ["a.png"]


def test_a_mark_is_read_by_its_owner_alone_and_hidden_from_lists(tmp_path):
    with claimed(str(tmp_path), "a corpus"):
        (tmp_path / "x").write_text("1")
        said = json.loads((tmp_path / MARK).read_text())
        assert said["writer"]["command"]
    assert (tmp_path / MARK).stat().st_mode & 0o077 == 0
    assert storage.listing(str(tmp_path)) == [str(tmp_path / "x")]


def test_a_mark_that_is_a_link_writes_over_nothing(tmp_path):
    (tmp_path / "thesis").write_text('{"holds": "a corpus"}')
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / MARK).symlink_to(tmp_path / "thesis")
    with pytest.raises(StorageError), claimed(str(tmp_path / "out"), "a corpus"):
        pytest.fail("it was let in")
    assert (tmp_path / "thesis").read_text() == '{"holds": "a corpus"}'


def test_results_are_no_part_of_a_job_that_is_submitted_beside_them(tmp_path):
    """By what Ray itself would upload."""
    (tmp_path / "job.py").write_text("pass")
    before = uri_of_directory(tmp_path)
    with claimed(str(tmp_path / "out"), "a corpus"):
        (tmp_path / "out" / "parts").mkdir()
        (tmp_path / "out" / "parts" / "shard").write_bytes(b"1" * 1000)
    assert uri_of_directory(tmp_path) == before
    (tmp_path / "job.py").write_text("1")
    assert uri_of_directory(tmp_path) != before


def uri_of_directory(folder) -> str:
    return get_uri_for_directory(str(folder), include_gitignore=True, excludes=[])


def test_a_place_that_came_to_nothing_is_as_it_was(tmp_path):
    with claimed(str(tmp_path / "new"), "a corpus"):
        pass
    (tmp_path / "empty").mkdir()
    with claimed(str(tmp_path / "empty"), "a corpus"):
        pass
    assert [file.name for file in tmp_path.rglob("*")] == ["empty"]
