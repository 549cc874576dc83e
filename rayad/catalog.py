"""Plug-ins by file name: a model, density or data set is the module that has its name.

Nothing is registered: dropping a file into ``rayad/models`` adds a model.
"""

import importlib
import math
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, is_dataclass
from types import ModuleType
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from rayad import options
from rayad.errors import OptionError
from rayad.terminal import shortened

T = TypeVar("T")
LONGEST_TEXT = 10_000
"""Characters of a text among the fields that `restored` takes."""
LONGEST_TUPLE = 65_536
"""Numbers or texts in a tuple among them."""

PLUGGED_IN = {"models": "Config", "density": "Config", "datasets": "Dataset", "imaging": "Preprocessing"}
"""Folder -> the class by which a module of it shows that it is a plug-in."""

KINDS = {"imaging": "preprocessing"}
"""Folder -> what a plug-in of it is called, where it is not the folder's name without its s."""


def names(folder: str) -> list[str]:
    """Names of the plug-ins in a folder of rayad, sorted."""
    package = importlib.import_module(f"rayad.{folder}")
    plug_ins = [info.name for info in pkgutil.iter_modules(package.__path__) if not info.name.startswith("_")]
    modules = {name: importlib.import_module(f"rayad.{folder}.{name}") for name in plug_ins}
    return sorted(n for n, module in modules.items() if _defined(module, PLUGGED_IN[folder]))


def find(folder: str, name: str) -> ModuleType:
    """The module of the plug-in; OptionError lists what there is if the name is unknown."""
    plug_ins = names(folder)
    if name not in plug_ins:
        raise OptionError(f"no {KINDS.get(folder, folder.rstrip('s'))} {name!r}; rayad has {', '.join(plug_ins)}")
    return importlib.import_module(f"rayad.{folder}.{name}")


Settings = Mapping[str, Any] | Iterable[str]
"""Field -> value, or texts NAME=VALUE as a command line has them."""


def configure(folder: str, name: str, settings: Settings = (), **instead: Any) -> Any:
    """The plug-in's configuration with these settings.

    Args:
        settings: fields that do not have the plug-in's defaults; ``preset=NAME`` among them stands for those that its
            module has under this name in `PRESETS`, before which the others go.
        instead: defaults of fields that are not in the settings.

    Raises:
        OptionError: unknown plug-in or field, a value that is not of the field's type, or one the plug-in refuses.
    """
    module = find(folder, name)
    pairs = dict(settings) if isinstance(settings, Mapping) else dict(map(pair, settings))
    if preset := pairs.pop("preset", ""):
        if preset not in (known_presets := presets(module)):
            raise OptionError(f"{name} has no preset {preset!r}, only {', '.join(known_presets) or 'its defaults'}")
        pairs = dict(map(pair, known_presets[preset])) | pairs
    return of_settings(getattr(module, PLUGGED_IN[folder]), name, pairs, **instead)


def differences(folder: str, name: str, config: Any) -> dict[str, tuple[Any, Any]]:
    """Field -> its value and that of the preset `paper`, where these differ; nothing where there is no such preset."""
    published = presets(find(folder, name)).get("paper", ())
    if not published:
        return {}
    paper = configure(folder, name, published)
    values = {field: (getattr(config, field), getattr(paper, field)) for field, _ in map(pair, published)}
    return {field: (own, theirs) for field, (own, theirs) in values.items() if own != theirs}


def presets(module: ModuleType) -> dict[str, tuple[str, ...]]:
    """Settings of a plug-in that have a name: those of a paper, where the defaults differ."""
    return getattr(module, "PRESETS", {})


def of_settings(kind: type[T], name: str, settings: Settings = (), **instead: Any) -> T:
    """A dataclass with these settings; see `configure`, which says the same of a plug-in.

    Args:
        name: what it is called, for messages.
    """
    types, names = get_type_hints(kind), [field.name for field in fields(cast(Any, kind))]
    pairs = settings.items() if isinstance(settings, Mapping) else [pair(text) for text in settings]
    values = dict(instead)
    for field, value in pairs:
        if field not in names:
            raise OptionError(f"{name} has no {field!r}; it has {', '.join(names)}")
        values[field] = parsed(name, field, types[field], value) if isinstance(value, str) else value
    config = kind(**values)
    options.check(config, lambda field: f"{name}: {field}")
    return config


def settings_of(config: Any) -> tuple[str, ...]:
    """The configuration as NAME=VALUE, as `configure` reads it."""

    def text(value: Any) -> str:
        if isinstance(value, tuple):
            return ",".join(map(str, value))
        return str(value).lower() if isinstance(value, bool) else str(value)

    return tuple(f"{field.name}={text(getattr(config, field.name))}" for field in fields(config))


def restored(kind: type[T], settings: Mapping[str, Any], largest: int = options.LARGEST) -> T:
    """A dataclass from its fields as JSON has them, which may be a stranger's; fields that lack have their defaults.

    Args:
        largest: the largest whole number that is believed, seeds excepted.

    Raises:
        OptionError: a field that the dataclass does not have, or a value that the field cannot have.
    """
    types = get_type_hints(kind)
    unknown = [field for field in settings if field not in types]
    if unknown:
        raise OptionError(f"there is no field {shortened(unknown[0])}, only {', '.join(types)}")
    values = {field: _restored(field, types[field], value) for field, value in settings.items()}
    for field, value in values.items():
        is_integer = types[field] in (int, tuple[int, ...]) and field != "seed"
        sizes = (value if isinstance(value, tuple) else (value,)) if is_integer else ()
        if max(sizes, default=0) > largest:
            raise OptionError(
                f"{field} is at most {largest:,} for as many numbers as there are, not {shortened(value)}"
            )
    config = kind(**values)
    options.check(config)
    return config


def described(config: Any) -> dict[str, Any]:
    """The configuration's fields, and as "kind" the plug-in that it is of; for JSON."""
    return {"kind": type(config).__module__.rsplit(".", 1)[-1], **asdict(config)}


def _defined(module: ModuleType, name: str) -> bool:
    """Is this a dataclass of the module itself?"""
    definition = getattr(module, name, None)
    return is_dataclass(definition) and getattr(definition, "__module__", "") == module.__name__


def _restored(field: str, kind: Any, value: Any) -> Any:
    """A value of JSON as one of a field's type; lists become tuples, which JSON does not have."""
    if get_origin(kind) is tuple and isinstance(value, list) and len(value) <= LONGEST_TUPLE:
        return tuple(_restored(field, get_args(kind)[0], part) for part in value)
    if get_origin(kind) is Literal:
        fits = value in get_args(kind) and type(value) is str
    elif kind is float:
        fits = type(value) in (int, float)
    else:
        fits = type(value) is kind and not (kind is str and len(value) > LONGEST_TEXT)
    if not fits:
        raise OptionError(f"{field} is {_called(kind)}, not {shortened(value)}")
    return value


def _called(kind: Any) -> str:
    """A type in words."""
    if get_origin(kind) is tuple:
        return f"a list of at most {LONGEST_TUPLE:,} items, each {_called(get_args(kind)[0])}"
    if get_origin(kind) is Literal:
        return " or ".join(get_args(kind))
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "a text")


def pair(text: str) -> tuple[str, str]:
    """Field and value of NAME=VALUE; OptionError if the text is none."""
    field, equals, value = text.partition("=")
    if not equals:
        raise OptionError(f"a setting is NAME=VALUE, not {text!r}")
    return field.replace("-", "_"), value


def parsed(name: str, field: str, kind: Any, text: str) -> Any:
    """The text as a value of the field's type: text, number, or true and false; OptionError if it is none.

    Args:
        name: of what has the field, for the message.
    """
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise OptionError(f"{name}: {field} is true or false, not {text!r}")
        return text.lower() == "true"
    if kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            raise OptionError(f"{name}: {field} is a number, not {text!r}") from None
        if isinstance(number, float) and not math.isfinite(number):
            raise OptionError(f"{name}: {field} is a finite number, not {text!r}")
        return number
    if get_origin(kind) is Literal and text not in get_args(kind):
        raise OptionError(f"{name}: {field} is {_called(kind)}, not {text!r}")
    if kind == tuple[int, ...]:
        try:
            return tuple(int(part) for part in text.split(",") if part)
        except ValueError:
            raise OptionError(f"{name}: {field} is whole numbers with commas between, not {text!r}") from None
    return text
