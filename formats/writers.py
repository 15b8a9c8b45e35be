"""WRITERS: every program that concepts can be written for, one row each; adding one is one row."""

from __future__ import annotations

from functools import partial
from typing import Final

from conceptry.errors import UsageError, suggest_nearest
from conceptry.formats import export_embedding, export_lora
from conceptry.formats.export_contract import Writer
from conceptry.formats.export_control import write_control_or

WRITERS: Final[tuple[Writer, ...]] = (
    Writer(
        id="diffusers",
        title="diffusers (load_lora_weights, load_textual_inversion)",
        write={
            "lora": partial(write_control_or, plain=export_lora.write_diffusers),
            "embedding": export_embedding.write_diffusers,
        },
    ),
    Writer(
        id="peft",
        title="PEFT (a folder for PeftModel.from_pretrained)",
        folder=True,
        write={"lora": export_lora.write_peft},
    ),
    Writer(
        id="kohya",
        title="sd-scripts and LyCORIS",
        write={
            "lora": partial(export_lora.write_with_alphas, spelling="kohya"),
            "embedding": export_embedding.write_named_by_file,
        },
    ),
    Writer(
        id="comfyui",
        title="ComfyUI",
        sidecars=("lora_manager",),
        write={
            "lora": partial(
                write_control_or, plain=partial(export_lora.write_with_alphas, spelling="comfyui")
            ),
            "embedding": export_embedding.write_named_by_file,
        },
    ),
    Writer(
        id="a1111",
        title="AUTOMATIC1111, Forge and their relatives",
        sidecars=("a1111", "civitai_helper"),
        write={
            "lora": partial(export_lora.write_with_alphas, spelling="a1111"),
            "embedding": export_embedding.write_named_by_file,
        },
    ),
)
WRITER_BY_ID: Final[dict[str, Writer]] = {row.id: row for row in WRITERS}


def find_writer(id: str) -> Writer:
    """Returns the row called ``id``. Raises UsageError with the nearest one."""
    row = WRITER_BY_ID.get(id)
    if row is None:
        hint = suggest_nearest(id, WRITER_BY_ID) or f"known: {', '.join(WRITER_BY_ID)}"
        raise UsageError(f"nothing is written for {id[:80]!r}", hint=hint)
    return row
