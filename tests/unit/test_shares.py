"""rayad.serving.shares: who gets what, told step by step."""

import pytest

from rayad.serving.shares import ASKING_S, Shares


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_one_alone_has_everything(clock):
    places = Shares(4, clock)
    assert [places.take("jane", 1) for _ in range(5)] == [True] * 4 + [False]
    assert places.held == 4


def test_with_another_one_nobody_gets_more_than_half(clock):
    places = Shares(4, clock)
    assert places.take("john", 1)
    assert [places.take("jane", 1) for _ in range(3)] == [True, True, False]
    assert [places.take("john", 1) for _ in range(2)] == [True, False]


def test_who_comes_late_has_the_next_place_that_is_free(clock):
    places = Shares(4, clock)
    for _ in range(4):
        places.take("jane", 1)
    assert not places.take("john", 1)
    places.give_back("jane", 1)
    assert not places.take("jane", 1)  # she holds three of four, and John has asked
    assert places.take("john", 1)


def test_who_does_not_ask_any_more_is_forgotten(clock):
    places = Shares(4, clock)
    places.take("john", 1)
    places.give_back("john", 1)
    assert [places.take("jane", 1) for _ in range(3)] == [True, True, False]
    clock.now = ASKING_S
    assert [places.take("jane", 1) for _ in range(2)] == [True, True]


@pytest.mark.parametrize("total", [1, 2, 3])
def test_a_few_places_are_shared_too(clock, total):
    places = Shares(total, clock)
    places.has_room("john", 1)
    assert places.take("jane", 1)
    assert not places.take("jane", 1)
    assert places.take("john", 1) == (total > 1)


def test_many_callers_leave_no_trace(clock):
    places = Shares(4, clock)
    for number in range(1000):
        clock.now += 1
        assert places.take(f"caller {number}", 1)
        places.give_back(f"caller {number}", 1)
    assert places.held == 0
    assert len(places._asked) <= ASKING_S
    assert not places._held
