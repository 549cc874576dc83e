"""Numbers of options: every one has a range, and one outside of it is a sentence, not a traceback."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, get_type_hints

import pytest

from rayad import catalog, cli, options
from rayad.errors import OptionError
from rayad.options import Within


@dataclass(frozen=True)
class Inner:
    share: options.Share = 0.5


@dataclass(frozen=True)
class Outer:
    count: options.Count = 1
    free: float = 0.0
    several: Annotated[tuple[int, ...], Within(0, 9)] = ()
    spacing_mm: options.SpacingOrNone = 0.0
    text: str = "nan"
    yes: bool = True
    inner: Inner = Inner()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"count": 0}, "count must be between 1 and 1,000,000,000, not 0"),
        ({"count": 10**30}, "count must be between"),
        ({"free": float("nan")}, "free must be a finite number, not nan"),
        ({"free": float("-inf")}, "free must be a finite number, not -inf"),
        ({"several": (3, 10)}, "several must be between 0 and 9, not 10"),
        ({"spacing_mm": 1e-9}, "spacing_mm must be between 0.01 and 100, or 0, not 1e-09"),
        ({"inner": Inner(1.5)}, r"inner\.share must be between 0 and 1, not 1.5"),
    ],
)
def test_a_number_outside_of_its_range_is_named_with_the_range(changed, sentence):
    with pytest.raises(OptionError, match=sentence):
        options.check(Outer(**changed))


def test_both_ends_of_a_range_and_all_finite_numbers_without_one_are_good():
    options.check(Outer(1_000_000_000, 1e308, (0, 9), 100.0, inner=Inner(1.0)))
    options.check(Outer(1, -1e308, spacing_mm=0.01, inner=Inner(0)))


def numeric(kind: type) -> Iterator[tuple[str, Any]]:
    """Name and type of every number among the options of a dataclass and of those in it."""
    bare, whole = get_type_hints(kind), get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        if is_dataclass(bare[field.name]):
            yield from numeric(bare[field.name])
        elif bare[field.name] in (int, float, tuple[int, ...]):
            yield f"{kind.__module__}.{kind.__name__}.{field.name}", whole[field.name]


def test_every_number_of_a_command_and_a_plug_in_has_a_range():
    plug_ins = [(folder, name) for folder in catalog.PLUGGED_IN for name in catalog.names(folder)]
    kinds = [getattr(catalog.find(folder, name), catalog.PLUGGED_IN[folder]) for folder, name in plug_ins]
    numbers = [number for kind in (*map(cli.command, cli.COMMANDS), *kinds) for number in numeric(kind)]
    assert len(numbers) > 150
    bare = [
        name for name, kind in numbers if not any(isinstance(of, Within) for of in getattr(kind, "__metadata__", ()))
    ]
    assert bare == []


def test_the_defaults_of_every_plug_in_are_within_their_ranges():
    for folder, kind in catalog.PLUGGED_IN.items():
        for name in catalog.names(folder):
            options.check(getattr(catalog.find(folder, name), kind)())


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999", "-1"])
@pytest.mark.parametrize(
    ("folder", "name", "field"),
    [("models", "cae", "learning_rate"), ("density", "spn", "sum_prior"), ("imaging", "mammogram", "spacing_mm")],
)
def test_a_setting_that_is_no_sensible_number_is_refused(folder, name, field, value):
    with pytest.raises(OptionError, match=f"{field}"):
        catalog.configure(folder, name, [f"{field}={value}"])


COMMANDS = [
    (["heatmap", "--detector", "d", "--images", "i", "--out", "o"], ["--spacing-mm", "--step-mm"]),
    (["calibrate", "--detector", "d", "--dataset", "phantom", "--scores", "s"], ["--step-mm"]),
    (["ingest", "--dataset", "phantom", "--out", "o"], ["--max-failures"]),
    (["train", "--corpus", "c", "--out", "o"], ["--workers.cpus", "--workers.wait-minutes"]),
    (["fit-density", "--detector", "d", "--corpus", "c", "--out", "o"], ["--em.step", "--em.decay"]),
    (["rescore", "--detector", "d", "--out", "o", "--name", "n"], ["--aggregation.size-mm"]),
    (["serve", "--detector", "d"], ["--limits.request-seconds", "--replicas.gpu", "--limits.least-kb-s"]),
    (["watch", "--pacs", "http://127.0.0.1:1"], ["--poll-s"]),
    (["sweep", "--corpus", "c", "--out", "o", "--space", "inputs=1,2"], ["--search.minutes"]),
]


@pytest.mark.parametrize(("command", "names"), COMMANDS)
@pytest.mark.parametrize("value", ["nan", "inf", "-1e300", "1e300"])
def test_every_command_answers_an_impossible_number_with_its_option(command, names, value, capsys):
    for name in names:
        assert cli.run([*command, f"{name}={value}"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("rayad: ")
        assert name.removeprefix("--").split(".")[-1].replace("-", "_") in line.replace("-", "_")


@pytest.mark.parametrize("option", ["--days=1000000000", "--days=-1", f"--days={10**30}", "--poll-s=0"])
def test_whole_numbers_have_ranges_too(option, capsys):
    assert cli.run(["watch", "--pacs", "http://127.0.0.1:1", option]) == 2
    assert "must be between" in capsys.readouterr().err
