"""Each concept by itself beside ordinary words for the others; what it changes counts where it changes most.

The base predicts once with no concept and the words' superclasses, then once with each concept alone. The differences
are added as in composed diffusion (arXiv 2206.01714), each weighed by where it is great beside the others' (where two
prompts differ says what they are about: arXiv 2210.11427). So no concept is read, or drawn, through another, and one
whose words a prompt does not say changes nothing of its picture.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from conceptry.composer.emphasis import emphasized, find_pieces, join_pieces
from conceptry.composer.pipelines import Pipeline
from conceptry.composer.plan import PlannedMember
from conceptry.composer.ways import Pass

_SHARPNESS: Final = 4
"""The power that decides how soon the concept that changes a place most has it to itself."""

_MEMORY: Final = 0.5
"""How much of where a concept was found is kept from step to step."""

_WINDOWS: Final = 5
"""How many windows, over which a change is averaged, lie side by side in a picture."""

Encoded = tuple[Tensor, Tensor | None]
Steer = Callable[[Pass], None]


@dataclass(frozen=True, slots=True, eq=False)
class _Prompts:
    """The prompts that were encoded last."""

    whole: Tensor
    """As they are written."""

    read: tuple[Encoded, ...]
    """As each pass reads them, the base's first."""

    called: Tensor
    """By concept and row, 1 where the row's prompt calls the concept and 0 where it does not."""


class Focus:
    """What the way ``focus`` keeps of one drawing: the prompts as each concept reads them, and where concepts are.

    Args:
        pipeline: the one that draws, with a denoiser of rows and columns.
        members: the concepts, in the order of the passes after the first.
    """

    def __init__(self, pipeline: Pipeline, members: Sequence[PlannedMember]) -> None:
        self._pipeline = pipeline
        self._concepts = tuple(map(CallWords.of, members))
        self._prompts: _Prompts | None = None
        self._is_running = False
        self._found: Tensor | None = None

    def begin(self) -> None:
        """Forgets where concepts were: another drawing begins."""
        self._found = None

    def watch(self, original: Callable[..., Any], *, is_needed: Callable[[], bool]) -> Callable[..., Any]:
        """Returns what encodes prompts as before, and once for each pass beside, as long as it ``is_needed``."""
        signature = inspect.signature(original)

        @functools.wraps(original)
        def encode_prompt(*args: Any, **kwargs: Any) -> Any:
            answer = original(*args, **kwargs)
            # What is encoded in the middle of a step is no prompt: locked keys read their superclass so.
            if not is_needed() or self._is_running:
                return answer
            given = dict(signature.bind(*args, **kwargs).arguments)
            given |= given.pop("kwargs", {})
            self._prompts = None
            if given.get("prompt") is not None and given.get("prompt_2") is None:
                places = range(-1, len(self._concepts))
                self._prompts = _Prompts(
                    whole=answer[0],
                    read=tuple(self._encode(original, given, place) for place in places),
                    called=self._find_called(given["prompt"], len(answer[0])),
                )
            return answer

        vars(encode_prompt)["is_needed"] = is_needed
        return encode_prompt

    def _find_called(self, prompt: str | list[str], rows: int) -> Tensor:
        """Returns, by concept and row, 1 where the row's prompt calls the concept and 0 where it does not."""
        prompts = [prompt] if isinstance(prompt, str) else prompt
        table = [[float(one.call(text)) for text in prompts] for one in self._concepts]
        return torch.tensor(table).repeat_interleave(rows // len(prompts), dim=1)[:, :, None, None, None]

    def _encode(self, original: Callable[..., Any], given: dict[str, Any], place: int) -> Encoded:
        prompts = [given["prompt"]] if isinstance(given["prompt"], str) else given["prompt"]
        pieces = [
            [
                replace(piece, text=leave_one(piece.text, self._concepts, place))
                for piece in find_pieces(self._pipeline, prompt)
            ]
            for prompt in prompts
        ]
        with emphasized(self._pipeline, *pieces):
            answer = original(**{**given, "prompt": [join_pieces(one) for one in pieces]})
        return answer[0], answer[2] if len(answer) > 2 else None

    def run(
        self,
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        passes: Sequence[Pass],
        steer: Steer,
    ) -> tuple[Tensor, Any]:
        """Returns what the passes predict together, and the denoiser's answer to the first of them."""
        with self._running():
            given = kwargs["encoder_hidden_states"]
            start, prompts = self._find_prompts(given)
            read = prompts.read if prompts else ()
            steer(passes[0])
            answer = original(*args, **_exchange(kwargs, read[0] if read else None, start))
            base = answer[0]
            changes = []
            for place, one in enumerate(passes[1:], start=1):
                steer(one)
                # Guidance leads away from what the base alone predicts: a concept is asked of the prompt's rows only.
                rows = functools.partial(_take_rows, start=start, count=len(given))
                own = _exchange(rows(kwargs), read[place] if read else None, 0)
                changes.append(original(*rows(args), **own)[0] - base[start:])
            found = locate(torch.stack(changes), self._found)
            self._found = found
            if prompts:
                found = found * prompts.called.to(found)
            total = base.clone()
            total[start:] += (share_places(found).to(base) * torch.stack(changes)).sum(dim=0)
            return total, answer

    @contextmanager
    def _running(self) -> Iterator[None]:
        self._is_running = True
        try:
            yield
        finally:
            self._is_running = False

    def _find_prompts(self, given: Tensor) -> tuple[int, _Prompts | None]:
        """Returns the first row that a prompt draws, and the prompts: None for foreign encodings."""
        prompts = self._prompts
        if prompts is not None:
            whole = prompts.whole
            for start in {0, len(given) - len(whole)}:
                if start >= 0 and given[start:].shape == whole.shape and torch.equal(given[start:], whole):
                    return start, prompts
        guided = bool(getattr(self._pipeline, "do_classifier_free_guidance", False)) and len(given) % 2 == 0
        return len(given) // 2 if guided else 0, None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallWords:
    """The words that call one concept, each with its superclass."""

    words: tuple[tuple[str, str], ...]
    needed: bool
    """Whether the concept is asked for by its words only."""

    @classmethod
    def of(cls, member: PlannedMember) -> CallWords:
        """Returns the words of a concept as they are in its composition."""
        tokens = [token for token in member.concept.manifest.tokens if token.role != "negative"]
        return cls(
            words=tuple(
                (str(member.words.get(token.placeholder, token.placeholder)), token.superclass or "")
                for token in tokens
            ),
            needed=any(token.role == "required" for token in tokens),
        )

    def call(self, text: str) -> bool:
        """Returns whether a prompt calls the concept; one that needs no word is called by every prompt."""
        return not self.needed or any(re.search(_match(word), text, re.IGNORECASE) for word, _ in self.words)


def leave_one(text: str, concepts: Sequence[CallWords], place: int) -> str:
    """Returns a prompt with the words of all concepts but that at ``place`` replaced by their superclasses.

    A word whose superclass follows is left out: "a <imp> creature" becomes "a creature".
    """
    kept = {word for word, _ in concepts[place].words} if place >= 0 else set()
    others = [pair for number, one in enumerate(concepts) if number != place for pair in one.words]
    for word, superclass in sorted(others, key=lambda pair: -len(pair[0])):
        said = _match(word)
        if superclass:
            text = re.sub(rf"{said}\s+(?={_match(superclass)})", "", text, flags=re.IGNORECASE)
        if word not in kept:
            text = re.sub(said, superclass.replace("\\", r"\\"), text, flags=re.IGNORECASE)
    return text


def _match(word: str) -> str:
    return rf"(?<!\w){re.escape(word)}(?!\w)"


def locate(
    changes: Float[Tensor, "concepts batch channels rows columns"], before: Tensor | None
) -> Float[Tensor, "concepts batch 1 rows columns"]:
    """Returns how much each concept changes each place, 1 on the mean over the picture, blended with ``before``."""
    energy = changes.float().square().sum(dim=2, keepdim=True)
    width = max(1, min(energy.shape[-2:]) // _WINDOWS) | 1
    smooth = F.avg_pool2d(energy.flatten(0, 1), width, 1, width // 2, count_include_pad=False)
    found = smooth.view_as(energy).sqrt()
    found = found / found.mean(dim=(-1, -2), keepdim=True).clamp(min=torch.finfo(found.dtype).tiny)
    return found if before is None or before.shape != found.shape else torch.lerp(found, before, _MEMORY)


def share_places(
    found: Float[Tensor, "concepts batch 1 rows columns"],
) -> Float[Tensor, "concepts batch 1 rows columns"]:
    """Returns what each concept's change counts in each place: 1 where it is the greatest, less where another is."""
    greatest = found.amax(dim=0, keepdim=True).clamp(min=torch.finfo(found.dtype).tiny)
    return (found / greatest) ** _SHARPNESS


def _exchange(kwargs: dict[str, Any], own: Encoded | None, start: int) -> dict[str, Any]:
    """Returns the arguments with a prompt as it is read in this pass, from row ``start`` on."""
    if own is None:
        return kwargs
    given = kwargs["encoder_hidden_states"]
    changed = {**kwargs, "encoder_hidden_states": torch.cat([given[:start], own[0].to(given)])}
    conditions: Mapping[str, Any] = kwargs.get("added_cond_kwargs") or {}
    if own[1] is not None and "text_embeds" in conditions:
        pooled = conditions["text_embeds"]
        changed["added_cond_kwargs"] = {
            **conditions,
            "text_embeds": torch.cat([pooled[:start], own[1].to(pooled)]),
        }
    return changed


def _take_rows(value: Any, *, start: int, count: int) -> Any:
    """Returns the rows from ``start`` on of everything that has ``count`` of them: latents, conditions, residuals."""
    take = functools.partial(_take_rows, start=start, count=count)
    if isinstance(value, Tensor):
        return value[start:] if value.ndim and len(value) == count else value
    if isinstance(value, dict):
        return {name: take(one) for name, one in value.items()}
    return type(value)(map(take, value)) if type(value) in (list, tuple) else value
