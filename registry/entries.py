"""What the index keeps of each version, made from references and manifests alone: files in, rows out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring
from typing import Any

from pydantic_core import from_json

from conceptry.errors import ConceptryError, StoreError
from conceptry.names import ConceptName, Reference, Version, pick_latest
from conceptry.registry.manifests import read_manifest_bytes
from conceptry.registry.paths import Layout
from conceptry.registry.refs import Resolved, iter_concepts, read_version
from conceptry.registry.rows import make_sort_key, seal_row
from conceptry.registry.yanks import read_yanks


@dataclass(frozen=True, slots=True)
class Entry:
    """What the index keeps of one version: its row, and a row for each of its files, two where one is packed."""

    row: dict[str, Any]
    files: tuple[dict[str, Any], ...]


def make_entry(version: Resolved, document: Mapping[str, Any], origin: str) -> Entry:
    """Returns what the index keeps of a version, from the document of its manifest; whether it is latest comes later.

    Raises:
        KeyError, TypeError, AttributeError: if the document is no manifest.
    """
    name, number = version.reference.concept, version.reference.version
    if number is None:
        raise TypeError(str(version.reference))
    builds = document["builds"]
    parts = [part for build in builds for part in build["parts"]]
    files = [file for part in parts for file in part["files"]]
    license = document.get("license", {})
    row = {
        "namespace": name.namespace,
        "name": name.name,
        "version": str(number),
        "sort_key": make_sort_key(number),
        "digest": str(version.digest),
        "title": document.get("title", ""),
        "description": document.get("description", ""),
        "kinds": _to_list([part["kind"] for part in parts]),
        "families": _to_list([build["base"]["family"] for build in builds]),
        "placeholders": _to_list([token["placeholder"] for token in document.get("tokens", ())]),
        "tags": _to_list(document.get("tags", ())),
        "license": license.get("spdx") or license.get("name"),
        "size_bytes": sum({file["sha256"]: file["size"] for file in files}.values()),
        "origin": origin,
        "yanked": None,
        "latest": 0,
    }
    distinct = {(file["path"], file["sha256"]): file.get("tensor_sha256") for file in files}
    keys = sorted(distinct) if len(distinct) > 1 else distinct
    rows = [{"path": key[0], "digest": key[1], "tensor_digest": distinct[key]} for key in keys]
    return Entry(row, (*rows, *_list_packed(parts)))


def _list_packed(parts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A file of byte planes has a second row: it is found by the tensors that come out of it too."""
    found = []
    for part in parts:
        for one in part["method"].get("packing") or ():
            usual = f"{one['component']}.safetensors"
            file = min(part["files"], key=lambda file: (file["path"] != usual, file["path"]))
            found.append({"path": file["path"], "digest": file["sha256"], "tensor_digest": one["tensors"]})
    return found


def _to_list(values: Iterable[str]) -> str:
    """As ``json.dumps`` writes a list, which makes an encoder for each call and takes five times as long."""
    return f"[{', '.join(map(encode_basestring, dict.fromkeys(values)))}]"


def iter_entries(layout: Layout, unreadable: list[Reference] | None = None) -> Iterator[Entry]:
    """Yields all versions whose reference and manifest are whole; ``verify`` names the others.

    Those that the disk would not give, which says nothing about them, are added to ``unreadable``.
    """
    passed_over: list[Reference] = [] if unreadable is None else unreadable
    for name, versions in iter_concepts(layout):
        read = [(version, _read_entry(layout, name, version, passed_over)) for version in versions]
        found = [(version, entry) for version, entry in read if entry is not None]
        choose_latest([(version, entry.row) for version, entry in found], read_yanks(layout, name))
        for _, entry in found:
            yield Entry(seal_row(entry.row), entry.files)


def _read_entry(
    layout: Layout, name: ConceptName, version: Version, unreadable: list[Reference]
) -> Entry | None:
    """The bytes have the digest of what was checked when it was published; they are not held to all rules again."""
    reference = Reference(name, version)
    try:
        ref = read_version(layout, name, version)
        if ref is None:
            return None
        resolved = Resolved(reference, ref.digest)
        document = from_json(read_manifest_bytes(layout, resolved))
        entry = make_entry(resolved, document, ref.origin)
        said = (document["schema"], document["name"], document["version"])
        return entry if said == (1, str(name), entry.row["version"]) else None
    except StoreError:
        unreadable.append(reference)
        return None
    except (ConceptryError, ValueError, KeyError, TypeError, AttributeError):
        return None


def choose_latest(rows: Sequence[tuple[Version, dict[str, Any]]], yanked: Mapping[Version, str]) -> None:
    """Writes into all rows of one concept what was yanked and which is latest.

    Of a concept of which every version was yanked, the greatest stays in the listing, marked.
    """
    versions = [version for version, _ in rows]
    # Where nothing was yanked no version is looked up, which would cost more than all the rest.
    wanted = [version for version in versions if version not in yanked] if yanked else versions
    latest = pick_latest(wanted or versions) if len(versions) > 1 else versions[0] if versions else None
    for version, row in rows:
        row["yanked"] = yanked.get(version) if yanked else None
        row["latest"] = int(version is latest)
