"""What a sweep found, for people: pictures of its trials, a table, a page."""

import base64
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any

import matplotlib as mpl
import numpy as np
import optuna
import pandas as pd
from jinja2 import Environment, StrictUndefined
from matplotlib import pyplot
from optuna.trial import TrialState
from optuna.visualization import matplotlib as draw

CONTOUR = ("inputs", "replicas")
"""The two fields of the contour, where both are searched; else the two that matter most."""
FEW = 4
"""Trials below which no picture says anything."""


def csv(sweep: Mapping[str, Any]) -> str:
    """A line a trial: number, value, epochs, seconds, how it ended, and its settings."""
    rows = [
        {**{k: row[k] for k in ("number", "value", "epochs", "seconds", "how")}, **row["settings"]}
        for row in sweep["rows"]
    ]
    return pd.DataFrame(rows).sort_values("number").to_csv(index=False)


def of_seeds(settings: Mapping[str, Any], ended: Sequence[tuple[float | None, str]]) -> dict[str, Any]:
    """What settings ended with, seed by seed, and the mean and deviation of the values.

    Args:
        ended: of every seed the value and ""; where it has none, None and why.
    """
    values = [value for value, _ in ended]
    numbers = [value for value in values if value is not None]
    return {
        "settings": settings,
        "values": values,
        "mean": float(np.mean(numbers)) if numbers else None,
        "deviation": float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None,
        "errors": [error for _, error in ended],
    }


def pictures(study: optuna.Study) -> dict[str, bytes]:
    """Name -> PNG: history, parallel coordinates, importance, and a contour of two fields; none of a few trials.

    Importance is PED-ANOVA's, Optuna's default (Watanabe et al., IJCAI 2023): how far a field's values in the best
    tenth of the trials are spread otherwise than in all trials; those of the fields add up to 1.
    """
    complete_study = _ended(study)
    if len(complete_study.trials) < FEW:
        return {}
    names = list(complete_study.trials[0].params)
    plots: dict[str, Callable[[], Any]] = {
        "history": lambda: draw.plot_optimization_history(complete_study),
        "parallel": lambda: draw.plot_parallel_coordinate(complete_study),
        "importance": lambda: draw.plot_param_importances(complete_study),
    }
    if len(names) > 1:
        pair: list[str] = list(optuna.importance.get_param_importances(complete_study))[:2]
        pair = list(map(str, CONTOUR)) if set(CONTOUR) <= set(names) else pair
        plots["contour"] = lambda: draw.plot_contour(complete_study, params=pair)
    return {name: _png(picture) for name, picture in plots.items()}


def _ended(study: optuna.Study) -> optuna.Study:
    """The trials with a value, in memory."""
    complete_study = optuna.create_study(direction="minimize")
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        if trial.value is not None and abs(trial.value) != float("inf"):
            complete_study.add_trial(trial)
    return complete_study


def _png(picture: Callable[[], Any]) -> bytes:
    """What Optuna draws, whose warnings are those of its own libraries."""
    with warnings.catch_warnings(), mpl.rc_context({"figure.figsize": (9, 5.5), "figure.autolayout": True}):
        warnings.simplefilter("ignore")
        axes = picture()
        figure = (axes if hasattr(axes, "figure") else axes.flat[0]).figure
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=110, format="png")
        pyplot.close(figure)
    return buffer.getvalue()


def page(sweep: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """The page of a sweep."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = resources.files("rayad.evaluation").joinpath("trials.html.j2").read_text("utf-8")
    shown = {name: base64.b64encode(png).decode() for name, png in pictures.items()}
    ended = sorted(sweep["rows"], key=lambda row: (row["value"] is None, row["value"] or 0))
    return environment.from_string(template).render(sweep=sweep, rows=ended, shown=shown)
