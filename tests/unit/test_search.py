"""The space of a sweep: what the texts mean, and what is refused."""

import math

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from rayad import search
from rayad.density import spn
from rayad.density.em import EM
from rayad.errors import OptionError
from rayad.evaluation import trials
from rayad.models import bvae

PARTS = {"density": spn.Config(), "em": EM()}


def test_texts_become_distributions_of_the_fields_type():
    space = search.parse(
        ["inputs=5..60", "depth=1,2,3", "step=0.01..0.5:log", "axes=variables,principal", "em.epochs=10..20:log"], PARTS
    )
    assert {name: of.distribution for name, of in space.items()} == {
        "inputs": IntDistribution(5, 60),
        "depth": CategoricalDistribution((1, 2, 3)),
        "step": FloatDistribution(0.01, 0.5, log=True),
        "axes": CategoricalDistribution(("variables", "principal")),
        "em.epochs": IntDistribution(10, 20, log=True),
    }
    assert space["step"].part == "em"
    assert 0.3 in space["step"]
    assert 0.6 not in space["step"]
    assert 4 not in space["depth"]


def test_values_go_to_their_configurations():
    space = search.parse(["inputs=5..60", "step=0.01..0.5"], PARTS)
    parts = search.applied(PARTS, space, {"inputs": 7, "step": 0.25})
    assert parts == {"density": spn.Config(inputs=7), "em": EM(step=0.25)}
    assert search.base(PARTS, space) == {"inputs": 45, "step": 0.1}


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ([], "nothing to search"),
        (["inputs"], "NAME=VALUES"),
        (["inputz=1,2"], "no field 'inputz' to search; there are density.roots"),
        (["seed=1,2"], "write density.seed or em.seed"),
        (["inputs=1,2", "inputs=3,4"], "searched twice"),
        (["inputs=1,x"], "inputs is a number, not 'x'"),
        (["inputs=9..5"], "a range rises"),
        (["step=0..1:log"], "from above 0"),
        (["step=0.1..1:linear"], "or of numbers LOW"),
        (["axes=a..b"], "choices with commas"),
    ],
)
def test_what_cannot_be_searched_is_said(texts, said):
    with pytest.raises(OptionError, match=said):
        search.parse(texts, PARTS)


def test_a_value_that_no_circuit_has_is_found_before_the_search():
    build = lambda parts: parts["density"].build(6)  # noqa: E731
    search.check(PARTS, search.parse(["depth=1,2"], PARTS), build)
    with pytest.raises(OptionError, match=r"depth=3 cannot be searched: .*6"):
        search.check(PARTS, search.parse(["depth=1,2,3"], PARTS), build)
    with pytest.raises(OptionError, match=r"step=2.0 cannot be searched: step of expectation-maximization"):
        search.check(PARTS, search.parse(["step=0.1..2"], PARTS), build)


def test_fields_of_a_model_are_searched_too():
    space = search.parse(["beta=0.001..1:log"], {"model": bvae.Config()})
    assert search.applied({"model": bvae.Config()}, space, {"beta": 0.5}) == {"model": bvae.Config(beta=0.5)}


def test_a_seed_without_a_value_is_a_row_that_says_why():
    best = trials.of_seeds({"step": 0.2}, [(1.0, ""), (None, "the loss is nan in epoch 2"), (3.0, "")])
    assert (best["mean"], best["deviation"]) == (2.0, pytest.approx(math.sqrt(2)))
    base = trials.of_seeds({"step": 0.1}, [(None, "the loss is nan in epoch 1")])
    assert (base["mean"], base["deviation"]) == (None, None)
    found = {"name": "steps", "objective": "bits", "wanted": 2, "began": "", "updated": "", "rows": []}
    found |= {"trials": {"whole": 0, "stopped": 0, "failed": 0}, "space": {"step": "0.1,0.2"}}
    page = trials.page(found | {"seeds": {"best": best, "base": base}}, {})
    assert "1.0000, failed: the loss is nan in epoch 2, 3.0000" in page
    assert "failed: the loss is nan in epoch 1" in page
    assert "<p>The best settings win.</p>" in trials.page(
        found | {"seeds": {"best": best, "base": base}, "verdict": "The best settings win"}, {}
    )
