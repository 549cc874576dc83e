"""Every recipe names plug-ins, fields and scores that there are."""

import pytest

from rayad import catalog, recipes
from rayad.errors import OptionError
from rayad.scoring.detector import KINDS


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_can_be_built(name: str):
    recipe = recipes.find(name)
    catalog.configure("datasets", recipe.dataset, recipe.dataset_fields)
    names = [line.name for line in recipe.lines]
    assert len(set(names)) == len(names)
    for line in recipe.lines:
        for model, fields in line.models.items():
            latents = catalog.configure("models", model, fields).build().latents
            catalog.configure("density", "spn", line.density).build(latents)
        assert {score for score, _ in line.floors.values()} <= set(KINDS)
        assert line.ingest.preprocessing.step(recipe.step_mm) % 8 == 0  # the dense encoder's stride


def test_an_unknown_recipe_is_answered_with_the_known_ones():
    with pytest.raises(OptionError, match="no recipe 'mais'; rayad has demo, mias"):
        recipes.find("mais")
