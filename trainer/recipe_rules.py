"""What other programs' configurations mean beside their keys: what is off, what counts unsaid, what is not learned.

The rules of each program stand in the tables of ``imports/*.toml``; here is how they are carried out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

OFF = "off"


class LeftOut(NamedTuple):
    """An entry of a list of theirs that is not what is to be learned."""

    path: str
    entry: Any
    why: str


def name_value(value: Any) -> str:
    """Returns how a value of theirs is written in our tables."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def split_lists(document: Any, names: tuple[str, ...]) -> Any:
    """Returns ``document`` with lists of texts such as ``algo=loha``, under one of ``names``, as tables."""
    if not isinstance(document, dict):
        return document
    found = {}
    for key, value in document.items():
        texts = value if isinstance(value, list) else [value]
        if key in names and texts and all(isinstance(text, str) and "=" in text for text in texts):
            found[key] = {text.partition("=")[0].strip(): text.partition("=")[2].strip() for text in texts}
        else:
            found[key] = split_lists(value, names)
    return found


def leave_out(document: Any, table: Mapping[str, Any], left: list[LeftOut], path: str = "") -> Any:
    """Returns ``document`` without the entries of lists that are not to be learned, which ``left`` then holds."""
    if isinstance(document, dict):
        return {key: leave_out(value, table, left, f"{path}{key}.") for key, value in document.items()}
    if not isinstance(document, list):
        return document
    kept = []
    for place, entry in enumerate(document):
        why = _find_reason(entry, table.get("left_out", {}))
        if why is None:
            kept.append(leave_out(entry, table, left, f"{path}{place}."))
        else:
            left.append(LeftOut(f"{path}{place}", entry, why))
    return kept


def _find_reason(entry: Any, rules: Mapping[str, Mapping[str, str]]) -> str | None:
    if not isinstance(entry, dict):
        return None
    found = (rules[key].get(name_value(entry[key])) for key in rules if key in entry)
    return next((why for why in found if why is not None), None)


def find_other_network(values: Mapping[str, Any], table: Mapping[str, Any]) -> tuple[str, str] | None:
    """Returns their key and value where they trained a kind of network that is not trained here, or None."""
    for key, able in table.get("networks", {}).items():
        value = values.get(key)
        if value not in (None, "") and name_value(value) not in able:
            return key, name_value(value)
    return None


def find_unmet(name: str, values: Mapping[str, Any], table: Mapping[str, Any]) -> str | None:
    """Returns why a key of theirs does not count beside the others, or None if it does."""
    if name not in table.get("needs", {}):
        return None
    other, *wanted = table["needs"][name]
    value = values.get(other)
    if name_value(value) in wanted:
        return None
    return f"{other} is not set" if value is None else f"{other} is {name_value(value)}"


def iter_unsaid(
    values: Mapping[str, Any], table: Mapping[str, Any], method: str | None
) -> Iterator[tuple[str, str, Any]]:
    """Returns the key of theirs, ours, and the value that counts there where a configuration says nothing."""
    for group in ("all", str(method)):
        for ours, (theirs, value) in table.get("there", {}).get(group, {}).items():
            yield theirs, ours, None if value == OFF else value


def iter_notes(
    values: Mapping[str, Any], table: Mapping[str, Any], method: str | None
) -> Iterator[tuple[str, str]]:
    """Returns the keys that were left out, where that means something else there than here, and why."""
    for group in ("all", str(method)):
        for key, row in table.get("notes", {}).get(group, {}).items():
            if all(values.get(other) in (None, "") for other in row["unless"]):
                yield f"{key} left out", row["why"]
