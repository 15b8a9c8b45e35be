"""``concept.json``, schema 1: the one document that describes a version of a concept.

The identity of a version is the SHA-256 of its exact manifest bytes; the bytes are canonical JSON (RFC 8785). A
manifest is parsed once, here; everything behind works with these frozen models.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, JsonValue, ValidationError, model_validator

from conceptry.bases import FAMILY_BY_ID, BaseIdentity, ComponentName, FamilyId, Fingerprint
from conceptry.digests import Digest, canonical_json
from conceptry.documents import load_strict_json
from conceptry.errors import InvalidManifestError
from conceptry.fields import (
    AS_TEXT,
    TEXT_SCHEMA,
    Count,
    DigestText,
    MemberPath,
    Model,
    NameText,
    Number,
    PlaceholderText,
    RequirementText,
    ShortText,
    Text,
    VersionText,
    check_member_path,
    parsed_by,
)
from conceptry.kinds import KindId
from conceptry.methods import (
    CompositionMethod,
    EmbeddingMethod,
    FullMethod,
    Gate,
    HypernetworkMethod,
    LoraMethod,
    Method,
    NamedMember,
    Packing,
    RankOneMethod,
)

__all__ = [
    "AS_TEXT",
    "MAX_FILES",
    "SCHEMA_VERSION",
    "TEXT_SCHEMA",
    "Base",
    "Build",
    "CompositionMethod",
    "EmbeddingMethod",
    "File",
    "FingerprintModel",
    "FullMethod",
    "Gate",
    "HypernetworkMethod",
    "License",
    "LoraMethod",
    "Manifest",
    "Method",
    "Metric",
    "Model",
    "NameText",
    "NamedMember",
    "Number",
    "Packing",
    "Part",
    "Permission",
    "Permissions",
    "PlaceholderText",
    "Provenance",
    "RankOneMethod",
    "Rights",
    "ShortText",
    "Text",
    "Token",
    "TrainingProvenance",
    "Usage",
    "VersionText",
    "check_member_path",
    "parse_manifest",
    "parsed_by",
]

SCHEMA_VERSION: Final = 1
MAX_FILES: Final = 1024

# --- who, and under which terms ------------------------------------------------------------------------------------

Permission = Literal["yes", "no", "unknown"]


class Permissions(Model):
    """What the licence allows, as its source says; what it does not say is unknown."""

    commercial: Permission = "unknown"
    derivatives: Permission = "unknown"
    redistribution: Permission = "unknown"
    credit_required: Permission = "unknown"


class License(Model):
    """The licence: an SPDX id, or a name and the address of its text."""

    spdx: ShortText | None = None
    name: ShortText | None = None
    url: Text | None = None
    permissions: Permissions = Permissions()
    source: Text | None = None


class Rights(Model):
    """Whom or what the concept depicts, and with whose consent."""

    depicts: Literal["person", "artist_style", "brand", "none", "unknown"] = "unknown"
    consent: Text = "unknown"
    training_data_license: Text | None = None


class Token(Model):
    """One word that calls the concept. ``vectors`` is 0 where the word is plain text (lora, full)."""

    placeholder: PlaceholderText
    vectors: Count = 0
    rows: Literal["one_token_n_vectors", "n_tokens"] = "one_token_n_vectors"
    superclass: ShortText | None = None
    role: Literal["required", "optional", "negative"] = "required"


class Usage(Model):
    """How to use the concept without asking its author."""

    strength: Number = 1.0
    min: Number = 0.0
    max: Number = 1.5
    prompts: tuple[Text, ...] = ()
    negative: Text = ""


# --- what is stored ------------------------------------------------------------------------------------------------


class File(Model):
    """One file of a build: bytes named by their digest, tensors by theirs."""

    path: MemberPath
    role: Literal["weights", "preview", "document"] = "weights"
    media_type: ShortText = "application/vnd.safetensors"
    size: Count
    sha256: DigestText
    tensor_sha256: DigestText | None = None


class Part(Model):
    """What one kind stores; most builds have one part, pivotal tuning has two."""

    kind: KindId
    method: Method
    files: Annotated[tuple[File, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _agree(self) -> Part:
        if self.kind != self.method.kind:
            raise ValueError(f"kind {self.kind!r} differs from the method's {self.method.kind!r}")
        if [file.path for file in self.files] != sorted(file.path for file in self.files):
            raise ValueError("files must be sorted by path")
        return self


class FingerprintModel(Model):
    """A component's fingerprint as it is published."""

    layout: DigestText
    weights: Annotated[tuple[Number, ...], Field(max_length=64)]


def _check_family(id: str) -> str:
    if id not in FAMILY_BY_ID:
        raise ValueError(f"no base family is called {id!r}")
    return id


class Base(Model):
    """The base model that a build belongs to."""

    family: Annotated[str, AfterValidator(_check_family)]
    architecture: ShortText
    repo: Text | None = None
    revision: Text | None = None
    fingerprints: dict[str, FingerprintModel] = Field(default_factory=dict)
    prediction_type: Literal["epsilon", "v_prediction", "sample", "flow"]

    @property
    def identity(self) -> BaseIdentity:
        """The base as the value that ``judge_fit`` compares."""
        prints = {
            ComponentName(name): Fingerprint(model.layout, model.weights)
            for name, model in self.fingerprints.items()
        }
        return BaseIdentity(
            family=FamilyId(self.family), prediction_type=self.prediction_type, fingerprints=prints
        )


class Metric(Model):
    """One measured score under a named protocol."""

    name: ShortText
    value: Number
    interval: tuple[Number, Number] | None = None
    protocol: ShortText


class TrainingProvenance(Model):
    """The digests that reproduce a training run."""

    trainer: ShortText
    recipe: DigestText
    data: DigestText
    seed: Count
    steps: Count
    code_version: ShortText


class Provenance(Model):
    """Where a build came from."""

    source: Literal["trained", "imported", "merged", "composed", "unknown"] = "unknown"
    imported_from: DigestText | None = None
    derived_from: Annotated[tuple[DigestText, ...], Field(max_length=64)] = ()
    training: TrainingProvenance | None = None


class Build(Model):
    """The same concept for one base, stored one way."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    base: Base
    parts: Annotated[tuple[Part, ...], Field(min_length=1)]
    metrics: tuple[Metric, ...] = ()
    provenance: Provenance = Provenance()

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of the parts, in order."""
        return tuple(part.kind for part in self.parts)


class Manifest(Model):
    """A version of a concept."""

    schema_version: Literal[1] = Field(default=SCHEMA_VERSION, alias="schema")
    name: NameText
    version: VersionText
    title: Text = ""
    description: Text = ""
    tags: tuple[ShortText, ...] = ()
    authors: tuple[ShortText, ...] = ()
    created: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")] | None = None
    license: License = License()
    rights: Rights = Rights()
    tokens: tuple[Token, ...] = ()
    usage: Usage = Usage()
    requires: tuple[RequirementText, ...] = ()
    conflicts: tuple[RequirementText, ...] = ()
    builds: Annotated[tuple[Build, ...], Field(min_length=1)]
    extensions: dict[str, JsonValue] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_members(self) -> Manifest:
        files = list(self.iter_files())
        if len(files) > MAX_FILES:
            raise ValueError(f"{len(files)} files, at most {MAX_FILES} are allowed")
        by_path: dict[str, Digest] = {}
        for file in files:
            if by_path.setdefault(file.path.casefold(), file.sha256) != file.sha256:
                raise ValueError(f"two different files are called {file.path!r}")
        if len({build.id for build in self.builds}) != len(self.builds):
            raise ValueError("two builds have the same id")
        return self

    @model_validator(mode="after")
    def _check_named(self) -> Manifest:
        if not self.members:
            return self
        if set(self.kinds) != {"composition"} or any(len(build.parts) > 1 for build in self.builds):
            raise ValueError("a composition holds nothing but what it names")
        asked = {str(one) for one in self.requires}
        for member in self.members:
            if member.concept == self.name:
                raise ValueError(f"the composition {self.name} names itself")
            if member.label not in asked:
                raise ValueError(f"the composition names {member.label}, which requires does not")
        return self

    def iter_files(self) -> Iterator[File]:
        """Returns all files of all builds."""
        for build in self.builds:
            for part in build.parts:
                yield from part.files

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that occur, in order of first appearance."""
        return tuple(dict.fromkeys(kind for build in self.builds for kind in build.kinds))

    @property
    def members(self) -> tuple[NamedMember, ...]:
        """The concepts that a composition names, each once; none of anything else."""
        methods = (part.method for build in self.builds for part in build.parts)
        named = (one for method in methods if isinstance(method, CompositionMethod) for one in method.members)
        return tuple({member.digest: member for member in named}.values())

    @property
    def size_bytes(self) -> int:
        """The sum of the sizes of all distinct blobs."""
        return sum({file.sha256: file.size for file in self.iter_files()}.values())

    def to_bytes(self) -> bytes:
        """Returns the canonical bytes, whose digest is the version's identity; what is unset is left out."""
        return canonical_json(
            self.model_dump(mode="json", by_alias=True, exclude_defaults=False, exclude_none=True)
        )

    @property
    def digest(self) -> Digest:
        """The identity of this version, for a manifest that was made here; a stored one is hashed as it lies."""
        return Digest.of_bytes(self.to_bytes())


# --- parsing -------------------------------------------------------------------------------------------------------


def parse_manifest(data: bytes) -> Manifest:
    """Returns the manifest that ``data`` writes.

    Raises:
        InvalidManifestError: with the place (``builds[0].parts[0].files[2].sha256``) and the reason.
    """
    document = load_strict_json(data)
    found = document.get("schema") if isinstance(document, dict) else None
    if found != SCHEMA_VERSION:
        raise InvalidManifestError(
            f"manifest schema {found!r} is not known here, this version reads {SCHEMA_VERSION}",
            where="schema",
            hint="update conceptry, or check that this file is a concept.json",
        )
    try:
        return Manifest.model_validate_json(data, strict=True)
    except ValidationError as error:
        raise _explain(error) from error


def _explain(error: ValidationError) -> InvalidManifestError:
    first = error.errors(include_url=False)[0]
    where = ""
    for place in first["loc"]:
        where += f"[{place}]" if isinstance(place, int) else f".{place}" if where else str(place)
    return InvalidManifestError(
        f"{first['msg'].removeprefix('Value error, ')} (got {str(first.get('input'))[:80]!r})",
        where=where or None,
        hint="the schema is in docs/concept.schema.json",
    )
