"""One name means one thing: no two classes have the same, but for what every plug-in calls alike."""

import ast
from collections import defaultdict
from pathlib import Path

import rayad
from rayad import catalog

ALIKE = {"Config", *catalog.PLUGGED_IN.values()}


def test_a_class_has_its_name_alone():
    places = defaultdict(list)
    for file in sorted(Path(rayad.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(str(file))
    assert {name: files for name, files in places.items() if len(files) > 1 and name not in ALIKE} == {}
