"""Commands: a name leads to a class, help comes at once, and every option says what it is."""

import dataclasses
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_type_hints

import pytest

from rayad import catalog, cli
from rayad.listing import FOLDERS, Explained, explained

HEAVY = ("torch", "pandas", "scipy", "ray", "fastapi", "numpy", "pyarrow")


def test_help_names_every_command_and_loads_nothing_that_takes_time():
    code = f"import sys; from rayad import cli; cli.run(['--help']); print([m for m in {HEAVY} if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert said[-1] == "[]"
    assert {line.split()[0] for line in said if line.startswith("  ") and line[2] != " "} == set(cli.COMMANDS)


def options(kind: type) -> Iterator[Explained]:
    """Those of a dataclass, and of the dataclasses in it."""
    hints = get_type_hints(kind)
    for option in explained(kind):
        if dataclasses.is_dataclass(hints[option.name]):
            yield from options(hints[option.name])
        else:
            yield option


PLUG_INS = [
    getattr(catalog.find(folder, name), catalog.PLUGGED_IN[folder])
    for folder in FOLDERS.values()
    for name in catalog.names(folder)
]


@pytest.mark.parametrize("kind", [*map(cli.command, cli.COMMANDS), *PLUG_INS], ids=lambda kind: kind.__module__)
def test_every_option_has_a_sentence_that_stands_alone(kind):
    assert (kind.__doc__ or "").rstrip().endswith((".", "?"))
    for option in options(kind):
        words = option.sentence.split()
        assert len(words) >= 4, f"{option.name}: {option.sentence!r}"
        assert words[0] not in ("Of", "What", "Which", "That", "Whose", "Or"), f"{option.name}: {option.sentence!r}"


def test_a_command_that_is_none_is_answered_with_those_there_are(capsys):
    assert cli.run(["inject"]) == 2
    assert capsys.readouterr().err.startswith("rayad: no command 'inject'; rayad has demo, run, ")


def test_no_command_is_answered_with_the_help(capsys):
    assert cli.run([]) == 2
    assert "rayad COMMAND --help" in capsys.readouterr().out


WITHOUT = """
import sys
from importlib.abc import MetaPathFinder
from rayad import cli


class Without(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in [module for modules in cli.EXTRAS.values() for module in modules]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Without())
"""


def without_extras(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", WITHOUT + code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["serve", "dashboard"])
def test_a_command_whose_extra_is_missing_says_so_in_a_sentence(name, tmp_path):
    option = {"serve": "--detector", "dashboard": "--root"}[name]
    ended = without_extras(f"sys.exit(cli.run([{name!r}, {option!r}, {str(tmp_path)!r}]))")
    assert ended.returncode == 2
    assert re.fullmatch(
        rf"rayad: {name} needs \w+, which is not installed: pip install 'rayad\[{name}\]'", ended.stderr.strip()
    )


def test_a_job_whose_python_has_not_the_packages_says_which_python_to_name():
    root = Path(cli.__file__).parents[2]
    command = [sys.executable, "-S", root / "jobs" / "train.py", "--corpus", "corpus", "--out", "cae"]
    ended = subprocess.run(command, env={"PYTHONPATH": str(root)}, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert re.fullmatch(
        rf"rayad: \w+ is not installed in {re.escape(sys.executable)}: use the Python of rayad's own environment; "
        r"a job of Ray names it by its path, ray job submit .* -- /path/to/.venv/bin/python jobs/\.\.\.",
        ended.stderr.strip(),
    )


def test_a_package_that_another_process_lacks_is_not_said_to_be_missing_here(monkeypatch):
    def failing(argv: list[str]) -> int:
        raise ModuleNotFoundError("No module named 'numpy'", name="numpy")

    monkeypatch.setattr(cli, "_parsed", failing)
    with pytest.raises(ModuleNotFoundError, match="numpy"):
        cli.run(["ingest"])


def test_the_main_job_needs_no_extra():
    stages = [f"rayad.pipeline.{name}" for name in ("run", "heatmap", "inspect", "streamed", "trial")]
    commands = [name for name, where in cli.COMMANDS.items() if not where.startswith(("services.", "dashboard."))]
    code = f"import importlib\nfor name in {commands}: cli.command(name)\n"
    ended = without_extras(code + f"for name in {stages}: importlib.import_module(name)")
    assert ended.returncode == 0, ended.stderr
