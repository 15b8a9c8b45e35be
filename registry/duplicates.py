"""The same weights under another name or in another file: versions whose tensors are equal.

A manifest only claims its tensor digests; a match is believed once the tensors themselves were hashed here.
"""

from __future__ import annotations

from conceptry.digests import Digest
from conceptry.errors import ConceptryError
from conceptry.formats.tensors import digest_tensor_file
from conceptry.manifest import Manifest
from conceptry.registry.listing import find_tensors, read_index
from conceptry.registry.refs import Resolved
from conceptry.registry.store import Store


def find_same_tensors(store: Store, version: Resolved, manifest: Manifest) -> tuple[str, ...]:
    """Returns the other versions in the store (``ns/name@1.0.0``) that have a file with the same tensors.

    An index that is behind finds none: this is a remark for people, never a decision.
    """
    claimed = {file.tensor_sha256: file for file in manifest.iter_files() if file.tensor_sha256 is not None}
    found = read_index(store.layout, lambda index: find_tensors(index, claimed)) if claimed else None
    others = [(text, Digest.parse(digest)) for text, digest in found or () if text != str(version.reference)]
    right = {
        digest
        for digest in {digest for _, digest in others}
        if _is_right(store, claimed[digest].sha256, digest)
    }
    return tuple(dict.fromkeys(text for text, digest in others if digest in right))


def _is_right(store: Store, blob: Digest, tensors: Digest) -> bool:
    try:
        return digest_tensor_file(store.layout.blob(blob)) == tensors
    except (ConceptryError, OSError):
        return False
