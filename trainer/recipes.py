"""Training recipes of other programs as jobs: each key is carried over, or named with the reason why it is not.

What their keys are called here stands in ``imports/*.toml``. The files are data: nothing in them is run, and no path
in them is followed but the folder of pictures.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from conceptry.errors import UsageError
from conceptry.trainer.recipe_files import flatten, load_table, parse_file, read_text
from conceptry.trainer.recipe_folders import count_steps, find_pictures
from conceptry.trainer.recipe_rules import (
    OFF,
    LeftOut,
    find_other_network,
    find_unmet,
    iter_notes,
    iter_unsaid,
    leave_out,
    name_value,
    split_lists,
)
from conceptry.trainer.settings import load_presets

RECORD_NAME: Final = "train.json"
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

    A ``train.json`` of ours is read as well.

    Raises:
        UsageError: if the file cannot be read or is of none of these programs.
        MissingExtraError: for YAML where PyYAML is not installed.
    """
    if path.is_dir():
        return _read_folder(path)
    document = parse_file(path)
    if _is_record(document):
        return _read_record(path)
    flat = dict(flatten(document))
    for name in _PROGRAMS:
        table = load_table(name)
        names = {*flat, *(_shorten(key, table) for key in flat)}
        if path.suffix.lower() in table["suffixes"] and not names.isdisjoint(table["known_by"]):
            return _translate(document, table, path.parent)
    raise UsageError(
        f"{str(path)!r} is no configuration of a program that is known here",
        hint="known: sd-scripts (TOML), OneTrainer (JSON), ai-toolkit (YAML), and folders such as 10_sks dog",
    )


def read_metadata(path: Path) -> ForeignRecipe:
    """Returns the recipe that a ``.safetensors`` file was made with: from ``train.json`` beside it, or its metadata.

    ``path`` may be such a record itself: a ``train.json``, or the one that the store keeps of a version.

    Raises:
        UsageError: if it cannot be read, or says nothing of how it was made.
    """
    if path.suffix.lower() == ".json":
        return _read_record(path)
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
    table = load_table("metadata")
    if not any(key in metadata for key in table["known_by"]):
        raise UsageError(
            f"{path.name} says nothing of how it was made",
            hint="metadata of sd-scripts or a train.json beside the file would",
        )
    return _translate({key: read_text(value) for key, value in metadata.items()}, table, None)


# --- translating ---------------------------------------------------------------------------------------------------


def _translate(document: Any, table: Mapping[str, Any], folder: Path | None) -> ForeignRecipe:
    recipe = ForeignRecipe(str(table["title"]))
    left: list[LeftOut] = []
    flat = dict(flatten(leave_out(split_lists(document, tuple(table.get("lists", ()))), table, left)))
    for path, entry, why in left:
        recipe.unmapped += [(_show(key, value), why) for key, value in flatten(entry, path)]
    rows = [(_shorten(key, table), key, value) for key, value in flat.items()]
    rows.sort(key=lambda row: row[0] not in table.get("first", ()))
    values = {name: value for name, _, value in reversed(rows)}
    method = _take_method(recipe, values, table)
    found: dict[str, Any] = {}
    for name, key, value in rows:
        if value is not None and value != "":
            _translate_key(recipe, found, table, (name, key, value, find_unmet(name, values, table)))
    _add_unsaid(recipe, found, iter_unsaid(values, table, method))
    recipe.unmapped += iter_notes(values, table, method)
    _finish(recipe, found, folder)
    return recipe


def _take_method(recipe: ForeignRecipe, values: Mapping[str, Any], table: Mapping[str, Any]) -> str | None:
    method = _find_method(values, table["methods"])
    other = find_other_network(values, table) if method == "lora" else None
    if other is not None:
        able = ", ".join(table["networks"][other[0]])
        recipe.unmapped.append(
            (
                f"{other[0]} = {other[1]}",
                f"a LoRA is trained here ({able}): name a METHOD to train another way",
            )
        )
        return None
    if method is not None:
        recipe.values["method"] = method
        recipe.mapped.append(("what is trained", f"method = {method}"))
    return method


def _translate_key(
    recipe: ForeignRecipe,
    found: dict[str, Any],
    table: Mapping[str, Any],
    row: tuple[str, str, Any, str | None],
) -> None:
    name, key, value, unmet = row
    target = table["keys"].get(name)
    known = table.get("values", {}).get(name)
    if target is None:
        why = table["ignored"].get(name, "there is no such key here")
    elif unmet is not None:
        why = unmet
    elif known is not None and name_value(value) not in known:
        why = f"known values: {', '.join(known)}"
    else:
        _take(recipe, found, target, (key, value if known is None else known[name_value(value)]))
        return
    recipe.unmapped.append((_show(key, value), why))


def _add_unsaid(recipe: ForeignRecipe, found: dict[str, Any], unsaid: Iterable[tuple[str, str, Any]]) -> None:
    """Takes over what counts there where nothing is written: here other numbers would."""
    for theirs, ours, value in unsaid:
        if ours in found or ({ours, *found} >= {"steps", "epochs"}):
            continue
        found[ours] = value
        recipe.mapped.append((f"{theirs} left out", f"{ours} = {_name_plain(value)}"))


def _name_plain(value: Any) -> str:
    return OFF if value is None else str(value)


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
    recipe.mapped.append((_show(key, value), f"{target} = {_name_plain(plain)}"))


def _keep(value: Any) -> Any:
    return value


def _to_pixels(value: Any) -> int:
    """``512``, ``"512,768"`` and ``(512, 768)`` are sides; the area is kept."""
    sides = [int(one) for one in _TEXT.findall(str(value))]
    return round(math.prod(sides[:2]) ** 0.5) if len(sides) > 1 else sides[0]


def _to_limit(value: Any) -> float | None:
    """0 is their word for off."""
    return float(value) or None


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
    "settings.alpha": _to_limit,
    "settings.clip_norm": _to_limit,
    "settings.min_snr_gamma": _to_limit,
    "steps": int,
    "epochs": int,
    "repeats": float,
    "seed": int,
    "rate": float,
    "text_encoder_rate": float,
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
        inner = find_pictures(Path(found["images"]) if folder is None else folder / found["images"])
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
    if values.get("method") in load_presets():
        settings |= _make_rates(found, load_presets()[values["method"]].get("learning_rates", {}))
    if "epochs" in found and "steps" not in values and "images" in values:
        values["steps"] = count_steps(values["images"], found, settings.get("batch_size", 1))
        recipe.mapped.append((f"epochs = {found['epochs']}", f"steps = {values['steps']}"))
    elif "epochs" in found and "steps" not in values:
        recipe.unmapped.append(
            (f"epochs = {found['epochs']}", "of which pictures is not known: give --steps")
        )
    if settings:
        values["settings"] = settings


def _make_rates(found: Mapping[str, Any], groups: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the rates of the method's groups; a rate of text encoders has them trained, 0 leaves them."""
    rates = dict.fromkeys(groups, found["rate"]) if found.get("rate") else {}
    settings: dict[str, Any] = {}
    if "text_encoder_rate" in found and "text_encoder" in groups:
        settings["train_text_encoder"] = found["text_encoder_rate"] > 0
        if found["text_encoder_rate"] > 0:
            rates["text_encoder"] = found["text_encoder_rate"]
    return {**settings, "learning_rates": rates} if rates else settings


# --- folders -------------------------------------------------------------------------------------------------------


def _read_folder(path: Path) -> ForeignRecipe:
    found = find_pictures(path)
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


def _is_record(document: Any) -> bool:
    return isinstance(document, dict) and isinstance(document.get("job"), dict) and "settings" in document


def _read_record(path: Path) -> ForeignRecipe:
    """Returns the job of a ``train.json``; what is resolved there stays as it was, whatever presets say today."""
    recorded = parse_file(path)
    job = recorded.get("job") if isinstance(recorded, dict) else None
    if not isinstance(job, dict):
        raise UsageError(f"{str(path)!r} records no job", hint="it is not a train.json of concepts train")
    recipe = ForeignRecipe(RECORD_NAME)
    left_out = {"name", "version", "title", "description"}
    for key, value in job.items():
        if value is not None and key not in left_out and key != "settings":
            recipe.values[key] = Path(value) if key in {"images", "captions"} else value
            recipe.mapped.append((_show(key, value), f"{key} = {value}"))
    # None counts too: it is how a setting was off that a preset has on.
    settings = dict(recorded.get("settings", {}))
    settings.pop("steps", None)
    recipe.values.setdefault("steps", recorded.get("settings", {}).get("steps"))
    recipe.values["settings"] = settings
    recipe.mapped.append(("settings", f"{len(settings)} numbers as they were resolved"))
    recipe.unmapped += [
        (_show(key, job[key]), "the new concept has its own") for key in sorted(left_out & job.keys())
    ]
    return recipe
