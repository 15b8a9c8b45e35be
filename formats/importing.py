"""A file of another program -> a package: canonical files and their manifest, every tensor kept or the file refused."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Final

from conceptry.concepts import MANIFEST_NAME
from conceptry.errors import ConflictError, StoreError, UsageError
from conceptry.formats.contract import Contents
from conceptry.formats.embedding import EMBEDDING_NAME, EmbeddingContents, write_embedding
from conceptry.formats.import_plans import ImportPlan, ImportSettings, plan_import, refuse_invalid
from conceptry.formats.lora import LORA_NAME, LoraContents, write_lora
from conceptry.formats.modelspec import make_metadata
from conceptry.formats.packages import describe_file
from conceptry.kinds import KindId
from conceptry.manifest import Build, EmbeddingMethod, LoraMethod, Manifest, Part, Provenance

IMPORT_EXTENSION: Final = "conceptry.import"


def import_file(path: Path, folder: Path, settings: ImportSettings) -> Manifest:
    """Returns the manifest of the package that was made of the file at ``path`` in the new ``folder``.

    Raises:
        As ``plan_import`` and ``write_import``.
    """
    return write_import(plan_import(path, settings), folder)


def write_import(plan: ImportPlan, folder: Path) -> Manifest:
    """Returns the manifest of the package that is written to the new ``folder``, whole or not at all.

    Raises:
        ConflictError: if ``folder`` exists already.
        InvalidFileError: if a value is not finite or a shape is impossible.
        StoreError: if the disk is full or the folder cannot be written.
    """
    if folder.exists():
        raise ConflictError(f"{str(folder)!r} exists already", hint="name a folder that does not exist")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        private = Path(tempfile.mkdtemp(prefix=".importing-", dir=folder.parent))
        try:
            manifest = _fill(plan, private)
            private.rename(folder)
        finally:
            shutil.rmtree(private, ignore_errors=True)
    except OSError as error:
        raise StoreError(f"cannot write {str(folder)!r}: {error.strerror}") from error
    return manifest


def _fill(plan: ImportPlan, folder: Path) -> Manifest:
    parts = tuple(_write_part(plan, contents, folder) for contents in plan.reading.contents)
    settings, kind = plan.settings, parts[0].kind
    build = Build(
        id=f"{plan.base.family}-{kind}".replace("_", "-"),
        base=plan.base,
        parts=parts,
        provenance=Provenance(source="imported", imported_from=plan.source),
    )
    with refuse_invalid():
        manifest = Manifest(
            name=settings.name,
            version=settings.version,
            title=settings.title,
            description=settings.description,
            license=plan.license,
            tokens=plan.tokens,
            builds=(build,),
            extensions={
                IMPORT_EXTENSION: {
                    "dialect": plan.identification.dialect,
                    "tensors": plan.identification.coverage.total,
                    "notes": list(plan.notes),
                }
            },
        )
    (folder / MANIFEST_NAME).write_bytes(manifest.to_bytes())
    return manifest


def _write_part(plan: ImportPlan, contents: Contents, folder: Path) -> Part:
    kind: KindId = "lora" if isinstance(contents, LoraContents) else "embedding"
    metadata = make_metadata(
        kind,
        family=plan.base.family,
        title=plan.settings.title or str(plan.settings.name),
        triggers=[token.placeholder for token in plan.tokens],
        license_text=plan.license.spdx or plan.license.name,
        description=plan.settings.description or None,
    )
    if isinstance(contents, LoraContents):
        path = folder / LORA_NAME
        write_lora(path, contents, metadata)
        return Part(kind=kind, method=_describe_lora(contents, plan), files=(describe_file(path),))
    if isinstance(contents, EmbeddingContents):
        path = folder / EMBEDDING_NAME
        write_embedding(path, contents, metadata)
        components = tuple(sorted({component for component, _ in contents.rows}))
        method = EmbeddingMethod(components=components, layers=contents.layers)
        return Part(kind=kind, method=method, files=(describe_file(path),))
    raise UsageError(f"{type(contents).__name__} is not imported without its manifest")


def _describe_lora(contents: LoraContents, plan: ImportPlan) -> LoraMethod:
    modules = contents.modules.values()
    scales = {module.scale for module in modules}
    wide = any(max(module.down.shape[2:], default=1) > 1 for module in modules)
    return LoraMethod(
        variant="locon" if wide else "lora",
        rank=max(module.rank for module in modules),
        modules=len(contents.modules),
        scale=next(iter(scales)) if len(scales) == 1 else None,
        scale_rule=plan.reading.scale_rule,
    )
