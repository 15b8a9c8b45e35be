"""Longer commands, which only the sweep of system calls strikes: a real import, and several versions at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from conceptry.digests import Digest
from conceptry.formats.import_plans import ImportSettings, declare_base, plan_import
from conceptry.formats.importing import write_import
from conceptry.formats.tensors import RawTensor, write_tensors
from conceptry.manifest import Manifest
from conceptry.names import ConceptName, RemoteName, parse_version
from conceptry.registry import Registry
from conceptry.written_files import remember_written_files
from tests.faults.commands import (
    NEW,
    Command,
    find_project,
    locate_concept,
    locate_studio,
    prepare_home,
    prepare_new,
    sync,
    write_concept,
    write_text,
)
from tests.registry.folders import make_document
from tests.registry.projects import write_project

FIVE: Final = tuple(f"me/{name}@1.0.0" for name in ("cup", "dog", "fox", "owl", "pen"))
MODULE: Final = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
FILES: Final = ("a.txt", "b.txt", "c.txt", "d.txt", "lora.safetensors")


def prepare_import(folder: Path) -> None:
    """A store that has the old version and the hat, and a file of another program beside it."""
    prepare_home(folder)
    factors = {
        f"{MODULE}.lora_down.weight": np.ones((4, 1280), np.float16),
        f"{MODULE}.lora_up.weight": np.ones((1280, 4), np.float16),
    }
    write_tensors(
        folder / "made" / "foreign.safetensors",
        {name: RawTensor.from_numpy(one) for name, one in factors.items()},
    )


def import_foreign(folder: Path) -> None:
    """Imports it, as ``concepts import`` does."""
    settings = ImportSettings(
        name=ConceptName.parse("me/imp"), version=parse_version("2.0.0"), base=declare_base("sd1")
    )
    registry = Registry(folder / "home")
    plan = plan_import((folder / "made" / "foreign.safetensors",), settings)
    with registry.stage() as staged, remember_written_files() as written:
        write_import(plan, staged / "0")
        registry.publish(staged / "0", written=written)


def prepare_files(folder: Path) -> None:
    """A version of five files that can be published."""
    prepare_home(folder)
    place = folder / "made" / "files"
    document: dict[str, Any] = make_document("me/imp", "2.0.0")
    (part,) = document["builds"][0]["parts"]
    part["files"] = []
    for name in FILES:
        data = name.encode() * 3000
        write_text(place / name, data)
        role = "weights" if name.endswith("safetensors") else "document"
        part["files"].append(
            {"path": name, "role": role, "size": len(data), "sha256": str(Digest.of_bytes(data))}
        )
    write_text(place / "concept.json", Manifest.model_validate(document).to_bytes())


def prepare_five(folder: Path) -> None:
    """Five versions in the store."""
    registry = Registry(folder / "home")
    for reference in FIVE:
        registry.publish(write_concept(folder, reference))


def prepare_five_made(folder: Path) -> None:
    """Five versions that can be published, and a store that has others."""
    prepare_home(folder)
    for reference in FIVE:
        write_concept(folder, reference)


def publish_five(folder: Path) -> None:
    """Publishes all five, one after the other."""
    for reference in FIVE:
        Registry(folder / "home").publish(locate_concept(folder, reference))


def prepare_five_pushed(folder: Path) -> None:
    """Five versions on a remote that another store knows."""
    prepare_five(folder)
    push_five(folder)
    Registry(folder / "second").add_remote(RemoteName("studio"), locate_studio(folder))


def prepare_five_locked(folder: Path) -> None:
    """A project that needs all five, locked and not synced yet."""
    prepare_five_pushed(folder)
    rows = [f'"{reference.partition("@")[0]}" = "^1"' for reference in FIVE]
    write_text(
        folder / "project" / "concepts.toml",
        write_project(locate_studio(folder), *rows, about='base = "sd1"').encode(),
    )
    find_project(folder).lock()


def push_five(folder: Path) -> None:
    """Pushes all five."""
    for reference in FIVE:
        Registry(folder / "home").push(reference, locate_studio(folder))


def pull_five(folder: Path) -> None:
    """Pulls all five at once."""
    Registry(folder / "second").pull_many([f"studio::{reference}" for reference in FIVE])


def yank(folder: Path) -> None:
    """Yanks the new version."""
    Registry(folder / "home").yank(NEW, "the wrong pictures")


def publish_files(folder: Path) -> None:
    """Publishes the version of five files."""
    Registry(folder / "home").publish(folder / "made" / "files")


MORE_COMMANDS: Final[dict[str, Command]] = {
    row.name: row
    for row in (
        Command(name="import", prepare=prepare_import, run=import_foreign, store="home", adds=(NEW,)),
        Command(name="publish (files)", prepare=prepare_files, run=publish_files, store="home", adds=(NEW,)),
        Command(name="yank", prepare=prepare_new, run=yank, store="home"),
        Command(name="publish (five)", prepare=prepare_five_made, run=publish_five, store="home", adds=FIVE),
        Command(name="push (five)", prepare=prepare_five, run=push_five, store="studio", adds=FIVE),
        Command(name="pull (five)", prepare=prepare_five_pushed, run=pull_five, store="second", adds=FIVE),
        Command(name="sync (five)", prepare=prepare_five_locked, run=sync, store="second", adds=FIVE),
    )
}
