"""rayad.serving.turns: who is next, told step by step."""

import asyncio

import pytest

from rayad.serving.turns import Turns


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Work:
    """Work of a caller that lasts until the test ends it."""

    def __init__(self, turns: Turns, log: list[str], name: str, amount: int = 1) -> None:
        self._ended = asyncio.Event()
        self._turns, self._log, self._name, self._amount = turns, log, name, amount
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with self._turns.taken(self._name.split(".")[0], self._amount):
            self._log.append(self._name)
            await self._ended.wait()

    async def end(self) -> None:
        self._ended.set()
        await self.task
        await settled()


async def settled() -> None:
    """Until every task that can go on has gone on."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_one_alone_takes_half_the_width_in_the_order_of_coming():
    async def run() -> None:
        log: list[str] = []
        turns = Turns(4)
        work = [Work(turns, log, f"jane.{number}") for number in range(4)]
        await settled()
        assert log == ["jane.0", "jane.1"]
        await work[0].end()
        assert log == ["jane.0", "jane.1", "jane.2"]
        for one in work[1:]:
            await one.end()
        assert log == ["jane.0", "jane.1", "jane.2", "jane.3"]

    asyncio.run(run())


def test_another_one_begins_at_once_though_many_wait():
    async def run() -> None:
        log: list[str] = []
        turns = Turns(2)
        many = [Work(turns, log, f"many.{number}") for number in range(40)]
        await settled()
        one = Work(turns, log, "one.0")
        await settled()
        assert log == ["many.0", "one.0"]
        for work in [one, *many]:
            await work.end()

    asyncio.run(run())


def test_who_has_had_less_comes_before_who_came_first():
    """Three callers and room for two: the third one's second image waits behind nobody's fortieth."""

    async def run() -> None:
        log: list[str] = []
        clock = Clock()
        turns = Turns(2, clock)
        a = [Work(turns, log, f"a.{number}") for number in range(9)]
        b = [Work(turns, log, f"b.{number}") for number in range(9)]
        await settled()
        clock.now = 10.0
        c = Work(turns, log, "c.0")
        await settled()
        assert log == ["a.0", "b.0"]
        await a[0].end()  # a has had 10, b and c nothing yet; b holds its half
        assert log == ["a.0", "b.0", "c.0"]
        clock.now = 11.0
        await c.end()  # c has had 1
        d = Work(turns, log, "c.1")
        await settled()
        assert log[3:] == ["a.1"]  # nobody else waited when c's image was done
        await b[0].end()  # b has had 11, c 1
        assert log[4:] == ["c.1"]
        for work in [d, *a, *b]:
            await work.end()
        assert sorted(log) == sorted([*(f"a.{n}" for n in range(9)), *(f"b.{n}" for n in range(9)), "c.0", "c.1"])

    asyncio.run(run())


def test_all_get_the_same_time_whatever_their_work_takes_and_nobody_saves_up():
    """Work of a takes 3 s, of b 1 s; c comes after 300 s and gets no more than its part of what is left."""

    async def run() -> None:
        log: list[str] = []
        clock = Clock()
        turns = Turns(2, clock)
        takes = {"a": 3.0, "b": 1.0, "c": 2.0}
        work = {f"{name}.{n}": Work(turns, log, f"{name}.{n}") for name in "ab" for n in range(1000)}
        await settled()
        ends: dict[str, float] = {}
        had, begun = dict.fromkeys(takes, 0.0), 0
        came = False
        while clock.now < 600:
            if clock.now >= 300 and not came:
                came = True
                assert had["a"] == pytest.approx(had["b"], abs=3)
                had = dict.fromkeys(takes, 0.0)
                work |= {f"c.{n}": Work(turns, log, f"c.{n}") for n in range(1000)}
                await settled()
            for name in log[begun:]:
                ends[name] = clock.now + takes[name[0]]
            begun = len(log)
            first = min(ends, key=lambda name: ends[name])
            clock.now = ends.pop(first)
            had[first[0]] += takes[first[0]]
            await work[first].end()
        assert [had[name] for name in "abc"] == pytest.approx([200] * 3, abs=6)
        for one in work.values():
            one.task.cancel()
        await asyncio.gather(*(one.task for one in work.values()), return_exceptions=True)

    asyncio.run(run())


def test_large_work_is_not_overtaken_for_ever():
    async def run() -> None:
        log: list[str] = []
        turns = Turns(4, Clock())
        small = [Work(turns, log, f"{name}.0") for name in "abc"]
        await settled()
        large = Work(turns, log, "large.0", 7)  # counts as 2
        later = Work(turns, log, "later.0")
        await settled()
        assert log == ["a.0", "b.0", "c.0"]
        await small[0].end()
        assert log[3:] == ["large.0"]
        await small[1].end()
        assert log[4:] == ["later.0"]
        for work in [*small, large, later]:
            await work.end()

    asyncio.run(run())


@pytest.mark.parametrize("granted", [False, True])
def test_who_goes_away_holds_nothing(granted: bool):
    async def run() -> None:
        log: list[str] = []
        turns = Turns(2)
        first = Work(turns, log, "a.0")
        waiting = Work(turns, log, "a.1")
        await settled()
        if granted:  # both in one step of the loop: the turn comes, and whoever waited for it goes
            first.task.cancel()
            await asyncio.sleep(0)
            waiting.task.cancel()
        else:
            waiting.task.cancel()
            await settled()
            first.task.cancel()
        await settled()
        after = Work(turns, log, "a.2")
        await settled()
        assert log[-1] == "a.2"
        await after.end()

    asyncio.run(run())


def test_who_hangs_up_while_another_ends_costs_nobody_an_answer():
    async def run() -> None:
        turns, go, never = Turns(2), asyncio.Event(), asyncio.Event()

        async def hold(caller: str, until: asyncio.Event) -> str:
            async with turns.taken(caller):
                await until.wait()
            return caller

        other = asyncio.create_task(hold("other", never))
        honest = asyncio.create_task(hold("honest", go))
        await settled()
        waits = asyncio.create_task(hold("gone", never))
        await settled()
        go.set()
        waits.cancel()
        assert await honest == "honest"
        other.cancel()
        await asyncio.gather(other, waits, return_exceptions=True)
        async with asyncio.timeout(1), turns.taken("gone"), turns.taken("other"):
            pass

    asyncio.run(run())


def test_no_place_is_lost_when_many_hang_up_at_once():
    async def run() -> None:
        turns, go, never, over = Turns(16), asyncio.Event(), asyncio.Event(), asyncio.Event()
        over.set()

        async def hold(caller: str, until: asyncio.Event, amount: int) -> None:
            async with turns.taken(caller, amount):
                await until.wait()

        large = asyncio.create_task(hold("many", go, 8))
        await settled()
        many = [asyncio.create_task(hold("many", never, 1)) for _ in range(8)]
        await settled()
        asyncio.get_running_loop().call_soon(lambda: [task.cancel() for task in many])
        go.set()
        await asyncio.create_task(hold("honest", over, 8))
        await asyncio.gather(large, *many, return_exceptions=True)
        async with asyncio.timeout(1), turns.taken("honest", 8), turns.taken("many", 8):
            pass

    asyncio.run(run())


def test_what_waits_behind_a_large_one_that_has_gone_begins_at_once():
    async def run() -> None:
        log: list[str] = []
        turns = Turns(4)
        holds = [Work(turns, log, "a.0", 2), Work(turns, log, "b.0", 1)]
        await settled()
        large = Work(turns, log, "c.0", 2)
        await settled()
        small = Work(turns, log, "d.0", 1)
        await settled()
        assert log == ["a.0", "b.0"]
        large.task.cancel()
        await settled()
        assert log == ["a.0", "b.0", "d.0"]
        for work in (*holds, small):
            await work.end()

    asyncio.run(run())
