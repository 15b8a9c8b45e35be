"""FORMATS: every way to write a concept file that is known here, one row each; adding one is one row."""

from __future__ import annotations

from typing import Final

from conceptry.formats.a1111_hypernetworks import list_hypernetwork_formats
from conceptry.formats.canonical import list_canonical_formats
from conceptry.formats.checkpoints import list_checkpoint_formats
from conceptry.formats.contract import Format
from conceptry.formats.custom_diffusion import list_custom_diffusion_formats
from conceptry.formats.embedding_dialects import list_embedding_formats
from conceptry.formats.lidb import list_lidb_formats
from conceptry.formats.lora_dialects import list_lora_formats
from conceptry.formats.perfusion import list_perfusion_formats
from conceptry.formats.positional import list_positional_formats
from conceptry.formats.recognised import list_recognised_formats
from conceptry.formats.svdiff import list_svdiff_formats

FORMATS: Final[tuple[Format, ...]] = (
    *list_canonical_formats(),
    *list_lora_formats(),
    *list_positional_formats(),
    *list_lidb_formats(),
    *list_custom_diffusion_formats(),
    *list_perfusion_formats(),
    *list_svdiff_formats(),
    *list_hypernetwork_formats(),
    *list_checkpoint_formats(),
    *list_recognised_formats(),
    *list_embedding_formats(),
)
FORMAT_BY_ID: Final[dict[str, Format]] = {row.id: row for row in FORMATS}
