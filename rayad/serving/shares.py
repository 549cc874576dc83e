"""What callers share: nobody gets more than half of it while others ask."""

import time
from collections import Counter
from collections.abc import Callable

ASKING_S = 10.0
"""How long a request makes its caller one who asks; who is refused comes back in less."""


class Shares:
    """An amount of something, such as places or bytes, of which callers hold parts.

    A caller who holds some gets more as long as it is at most half of all, or as long as nobody else has asked in the
    last 10 s. So one alone may have everything, and another one who comes then has a place as soon as one is free.
    """

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with nothing held.

        Args:
            total: amount that all together may hold.
            clock: tells seconds.
        """
        self.total = total
        self._clock = clock
        self._held: Counter[str] = Counter()
        self._asked: dict[str, float] = {}

    @property
    def held(self) -> int:
        """Amount that all together hold."""
        return self._held.total()

    def has_room(self, caller: str, amount: int) -> bool:
        """Whether a caller would get an amount now; he has asked for it then."""
        now = self._clock()
        self._asked = {name: when for name, when in self._asked.items() if now - when < ASKING_S} | {caller: now}
        if self.held + amount > self.total:
            return False
        caller_amount = self._held[caller]
        return not caller_amount or 2 * (caller_amount + amount) <= self.total or len(self._asked) == 1

    def take(self, caller: str, amount: int) -> bool:
        """Give a caller an amount, if there is room."""
        if not self.has_room(caller, amount):
            return False
        self._held[caller] += amount
        return True

    def give_back(self, caller: str, amount: int) -> None:
        """Take an amount from a caller that he got."""
        self._held[caller] -= amount
        if not self._held[caller]:
            del self._held[caller]
