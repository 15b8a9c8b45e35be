"""The same weights under another name or in another file: versions whose tensors are equal.

A manifest only claims its tensor digests; a match is believed once the tensors themselves were hashed here. What comes
out of byte planes cannot be hashed without their base: there the file itself must say the same, which unpacking holds
it to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from conceptry.digests import Digest
from conceptry.errors import ConceptryError
from conceptry.formats.tensors import digest_tensor_file
from conceptry.manifest import Manifest, Part
from conceptry.registry.listing import find_tensors, read_index
from conceptry.registry.refs import Resolved
from conceptry.registry.store import Store


@dataclass(frozen=True, slots=True)
class _Claim:
    """Tensors that a version says it has: in which blob, and what hashes or reads them there."""

    blob: Digest
    read: Callable[[Path], Digest]


def find_same_tensors(store: Store, version: Resolved, manifest: Manifest) -> tuple[str, ...]:
    """Returns the other versions in the store (``ns/name@1.0.0``) that have a file with the same tensors.

    A full fine-tune packed as byte planes has those that come out of it. An index that is behind finds none: this is
    a remark for people, never a decision.
    """
    claims = [claim for build in manifest.builds for part in build.parts for claim in _iter_claims(part)]
    found = read_index(store.layout, lambda index: find_tensors(index, dict(claims))) if claims else None
    others = [(text, Digest.parse(digest)) for text, digest in found or () if text != str(version.reference)]
    wanted = {digest for _, digest in others}
    right = {digest for digest, claim in claims if digest in wanted and _is_right(store, claim, digest)}
    return tuple(dict.fromkeys(text for text, digest in others if digest in right))


def _iter_claims(part: Part) -> Iterator[tuple[Digest, _Claim]]:
    for file in part.files:
        if file.tensor_sha256 is not None:
            yield file.tensor_sha256, _Claim(file.sha256, digest_tensor_file)
    for one in part.method.packing or () if part.method.kind == "full" else ():
        for file in part.files:
            yield one.tensors, _Claim(file.sha256, _read_packed)


def _read_packed(path: Path) -> Digest:
    from conceptry.formats.byte_planes import open_planes

    return open_planes(path).tensors


def _is_right(store: Store, claim: _Claim, tensors: Digest) -> bool:
    try:
        return claim.read(store.layout.blob(claim.blob)) == tensors
    except (ConceptryError, OSError):
        return False
