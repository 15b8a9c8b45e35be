"""The values that a manifest is made of: texts with limits, names and digests as types, safe file names."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Final

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
)

from conceptry.digests import Digest
from conceptry.documents import MAX_INTEGER, MAX_STRING_CHARS
from conceptry.errors import ConceptryError
from conceptry.names import (
    ConceptName,
    Placeholder,
    Requirement,
    Version,
    parse_placeholder,
    parse_version,
)

_SEGMENT: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?", re.ASCII)
_DEVICES: Final = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.ASCII | re.IGNORECASE)


def check_member_path(path: str) -> str:
    """Returns ``path`` if it is a safe relative name on every platform (``unet/lora.safetensors``).

    Raises:
        ValueError: for anything that could leave the folder or that Windows or POSIX would read differently.
    """
    segments = path.split("/")
    ok = len(path) <= 255 and len(segments) <= 4
    if not ok or not all(_SEGMENT.fullmatch(part) and not _DEVICES.fullmatch(part) for part in segments):
        raise ValueError(f"not a file name that is safe everywhere: {path[:80]!r}")
    return path


def parsed_by(parse: Callable[[str], Any]) -> BeforeValidator:
    """Returns the validator that reads a value from its text with ``parse``."""

    def read(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return parse(value)
        except ConceptryError as error:
            raise ValueError(error.message) from error

    return BeforeValidator(read)


AS_TEXT: Final = PlainSerializer(str, return_type=str)
TEXT_SCHEMA: Final = WithJsonSchema({"type": "string", "maxLength": 300})
_DIGEST_SCHEMA: Final = WithJsonSchema({"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"})
Text = Annotated[str, Field(max_length=MAX_STRING_CHARS)]
ShortText = Annotated[str, Field(min_length=1, max_length=200)]
DigestText = Annotated[Digest, parsed_by(Digest.parse), AS_TEXT, _DIGEST_SCHEMA]
NameText = Annotated[ConceptName, parsed_by(ConceptName.parse), AS_TEXT, TEXT_SCHEMA]
VersionText = Annotated[Version, parsed_by(parse_version), AS_TEXT, TEXT_SCHEMA]
RequirementText = Annotated[Requirement, parsed_by(Requirement.parse), AS_TEXT, TEXT_SCHEMA]
PlaceholderText = Annotated[Placeholder, Field(max_length=64), parsed_by(parse_placeholder)]
MemberPath = Annotated[str, AfterValidator(check_member_path)]
Count = Annotated[int, Field(ge=0, le=MAX_INTEGER)]
Positive = Annotated[int, Field(ge=1, le=MAX_INTEGER)]
Number = Annotated[float, Field(allow_inf_nan=False, ge=-MAX_INTEGER, le=MAX_INTEGER)]


class Model(BaseModel):
    """Base of all parts of the manifest: frozen, closed, digests and names as types."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        arbitrary_types_allowed=True,
        populate_by_name=True,
        ser_json_inf_nan="strings",
    )
