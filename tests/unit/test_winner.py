"""Who wins a sweep, and what the terminal says of it."""

import pytest

from rayad.evaluation.trials import of_seeds
from rayad.pipeline import winner


def row(number: int, value: float | None, how: str) -> dict:
    return {"number": number, "value": value, "how": how, "settings": {"beta": number}}


def test_a_trial_that_was_stopped_early_is_never_the_best():
    rows = [row(0, 3.0, "whole"), row(1, 1.0, "stopped"), row(2, 2.0, "whole"), row(3, None, "failed")]
    best = winner.best_trial(rows)
    assert best is not None
    assert best["number"] == 2
    assert winner.best_trial([rows[1], rows[3]]) is None
    assert winner.best_trial([row(4, None, "whole")]) is None


def seeds(best: list[float | None], base: list[float | None]) -> dict:
    both = {"best": ({"beta": 2}, best), "base": ({"beta": 1}, base)}
    return {
        name: of_seeds(settings, [(value, "" if value is not None else "collapsed") for value in values])
        for name, (settings, values) in both.items()
    }


@pytest.mark.parametrize(
    ("best", "base", "wins", "sentence"),
    [
        ([1.0, 1.2], [1.3, 1.4], "best", "The best settings win"),
        ([1.5, 1.2], [1.3, 1.3], "base", "the best settings are not better"),
        ([1.3, 1.3], [1.3, 1.3], "base", "not better"),
        ([1.0, None], [1.3, 1.4], "base", "more seeds of the best settings failed"),
        ([1.0, None], [1.3, None], "best", "The best settings win"),
        ([None, None], [1.3, None], "base", "not better"),
        ([1.0, None], [None, None], "best", "The best settings win"),
        ([None, None], [None, None], "", "no seed came to its end"),
    ],
)
def test_what_is_not_better_than_no_search_does_not_win(best, base, wins, sentence):
    assert winner.winner(seeds(best, base)) == wins
    assert sentence in winner.sentence(seeds(best, base))


def test_the_base_that_was_the_best_trial_is_learned_once():
    base = {"beta": 1}
    assert winner.apart(winner.candidates({"beta": 2}, base)) == [{"beta": 2}, base]
    assert winner.apart(winner.candidates({"beta": 1}, base)) == [base]
    same = seeds([1.0], [1.0]) | {"best": of_seeds(base, [(1.0, "")])}
    assert "no trial was better" in winner.sentence(same)
