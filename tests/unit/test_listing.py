"""`rayad list`: everything that can be named in a command stands there, with its settings explained."""

from dataclasses import fields

import pytest

from rayad import catalog, recipes
from rayad.errors import OptionError
from rayad.listing import FOLDERS, KINDS, explained, first_sentence, listed
from rayad.scoring import combine, floors, residuals


@pytest.mark.parametrize("kind", KINDS)
def test_everything_of_a_kind_is_listed(kind):
    lines = list(listed(kind))
    names = {line.split()[0] for line in lines if line.strip()}
    if kind in FOLDERS:
        assert set(catalog.names(FOLDERS[kind])) <= names
    elif kind == "scores":
        assert {*floors.MAPS, *residuals.OPERATORS, *combine.RULES, "likelihood", "novelty", "context"} <= names
    else:
        assert set(recipes.names()) <= names
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("folder", FOLDERS.values())
def test_every_field_has_its_default_as_a_setting_has_it(folder):
    for name in catalog.names(folder):
        kind = getattr(catalog.find(folder, name), catalog.PLUGGED_IN[folder])
        rows = explained(kind)
        assert [row.name for row in rows] == [field.name for field in fields(kind)]
        settings = [f"{row.name}={row.default}" for row in rows if row.default]
        if not name.startswith("_"):
            assert catalog.configure(folder, name, settings) == kind()


def test_what_is_explained_is_the_docstring_under_the_field():
    rows = {row.name: row for row in explained(catalog.find("models", "cae").Config)}
    assert rows["latents"].sentence == "Numbers that a patch is squeezed into."
    assert rows["padding"].values == "valid or same"
    assert first_sentence("One. Two.\n\nThree.") == "One."


def test_what_cannot_be_listed_is_said():
    with pytest.raises(OptionError, match=r"rayad lists models, densities, .* not 'colours'"):
        list(listed("colours"))


def test_a_choice_that_is_none_is_refused_where_it_is_read():
    with pytest.raises(OptionError, match="cae: optimizer is adam or sgd, not 'adamm'"):
        catalog.configure("models", "cae", ["optimizer=adamm"])
