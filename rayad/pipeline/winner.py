"""Who wins a sweep: the best trial of those that came to their end, and then whether it beats no search at all.

The best of many trials is too good by chance. So its settings and those without a search are learned again with several
seeds, and the means decide: what is not better than no search is never applied.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

BEST, BASE = "best", "base"
"""The settings of the best trial, and those that there would be without a search."""
Winner = Literal["best", "base", ""]


def best_trial(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The row of the lowest value among trials that came to their end; None where none did.

    One that was stopped early is never the best: what it had reached is no value of settings that can be applied.
    """
    whole = [row for row in rows if row["how"] == "whole" and row["value"] is not None]
    return min(whole, key=lambda row: row["value"], default=None)


def candidates(best: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The settings that are learned again."""
    return {BEST: best, BASE: base}


def apart(candidates: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The settings that differ: where no search was better than the base, it need not be learned twice."""
    best, base = candidates[BEST], candidates[BASE]
    return [best] if best == base else [best, base]


def winner(seeds: Mapping[str, Mapping[str, Any]]) -> Winner:
    """Which settings are applied, "" for none.

    Args:
        seeds: of `BEST` and `BASE` the "values" of their seeds, None where one failed, and their "mean" or None.

    The best win where the mean of their seeds is lower and no more of their seeds failed.
    """
    best, base = seeds[BEST], seeds[BASE]
    if best["mean"] is None and base["mean"] is None:
        return ""
    if base["mean"] is None:
        return BEST
    better = best["mean"] is not None and best["mean"] < base["mean"] and _failures(best) <= _failures(base)
    return BEST if better else BASE


def sentence(seeds: Mapping[str, Mapping[str, Any]]) -> str:
    """What `winner` decided, and why."""
    best, base = seeds[BEST], seeds[BASE]
    match winner(seeds):
        case "best":
            return "The best settings win: the mean of their seeds is better than that without a search"
        case "":
            return "Nothing wins: no seed came to its end, neither of the best settings nor of those without a search"
        case _ if best["settings"] == base["settings"]:
            return "The settings without a search win: no trial was better"
        case _ if best["mean"] is not None and best["mean"] < base["mean"]:
            return "The settings without a search win: more seeds of the best settings failed"
        case _:
            return "The settings without a search win: with several seeds the best settings are not better"


def _failures(fitted: Mapping[str, Any]) -> int:
    return sum(value is None for value in fitted["values"])
