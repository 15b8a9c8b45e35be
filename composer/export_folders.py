"""A composition inside the weights of a diffusers folder, its words in the tokenizers: nothing of ours is needed."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from conceptry.bases import Fit
from conceptry.composer.attach import fuse
from conceptry.composer.compositions import Composition
from conceptry.composer.full import find_made
from conceptry.composer.pipelines import Pipeline, TextEncoder, list_components, list_text_encoders
from conceptry.composer.tensors import from_torch, to_torch
from conceptry.digests import Digest
from conceptry.errors import ConflictError, IncompatibleError, StoreError
from conceptry.formats.export_files import Exported
from conceptry.formats.header import read_header
from conceptry.formats.tensors import read_tensors, write_tensors
from conceptry.names import Placeholder

NOTE_NAME: Final = "composition.json"
_CONFIG: Final = "config.json"
_WEIGHTS: Final = "model.safetensors"
_TABLE: Final = "embeddings.token_embedding.weight"


def export_folder(
    composition: Composition, pipeline: Pipeline, path: Path, *, fit: Fit | None = None, force: bool = False
) -> tuple[Exported, ...]:
    """Returns the files of a diffusers folder that holds the pipeline with the composition inside its weights.

    The pipeline is left as it was. The folder appears whole or not at all; ``composition.json`` in it says what it was
    made of.

    Raises:
        IncompatibleError: as ``fuse``, and for a bias that the base's layer does not have.
        ConflictError: if ``path`` exists already and ``force`` is not set.
        StoreError: if the disk is full.
    """
    if path.exists() and not force:
        raise ConflictError(f"{str(path)!r} exists already", hint="name another folder, or add --force")
    try:
        with _make_private(path) as private:
            attachment = fuse(composition, pipeline, fit=fit)
            with attachment as report:
                refuse_made(pipeline)
                pipeline.save_pretrained(str(private), safe_serialization=True)
                words = attachment.list_words()
            for encoder in list_text_encoders(pipeline):
                tokenizer = getattr(pipeline, encoder.tokenizer_name)
                tokenizer.save_pretrained(str(private / encoder.tokenizer_name))
                if encoder.component in words:
                    _add_words(private, tokenizer, encoder, words[encoder.component])
            text = json.dumps(report.to_json(), ensure_ascii=False, indent=2, sort_keys=True)
            (private / NOTE_NAME).write_text(text + "\n", encoding="utf-8")
            _install(private, path)
    except OSError as error:
        raise StoreError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return tuple(Exported(file, file.stat().st_size, Digest.of_file(file)) for file in files)


def refuse_made(pipeline: Pipeline) -> None:
    """Raises IncompatibleError for a bias that a concept brought: programs make layers by their configuration."""
    for component, root in list_components(pipeline).items():
        made = find_made(root)
        if made is not None:
            raise IncompatibleError(
                f"a concept adds the bias {component}.{made}, which the base's layer does not have, so that whoever "
                "opens the file would drop it",
                hint="attach or fuse the concepts here, or export them as adapters: --for kohya",
            )


# --- words ---------------------------------------------------------------------------------------------------------


def _add_words(private: Path, own: Any, encoder: TextEncoder, words: Mapping[Placeholder, Tensor]) -> None:
    """Gives the saved tokenizer and text encoder the words: a token for each vector, as diffusers spells them."""
    tokenizer = type(own).from_pretrained(str(private / encoder.tokenizer_name))
    for word, rows in words.items():
        tokens = [word, *(f"{word}_{number}" for number in range(1, len(rows)))]
        if tokenizer.add_tokens(tokens) != len(tokens):
            raise IncompatibleError(f"{word!r} has the name of another token of {encoder.tokenizer_name}")
    tokenizer.save_pretrained(str(private / encoder.tokenizer_name))
    first = min(tokenizer.convert_tokens_to_ids(list(words)))
    _extend_table(private / encoder.component, list(words.values()), first, tokenizer.eos_token_id)


def _extend_table(folder: Path, rows: Sequence[Tensor], first: int, end: int) -> None:
    path = folder / _WEIGHTS
    if not path.is_file():
        raise IncompatibleError(f"{folder.name} is saved in several files, to which no word can be added")
    tensors = read_tensors(path)
    name = next(name for name in tensors if name.endswith(_TABLE))
    table = to_torch(tensors[name])
    if len(table) != first:
        raise IncompatibleError(
            f"the table of {folder.name} has {len(table)} rows and its tokenizer {first} words, so that new words "
            "would read other rows"
        )
    tensors[name] = from_torch(torch.cat([table, *(one.to(table) for one in rows)]))
    extended = path.with_suffix(".extended")
    write_tensors(extended, tensors, read_header(path).metadata)
    os.replace(extended, path)
    config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    # CLIP's own number, 2, means "the greatest id is the end", which a new word would be.
    config |= {"vocab_size": int(table.shape[0] + sum(len(one) for one in rows)), "eos_token_id": end}
    (folder / _CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


# --- the folder ----------------------------------------------------------------------------------------------------


@contextmanager
def _make_private(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    private = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    private.chmod(0o755)
    try:
        yield private
    finally:
        shutil.rmtree(private, ignore_errors=True)


def _install(private: Path, path: Path) -> None:
    """Gives the finished folder its name; what it replaces is put aside until it has it."""
    aside = private.with_name(f"{private.name}-replaced")
    if path.exists():
        path.rename(aside)
    try:
        private.rename(path)
    except OSError:
        if aside.exists():
            aside.rename(path)
        raise
    shutil.rmtree(aside, ignore_errors=True)
