"""What rayad has, in words: plug-ins with their fields, scores and recipes; made of their docstrings."""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from rayad import catalog, recipes
from rayad.errors import OptionError
from rayad.scoring import combine, floors, residuals, taught
from rayad.scoring.scores import LATENT, Part, scores_of

FOLDERS = {"models": "models", "densities": "density", "datasets": "datasets", "preprocessings": "imaging"}
"""Kind of plug-in -> folder of rayad."""
KINDS = (*FOLDERS, "scores", "recipes")
"""What can be listed."""
WIDTH = 118
"""Characters of a line."""


@dataclass(frozen=True)
class Explained:
    """A field of a plug-in."""

    name: str
    values: str
    """What it can be, in words."""
    default: str
    sentence: str


def listed(kind: str = "") -> Iterator[str]:
    """Lines on all plug-ins of a kind, with their fields; of an empty kind on everything, without them.

    Raises:
        OptionError: there is no such kind.
    """
    if kind and kind not in KINDS:
        raise OptionError(f"rayad lists {', '.join(KINDS)}; not {kind!r}")
    for name in [kind] if kind else KINDS:
        yield name
        yield from _indented(_lines(name, with_fields=bool(kind)), 2)


def explained(kind: type) -> list[Explained]:
    """The fields of a dataclass, with the docstrings that stand under them."""
    hints, sentences = get_type_hints(kind), _docstrings(kind)
    return [Explained(f.name, _values(hints[f.name]), _default(f), sentences.get(f.name, "")) for f in fields(kind)]


def _lines(kind: str, with_fields: bool) -> Iterator[str]:
    if kind in FOLDERS:
        yield from _plug_ins(FOLDERS[kind], with_fields)
    elif kind == "scores":
        yield from _scores()
    else:
        for name in recipes.names():
            recipe = recipes.find(name)
            presets = f" Presets {', '.join(recipes.presets(name))}." if recipe.preset else ""
            yield from _entry(name, f"{first_sentence(recipe.docstring)} Data set {recipe.dataset}.{presets}")


def _plug_ins(folder: str, with_fields: bool) -> Iterator[str]:
    for name in catalog.names(folder):
        module = catalog.find(folder, name)
        yield from _entry(name, first_sentence(module.__doc__))
        if not with_fields:
            continue
        kind = getattr(module, catalog.PLUGGED_IN[folder])
        if folder == "models":
            yield from _indented(_entry("scores", f"{', '.join(scores_of(Part(name, kind(), kind().build())))}."), 4)
        for preset, settings in catalog.presets(module).items():
            yield from _indented(_entry(f"preset={preset}", f"{' '.join(settings)}."), 4)
        for field in explained(kind):
            is_word = field.values == "a text" or " or " in field.values
            values = f"{field.values}. " if is_word and field.values != "a text" else ""
            yield from _indented(_entry(f"{field.name}={field.default}", values + field.sentence), 4)


def _scores() -> Iterator[str]:
    latent = {
        "likelihood": "How unlikely the latents are, -log p(z); of densities.",
        "novelty": "How far the latents are from the healthy ones; of detectors without a density.",
        "context": "How unlikely the latents are for their place, -log p(z | place); of densities with a context.",
        "other-side": "How unlikely the latents are for this woman, -log p(z | other breast, place); `rayad pair`.",
        "asymmetry": "How much less likely her other breast makes the latents, log p(z) - log p(z | other breast).",
    }
    assert latent.keys() == set(LATENT)
    groups: dict[str, Mapping[str, str | Callable[..., Any]]] = {
        "without learning": floors.MAPS,
        "residuals of models that reconstruct": residuals.OPERATORS,
        "latents": latent,
        "combinations of detectors": combine.RULES,
        "what labels teach": taught.KINDS,
    }
    for title, scores in groups.items():
        yield f"{title}:"
        for name, explanation in scores.items():
            yield from _indented(
                _entry(name, explanation if isinstance(explanation, str) else first_sentence(explanation.__doc__)), 2
            )
    yield "Models have scores of their own besides: rayad list models."


def first_sentence(docstring: str | None) -> str:
    """Of a docstring, as one line."""
    text = " ".join((docstring or "").split("\n\n")[0].split())
    return re.split(r"(?<=[.!?])\s+(?=[A-Z])", text)[0]


def _entry(name: str, sentence: str) -> Iterator[str]:
    """A name, and behind or below it a sentence."""
    text = f"{name:<20}  {sentence}".rstrip()
    yield from textwrap.wrap(
        text, WIDTH - 6, subsequent_indent=" " * 22, break_long_words=False, break_on_hyphens=False
    )


def _indented(lines: Iterator[str], spaces: int) -> Iterator[str]:
    return (" " * spaces + line for line in lines)


def _docstrings(kind: type) -> dict[str, str]:
    """Field -> the docstring under it, of the class and those that it is made of."""
    sentences: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, following in zip(body.body, body.body[1:], strict=False):
            match field, following:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    sentences[name] = " ".join(text.split())
    return sentences


def _values(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return words.get(hint, "numbers" if get_origin(hint) is tuple else str(getattr(hint, "__name__", hint)))


def _default(field: Field) -> str:
    """The default as NAME=VALUE has it; empty where a value is required."""
    value = field.default_factory() if field.default_factory is not MISSING else field.default
    if value is MISSING:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
