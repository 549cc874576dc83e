"""Commands: a name leads to a class, help comes at once, and every option says what it is."""

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
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
