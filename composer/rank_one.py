"""Key-locked, gated rank-one edits of cross-attention (Perfusion, arXiv 2305.01644, eq. 3 and appendix B).

For the text encoding e of one token, concepts j with target input i_j and I = [i_1 ... i_J]::

    s_j(e) = i_j^T C^-1 e / (i_j^T C^-1 i_j)
    h(e)   = W e - (W I) (I^T C^-1 I)^-1 I^T C^-1 e + sum_j o_j sigmoid((s_j(e) - bias_j) / temperature_j)

Keys: o_j = W_K e_super, with the W_K of the moment, other patches included; of a concept whose keys are locked globally
they are those of the prompt with its superclass (``global_locks.py``). Values: o_j is what was trained. Strength
multiplies what concept j removes and what it inserts. A sample whose prompt has none of a concept's placeholder is not
edited by that concept; a sample without any placeholder keeps its bits. Where no gradient flows, keys and values are
made once a prompt and read by all its steps (``tables.py``).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from conceptry.composer.global_locks import GlobalLock
from conceptry.composer.gram import Coefficients, RankOneEdit, solve_coefficients
from conceptry.composer.guards import is_joined
from conceptry.composer.hooks import Generation, Patch, Probing, probing
from conceptry.composer.locks import encode_superclass, find_superclass
from conceptry.composer.pipelines import (
    UNET,
    Pipeline,
    get_component,
    iter_cross_attention,
    list_text_encoders,
)
from conceptry.composer.placeholders import hold_tokenizer, release_tokenizer
from conceptry.composer.presence import EncodingLog, context_version, find_source
from conceptry.composer.tables import State, Tables, describe_layer, is_last
from conceptry.errors import IncompatibleError

__all__ = ["RankOneEdit", "RankOnePatch", "encode_superclass"]

_STACK: Final = "_conceptry_rank_one"


class RankOnePatch(Patch):
    """Edits keys and values of every cross-attention layer while attached; weights are not touched.

    Edits of several patches on one denoiser are solved jointly. Tensors of the edits are read at each call, so they
    may be under training: gradients reach ``o_v`` and the text encoding, not ``i_star``.

    Args:
        pipeline: its denoiser is edited, its text encoders give the locked keys.
        edits: one for each concept.
        presence: what knows the prompts of encodings; None counts every sample as having every placeholder.

    Raises:
        IncompatibleError: at ``attach``, if layers or widths are not the base's; nothing is then changed.
        InvalidPlaceholderError: if a superclass cannot be found among the tokens of its sentences.
    """

    def __init__(
        self, pipeline: Pipeline, edits: Sequence[RankOneEdit], *, presence: EncodingLog | None = None
    ) -> None:
        super().__init__()
        self.pipeline = pipeline
        self.edits = tuple(edits)
        self.presence = presence
        self._denoiser = get_component(pipeline, UNET)
        self._held: list[str] = []  # the superclass is encoded without a trace in the user's tokenizers

    @property
    def strength(self) -> float:
        """How much of each change is made; of the first edit where they differ. It may be set while attached."""
        return self.edits[0].strength if self.edits else 1.0

    @strength.setter
    def strength(self, value: float) -> None:
        self.edits = tuple(replace(edit, strength=value) for edit in self.edits)

    def _put_in(self) -> None:
        for encoder in list_text_encoders(self.pipeline):
            self._held.append(encoder.tokenizer_name)
            hold_tokenizer(self.pipeline, encoder.tokenizer_name, self)
        layers = dict(iter_cross_attention(self._denoiser))
        for edit in self.edits:
            _check_edit(edit, layers)
        stack = vars(self._denoiser).get(_STACK)
        if stack is None:
            stack = vars(self._denoiser)[_STACK] = _Stack(self.pipeline, self._denoiser, layers)
        stack.add(self)
        for path, attention in layers.items():
            for layer, is_key in ((attention.to_k, True), (attention.to_v, False)):
                self._handles.append(layer.register_forward_hook(_EditHook(stack, self, path, is_key)))

    def come_last(self) -> None:
        """Edits after all others from now on, and is the last of the edits."""
        super().come_last()
        stack = vars(self._denoiser).get(_STACK)
        if stack is not None and self._attached:
            stack.come_last(self)

    def _take_out(self) -> None:
        stack = vars(self._denoiser).get(_STACK)
        if stack is not None and stack.remove(self):
            del vars(self._denoiser)[_STACK]
        for name in self._held:
            release_tokenizer(self.pipeline, name, self)
        self._held.clear()


@dataclass(frozen=True, slots=True, eq=False)
class _Solved:
    """The coefficients for one context, as everything was that they depend on."""

    context: weakref.ref[Tensor]
    key: tuple[Any, ...]
    coefficients: Coefficients | None


class _Stack:
    """All rank-one patches on one denoiser, and the hooks that serve them together."""

    def __init__(self, pipeline: Pipeline, denoiser: nn.Module, layers: Mapping[str, Any]) -> None:
        self._patches: list[RankOnePatch] = []
        self._pipeline, self._denoiser, self._layers = pipeline, denoiser, layers
        self._handles: list[RemovableHandle] = []
        self._solved: dict[bool, _Solved] = {}
        self._tables = Tables()
        self._supers: tuple[tuple[int, int] | None, list[Tensor | None]] = (None, [])
        self._lock: GlobalLock | None = None

    def add(self, patch: RankOnePatch) -> None:
        self._patches.append(patch)
        self._forget()
        if not self._handles:
            self._handles.append(self._denoiser.register_forward_pre_hook(self._look_ahead, with_kwargs=True))
        if self._lock is None and any(edit.key_lock == "global" for edit in patch.edits):
            self._lock = GlobalLock(self._pipeline, self._denoiser, tuple(self._layers))
            self._lock.watch()
            for path, attention in self._layers.items():
                # Before a hypernetwork's, whose outcome is no text encoding any more.
                hook = self._make_lock_hook(path)
                self._handles.append(attention.to_k.register_forward_pre_hook(hook, prepend=True))
        self._encode_superclasses()

    def remove(self, patch: RankOnePatch) -> bool:
        """Returns whether no patch is left; the hooks are gone then."""
        self._patches = [other for other in self._patches if other is not patch]
        self._forget()
        if not self._patches:
            for handle in self._handles:
                handle.remove()
            self._handles.clear()
            if self._lock is not None:
                self._lock.close()
        return not self._patches

    @property
    def edits(self) -> list[RankOneEdit]:
        return [edit for patch in self._patches for edit in patch.edits]

    def come_last(self, patch: RankOnePatch) -> None:
        self._patches = [*(other for other in self._patches if other is not patch), patch]
        self._forget()

    def serves(self, patch: RankOnePatch) -> bool:
        """Returns whether it is the hooks of ``patch`` that edit, for all: those of the first one."""
        return bool(self._patches) and self._patches[0] is patch

    def _forget(self) -> None:
        self._solved = {}
        self._tables.clear()
        self._supers = (None, [])

    def _look_ahead(self, _: nn.Module, args: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        # Once for all layers, and outside of them: a layer whose activations are computed twice must do the same twice.
        context = options.get("encoder_hidden_states")
        if isinstance(context, Tensor) and not Probing.active:
            self._find_coefficients(context, is_key=False)
            for path in self._layers if self._lock is not None else ():
                self._find_locked(path, context)

    def _make_lock_hook(self, path: str) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]:
        def lock_keys(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            locked = None if Probing.active else self._find_locked(path, args[0])
            return None if locked is None else (locked, *args[1:])

        return lock_keys

    def _find_locked(self, path: str, context: Tensor) -> Tensor | None:
        edits = [edit for edit in self.edits if edit.key_lock == "global"]
        return None if self._lock is None else self._lock.find_context(path, context, edits)

    def edit(
        self, layer: nn.Module, path: str, context: Tensor, output: Tensor, *, is_key: bool
    ) -> Tensor | None:
        """Returns the output of a layer with the edits in it, kept from before; None where none is in effect."""
        state = self._describe(layer, path, output, is_key=is_key)
        known = self._tables.find((path, is_key), context, state)
        if known is None:
            known = self._change_output(layer, path, context, output, is_key=is_key)
            if known is not None:
                self._tables.keep((path, is_key), context, state, known)
        return known

    def _describe(self, layer: nn.Module, path: str, output: Tensor, *, is_key: bool) -> State | None:
        """Returns what the edited output depends on beside the context; None where that may change unseen."""
        state = describe_layer(layer)
        if state is None:
            return None
        given = [edit.o_k if is_key else edit.o_v for edit in self.edits]
        targets = [values[path]._version for values in given if values is not None]
        return (*state, output.dtype, output.device, *self._describe_edits(), *targets)

    def _describe_edits(self) -> State:
        edits = self.edits
        inputs = [tensor._version for edit in edits for tensor in (edit.i_star, edit.c_inv_i_star)]
        return (torch.is_grad_enabled(), *edits, *inputs)

    def _change_output(
        self, layer: nn.Module, path: str, context: Tensor, output: Tensor, *, is_key: bool
    ) -> Tensor | None:
        """Returns the output of a layer with the edits in it; None where no sample has a concept's placeholder."""
        found = self._find_coefficients(context, is_key=is_key)
        if found is None:
            return None
        targets, removed = self._find_targets(layer, path, found.concepts, is_key=is_key, like=context)
        with torch.autocast(output.device.type, enabled=False):
            change = found.insert @ targets - found.remove @ removed
        result = output.clone()
        result[found.samples] = (result[found.samples].float() + change).to(output.dtype)
        return result

    def _find_coefficients(self, context: Tensor, *, is_key: bool) -> Coefficients | None:
        """Returns the coefficients for this context: one tensor is read by all layers, and in all steps."""
        edits = self.edits
        key = (context_version(context), *self._describe_edits())
        locked = is_key and self._lock is not None  # else keys and values have the same ones
        solved = self._solved.get(locked)
        if solved is None or solved.context() is not context or key != solved.key:
            active = self._find_active(context, locked=locked)
            found = solve_coefficients(context, edits, active) if bool(active.any()) else None
            solved = self._solved[locked] = _Solved(weakref.ref(context), key, found)
        return solved.coefficients

    def _find_active(self, context: Tensor, *, locked: bool) -> Bool[Tensor, "batch concepts"]:
        columns, source = [], find_source(context)
        for patch in self._patches:
            known = patch.presence.find(source) if patch.presence is not None else [None] * len(context)
            for edit in patch.edits:
                always = edit.placeholder is None
                rows = [always or names is None or edit.placeholder in names for names in known]
                counts = edit.strength != 0 and not (locked and edit.key_lock == "global")
                columns.append([row and counts for row in rows])
        return torch.tensor(columns, dtype=torch.bool, device=context.device).T

    def _find_targets(
        self, layer: nn.Module, path: str, concepts: tuple[int, ...], *, is_key: bool, like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns what is inserted and W I, [concepts, out] each, with the layer as it is at this moment."""
        edits = [self.edits[number] for number in concepts]
        inputs = torch.stack([edit.i_star.to(like.device, torch.float32) for edit in edits])
        supers = [self._encode_superclasses()[number] for number in concepts] if is_key else []
        locked = [encoding for encoding in supers if encoding is not None]
        probes = torch.cat([inputs, *(encoding.to(inputs)[None] for encoding in locked)]).to(like.dtype)
        outputs = self._probe(layer, probes).float()
        if not is_key:
            return torch.stack([edit.o_v[path].to(outputs) for edit in edits]), outputs[: len(edits)]
        from_weights = iter(outputs[len(edits) :])
        targets = [next(from_weights) if edit.o_k is None else edit.o_k[path].to(outputs) for edit in edits]
        return torch.stack(targets), outputs[: len(edits)]

    def _probe(self, layer: nn.Module, inputs: Tensor) -> Tensor:
        """Returns W times the inputs: less what the layer makes of nothing, the bias that some concept brings."""
        with probing(), torch.no_grad():
            outputs: Tensor = layer(F.pad(inputs, (0, 0, 0, 1))[None])[0]
            return outputs[:-1] - outputs[-1]

    def _encode_superclasses(self) -> list[Tensor | None]:
        """Returns e_super of each edit (None where its keys are given), anew when a patch or a strength changed it."""
        made_at, encodings = self._supers
        now = (Generation.value, Generation.texts)
        if made_at != now:
            encodings = [
                find_superclass(patch.pipeline, edit) for patch in self._patches for edit in patch.edits
            ]
            self._supers = (now, encodings)
        return encodings


@dataclass(frozen=True, slots=True, eq=False)
class _EditHook:
    """A patch's hook on one layer, where the patch came in; the first patch's edit for all."""

    stack: _Stack
    patch: RankOnePatch
    path: str
    is_key: bool

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if Probing.active or not self.stack.serves(self.patch):
            return None
        found = self.stack.edit(layer, self.path, args[0], output, is_key=self.is_key)
        # A low-rank delta behind this hook is added in place.
        return found if found is None or is_last(layer, self) else found.clone()


def _check_edit(edit: RankOneEdit, layers: Mapping[str, Any]) -> None:
    missing = [path for path in layers if path not in edit.o_v]
    unknown = [path for path in edit.o_v if path not in layers]
    if missing or unknown:
        which, path = ("lacks", missing[0]) if missing else ("names", unknown[0])
        raise IncompatibleError(
            f"the edit {which} the layer {path!r}, the base has {len(layers)} cross-attention layers",
            hint="concepts show tells which base the concept was made for",
        )
    for path, attention in layers.items():
        weight = getattr(attention.to_v, "base_layer", attention.to_v).weight
        if tuple(weight.shape) != (edit.o_v[path].shape[0], edit.i_star.shape[0]):
            raise IncompatibleError(
                f"the edit of {path!r} maps {edit.i_star.shape[0]} to {edit.o_v[path].shape[0]} values, "
                f"the base's layer is {list(weight.shape)}"
            )
        if is_joined(attention):
            raise IncompatibleError(
                "keys and values of this pipeline are fused into one layer",
                hint="call pipeline.unfuse_qkv_projections() first",
            )
