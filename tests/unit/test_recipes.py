"""Every recipe names plug-ins, fields and scores that there are."""

import pytest

from rayad import catalog, recipes
from rayad.errors import OptionError
from rayad.imaging.context import CONTEXT
from rayad.imaging.picture import step_px
from rayad.recipes import Line
from rayad.scoring import combine, floors
from rayad.scoring.scores import LATENT, Part, scores_of


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_can_be_built(name: str):
    recipe = recipes.find(name)
    catalog.configure("datasets", recipe.dataset, recipe.dataset_fields)
    names = [line.name for line in recipe.lines]
    assert len(set(names)) == len(names)
    detectors = [name for line in recipe.lines for name in (*line.floors, *line.rows)]
    assert len(set(detectors)) == len(detectors)
    everything = {*detectors, *recipe.combined}
    assert {*recipe.order, *(name for pair in recipe.compare for name in pair)} <= everything
    assert set(recipe.groups) == everything
    for line in recipe.lines:
        assert {score for score, _ in line.floors.values()} <= set(floors.MAPS)
        assert line.ingest.preprocessing.channels > 1 or step_px(line.ingest.preprocessing, recipe.step_mm) % 8 == 0
        check_rows(line)
    for name, of in recipe.combined.items():
        assert of.rule in combine.RULES
        assert set(of.members) <= {*detectors, *list(recipe.combined)[: list(recipe.combined).index(name)]}


def check_rows(line: Line) -> None:
    """Every model and density is asked something that it has."""
    models = {}
    for label, model in line.models.items():
        config = catalog.configure("models", model.name or label, model.fields)
        assert getattr(config, "channels", 1) == line.ingest.preprocessing.channels
        models[label] = Part(model.name or label, config, config.build().eval())
    for density in line.densities.values():
        assert set(density.context) <= set(CONTEXT)
        catalog.configure("density", density.name, density.fields)
    for row in line.rows.values():
        assert row.score in (LATENT if row.density else scores_of(models[row.model]))
        if row.density:
            context = line.densities[row.density].context
            assert (row.score == "context") == bool(context)
    assert {row.model for row in line.rows.values()} == set(line.models)
    assert {row.density for row in line.rows.values()} - {""} == set(line.densities)


def test_an_unknown_recipe_is_answered_with_the_known_ones():
    with pytest.raises(OptionError, match="no recipe 'mais'; rayad has demo, "):
        recipes.find("mais")
