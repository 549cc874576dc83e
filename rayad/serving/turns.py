"""Whose turn it is: callers who wait for the same process get equal parts of its time."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(eq=False)
class _Waiting:
    """Work that waits for its turn."""

    caller: str
    amount: int
    granted: asyncio.Future[None]


class Turns:
    """A process that is so wide, of which work takes a part for a while; one caller's work at most half.

    Of the work that waits, that comes first whose caller has had the least so far, width x seconds (fair queueing,
    Demers, Keshav and Shenker 1989). Whoever comes anew starts level with the one who has had the least of those that
    are there: nobody saves up for later.
    """

    def __init__(self, width: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with nothing taken.

        Args:
            width: amount that all work takes together; even.
            clock: tells seconds.
        """
        self._half, self._free = width // 2, width
        self._clock = clock
        self._waiting: list[_Waiting] = []
        self._holds: Counter[str] = Counter()
        self._had: dict[str, float] = {}

    @asynccontextmanager
    async def taken(self, caller: str, amount: int = 1) -> AsyncIterator[None]:
        """Wait for a turn of a caller and hold it; more than half the width counts as half."""
        turn = _Waiting(caller, min(amount, self._half), asyncio.get_running_loop().create_future())
        self._level(caller)
        self._waiting.append(turn)
        try:
            self._grant()
            await turn.granted
        except BaseException:
            if turn in self._waiting:
                self._waiting.remove(turn)
                self._grant()  # it may have stood before others for which there is room
            else:  # granted, but whoever waited had gone by then
                self._release(turn, 0.0)
            raise
        began = self._clock()
        try:
            yield
        finally:
            self._release(turn, self._clock() - began)

    def _level(self, caller: str) -> None:
        """Let a caller who comes anew have had as much as the one who has had the least."""
        present = {waiting.caller for waiting in self._waiting} | set(self._holds)
        least = min((self._had[name] for name in present), default=None)
        if least is None:
            self._had, least = {}, 0.0
        self._had = {name: had for name, had in self._had.items() if name in present or had > least}
        self._had[caller] = max(self._had.get(caller, least), least)

    def _grant(self) -> None:
        """Give turns while there is room: no small work overtakes a large one that would come first."""
        by_turn = sorted(self._waiting, key=lambda waiting: (self._had[waiting.caller], self._holds[waiting.caller]))
        for waiting in by_turn:
            if waiting.granted.done():  # whoever waited has gone, and has not been told yet
                continue
            if self._holds[waiting.caller] + waiting.amount > self._half:
                continue
            if waiting.amount > self._free:
                return
            self._waiting.remove(waiting)
            self._free -= waiting.amount
            self._holds[waiting.caller] += waiting.amount
            waiting.granted.set_result(None)

    def _release(self, turn: _Waiting, seconds: float) -> None:
        self._free += turn.amount
        self._holds[turn.caller] -= turn.amount
        if not self._holds[turn.caller]:
            del self._holds[turn.caller]
        self._had[turn.caller] += turn.amount * seconds
        self._grant()
