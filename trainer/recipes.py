"""Training recipes of other programs as jobs: each key is carried over, or named with the reason why it is not.

What their keys are called here stands in ``imports/*.toml``. The files are data: nothing in them is run, and no path
in them is followed but the folder of pictures.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from conceptry.errors import MissingExtraError, UsageError
from conceptry.trainer.images import SUFFIXES
from conceptry.trainer.settings import load_presets

MAX_RECIPE_BYTES: Final = 8 << 20
RECORD_NAME: Final = "train.json"
_FOLDER: Final = re.compile(r"(?:(\d{1,5})_)?(.+)")
_PROGRAMS: Final = ("kohya", "onetrainer", "ai_toolkit")
_PLAIN_KEYS: Final = ("placeholder", "superclass", "steps", "seed", "title", "precision")
_TEXT: Final = re.compile(r"[-+]?\d+")


@dataclass(slots=True)
class ForeignRecipe:
    """What another program's configuration says in our words."""

    title: str
    values: dict[str, Any] = field(default_factory=dict)
    """Keys of a job; whoever has it adds what is missing and makes the job."""

    mapped: list[tuple[str, str]] = field(default_factory=list)
    """Their key and value -> our key and value, both as text."""

    unmapped: list[tuple[str, str]] = field(default_factory=list)
    """Their key and value -> why it is not used."""


def read_recipe(path: Path) -> ForeignRecipe:
    """Returns the recipe in a configuration of sd-scripts, OneTrainer or ai-toolkit, or a folder named as theirs.

    Raises:
        UsageError: if the file cannot be read or is of none of these programs.
        MissingExtraError: for YAML where PyYAML is not installed.
    """
    if path.is_dir():
        return _read_folder(path)
    flat = dict(_flatten(_parse(path)))
    for name in _PROGRAMS:
        table = _load_table(name)
        names = {*flat, *(_shorten(key, table) for key in flat)}
        if path.suffix.lower() in table["suffixes"] and not names.isdisjoint(table["known_by"]):
            return _translate(flat, table, path.parent)
    raise UsageError(
        f"{str(path)!r} is no configuration of a program that is known here",
        hint="known: sd-scripts (TOML), OneTrainer (JSON), ai-toolkit (YAML), and folders such as 10_sks dog",
    )


def read_metadata(path: Path) -> ForeignRecipe:
    """Returns the recipe that a ``.safetensors`` file was made with: from ``train.json`` beside it, or its metadata.

    Raises:
        UsageError: if it cannot be read, or says nothing of how it was made.
    """
    record = path.parent / RECORD_NAME
    if path.is_file() and record.is_file():
        return _read_record(record)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as opened:
            metadata = dict(opened.metadata() or {})
    except (OSError, SafetensorError) as error:
        message = f"{str(path)!r} cannot be read: {error}"
        raise UsageError(message, hint="--like takes a .safetensors file") from error
    table = _load_table("metadata")
    if not any(key in metadata for key in table["known_by"]):
        raise UsageError(
            f"{path.name} says nothing of how it was made",
            hint="metadata of sd-scripts or a train.json beside the file would",
        )
    return _translate(
        dict(_flatten({key: _read_text(value) for key, value in metadata.items()})), table, None
    )


# --- reading -------------------------------------------------------------------------------------------------------


def _parse(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise UsageError(f"{str(path)!r} has more than {MAX_RECIPE_BYTES} bytes")
        text = path.read_text(encoding="utf-8-sig")
        return _PARSERS.get(path.suffix.lower(), _parse_unknown)(text)
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(
            f"cannot read {str(path)!r}: {reason}", hint="--from takes a TOML, JSON or YAML file"
        ) from error


def _parse_yaml(text: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError("YAML needs the package PyYAML", hint="pip install pyyaml") from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _parse_unknown(text: str) -> Any:
    raise ValueError("its suffix is none of .toml, .json, .yaml")


_PARSERS: Final[Mapping[str, Callable[[str], Any]]] = {
    ".toml": tomllib.loads,
    ".json": json.loads,
    ".yaml": _parse_yaml,
    ".yml": _parse_yaml,
}


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Returns the leaves of tables and lists by their path: ``train.lr``, ``datasets.0.resolution.0``."""
    pairs: Any = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    )
    if pairs is None:
        yield prefix, value
        return
    for key, one in pairs:
        yield from _flatten(one, f"{prefix}.{key}" if prefix else str(key))


def _read_text(value: str) -> Any:
    """Returns what a text in metadata stands for: a number, a truth value, a table, or the text itself."""
    if value in {"None", ""}:
        return None
    if value in {"True", "False"}:
        return value == "True"
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


@cache
def _load_table(name: str) -> dict[str, Any]:
    text = files(__package__).joinpath("imports", f"{name}.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


# --- translating ---------------------------------------------------------------------------------------------------


def _translate(flat: Mapping[str, Any], table: Mapping[str, Any], folder: Path | None) -> ForeignRecipe:
    recipe = ForeignRecipe(str(table["title"]))
    rows = [(_shorten(key, table), key, value) for key, value in flat.items()]
    method = _find_method({name: value for name, _, value in rows}, table["methods"])
    if method is not None:
        recipe.values["method"] = method
        recipe.mapped.append(("what is trained", f"method = {method}"))
    found: dict[str, Any] = {}
    for name, key, value in rows:
        target = table["keys"].get(name)
        known = table.get("values", {}).get(name)
        if value is None or value == "":
            continue
        if target is None:
            recipe.unmapped.append(
                (_show(key, value), table["ignored"].get(name, "there is no such key here"))
            )
        elif known is not None and _name_value(value) not in known:
            recipe.unmapped.append((_show(key, value), f"known values: {', '.join(known)}"))
        else:
            _take(recipe, found, target, (key, value if known is None else known[_name_value(value)]))
    _finish(recipe, found, folder)
    return recipe


def _shorten(key: str, table: Mapping[str, Any]) -> str:
    if table["flat"]:
        return key.rpartition(".")[2]
    return key.removeprefix(str(table.get("under", "")))


def _find_method(values: Mapping[str, Any], methods: Mapping[str, str]) -> str | None:
    for condition, method in methods.items():
        key, equals, wanted = condition.partition("=")
        if values.get(key) is not None and (not equals or str(values[key]) == wanted):
            return method
    return None


def _name_value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _show(key: str, value: Any) -> str:
    return f"{key} = {json.dumps(value, default=str)[:80]}"


def _take(recipe: ForeignRecipe, found: dict[str, Any], target: str, given: tuple[str, Any]) -> None:
    key, value = given
    try:
        plain = _CONVERTERS.get(target, _keep)(value)
    except (TypeError, ValueError):
        recipe.unmapped.append((_show(key, value), f"cannot be read as {target}"))
        return
    if target in found and found[target] != plain:
        recipe.unmapped.append((_show(key, value), f"{target} is already {found[target]}"))
        return
    found[target] = plain
    recipe.mapped.append((_show(key, value), f"{target} = {plain}"))


def _keep(value: Any) -> Any:
    return value


def _to_pixels(value: Any) -> int:
    """``512``, ``"512,768"`` and ``(512, 768)`` are sides; the area is kept."""
    sides = [int(one) for one in _TEXT.findall(str(value))]
    return round(math.prod(sides[:2]) ** 0.5) if len(sides) > 1 else sides[0]


def _to_word(value: Any) -> str:
    """The first word: a placeholder has no space in it."""
    return str(value).split()[0]


_CONVERTERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "settings.resolution_pixels": _to_pixels,
    "settings.batch_size": int,
    "settings.accumulation_steps": int,
    "settings.warmup_steps": int,
    "settings.rank": int,
    "settings.vectors": int,
    "settings.alpha": float,
    "steps": int,
    "epochs": int,
    "repeats": float,
    "seed": int,
    "rate": float,
    "placeholder": _to_word,
    "superclass": str,
    "images": str,
    "words": str,
    "title": str,
}


def _finish(recipe: ForeignRecipe, found: dict[str, Any], folder: Path | None) -> None:
    """Puts what was found into the job's own keys, and works out what follows from several of theirs."""
    values, settings = recipe.values, dict[str, Any]()
    if "images" in found:
        inner = _find_pictures(Path(found["images"]) if folder is None else folder / found["images"])
        values["images"] = inner.path
        found.setdefault("repeats", inner.repeats)
        found.setdefault("words", inner.words)
        recipe.unmapped += [(name, "one folder of pictures is trained on") for name in inner.others]
    words = str(found.get("words") or "").split()
    if len(words) > 1:
        values.setdefault("placeholder", words[0])
        values.setdefault("superclass", " ".join(words[1:]))
    values |= {
        key: found[key]
        for key in ("placeholder", "superclass", "steps", "seed", "title", "precision")
        if key in found
    }
    for key, value in found.items():
        if key.startswith("settings."):
            settings[key.removeprefix("settings.")] = value
    if "accumulation_steps" in settings:
        # Theirs adds up so many batches; ours divides one batch, so that the result does not depend on it.
        settings["batch_size"] = settings.get("batch_size", 1) * settings["accumulation_steps"]
    if "rate" in found and values.get("method") in load_presets():
        groups = load_presets()[values["method"]].get("learning_rates", {})
        settings["learning_rates"] = dict.fromkeys(groups, found["rate"])
    if "epochs" in found and "steps" not in values and "images" in values:
        values["steps"] = _count_steps(values["images"], found, settings.get("batch_size", 1))
        recipe.mapped.append((f"epochs = {found['epochs']}", f"steps = {values['steps']}"))
    if settings:
        values["settings"] = settings


def _count_steps(folder: Path, found: Mapping[str, Any], batch_size: int) -> int:
    count = sum(1 for path in folder.iterdir() if path.suffix.lower() in SUFFIXES) if folder.is_dir() else 0
    samples = count * float(found.get("repeats") or 1) * int(found["epochs"])
    return max(1, math.ceil(samples / batch_size))


# --- folders -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Pictures:
    path: Path
    repeats: float
    words: str
    others: tuple[str, ...] = ()


def _find_pictures(folder: Path) -> _Pictures:
    """Returns the folder that holds the pictures: ``folder``, or ``10_sks dog`` inside, as sd-scripts wants it."""
    named = []
    if folder.is_dir():
        named = sorted(path for path in folder.iterdir() if path.is_dir() and re.match(r"\d+_", path.name))
    if not named:
        repeats, words = _split_name(folder.name)
        return _Pictures(folder, repeats, words)
    repeats, words = _split_name(named[0].name)
    return _Pictures(named[0], repeats, words, tuple(path.name for path in named[1:]))


def _split_name(name: str) -> tuple[float, str]:
    match = _FOLDER.fullmatch(name)
    if match is None or match.group(1) is None:
        return 1.0, ""
    return float(match.group(1)), match.group(2)


def _read_folder(path: Path) -> ForeignRecipe:
    found = _find_pictures(path)
    words = found.words.split()
    if not words:
        raise UsageError(
            f"{path.name!r} is no folder of sd-scripts: they are called as 10_sks dog",
            hint="name a configuration file, or give --images DIR",
        )
    recipe = ForeignRecipe("a folder of sd-scripts", values={"images": found.path})
    recipe.mapped.append((found.path.name, f"images = {found.path}"))
    for key, value in (("placeholder", words[0]), ("superclass", " ".join(words[1:]))):
        if value:
            recipe.values[key] = value
            recipe.mapped.append((found.path.name, f"{key} = {value}"))
    recipe.unmapped.append((f"{found.repeats:g} repeats", "say --steps; each picture is seen equally often"))
    recipe.unmapped += [(name, "one folder of pictures is trained on") for name in found.others]
    return recipe


def _read_record(path: Path) -> ForeignRecipe:
    """Returns the job of a ``train.json``; what is resolved there stays as it was, whatever presets say today."""
    recorded = _parse(path)
    job = recorded.get("job") if isinstance(recorded, dict) else None
    if not isinstance(job, dict):
        raise UsageError(f"{str(path)!r} records no job", hint="it is not a train.json of concepts train")
    recipe = ForeignRecipe(RECORD_NAME)
    left_out = {"name", "version", "title", "description"}
    for key, value in job.items():
        if value is not None and key not in left_out and key != "settings":
            recipe.values[key] = Path(value) if key in {"images", "captions"} else value
            recipe.mapped.append((_show(key, value), f"{key} = {value}"))
    settings = {key: value for key, value in recorded.get("settings", {}).items() if value is not None}
    settings.pop("steps", None)
    recipe.values.setdefault("steps", recorded.get("settings", {}).get("steps"))
    recipe.values["settings"] = settings
    recipe.mapped.append(("settings", f"{len(settings)} numbers as they were resolved"))
    recipe.unmapped += [
        (_show(key, job[key]), "the new concept has its own") for key in sorted(left_out & job.keys())
    ]
    return recipe
