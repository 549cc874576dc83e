"""What a command prints is at a URL afterwards, whatever became of the command."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from rayad import cli, log, storage


def the_log(url: str) -> tuple[str, str]:
    """Name and text of the only log."""
    (file,) = storage.listing(url)
    return file.rsplit("/", 1)[-1], storage.read_bytes(file).decode()


def until(happened: Callable[[], object]) -> None:
    """Wait for something, a minute at most."""
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_both_streams_are_copied_and_still_printed(scheme, tmp_path, capsys):
    url = f"{scheme}{tmp_path}/logs"
    with log.copied(url, "ingest"):
        print("one")
        print("two é", file=sys.stderr)
    name, text = the_log(url)
    assert re.fullmatch(r"\d{8}T\d{6}\.\d{6}Z-ingest\.log", name)
    assert text == "one\ntwo é\n"
    said = capsys.readouterr()
    assert (said.out, said.err) == ("one\n", "two é\n")


def test_the_copy_grows_while_the_command_runs(tmp_path):
    with log.copied(str(tmp_path), "train", every_s=0.01):
        print("first")
        until(lambda: list(tmp_path.glob("*.log")))
        assert the_log(str(tmp_path))[1] == "first\n"
        print("second")
        until(lambda: "second" in the_log(str(tmp_path))[1])


def test_the_log_of_a_crash_ends_with_its_traceback(tmp_path):
    with pytest.raises(ZeroDivisionError), log.copied(str(tmp_path), "train"):
        print("before", 1 / 0)
    assert the_log(str(tmp_path))[1].endswith("ZeroDivisionError: division by zero\n")


def test_a_place_that_cannot_be_written_is_said_and_stops_nothing(tmp_path, capsys):
    (tmp_path / "file").touch()
    with log.copied(str(tmp_path / "file" / "logs"), "train"):
        print("done")
    said = capsys.readouterr()
    assert said.out == "done\n"
    assert "the log is not copied: cannot write" in said.err


def test_a_command_is_copied_where_the_environment_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RAYAD_LOG_URL", str(tmp_path))
    assert cli.run(["report", "--results", str(tmp_path / "nowhere")]) == 1
    name, text = the_log(str(tmp_path))
    assert name.endswith("-report.log")
    assert text == capsys.readouterr().err
    assert text.startswith("rayad: ")


def test_nothing_is_copied_where_the_environment_says_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("RAYAD_LOG_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    assert cli.run(["report", "--results", "nowhere"]) == 1
    assert not list(tmp_path.iterdir())


STOPPED = """
import time
from rayad import cli
cli.command('check').__call__ = lambda self: (print("at work", flush=True), time.sleep(60))
cli.main(["check", "--detector", "any"])
"""


def test_a_stopped_command_says_how_to_go_on_and_its_log_has_it(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYAD_LOG_URL", str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", STOPPED], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == b"at work\n"
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    said = "rayad: stopped; the same command goes on where it stopped\n"
    assert (process.returncode, out, err.decode()) == (143, b"", said)
    assert the_log(str(tmp_path))[1] == "at work\n" + said
