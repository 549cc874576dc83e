"""Work in threads for callers who may go before it is done."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from rayad import bounds

T = TypeVar("T")


async def while_wanted(executor: ThreadPoolExecutor, function: Callable[..., T], *arguments: Any) -> T:
    """What the function returns, called in a thread; it is told when whoever asks for it has gone, and waited for."""
    gone = threading.Event()

    def called() -> T:
        with bounds.while_wanted(lambda: unless_gone([gone])):
            return function(*arguments)

    work = asyncio.get_running_loop().run_in_executor(executor, called)
    try:
        return await asyncio.shield(work)
    finally:
        gone.set()
        await ended(work)


async def ended(work: asyncio.Future[Any]) -> None:
    """Wait for a thread, also if it is wanted no more: as long as it runs, whoever asked for it has his turn."""
    cancelled = None
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError as error:
            cancelled = error
    if not work.cancelled():
        work.exception()  # somebody has looked at it
    if cancelled:
        raise cancelled


def unless_gone(waiting: Sequence[threading.Event]) -> None:
    """Raise NotWanted where all that wait have gone."""
    if all(gone.is_set() for gone in waiting):
        raise bounds.NotWanted
