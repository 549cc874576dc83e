"""What a command does to a terminal and to a pipe: every test runs `python -m rayad.cli` as a process of its own."""

import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rayad.imaging.mammogram import Preprocessing
from rayad.scoring import bundle
from rayad.scoring.calibrate import calibrate
from rayad.scoring.detector import Detector
from rayad.scoring.scores import Floor
from rayad.terminal import printable, shortened

RAYAD = (sys.executable, "-m", "rayad.cli")
ODD = os.fsdecode(b"\x1b[2J\x1b]0;title\x07 a\rb\nc \xff\xfe \xe2\x80\xae \xc2\x9b31m \xc3\xa9.png")
"""A name that clears the screen, sets the title, writes over itself, is no UTF-8 and turns the direction of writing."""
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
OTHERS = {"LANG": "C"}, {"PYTHONIOENCODING": "ascii"}
LOCALES = [ASCII, *(pytest.param(locale, marks=pytest.mark.long) for locale in OTHERS)]


@pytest.fixture(scope="module")
def detector(tmp_path_factory) -> str:
    healthy = calibrate({"a": [np.random.default_rng(0).random((9, 9))]})
    url = str(tmp_path_factory.mktemp("detector"))
    bundle.save(Detector("d", Floor("brightness"), Preprocessing(), calibration=healthy), url)
    return url


def ran(*arguments: str, environment: Mapping[str, str] = os.environ) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*RAYAD, *arguments], capture_output=True, check=False, env=dict(environment))


def without_reader(*arguments: str, stderr: int = subprocess.PIPE) -> tuple[int, bytes]:
    """Exit code and complaints of a command whose output is a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run([*RAYAD, *arguments], stdout=write, stderr=stderr, check=False)
    finally:
        os.close(write)
    return done.returncode, done.stderr or b""


@pytest.mark.parametrize("arguments", [["--help"], ["heatmap", "--help"], ["check", "--detector"]])
def test_a_command_whose_output_nobody_reads_ends_as_other_tools_do(arguments, detector):
    of = [*arguments, detector] if arguments[-1] == "--detector" else arguments
    assert without_reader(*of) == (128 + signal.SIGPIPE, b"")


@pytest.mark.parametrize("number", [5, pytest.param(50, marks=pytest.mark.long)])
def test_rows_that_nobody_reads_are_no_traceback(detector, tmp_path, number):
    """Of few images, and of so many that a Ray is started for them."""
    images, out = [str(tmp_path / f"{i}.png") for i in range(number)], str(tmp_path / "out")
    code, complaints = without_reader("heatmap", "--detector", detector, "--images", *images, "--out", out)
    assert code == 128 + signal.SIGPIPE, complaints
    assert b"Traceback" not in complaints


def test_errors_that_nobody_reads_are_no_traceback(tmp_path):
    code, _ = without_reader("check", "--detector", str(tmp_path / "nothing"), stderr=subprocess.STDOUT)
    assert code == 128 + signal.SIGPIPE


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is full")
def test_output_to_a_full_disk_is_a_sentence(detector):
    with open("/dev/full", "wb") as full:
        for arguments in (["check", "--detector", detector], ["check", "--help"]):
            done = subprocess.run([*RAYAD, *arguments], stdout=full, stderr=subprocess.PIPE, check=False)
            assert done.returncode == 1
            assert done.stderr == b"rayad: cannot print: No space left on device\n"


def test_a_pipeline_gets_its_line(detector):
    line = f"{sys.executable} -m rayad.cli heatmap --help | head -1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("usage: rayad heatmap")
    assert done.stderr == ""
    assert done.returncode in (0, 128 + signal.SIGPIPE)  # whether head was faster


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_command_that_is_stopped_says_so_and_ends_with_its_code(number, code):
    arguments = ["watch", "--pacs", "http://127.0.0.1:1", "--server", "http://127.0.0.1:1", "--poll-s", "1"]
    process = subprocess.Popen([*RAYAD, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()  # that it did not reach the archive: it is at work
    process.send_signal(number)
    _, complaints = process.communicate(timeout=60)
    assert complaints == b"rayad: stopped; the same command goes on where it stopped\n"
    assert process.returncode == code


def is_printable(output: bytes) -> bool:
    return all(line.isprintable() for line in output.decode().splitlines())


@pytest.fixture
def odd(tmp_path) -> Path:
    """A folder of an odd name with an image and a corpus of odd names."""
    folder = tmp_path / f"folder {ODD.removesuffix('.png')}"
    folder.mkdir()
    Image.fromarray(np.zeros((128, 128), np.uint8)).save(folder / ODD)
    return folder


def check_names(environment: Mapping[str, str], code: int, said: bytes, *arguments: str) -> None:
    """A command prints its names as escapes, and no traceback."""
    done = ran(*arguments, environment=environment)
    output = done.stdout + done.stderr
    assert done.returncode == code, output
    assert is_printable(output), output
    assert said in output, output
    assert b"Traceback" not in output
    assert b"\\x1b" in output or b"\\u001b" in output, output


@pytest.mark.parametrize("locale", LOCALES, ids=str)
def test_names_of_files_are_printed_as_escapes_whatever_the_locale(odd, detector, tmp_path, locale):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LANG", "LC_", "PYTHONUTF8"))} | locale
    shutil.copytree(detector, odd / "detector")
    check_names(environment, 0, b"scores by brightness", "check", "--detector", str(odd / "detector"))
    heatmap = ["heatmap", "--detector", detector, "--out", str(tmp_path / "out")]
    check_names(environment, 1, b"no pixel spacing", *heatmap, "--images", str(odd))


@pytest.mark.long
def test_every_command_prints_names_as_escapes(odd, detector, tmp_path):
    shutil.copytree(detector, odd / "broken")
    (odd / "broken/detector.json").write_text("{")
    out = str(tmp_path / "out")
    for code, said, arguments in (
        (1, b"is not JSON", ["check", "--detector", str(odd / "broken")]),
        (1, b"rayad: ", ["report", "--results", str(odd)]),
        (1, b"rayad: ", ["train", "--corpus", str(odd), "--out", out]),
        (2, b"nrecognized", ["check", ODD]),
    ):
        check_names(os.environ, code, said, *arguments)


def test_what_a_command_writes_is_for_its_owner_alone_unless_the_environment_says_more(tmp_path):
    call = "lambda self: open(self.detector[0], 'w').close()"
    script = f"from rayad import cli; cli.command('check').__call__ = {call}; cli.main()"
    for text, mode in (("", 0o600), ("027", 0o640), ("000", 0o666)):
        file = tmp_path / f"file{text}"
        environment = dict(os.environ) | ({"RAYAD_UMASK": text} if text else {})
        command = [sys.executable, "-c", script, "check", "--detector", str(file)]
        subprocess.run(command, check=True, env=environment, umask=0)
        assert stat.S_IMODE(file.stat().st_mode) == mode


def test_a_umask_that_is_none_is_a_sentence():
    done = ran("check", "--detector", "any", environment=dict(os.environ) | {"RAYAD_UMASK": "u=rwx"})
    assert done.returncode == 2
    assert done.stderr.startswith(b"rayad: RAYAD_UMASK is an octal number")


def test_an_error_that_nobody_expected_shows_no_control_characters():
    call = "lambda self: (_ for _ in ()).throw(RuntimeError(self.detector[0]))"
    script = f"from rayad import cli; cli.command('check').__call__ = {call}; cli.main()"
    command = [sys.executable, "-c", script, "check", "--detector", ODD]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 1
    assert b"RuntimeError: \\x1b[2J" in done.stderr
    assert is_printable(done.stderr)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 日本 text", "plain é 日本 text"),
        ("\x1b[31m", "\\x1b[31m"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x9b\x7f\x00", "\\x9b\\x7f\\x00"),
        ("\u202eevil\u2066\u200f", "\\u202eevil\\u2066\\u200f"),
        ("\udcff\ud800", "\\udcff\\ud800"),
        ("\u2028\ufeff\u200b\U000e0041", "\\u2028\\ufeff\\u200b\\U000e0041"),
    ],
)
def test_characters_that_are_none_to_be_seen_become_escapes(text, shown):
    assert printable(text) == shown


def test_a_long_value_is_cut_off():
    assert shortened("x" * 1000) == "'" + "x" * 58 + "…"
    assert shortened({"a": "\x1b"}) == "{'a': '\\x1b'}"
