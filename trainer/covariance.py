"""C = E[e e^T], the second moment of a base's text encodings (arXiv 2305.01644, section 4; arXiv 2202.05262, eq. 14).

It belongs to the base: it is computed once from a fixed list of captions, kept in the cache folder, and needed for
training only. Pooling: every token of every caption counts once; the start token (one vector for all captions) and the
padding are left out, the end token is kept; sums in float64. Each text encoder's block is divided by the square root of
its mean diagonal (SDXL's two encoders differ hundredfold), then 1e-4 is added to the diagonal. For one encoder this is
C + 1e-4 tr(C)/d.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float64
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from conceptry.bases import BaseIdentity
from conceptry.composer.pipelines import list_text_encoders
from conceptry.digests import Digest, canonical_json
from conceptry.errors import TrainingError, UsageError

POOLING: Final = (
    "tokens; start and padding left out, end kept; float64; blocks of unit mean diagonal; ridge 1e-4"
)
RIDGE: Final = 1e-4
_BATCH: Final = 64
_LISTS: Final = {"toybox": "captions-toybox.txt.gz"}
_NATURAL_LIST: Final = "captions.txt.gz"
_TENSOR: Final = "second_moment"


@dataclass(frozen=True, slots=True)
class Covariance:
    """C of one base, in normalised coordinates, ready to solve with. ``id`` names encoders, captions and pooling."""

    id: Digest
    scale: Float64[Tensor, " context"]
    factor: Float64[Tensor, "context context"]
    """Lower Cholesky factor of C / (scale scale^T) + ridge."""

    def solve(self, vector: Tensor) -> Float64[Tensor, " context"]:
        """Returns C^-1 ``vector`` in float64, in the coordinates of the text encoding."""
        scaled = vector.detach().to(self.factor) / self.scale
        solved = torch.cholesky_solve(scaled[:, None], self.factor)[:, 0]
        return solved / self.scale


def load_covariance(
    pipeline: Any, identity: BaseIdentity, *, captions: Path | None, cache_folder: Path
) -> Covariance:
    """Returns the covariance of the pipeline's text encoders, from the cache where it was computed before.

    Raises:
        UsageError: if the caption file cannot be read or has no line.
        TrainingError: if the encodings are not finite.
    """
    lines = read_captions(identity.family, captions)
    id = _make_id(identity, lines)
    widths = [encoder.table.embedding_dim for encoder in list_text_encoders(pipeline)]
    path = cache_folder / "covariance" / f"{id.hex}.safetensors"
    moment = _read_cached(path, width=sum(widths))
    if moment is None:
        moment = compute_second_moment(pipeline, lines)
        _write_cached(path, moment)
    return _factorise(id, moment, widths)


def read_captions(family: str, path: Path | None) -> tuple[str, ...]:
    """Returns the distinct lines of ``path`` (text or gzip), or of the list that is shipped for ``family``.

    Raises:
        UsageError: if the file cannot be read as UTF-8 lines, or is empty.
    """
    try:
        if path is None:
            data = files(__package__).joinpath("data", _LISTS.get(family, _NATURAL_LIST)).read_bytes()
        else:
            data = path.read_bytes()
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        message = f"the caption list {str(path or 'of the package')!r} cannot be read: {error}"
        raise UsageError(
            message, where="captions", hint="give a UTF-8 text file with a caption a line"
        ) from error
    lines = tuple(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not lines:
        raise UsageError(f"the caption list {str(path)!r} is empty", where="captions")
    return lines


def _make_id(identity: BaseIdentity, lines: Sequence[str]) -> Digest:
    encoders = {
        name: {"layout": str(found.layout), "weights": list(found.weights)}
        for name, found in identity.fingerprints.items()
        if name.startswith("text_encoder")
    }
    listed = Digest.of_bytes("\n".join(lines).encode())
    return Digest.of_bytes(
        canonical_json({"encoders": encoders, "captions": str(listed), "pooling": POOLING})
    )


@torch.no_grad()
def compute_second_moment(pipeline: Any, lines: Sequence[str]) -> Float64[Tensor, "context context"]:
    """Returns the mean of e e^T over the tokens of all ``lines``, start and padding left out, in float64."""
    total: Tensor | None = None
    count = 0
    for encoded in _iter_encodings(pipeline, lines):
        rows = encoded.double()
        product = rows.T @ rows
        total = product if total is None else total + product
        count += len(rows)
    if total is None or not bool(torch.isfinite(total).all()):
        raise TrainingError(
            "the text encodings of the captions are not finite", hint="load the base in float32"
        )
    return (total / count).cpu()


def _iter_encodings(pipeline: Any, lines: Sequence[str]) -> Iterator[Tensor]:
    """Returns the kept encodings of a few captions at a time, [tokens, context].

    CLIP attends to earlier positions only, so a batch is padded to its own longest caption: the same encodings as with
    full padding in a fraction of the time.
    """
    encoders = list_text_encoders(pipeline)
    by_length = sorted(lines, key=len)
    for start in range(0, len(by_length), _BATCH):
        batch = by_length[start : start + _BATCH]
        blocks, kept = [], None
        for encoder in encoders:
            tokenizer = getattr(pipeline, encoder.tokenizer_name)
            limit = tokenizer.model_max_length
            tokens = tokenizer(
                batch, padding="longest", truncation=True, max_length=limit, return_tensors="pt"
            )
            device = next(encoder.module.parameters()).device
            blocks.append(_encode(encoder.module, tokens.input_ids.to(device), of_several=len(encoders) > 1))
            kept = tokens.attention_mask.bool().to(device)
            kept[:, 0] = False
        if kept is not None:
            yield torch.cat(blocks, dim=-1)[kept]


def _encode(module: Any, ids: Tensor, *, of_several: bool) -> Tensor:
    # Several encoders are SDXL's, which reads the layer before the last of each, without the final norm.
    output = module(ids, output_hidden_states=True) if of_several else module(ids)
    states: Tensor = output.hidden_states[-2] if of_several else output.last_hidden_state
    return states


def _factorise(id: Digest, moment: Float64[Tensor, "context context"], widths: Sequence[int]) -> Covariance:
    blocks = torch.split(moment.diagonal(), list(widths))
    scale = torch.cat([block.mean().clamp(min=1e-30).sqrt().expand(len(block)) for block in blocks])
    normal = moment / (scale[:, None] * scale[None, :])
    normal = (normal + normal.T) / 2 + RIDGE * torch.eye(len(moment), dtype=torch.float64)
    return Covariance(id, scale, torch.linalg.cholesky(normal))


# --- the cache -----------------------------------------------------------------------------------------------------


def _read_cached(path: Path, *, width: int) -> Tensor | None:
    try:
        moment = load_file(path).get(_TENSOR)
    except (OSError, SafetensorError):
        return None  # missing or half written by something else: computed anew, then replaced
    if moment is None or moment.dtype != torch.float64 or moment.shape != (width, width):
        return None
    return moment if bool(torch.isfinite(moment).all()) else None


def _write_cached(path: Path, moment: Tensor) -> None:
    private = path.with_suffix(f".{id(moment):x}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({_TENSOR: moment.contiguous()}, private)
        private.replace(path)
    except (OSError, SafetensorError):
        private.unlink(
            missing_ok=True
        )  # a full disk costs the next run some seconds, not this one its result
