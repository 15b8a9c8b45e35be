"""What the files beside a model say of it, whichever program wrote them: claims, never an address and never a path.

The forms are those that ``formats/sidecars.py`` writes, and A1111's ``NAME.txt``. Whatever is malformed, too long or
of another type is left out; only a file that is no JSON at all is named.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final

from conceptry.bases import FamilyId
from conceptry.errors import InvalidFileError, InvalidNameError
from conceptry.formats.data_files import load_table
from conceptry.names import Placeholder, parse_placeholder

MAX_SIDECAR_BYTES: Final = 4 << 20
MAX_WORDS: Final = 32
PREVIEW_ENDS: Final = tuple(
    f"{middle}.{end}" for middle in (".preview", "") for end in ("png", "jpg", "jpeg", "webp")
)
_MAX_CHARS: Final = 200
_BLANKS: Final = re.compile(r"[\s._-]+")
_HASHES: Final = {"sha256": 64, "autov2": 10, "autov3": 12}
_HEX: Final = re.compile(r"[0-9a-f]+", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What is said beside a model file."""

    title: str = ""
    triggers: tuple[Placeholder, ...] = ()
    description: str = ""
    base: str = ""
    """What its base is called there."""

    family: FamilyId | None = None
    """What that means, None where it is not known."""

    model_id: int | None = None
    version_id: int | None = None
    """Numbers of Civitai."""

    hashes: tuple[tuple[str, str], ...] = ()
    """``sha256``, ``autov2`` or ``autov3``, and lower-case hexadecimal digits; nothing was hashed to check them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SidecarReader:
    """One program's notes: what they are called after the model's stem, and what they say."""

    id: str
    suffix: str
    read: Callable[[bytes, str], Claims]


def read_sidecars(found: Mapping[str, bytes]) -> tuple[Claims, tuple[str, ...]]:
    """Returns what the notes beside one model say together, by the ids of READERS, and what was wrong, in words.

    Where several say something of the same field, the first of READERS counts: what a person wrote, before answers of
    Civitai. Another base in a later one is said.
    """
    joined, faults = Claims(), []
    for row in READERS:
        if row.id not in found:
            continue
        try:
            claims = row.read(found[row.id], row.suffix)
        except InvalidFileError as error:
            faults.append(error.message)
            continue
        if joined.family and claims.family and claims.family != joined.family:
            faults.append(f"the notes beside it name two bases: {joined.base!r} and {claims.base!r}")
        joined = _join(joined, claims)
    return joined, tuple(faults)


def find_claimed_family(text: str) -> FamilyId | None:
    """Returns the family that Civitai or A1111 calls so, None where the name is of none that is known."""
    name = _BLANKS.sub("", text.lower())
    for beginnings, family in _list_bases():
        if name.startswith(beginnings):
            return family
    return None


@cache
def _list_bases() -> tuple[tuple[tuple[str, ...], FamilyId], ...]:
    rows = load_table("sidecars")["bases"]
    return tuple((tuple(row["names"]), FamilyId(row["family"])) for row in rows)


def _join(first: Claims, second: Claims) -> Claims:
    fields = {name: getattr(first, name) or getattr(second, name) for name in Claims.__dataclass_fields__}
    hashes = dict(second.hashes) | dict(first.hashes)
    if first.family:
        fields["base"] = first.base
    return replace(Claims(**fields), hashes=tuple(sorted(hashes.items())))


# --- programs --------------------------------------------------------------------------------------------------------


def _read_a1111(data: bytes, suffix: str) -> Claims:
    document = _parse(data, suffix)
    return _name_base(
        Claims(
            triggers=_split_words([document.get("activation text")]),
            description=_take_text(document.get("description")) or _take_text(document.get("notes")),
            base=_take_text(document.get("sd version")),
        )
    )


def _read_lora_manager(data: bytes, suffix: str) -> Claims:
    document = _parse(data, suffix)
    own = Claims(
        title=_take_text(document.get("model_name")),
        description=_take_text(document.get("modelDescription")),
        base=_take_text(document.get("base_model")),
        hashes=_take_hashes({"sha256": document.get("sha256")}),
    )
    nested = document.get("civitai")
    return _join(_name_base(own), _describe_civitai(nested if isinstance(nested, dict) else {}))


def _read_civitai(data: bytes, suffix: str) -> Claims:
    return _describe_civitai(_parse(data, suffix))


def _describe_civitai(document: Mapping[str, Any]) -> Claims:
    model = document.get("model")
    model = model if isinstance(model, dict) else {}
    files = document.get("files")
    listed = [file for file in files if isinstance(file, dict)] if isinstance(files, list) else []
    # Of several files nothing tells which one lies here.
    hashes = listed[0].get("hashes") if len(listed) == 1 else None
    words = document.get("trainedWords")
    claims = Claims(
        title=_take_text(model.get("name")),
        triggers=_split_words(words if isinstance(words, list) else []),
        description=_take_text(model.get("description")) or _take_text(document.get("description")),
        base=_take_text(document.get("baseModel")),
        model_id=_take_number(document.get("modelId")),
        version_id=_take_number(document.get("id")),
        hashes=_take_hashes(hashes if isinstance(hashes, dict) else {}),
    )
    return _name_base(claims)


def _read_text(data: bytes, suffix: str) -> Claims:
    return Claims(description=_take_text(data[:MAX_SIDECAR_BYTES].decode("utf-8", "replace")))


READERS: Final[tuple[SidecarReader, ...]] = (
    SidecarReader(id="a1111", suffix=".json", read=_read_a1111),
    SidecarReader(id="lora_manager", suffix=".metadata.json", read=_read_lora_manager),
    SidecarReader(id="civitai_helper", suffix=".civitai.info", read=_read_civitai),
    SidecarReader(id="a1111_text", suffix=".txt", read=_read_text),
)


# --- values ----------------------------------------------------------------------------------------------------------


def _parse(data: bytes, suffix: str) -> dict[str, Any]:
    try:
        document = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InvalidFileError(f"its {suffix} is no JSON") from error
    if len(data) > MAX_SIDECAR_BYTES or not isinstance(document, dict):
        raise InvalidFileError(f"its {suffix} is no JSON object, or longer than {MAX_SIDECAR_BYTES} bytes")
    return document


def _name_base(claims: Claims) -> Claims:
    return replace(claims, family=find_claimed_family(claims.base))


def _take_text(value: Any) -> str:
    """Returns one line of text; pages of the web keep their words and lose their marks."""
    if not isinstance(value, str):
        return ""
    words = re.sub(r"<[^<>]{0,2000}>", " ", value[: 20 * _MAX_CHARS]).split()
    return "".join(char for char in " ".join(words) if char.isprintable())[:_MAX_CHARS].strip()


def _take_number(value: Any) -> int | None:
    return value if type(value) is int and 0 < value < 1 << 53 else None


def _take_hashes(found: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    by_name = {str(name).lower(): str(value).lower() for name, value in found.items()}
    return tuple(
        (name, by_name[name][:digits])
        for name, digits in sorted(_HASHES.items())
        if len(by_name.get(name, "")) >= digits and _HEX.fullmatch(by_name[name])
    )


def _split_words(texts: Iterable[Any]) -> tuple[Placeholder, ...]:
    words: dict[Placeholder, None] = {}
    for text in texts:
        for part in text.split(",") if isinstance(text, str) else ():
            try:
                words[parse_placeholder(part.strip())] = None
            except InvalidNameError:
                continue
    return tuple(words)[:MAX_WORDS]
