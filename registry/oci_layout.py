"""How a concept lies in an OCI registry: names, tags, and the manifest that any registry's client can read.

One repository a concept, ``prefix/namespace/name``. A version is a tag with ``+`` written ``_``; its image manifest has
``concept.json`` as its config, whose digest is the version's identity, and each file as one raw layer (as ModelPack's
raw layers). A moving tag is the same manifest under another name. A yank is a tag of its own, which begins with ``_``
as no tag of ours does; taking it back points that tag to a mark without a reason, since few registries delete tags.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from conceptry.digests import Digest, canonical_json
from conceptry.errors import ConceptryError, InvalidNameError, RemoteError, UsageError
from conceptry.names import ConceptName, Tag, Version, parse_tag, parse_version
from conceptry.registry.answers import find_origin

if TYPE_CHECKING:
    from conceptry.manifest import Manifest

MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
CONCEPT_TYPE: Final = "application/vnd.conceptry.concept.v1+json"
YANK_TYPE: Final = "application/vnd.conceptry.yank.v1+json"
EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"
EMPTY: Final = b"{}"

_PROTOCOLS: Final = {"oci": "https", "oci+http": "http"}
_COMPONENT: Final = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*", re.ASCII)
_MAX_REPOSITORY_CHARS: Final = 255
_YANKED: Final = "_yanked."
_TITLE: Final = "org.opencontainers.image.title"
_VERSION: Final = "org.opencontainers.image.version"
_LICENSES: Final = "org.opencontainers.image.licenses"
_DESCRIPTION: Final = "org.opencontainers.image.description"
_REASON: Final = "dev.conceptry.yank.reason"


@dataclass(frozen=True, slots=True)
class OciAddress:
    """What ``oci://host/prefix`` names."""

    uri: str
    origin: str
    """The registry as an address on the web."""

    prefix: str
    """What stands before each concept's name, empty or ending with a slash."""

    @classmethod
    def parse(cls, uri: str) -> OciAddress:
        """Returns the address that a text writes; ``oci+http`` asks for a registry without encryption.

        Raises:
            UsageError: if it is none.
        """
        parts = urlsplit(uri)
        protocol = _PROTOCOLS.get(parts.scheme)
        prefix = parts.path.strip("/")
        fits = all(_COMPONENT.fullmatch(component) for component in prefix.split("/")) if prefix else True
        if protocol is None or not parts.netloc or not fits or parts.query or parts.fragment:
            raise UsageError(
                f"not a registry's address: {uri[:200].rpartition('@')[2]!r}",
                hint="write oci://host/prefix, the prefix in lower-case letters, digits and . _ - between them",
            )
        address = f"{protocol}://{parts.netloc}"
        find_origin(address)
        return cls(
            f"{parts.scheme}://{parts.netloc}/{prefix}".rstrip("/"), address, f"{prefix}/" if prefix else ""
        )

    def name_repository(self, name: ConceptName) -> str:
        """Returns the repository of a concept. Raises UsageError if registries have no such names."""
        repository = f"{self.prefix}{name.namespace}/{name.name}"
        fits = all(_COMPONENT.fullmatch(component) for component in (name.namespace, name.name))
        if not fits or len(repository) > _MAX_REPOSITORY_CHARS:
            raise UsageError(
                f"{name} cannot be kept in a registry of containers",
                hint="between letters and digits its names allow one of . _ __ or several -, and 255 characters in all",
            )
        return repository

    def read_repository(self, repository: str) -> ConceptName | None:
        """Returns the concept that a repository holds, None if it is none of ours."""
        if not repository.startswith(self.prefix):
            return None
        try:
            namespace, name = repository[len(self.prefix) :].split("/")
            return ConceptName(namespace, name)
        except (ValueError, InvalidNameError):
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """One version as the registry has it."""

    version: Version
    digest: Digest
    """Of ``concept.json``."""

    size_bytes: int
    data: bytes
    """The registry's own manifest, byte for byte."""

    @property
    def commit(self) -> str:
        """The digest of the registry's own manifest."""
        return str(Digest.of_bytes(self.data))


def name_version(version: Version) -> str:
    """Returns the registry's tag of a version."""
    return str(version).replace("+", "_")


def read_version_tag(tag: str) -> Version | None:
    """Returns the version that a registry's tag writes, None if it writes none."""
    try:
        return parse_version(tag.replace("_", "+", 1))
    except InvalidNameError:
        return None


def name_tag(tag: Tag) -> str:
    """Returns the registry's tag of a moving tag. Raises UsageError if it would read as a version."""
    if read_version_tag(tag) is not None:
        raise UsageError(f"the tag {tag!r} would read as a version in a registry", hint="choose another tag")
    return tag


def read_moving_tag(tag: str) -> Tag | None:
    """Returns the moving tag that a registry's tag is, None if it is something else."""
    try:
        return None if read_version_tag(tag) else parse_tag(tag)
    except InvalidNameError:
        return None


def name_yank(version: Version) -> str:
    """Returns the registry's tag that says whether a version is yanked."""
    return _YANKED + name_version(version)


def read_yank_tag(tag: str) -> Version | None:
    """Returns the version that a mark is of, None if the tag is no mark."""
    return read_version_tag(tag.removeprefix(_YANKED)) if tag.startswith(_YANKED) else None


def write_document(manifest: Manifest, data: bytes) -> bytes:
    """Returns the registry's manifest of a version: the same bytes for the same version, wherever it is pushed from."""
    layers = [
        {
            "mediaType": file.media_type,
            "digest": str(file.sha256),
            "size": file.size,
            "annotations": {_TITLE: file.path},
        }
        for file in manifest.iter_files()
    ]
    annotations = {
        _TITLE: f"{manifest.name}",
        _VERSION: str(manifest.version),
        _DESCRIPTION: manifest.title,
        _LICENSES: manifest.license.spdx or manifest.license.name or "",
    }
    return canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": CONCEPT_TYPE,
            "config": {"mediaType": CONCEPT_TYPE, "digest": str(Digest.of_bytes(data)), "size": len(data)},
            "layers": layers,
            "annotations": {key: value for key, value in annotations.items() if value},
        }
    )


def read_document(data: bytes, place: str) -> Stored:
    """Returns the version that a registry's manifest holds. Raises RemoteError if it holds something else."""
    try:
        document = _parse(data)
        config = document["config"]
        if config["mediaType"] != CONCEPT_TYPE:
            raise ValueError(f"its config is {str(config['mediaType'])[:80]!r}")
        size_bytes = int(config["size"])
        version = parse_version(document["annotations"][_VERSION])
        digest = Digest.parse(config["digest"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ConceptryError) as error:
        raise RemoteError(
            f"{place} holds no concept ({' '.join(str(error).split())[:120]})",
            hint="something else was pushed there; is the remote's address right?",
        ) from error
    return Stored(version=version, digest=digest, size_bytes=size_bytes, data=data)


def write_yank(reason: str | None) -> bytes:
    """Returns the registry's manifest of a mark; None takes an earlier mark back."""
    empty = {"mediaType": EMPTY_TYPE, "digest": str(Digest.of_bytes(EMPTY)), "size": len(EMPTY)}
    return canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": YANK_TYPE,
            "config": empty,
            "layers": [empty],
            "annotations": {_REASON: reason or ""},
        }
    )


def read_yank(data: bytes) -> str | None:
    """Returns why a version is yanked, None if the mark was taken back. What cannot be read counts as yanked."""
    try:
        reason = _parse(data)["annotations"][_REASON]
    except (ValueError, KeyError, TypeError, RecursionError):
        return "its mark cannot be read"
    return " ".join(str(reason).split())[:1000] or None


def _parse(data: bytes) -> dict[str, Any]:
    document = json.loads(data)
    if not isinstance(document, dict):
        raise TypeError("not an object")
    return document
