"""Work of a replica's threads: as long as it runs, whoever asked for it has his turn."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from rayad import bounds
from rayad.serving.threads import while_wanted
from rayad.serving.turns import Turns


@dataclass
class Stubborn:
    """Work that asks nobody whether it is wanted, until the test ends it."""

    end: threading.Event = field(default_factory=threading.Event)
    began: threading.Event = field(default_factory=threading.Event)

    def __call__(self) -> None:
        self.began.set()
        self.end.wait(20)


def test_work_that_cannot_be_ended_keeps_the_turn_of_who_has_gone():
    async def run() -> None:
        turns, threads, works = Turns(2), ThreadPoolExecutor(2), [Stubborn(), Stubborn()]

        async def prepare(caller, work):
            async with turns.taken(caller):
                return await while_wanted(threads, work)

        first = asyncio.create_task(prepare("attacker", works[0]))
        await asyncio.to_thread(works[0].began.wait, 20)
        first.cancel()
        second = asyncio.create_task(prepare("attacker", works[1]))
        await asyncio.sleep(0.05)
        assert not works[1].began.is_set()
        began = time.monotonic()
        assert await prepare("honest", lambda: 1) == 1
        assert time.monotonic() - began < 5
        works[0].end.set()
        await asyncio.to_thread(works[1].began.wait, 20)
        works[1].end.set()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert await second is None

    asyncio.run(run())


def test_work_that_asks_is_told_and_an_error_of_it_is_raised():
    async def run() -> None:
        told = threading.Event()

        def asks() -> None:
            try:
                while True:
                    time.sleep(0.01)
                    bounds.go_on()
            except bounds.NotWanted:
                told.set()
                raise

        task = asyncio.create_task(while_wanted(ThreadPoolExecutor(1), asks))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert told.is_set()
        with pytest.raises(ZeroDivisionError):
            await while_wanted(ThreadPoolExecutor(1), lambda: 1 / 0)

    asyncio.run(run())
