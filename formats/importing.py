"""A file of another program -> a package: canonical files and their manifest, every tensor kept or the file refused."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from conceptry.bases import find_family
from conceptry.concepts import MANIFEST_NAME
from conceptry.errors import ConflictError, StoreError, UsageError
from conceptry.formats.embedding import EMBEDDING_NAME, EmbeddingContents, write_embedding
from conceptry.formats.full import FullContents, name_full_file, write_full
from conceptry.formats.hypernetwork import HYPERNETWORK_NAME, HypernetworkContents, write_hypernetwork
from conceptry.formats.import_plans import ImportPlan, ImportSettings, plan_import, refuse_invalid
from conceptry.formats.lora import LORA_NAME, LoraContents, write_lora
from conceptry.formats.lora_methods import describe_modules
from conceptry.formats.modelspec import make_metadata
from conceptry.formats.packages import describe_file
from conceptry.formats.rank_one import RANK_ONE_NAME, RankOneContents, write_rank_one
from conceptry.kinds import KindId
from conceptry.manifest import Build, EmbeddingMethod, FullMethod, Manifest, Part, Provenance
from conceptry.methods import Gate, HypernetworkMethod, RankOneMethod

IMPORT_EXTENSION: Final = "conceptry.import"
LAYERED_NAME: Final = "embedding_layers.safetensors"
# Of training as in the paper, of use as its warmer temperature suggests (arXiv 2305.01644, 4.2 and figure 7).
_TRAIN_GATE: Final = Gate(bias=0.75, temperature=0.1)
_GATE: Final = Gate(bias=0.70, temperature=0.15)


def import_file(paths: Path | Sequence[Path], folder: Path, settings: ImportSettings) -> Manifest:
    """Returns the manifest of the package that was made of a file, or the files of one concept, in the new ``folder``.

    Raises:
        As ``plan_import`` and ``write_import``.
    """
    return write_import(plan_import(paths, settings), folder)


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
    parts = tuple(_write_parts(plan, folder))
    settings, kind = plan.settings, parts[0].kind
    build = Build(
        id=f"{plan.base.family}-{kind}".replace("_", "-"),
        base=plan.base,
        parts=parts,
        provenance=Provenance(
            source="imported", imported_from=plan.source, derived_from=plan.further_sources
        ),
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


def _write_parts(plan: ImportPlan, folder: Path) -> Iterator[Part]:
    """Writes the parts of the package, those of one kind together, and returns what the manifest says of them."""
    full = [contents for contents in plan.reading.contents if isinstance(contents, FullContents)]
    for contents in plan.reading.contents:
        if isinstance(contents, LoraContents):
            yield _write_lora(plan, contents, folder)
        elif isinstance(contents, EmbeddingContents):
            yield _write_embedding(plan, contents, folder)
        elif isinstance(contents, RankOneContents):
            yield _write_rank_one(plan, contents, folder)
        elif isinstance(contents, HypernetworkContents):
            yield _write_hypernetwork(plan, contents, folder)
    if full:
        yield _write_full(plan, full, folder)


def _make_metadata(plan: ImportPlan, kind: KindId) -> dict[str, str]:
    return make_metadata(
        kind,
        family=plan.base.family,
        title=plan.settings.title or str(plan.settings.name),
        triggers=[token.placeholder for token in plan.tokens],
        license_text=plan.license.spdx or plan.license.name,
        description=plan.settings.description or None,
    )


def _write_lora(plan: ImportPlan, contents: LoraContents, folder: Path) -> Part:
    path = folder / LORA_NAME
    written = write_lora(path, contents, _make_metadata(plan, "lora"))
    return Part(
        kind="lora", method=describe_modules(contents.modules), files=(describe_file(path, written=written),)
    )


def _write_embedding(plan: ImportPlan, contents: EmbeddingContents, folder: Path) -> Part:
    path = folder / (EMBEDDING_NAME if contents.layers is None else LAYERED_NAME)
    written = write_embedding(path, contents, _make_metadata(plan, "embedding"))
    components = tuple(sorted({component for component, _ in contents.rows}))
    method = EmbeddingMethod(components=components, layers=contents.layers)
    return Part(kind="embedding", method=method, files=(describe_file(path, written=written),))


def _write_rank_one(plan: ImportPlan, contents: RankOneContents, folder: Path) -> Part:
    superclass, covariance = plan.settings.superclass, plan.reading.covariance
    if superclass is None or covariance is None:
        raise UsageError("a rank-one edit needs its superclass", hint="add --superclass WORD")
    path = folder / RANK_ONE_NAME
    written = write_rank_one(path, contents, _make_metadata(plan, "rank_one"))
    method = RankOneMethod(
        layers=tuple(sorted(contents.o_v)),
        superclass=superclass,
        train_gate=_TRAIN_GATE,
        gate=_GATE,
        covariance=covariance,
    )
    return Part(kind="rank_one", method=method, files=(describe_file(path, written=written),))


def _write_hypernetwork(plan: ImportPlan, contents: HypernetworkContents, folder: Path) -> Part:
    path = folder / HYPERNETWORK_NAME
    written = write_hypernetwork(path, contents, _make_metadata(plan, "hypernetwork"))
    text_width = find_family(plan.base.family).context_width
    method = HypernetworkMethod(
        cross_attention=tuple(width for width in contents.widths if width == text_width),
        self_attention=tuple(width for width in contents.widths if width != text_width),
        structure=contents.structure,
        activation=contents.activation,
        activate_output=contents.activate_output,
        layer_norm=contents.layer_norm,
    )
    return Part(kind="hypernetwork", method=method, files=(describe_file(path, written=written),))


def _write_full(plan: ImportPlan, contents: Sequence[FullContents], folder: Path) -> Part:
    ordered = sorted(contents, key=lambda one: one.component)
    files = []
    for one in ordered:
        path = folder / name_full_file(one.component)
        written = write_full(path, one, _make_metadata(plan, "full"))
        files.append(describe_file(path, written=written))
    changed = sum(len(one.tensors) for one in ordered)
    method = FullMethod(
        components=tuple(one.component for one in ordered),
        changed_tensors=changed,
        total_tensors=plan.reading.total_tensors or changed,
    )
    return Part(kind="full", method=method, files=tuple(files))
