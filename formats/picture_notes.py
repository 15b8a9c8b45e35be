"""The ``parameters`` text that A1111 and its relatives write into pictures: written, and read with the files it names.

What is read is data: names are looked up, never opened, and no address is followed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Final, Literal

from conceptry.formats.data_files import load_table
from conceptry.formats.picture_records import PictureRecord

PARAMETERS_KEY: Final = "parameters"
MAX_FILES: Final = 1000
_MAX_CHARS: Final = 200
_MIN_SETTINGS: Final = 3
_NEGATIVE: Final = "Negative prompt:"
_MAX_SETTINGS: Final = 500
_KEY: Final = re.compile(r"([\w(][\w ()/+.-]{0,60}): ")
_PLAIN: Final = re.compile(r"[^,\n]*")
_JSON: Final = json.JSONDecoder()
_TAG: Final = re.compile(r"<([a-z]{2,16}):([^<>:]{1,200})((?::[^<>:]{1,40}){0,4})>", re.ASCII | re.IGNORECASE)
_NAMED: Final = re.compile(r"([^:,]{1,200}): *([0-9a-fA-F]{4,64})")
_BRACKETED: Final = re.compile(r"(.{1,200}?) ?[\[(]([0-9a-fA-F]{4,64})[\])]")
_EMBEDDING: Final = re.compile(r"embedding:([^\s,():\[\]<>\"]{1,200})", re.IGNORECASE)
_HEX: Final = re.compile(r"(?:0x)?([0-9a-fA-F]{4,64})", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mention:
    """One file that a picture says it was made with."""

    kind: str
    name: str = ""
    """As written there, mostly a file name without its ending."""

    strength: float | None = None
    hashes: tuple[str, ...] = ()
    """Lower-case hexadecimal digits: SHA-256 or its beginning, AutoV1, AutoV2 or AutoV3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureNotes:
    """What a picture of another program says of itself."""

    program: Literal["a1111", "comfyui"]
    prompt: str = ""
    negative: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    files: tuple[Mention, ...] = ()


# --- writing -------------------------------------------------------------------------------------------------------


def format_parameters(record: PictureRecord, *, sampler: str) -> str:
    """Returns a record as A1111 writes its own: prompt, negative prompt, and one line of settings."""
    settings = ", ".join(f"{name}: {_quote(value)}" for name, value in _iter_settings(record, sampler))
    negative = [f"{_NEGATIVE} {record.negative}"] if record.negative else []
    return "\n".join([record.prompt, *negative, settings])


def _iter_settings(record: PictureRecord, sampler: str) -> Iterator[tuple[str, str]]:
    yield "Steps", str(record.steps)
    yield "Sampler", sampler
    yield "CFG scale", f"{record.guidance:g}"
    yield "Seed", str(record.seed)
    yield "Size", f"{record.width}x{record.height}"
    yield "Model", record.base.name or record.base.family
    if record.source is not None:
        yield "Denoising strength", f"{record.source.strength:g}"
    if record.batch.size > 1:
        yield "Batch size", str(record.batch.size)
        yield "Batch pos", str(record.batch.index)
    members = record.composition.concepts if record.composition else ()
    if members:
        concepts = (f"{one.reference}*{one.strength:g} {one.digest.short}" for one in members)
        yield "Concepts", ", ".join(concepts)
    yield "Version", f"conceptry {record.machine.libraries.get('conceptry', '')}".strip()


def _quote(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if set(value) & set(',:\n"') else value


# --- reading -------------------------------------------------------------------------------------------------------


def read_parameters(text: str) -> PictureNotes:
    """Returns what a ``parameters`` text says; what does not parse is left out."""
    words, settings = _split_settings(text)
    prompt, _, negative = words.partition(f"\n{_NEGATIVE}")
    if words.startswith(_NEGATIVE):
        prompt, negative = "", words.removeprefix(_NEGATIVE)
    mentions = [*_iter_settings_files(settings), *iter_tags(words)]
    return PictureNotes(
        program="a1111",
        prompt=prompt.strip(),
        negative=negative.strip(),
        settings=settings,
        files=join_mentions(mentions),
    )


def iter_tags(text: str) -> Iterator[Mention]:
    """Returns what ``<lora:name:0.8>`` and ``embedding:name`` in a prompt name; other tags are passed over."""
    for match in _TAG.finditer(text):
        kind = _list_words().get(match[1].lower())
        if kind is not None:
            yield Mention(kind=kind, name=match[2].strip(), strength=_read_number(match[3][1:].split(":")[0]))
    for match in _EMBEDDING.finditer(text):
        yield Mention(kind="embedding", name=match[1])


def join_mentions(mentions: list[Mention]) -> tuple[Mention, ...]:
    """Returns each file once, with all hashes that are said of it."""
    joined: dict[tuple[str, str], Mention] = {}
    for mention in mentions[:MAX_FILES]:
        key = (mention.kind, _strip_ending(mention.name).casefold() or "".join(mention.hashes))
        before = joined.get(key, mention)
        hashes = tuple(dict.fromkeys((*before.hashes, *mention.hashes)))
        strength = mention.strength if before.strength is None else before.strength
        joined[key] = replace(before, hashes=hashes, strength=strength)
    return tuple(joined.values())


def _strip_ending(name: str) -> str:
    return next(
        (name[: -len(end)] for end in load_table("picture_notes")["endings"] if name.endswith(end)), name
    )


def _split_settings(text: str) -> tuple[str, dict[str, str]]:
    """The settings begin with ``Steps:`` at the beginning of a line, the last of those; else they are the last line."""
    text = text.replace("\r\n", "\n").strip()
    at = 0 if text.startswith("Steps: ") else text.rfind("\nSteps: ") + 1
    if at or text.startswith("Steps: "):
        return text[:at].rstrip("\n"), _read_settings(text[at:])
    words, _, last = text.rpartition("\n")
    settings = _read_settings(last)
    return (words, settings) if len(settings) >= _MIN_SETTINGS else (text, {})


def _read_settings(text: str) -> dict[str, str]:
    """Returns ``name: value`` between commas; a value may be text in quotes, or JSON with commas of its own."""
    found: dict[str, str] = {}
    place = 0
    while place < len(text) and len(found) < _MAX_SETTINGS:
        match = _KEY.match(text, place)
        if match is not None:
            value, place = _read_value(text, match.end())
            found.setdefault(match[1].strip(), value.strip())
        comma = text.find(",", place)
        place = len(text) if comma < 0 else comma + 1
        while place < len(text) and text[place].isspace():
            place += 1
    return found


def _read_value(text: str, start: int) -> tuple[str, int]:
    if text[start : start + 1] in ('"', "{", "["):
        try:
            value, end = _JSON.raw_decode(text, start)
        except (ValueError, RecursionError):
            pass
        else:
            return value if isinstance(value, str) else text[start:end], end
    match = _PLAIN.match(text, start)
    return (match[0], match.end()) if match else ("", start)


def _iter_settings_files(settings: Mapping[str, str]) -> Iterator[Mention]:
    for kind, name, hashed in (("checkpoint", "Model", "Model hash"), ("vae", "VAE", "VAE hash")):
        if settings.get(name) or settings.get(hashed):
            yield _make(kind, settings.get(name, ""), settings.get(hashed, ""))
    for name, kind in (
        ("Lora hashes", "lora"),
        ("TI hashes", "embedding"),
        ("Hypernet hashes", "hypernetwork"),
    ):
        for match in _NAMED.finditer(settings.get(name, "")):
            yield _make(kind, match[1], match[2])
    for name, kind in (
        ("Refiner", "checkpoint"),
        ("Used embeddings", "embedding"),
        ("Hypernet", "hypernetwork"),
    ):
        for part in settings.get(name, "").split(", "):
            found = _BRACKETED.match(part)
            if found is not None:
                yield _make(kind, found[1], found[2])
            elif part and kind == "hypernetwork":
                yield _make(kind, part, "")
    yield from _iter_table(settings.get("Hashes", ""))
    yield from _iter_resources(settings.get("Civitai resources", ""))
    yield from _iter_numbered(settings)


def _iter_table(text: str) -> Iterator[Mention]:
    for key, value in _read_json(text, dict).items():
        word, _, name = str(key).partition(":")
        kind = _list_words().get(word.lower())
        if kind is not None and isinstance(value, str):
            yield _make(kind, name, value)


def _iter_resources(text: str) -> Iterator[Mention]:
    for row in _read_json(text, list):
        if isinstance(row, dict):
            kind = _list_words().get(str(row.get("type")).lower())
            name = row.get("modelName")
            if kind is not None and isinstance(name, str) and name:
                weight = row.get("weight")
                strength = float(weight) if isinstance(weight, int | float) else None
                yield replace(_make(kind, name, str(row.get("hash") or "")), strength=strength)


def _iter_numbered(settings: Mapping[str, str]) -> Iterator[Mention]:
    """What extensions say: ``ControlNet 0`` with settings of its own, ``AddNet Model 1`` with a hash in brackets."""
    for key, value in settings.items():
        is_control = key.startswith("ControlNet")
        if is_control or key.startswith("AddNet Model"):
            match = _BRACKETED.match(_read_settings(value).get("Model", "") if is_control else value)
            if match:
                yield _make("controlnet" if is_control else "lora", match[1], match[2])


def _make(kind: str, name: str, digits: str) -> Mention:
    match = _HEX.fullmatch(digits.strip())
    return Mention(kind=kind, name=name.strip()[:_MAX_CHARS], hashes=(match[1].lower(),) if match else ())


def _read_json(text: str, kind: type[Any]) -> Any:
    try:
        found = json.loads(text) if text else kind()
    except (ValueError, RecursionError):
        return kind()
    return found if isinstance(found, kind) else kind()


def _read_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


@cache
def _list_words() -> Mapping[str, str]:
    words: dict[str, str] = load_table("picture_notes")["words"]
    return words
