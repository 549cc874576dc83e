"""One name means one thing: no two classes have the same, but for what every plug-in calls alike; and it says what."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import rayad
from rayad import catalog

ALIKE = {"Config", *catalog.PLUGGED_IN.values()}
VAGUE = {"asked", "found", "known", "of", "said", "told", "wanted"}
"""Names of variables and arguments that leave open what they hold."""


def modules() -> Iterator[tuple[Path, ast.Module]]:
    for file in sorted(Path(rayad.__file__).parent.rglob("*.py")):
        yield file, ast.parse(file.read_text())


def test_a_class_has_its_name_alone():
    places = defaultdict(list)
    for file, module in modules():
        for node in ast.walk(module):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(str(file))
    assert {name: files for name, files in places.items() if len(files) > 1 and name not in ALIKE} == {}


def test_variables_say_what_they_hold():
    vague = {
        f"{file}:{node.lineno}: {name}"
        for file, module in modules()
        for function in ast.walk(module)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.arg) or (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
        if (name := node.arg if isinstance(node, ast.arg) else node.id) in VAGUE
    }
    assert vague == set()
