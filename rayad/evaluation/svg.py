"""Drawings that the page makes from the results alone, as SVG: forest plots and diagrams of ranks."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

LINE = 19
"""Height of a detector's line, px."""
NAMES, PLOT, FIGURES = 190, 460, 150
"""Widths of the names, the plot and the figures beside it, px."""


def forest(rows: Sequence[Mapping[str, Any]], figure: str, seeds: Mapping[str, Sequence[float]] = {}) -> str:
    """Every detector's figure with its 95 % interval, the best first; thin ticks are other seeds.

    Args:
        rows: of one kind of lesion; those without the figure are left out.
        figure: pixel_auc, image_wise_auc, ... as results.json calls it.
        seeds: detector -> the figure of every seed.
    """
    key = "mean" if figure == "image_wise_auc" else "value"
    drawable = [row for row in rows if row.get(figure, {}).get(key) is not None]
    drawable.sort(key=lambda row: -row[figure][key])
    if not drawable:
        return ""
    lows = [row[figure]["low"] if row[figure].get("low") is not None else row[figure][key] for row in drawable]
    low = min(0.5, int(10 * min(lows)) / 10)

    def x(value: float) -> float:
        return NAMES + PLOT * (value - low) / (1 - low)

    height = LINE * len(drawable) + 34
    parts = list(_axis(low, x, height))
    for i, row in enumerate(drawable):
        y, cell = LINE * i + 14, row[figure]
        parts.append(f'<text x="{NAMES - 8}" y="{y + 4}" text-anchor="end">{escape(row["detector"])}</text>')
        text = f"{cell[key]:.2f}"
        if cell.get("low") is not None:
            parts.append(_line(x(cell["low"]), y, x(cell["high"]), y, 1.5))
            text += f" ({cell['low']:.2f}–{cell['high']:.2f})"  # noqa: RUF001  an en dash is meant
        parts += [_line(x(value), y - 6, x(value), y + 6, 1) for value in seeds.get(row["detector"], ())]
        parts.append(f'<circle cx="{x(cell[key]):.1f}" cy="{y}" r="4"/>')
        parts.append(f'<text x="{NAMES + PLOT + 12}" y="{y + 4}">{text}</text>')
    return _svg(height, parts, f"{figure} of {len(drawable)} detectors")


def ranking(rank_row: Mapping[str, Any]) -> str:
    """Detectors at their mean ranks, 1 is best; bars join those that do not differ.

    Args:
        rank_row: what `ranks.ranks` returns.
    """
    ranks: Mapping[str, float] = rank_row["ranks"]
    if not ranks:
        return ""
    names, count = list(ranks), len(ranks)

    def x(rank: float) -> float:
        return NAMES + PLOT * (rank - 1) / max(1, count - 1)

    groups = list(_alike(names, {tuple(sorted(pair)) for pair in rank_row["alike"]}))
    height = LINE * count + 34 + 7 * len(groups)
    parts = [_line(NAMES, height - 22, NAMES + PLOT, height - 22, 1)]
    parts += [
        f'<text x="{x(rank):.1f}" y="{height - 6}" text-anchor="middle">{rank:g}</text>'
        for rank in (1, (1 + count) / 2, count)
    ]
    for i, name in enumerate(names):
        y = LINE * i + 14
        parts.append(f'<text x="{NAMES - 8}" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
        parts.append(_line(NAMES, y, x(ranks[name]), y, 0.5))
        parts.append(f'<circle cx="{x(ranks[name]):.1f}" cy="{y}" r="4"/>')
        parts.append(f'<text x="{NAMES + PLOT + 12}" y="{y + 4}">{ranks[name]:.1f}</text>')
    for i, (first, last) in enumerate(groups):
        y = LINE * count + 10 + 7 * i
        parts.append(_line(x(ranks[names[first]]), y, x(ranks[names[last]]), y, 3))
    return _svg(height, parts, f"mean ranks of {count} detectors")


def _alike(names: Sequence[str], pairs: set[tuple[str, ...]]) -> Iterator[tuple[int, int]]:
    """Longest runs of neighbours of which no two differ."""
    reached = 0
    for first in range(len(names)):
        last = first
        while last + 1 < len(names) and all(
            tuple(sorted((names[i], names[last + 1]))) in pairs for i in range(first, last + 1)
        ):
            last += 1
        if last > first and last > reached:
            yield first, last
            reached = last


def _axis(low: float, x: Any, height: int) -> Iterator[str]:
    steps = round((1 - low) * 10)
    for i in range(steps + 1):
        value = low + i / 10
        yield f'<line class="grid" x1="{x(value):.1f}" y1="2" x2="{x(value):.1f}" y2="{height - 22}"/>'
        yield f'<text x="{x(value):.1f}" y="{height - 6}" text-anchor="middle">{value:.1f}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, width: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke-width="{width}"/>'


def _svg(height: int, parts: Sequence[str], label: str) -> str:
    wide = NAMES + PLOT + FIGURES
    return (
        f'<svg class="drawing" viewBox="0 0 {wide} {height}" width="{wide}" height="{height}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )
