"""Region graphs: every variable is in one leaf region of each replica, and halves are balanced."""

import pytest

from rayad.density.region_graph import random_scopes
from rayad.errors import OptionError


def regions(variables: int, depth: int, replicas: int, seed: int = 0) -> list[set[int]]:
    return [set(row) - {variables} for row in random_scopes(variables, depth, replicas, seed).tolist()]


SIZES = [(1, 0, 2), (5, 0, 3), (5, 2, 3), (7, 1, 1), (13, 3, 4), (64, 6, 2)]


@pytest.mark.parametrize(("variables", "depth", "replicas"), SIZES)
def test_merging_halves_gives_all_variables_of_every_replica(variables: int, depth: int, replicas: int):
    level = regions(variables, depth, replicas)
    assert len(level) == replicas * 2**depth
    for _ in range(depth):
        half = len(level) // 2
        assert all(not level[q] & level[q + half] for q in range(half))
        assert all(abs(len(level[q]) - len(level[q + half])) <= 1 for q in range(half))
        level = [level[q] | level[q + half] for q in range(half)]
    assert level == [set(range(variables))] * replicas


def test_a_seed_gives_one_graph_and_replicas_differ():
    assert regions(16, 2, 4, seed=3) == regions(16, 2, 4, seed=3)
    assert regions(16, 2, 4, seed=3) != regions(16, 2, 4, seed=4)
    assert len({frozenset(region) for region in regions(16, 1, 4)[:4]}) == 4


@pytest.mark.parametrize(
    ("variables", "depth", "replicas", "message"),
    [
        (7, 3, 1, "depth 3 splits 7 variables .* between 0 and 2"),
        (7, -1, 1, "depth -1"),
        (0, 0, 1, "at least 1 variable, not 0"),
        (7, 1, 0, "replicas must be at least 1, not 0"),
    ],
)
def test_impossible_graphs_are_refused(variables: int, depth: int, replicas: int, message: str):
    with pytest.raises(OptionError, match=message):
        random_scopes(variables, depth, replicas, seed=0)


@pytest.mark.parametrize(("variables", "depth", "first"), [(9, 1, 4), (13, 3, 5), (2, 1, 1)])
def test_a_first_cut_parts_the_first_variables_from_the_others(variables: int, depth: int, first: int):
    rows = random_scopes(variables, depth, 3, 0, first).tolist()
    level = [set(row) - {variables} for row in rows]
    for _ in range(depth - 1):
        half = len(level) // 2
        level = [level[q] | level[q + half] for q in range(half)]
    assert level == [set(range(first))] * 3 + [set(range(first, variables))] * 3


def test_a_first_cut_that_leaves_a_side_too_small_is_refused():
    for depth, first in ((0, 2), (2, 1), (2, 8), (1, 9), (1, 10)):
        with pytest.raises(OptionError, match=f"a first cut behind {first} of 9 variables"):
            random_scopes(9, depth, 1, 0, first)
