"""A tokenizer that knows placeholders: each becomes n ids that no vocabulary holds; all else is as before."""

from __future__ import annotations

import copy
import functools
import re
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from conceptry.composer.undoing import run_all
from conceptry.names import Placeholder

Tokenizer = Any
Ids = list[int]
_PLAIN_OPTIONS: Final = frozenset(
    {"padding", "truncation", "max_length", "return_tensors", "add_special_tokens", "return_attention_mask"}
)


class PlaceholderMixin:
    """Splits text at placeholders before the tokenizer sees it.

    CLIP tokenizers split at white space and punctuation first, so the pieces between placeholders give the same ids
    as they give inside the whole text.
    """

    placeholder_ids: dict[Placeholder, Ids]

    def __call__(self, text: Any = None, *args: Any, **options: Any) -> Any:
        """Returns the encoding, with the ids of each placeholder in its place, cut and padded as asked."""
        plain = super().__call__  # type: ignore[misc]  # of the tokenizer that this class is mixed into
        texts = [text] if isinstance(text, str) else text
        pattern = compile_words(tuple(self.placeholder_ids))
        known = isinstance(texts, list | tuple) and all(isinstance(one, str) for one in texts)
        if pattern is None or not known or not any(pattern.search(one) for one in texts):
            return plain(text, *args, **options)
        unknown = sorted(options.keys() - _PLAIN_OPTIONS)
        if args or unknown:
            raise TypeError(
                f"prompts with placeholders are tokenized without {unknown or 'positional options'}"
            )
        rows = [_cut(self._expand(one, pattern, plain), self, options, plain) for one in texts]
        return _pack(rows, self, options, is_single=isinstance(text, str))

    def encode(self, text: str, *args: Any, **options: Any) -> Any:
        """Returns the ids of ``text``."""
        return self(text, *args, **options)["input_ids"]

    def _expand(self, text: str, pattern: re.Pattern[str], plain: Any) -> Ids:
        by_key = {name.casefold(): ids for name, ids in self.placeholder_ids.items()}
        ids: Ids = []
        position = 0
        for match in pattern.finditer(text):
            ids += _split_plain(text[position : match.start()], plain)
            ids += by_key[match.group().casefold()]
            position = match.end()
        return ids + _split_plain(text[position:], plain)


@dataclass(slots=True, eq=False)
class _Held:
    """The user's own tokenizer, its private copy, and what holds the copy."""

    own: Tokenizer
    private: Tokenizer
    holders: set[object] = field(default_factory=set)


_NAMES: Final = ("tokenizer", "tokenizer_2", "tokenizer_3")
_HELD: Final[weakref.WeakKeyDictionary[Any, dict[str, _Held]]] = weakref.WeakKeyDictionary()


class _Reader:
    """A block of ``private_tokenizers``. It has no ``try`` of its own: Ctrl-C at one inside another gets lost."""

    has_ended = False

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.has_ended = True


def hold_tokenizer(pipeline: Any, name: str, holder: object) -> Tokenizer:
    """Returns the private copy of ``pipeline.NAME``, made once, which stands in its place until all released it."""
    tokenizers = _HELD.setdefault(pipeline, {})
    current = getattr(pipeline, name)
    held = tokenizers.get(name)
    if held is None or (not held.holders and current is not held.own and current is not held.private):
        held = tokenizers[name] = _Held(current, make_private_copy(current))
    held.holders.add(holder)
    if current is held.own:
        # Past diffusers' __setattr__, which would write the class of the copy into the pipeline's configuration.
        pipeline.__dict__[name] = held.private
    return held.private


def release_tokenizer(pipeline: Any, name: str, holder: object) -> None:
    """Puts the user's own tokenizer back when nothing holds the copy any longer. Twice does nothing."""
    held = _HELD.get(pipeline, {}).get(name)
    if held is None:
        return
    held.holders.discard(holder)
    if not held.holders and getattr(pipeline, name) is held.private:
        pipeline.__dict__[name] = held.own


def release_readers(pipeline: Any) -> None:
    """Releases what blocks of ``private_tokenizers`` held that an exception cut short at their very end.

    Blocks that still run keep theirs: somebody may attach and detach inside of one.
    """
    for name, held in _HELD.get(pipeline, {}).items():
        held.holders -= {one for one in held.holders if isinstance(one, _Reader) and one.has_ended}
        release_tokenizer(pipeline, name, None)


@contextmanager
def private_tokenizers(pipeline: Any) -> Iterator[None]:
    """Has the private copies in place while the block runs: reading ids changes settings of a tokenizer."""
    reader = _Reader()
    try:
        for name in _NAMES:
            if getattr(pipeline, name, None) is not None:
                hold_tokenizer(pipeline, name, reader)
        with reader:
            yield
    finally:
        run_all(partial(release_tokenizer, pipeline, name, reader) for name in _NAMES)


def make_private_copy(tokenizer: Tokenizer) -> Tokenizer:
    """Returns a copy of ``tokenizer`` whose ``placeholder_ids`` can be filled; the original is not touched."""
    private = copy.deepcopy(tokenizer)
    kind: Any = type(tokenizer)
    private.__class__ = _derive(kind)
    private.placeholder_ids = {}
    # The copy of the backend has lost the wrapper that removes end-of-word marks.
    wrap = getattr(private, "_wrap_decode_method_backend_tokenizer", None)
    if wrap is not None:
        wrap()
    return private


@functools.cache
def _derive(kind: Any) -> type:
    # The same name: what is saved while attached is a tokenizer that others can open.
    return type(kind.__name__, (PlaceholderMixin, kind), {"__module__": kind.__module__})


@functools.lru_cache(maxsize=64)
def compile_words(names: tuple[Placeholder, ...]) -> re.Pattern[str] | None:
    """Returns what finds placeholders in a text, the longest first and in any case; None where there are none."""
    if not names:
        return None
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile("|".join(_match_word(name) for name in longest_first), re.IGNORECASE)


def _match_word(name: str) -> str:
    before = r"(?<!\w)" if re.match(r"\w", name) else ""
    after = r"(?!\w)" if re.search(r"\w$", name) else ""
    return before + re.escape(name) + after


def _split_plain(piece: str, plain: Any) -> Ids:
    return list(plain(piece, add_special_tokens=False)["input_ids"]) if piece.strip() else []


def _frame(plain: Any) -> tuple[Ids, Ids]:
    """Returns the special ids that the tokenizer puts before and after a text."""
    bare = list(plain("a", add_special_tokens=False)["input_ids"])
    framed = list(plain("a")["input_ids"])
    start = next(at for at in range(len(framed)) if framed[at : at + len(bare)] == bare)
    return framed[:start], framed[start + len(bare) :]


def _cut(ids: Ids, tokenizer: Tokenizer, options: Mapping[str, Any], plain: Any) -> Ids:
    before, after = _frame(plain) if options.get("add_special_tokens", True) else ([], [])
    if options.get("truncation", False) not in (False, None, "do_not_truncate"):
        limit = options.get("max_length") or tokenizer.model_max_length
        ids = ids[: max(0, limit - len(before) - len(after))]
    return before + ids + after


def _pack(rows: Sequence[Ids], tokenizer: Tokenizer, options: Mapping[str, Any], *, is_single: bool) -> Any:
    from transformers import BatchEncoding

    padding = options.get("padding", False)
    length = 0
    if padding in (True, "longest"):
        length = max(len(row) for row in rows)
    elif padding == "max_length":
        length = options.get("max_length") or tokenizer.model_max_length
    left = tokenizer.padding_side == "left"
    data: dict[str, list[Ids]] = {"input_ids": [], "attention_mask": []}
    for row in rows:
        filler = max(0, length - len(row))
        pad, zeros = [tokenizer.pad_token_id] * filler, [0] * filler
        ones = [1] * len(row)
        data["input_ids"].append(pad + row if left else row + pad)
        data["attention_mask"].append(zeros + ones if left else ones + zeros)
    if options.get("return_attention_mask") is False:
        del data["attention_mask"]
    tensors = options.get("return_tensors")
    if is_single and tensors is None:
        return BatchEncoding({name: values[0] for name, values in data.items()})
    return BatchEncoding(data, tensor_type=tensors)
