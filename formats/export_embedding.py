"""Textual inversion as other programs read it: one file a word, or one a text encoder."""

from __future__ import annotations

import re
from typing import Final

from conceptry.bases import ComponentName, find_family
from conceptry.errors import IncompatibleError
from conceptry.formats.embedding import EmbeddingContents
from conceptry.formats.export_contract import OutputFile, WriteRequest, Written
from conceptry.formats.tensors import RawTensor
from conceptry.names import Placeholder

DIFFUSERS_NAME: Final = "learned_embeds"
_SINGLE_KEY: Final = "emb_params"
_CLIP_KEYS: Final = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
_UNSAFE: Final = re.compile(r"[^\w.-]+", re.ASCII)


def write_diffusers(request: WriteRequest) -> Written:
    """Returns one file for each word and text encoder; the tensor's name is the word.

    ``load_textual_inversion`` takes files with exactly one tensor, one encoder and tokenizer at a time.
    """
    contents = _take(request)
    words = _group(contents)
    files = []
    for word, rows in words.items():
        stem = request.stem if request.named else DIFFUSERS_NAME if len(words) == 1 else name_file(word)
        for component, tensor in rows.items():
            number = component.removeprefix("text_encoder")
            metadata = {**request.metadata, "modelspec.trigger_phrase": word}
            files.append(
                OutputFile(name=f"{stem}{number}.safetensors", tensors={word: tensor}, metadata=metadata)
            )
    warnings = []
    if any(len(rows) > 1 for rows in words.values()):
        warnings.append(
            "load_textual_inversion takes one text encoder at a time: call it for each file with its token, "
            "text_encoder and tokenizer"
        )
    if request.family == "sdxl":
        warnings.append(
            "with a new word diffusers takes SDXL's pooled text at that word instead of the end of the prompt, until "
            "text_encoder_2.text_model.eos_token_id is that of tokenizer_2"
        )
    return Written(files=tuple(files), warnings=tuple(warnings))


def write_named_by_file(request: WriteRequest) -> Written:
    """Returns one file for each word, called as the word: ``emb_params``, or ``clip_l`` and ``clip_g`` together.

    A1111, ComfyUI and sd-scripts read these; the word is the name of the file.
    """
    contents = _take(request)
    files, warnings = [], []
    words = _group(contents)
    front = f"{request.stem}-" if request.words.qualified and len(words) > 1 else ""
    for word, rows in words.items():
        stem = request.stem if request.named else front + name_file(word)
        metadata = {**request.metadata, "modelspec.trigger_phrase": word}
        file = OutputFile(name=f"{stem}.safetensors", tensors=_name_rows(rows, request), metadata=metadata)
        files.append(file)
        call = request.words.call.format(stem)
        warnings.append(f"the word is the name of the file there: {word} is called by {call!r}")
    return Written(files=tuple(files), warnings=tuple(warnings))


def name_file(word: str) -> str:
    """Returns the name of the file that stands for ``word``: ``<blue-imp>`` is called by ``blue-imp``."""
    return _UNSAFE.sub("-", word).strip("-.") or "concept"


def _name_rows(rows: dict[ComponentName, RawTensor], request: WriteRequest) -> dict[str, RawTensor]:
    encoders = [name for name, _ in find_family(request.family).text_encoders]
    if len(encoders) == 1:
        return {_SINGLE_KEY: next(iter(rows.values()))}
    missing = [name for name in encoders if name in _CLIP_KEYS and name not in rows]
    if missing:
        raise IncompatibleError(
            f"it has no rows for {missing[0]}, and one file must hold those of both",
            hint="--for diffusers writes a file for each text encoder",
        )
    unknown = [name for name in rows if name not in _CLIP_KEYS]
    if unknown:
        raise IncompatibleError(f"rows for {unknown[0]} of {request.family} have no agreed name there")
    return {_CLIP_KEYS[name]: tensor for name, tensor in rows.items()}


def _take(request: WriteRequest) -> EmbeddingContents:
    contents = request.contents
    if not isinstance(contents, EmbeddingContents):
        raise IncompatibleError(f"{type(contents).__name__} is no embedding")
    if contents.layers is not None:
        raise IncompatibleError(
            f"it has rows for each of {len(contents.layers)} cross-attention layers (XTI, arXiv 2303.09522), "
            "and no program of the list reads these",
            hint="share it as it is: concepts push",
        )
    return contents


def _group(contents: EmbeddingContents) -> dict[Placeholder, dict[ComponentName, RawTensor]]:
    words: dict[Placeholder, dict[ComponentName, RawTensor]] = {}
    for (component, word), tensor in sorted(contents.rows.items(), key=lambda row: row[0]):
        words.setdefault(word, {})[component] = tensor
    return words
