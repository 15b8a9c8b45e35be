"""The algorithms of the LoRA family: which tensors each has, how their sizes hang together, what its scale means.

A row is found by the names and shapes of a module's tensors alone, so a header is enough. The arithmetic of each row is
in ``deltas``; sources are given there.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Final, Literal

from conceptry.errors import InvalidFileError
from conceptry.formats.shape_patterns import Shape, Sizes, has_sizes, match_shapes
from conceptry.kinds import AlgorithmId

ScaleMeaning = Literal["ranked", "stored", "none", "constraint"]
"""ranked: alpha / rank; stored: a number of its own; none: always 1; constraint: alpha bounds the rotation."""

BIAS_PARTS: Final = ("bias", "diff_b")

# Sizes: r rank, o outputs, i inputs, n inputs with the kernel flattened, *k kernel, *1 as many ones, others as named.
_LORA: Final = {"down": "r i *1", "up": "o r *1"}
_LOCON: Final = {"down": "r i *k", "up": "o r *1"}
_LOCON_CORE: Final = {"down": "r i *1", "core": "r r *k", "up": "o r *1"}
_LOHA: Final = {"hada_w1_a": "o r", "hada_w1_b": "r n", "hada_w2_a": "o r", "hada_w2_b": "r n"}
_LOHA_CORE: Final = {
    "hada_w1_a": "r o",
    "hada_w1_b": "r i",
    "hada_w2_a": "r o",
    "hada_w2_b": "r i",
    "hada_t1": "r r *k",
    "hada_t2": "r r *k",
}
_LOKR_FIRST: Final = ({"lokr_w1": "a b"}, {"lokr_w1_a": "a r", "lokr_w1_b": "r b"})
_LOKR_SECOND: Final = (
    {"lokr_w2": "c d *k"},
    {"lokr_w2_a": "c r", "lokr_w2_b": "r d *k"},
    {"lokr_w2_a": "r c", "lokr_w2_b": "r d", "lokr_t2": "r r *k"},
)
_GLORA: Final = {"a1": "i r *1", "a2": "r i *1", "b1": "o r *1", "b2": "r i *k"}
_GLORA_CORE: Final = {"a1": "i r *1", "a2": "r i *1", "b1": "o r *1", "b2": "r i *1", "bm": "r r *k"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One set of tensors that an algorithm may have: part -> pattern of its shape, and the sizes of the weight."""

    required: Mapping[str, str]
    optional: Mapping[str, str]
    outputs: str = "o"
    """Its product is the weight's first size; empty where the tensors do not tell."""

    inputs: str = "i"
    """Its product is the weight's second size, or that of all but the first where it is ``n``."""

    scale: ScaleMeaning


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """One row: what the tensors of a module are, together, and what must be known to apply them."""

    id: AlgorithmId
    title: str
    forms: tuple[Form, ...]
    needs_base: bool = False
    """Its delta depends on the base's weight."""

    additive: bool = True
    """Its delta is the same whatever the base's weight is, so that it may be applied beside the layer."""

    numbers: tuple[str, ...] = ()
    """Numbers beside alpha, each with its meaning in ``deltas``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """The row and form that fit a module's tensors, and the sizes that they have."""

    algorithm: Algorithm
    form: Form
    sizes: Sizes

    @property
    def rank(self) -> int:
        """The inner dimension; 0 where the algorithm has none, or the tensors do not tell."""
        return self.sizes.values.get("r", 0)


def _forms(
    parts: Mapping[str, str],
    *,
    biased: bool = False,
    outputs: str = "o",
    inputs: str = "i",
    scale: ScaleMeaning = "ranked",
) -> Form:
    optional = {"diff_b": "o"} | ({"bias": "o"} if biased else {})
    return Form(required=parts, optional=optional, outputs=outputs, inputs=inputs, scale=scale)


def _decompose(forms: tuple[Form, ...]) -> tuple[Form, ...]:
    """Returns the forms with a magnitude for each output, and those with one for each input."""
    axes = ({"magnitude_out": "o *u"}, {"magnitude_in": "1 i *u"})
    return tuple(
        Form(
            required={**form.required, **axis},
            optional={"diff_b": "o"},
            outputs=form.outputs,
            inputs=form.inputs,
            scale=form.scale,
        )
        for form in forms
        for axis in axes
    )


_LOCON_FORMS: Final = (_forms(_LOCON, biased=True), _forms(_LOCON_CORE, biased=True))
_LOHA_FORMS: Final = (_forms(_LOHA, inputs="n"), _forms(_LOHA_CORE))
_LOKR_FORMS: Final = tuple(
    _forms(
        {**first, **second},
        outputs="a c",
        inputs="b d",
        scale="stored" if "r" not in " ".join((*first.values(), *second.values())).split() else "ranked",
    )
    for first in _LOKR_FIRST
    for second in _LOKR_SECOND
)

ALGORITHMS: Final[tuple[Algorithm, ...]] = (
    Algorithm(id="lora", title="LoRA", forms=(_forms(_LORA, biased=True),)),
    Algorithm(id="locon", title="LoCon", forms=_LOCON_FORMS),
    Algorithm(
        id="dora",
        title="DoRA",
        forms=_decompose((_forms(_LOCON), _forms(_LOCON_CORE))),
        needs_base=True,
        additive=False,
    ),
    Algorithm(id="loha", title="LoHa", forms=_LOHA_FORMS),
    Algorithm(
        id="doha",
        title="LoHa with a magnitude (DoRA)",
        forms=_decompose(_LOHA_FORMS),
        needs_base=True,
        additive=False,
    ),
    Algorithm(id="lokr", title="LoKr", forms=_LOKR_FORMS),
    Algorithm(
        id="dokr",
        title="LoKr with a magnitude (DoRA)",
        forms=_decompose(_LOKR_FORMS),
        needs_base=True,
        additive=False,
    ),
    Algorithm(
        id="full",
        title="full difference",
        forms=(
            Form(required={"diff": "o *w"}, optional={"diff_b": "o"}, inputs="", scale="none"),
            Form(required={"diff_b": "o"}, optional={}, inputs="", scale="none"),
        ),
    ),
    Algorithm(
        id="norm",
        title="difference of a norm",
        forms=(
            Form(required={"w_norm": "o"}, optional={"b_norm": "o"}, inputs="", scale="none"),
            Form(required={"b_norm": "o"}, optional={}, inputs="", scale="none"),
        ),
    ),
    Algorithm(
        id="value",
        title="new value in place of the base's",
        forms=(Form(required={"value": "o *w"}, optional={}, inputs="", scale="none"),),
        needs_base=True,
        additive=False,
    ),
    Algorithm(
        id="ia3",
        title="IA3",
        forms=(
            Form(required={"ia3_weight": "e"}, optional={}, outputs="", inputs="", scale="none"),
            Form(required={"ia3_weight": "1 e *u"}, optional={}, outputs="", inputs="", scale="none"),
        ),
        needs_base=True,
        additive=False,
        numbers=("on_input",),
    ),
    Algorithm(
        id="ia3_peft",
        title="IA3 as PEFT stores it",
        forms=(
            Form(required={"ia3_l": "e 1"}, optional={}, outputs="", inputs="", scale="none"),
            Form(required={"ia3_l": "1 e *u"}, optional={}, outputs="", inputs="", scale="none"),
        ),
        needs_base=True,
        additive=False,
        numbers=("on_input",),
    ),
    Algorithm(
        id="glora",
        title="GLoRA",
        forms=(_forms(_GLORA), _forms(_GLORA_CORE)),
        needs_base=True,
        additive=False,
    ),
    Algorithm(
        id="oft",
        title="OFT",
        forms=(
            Form(
                required={"oft_blocks": "k b b"},
                optional={"rescale": "o *u"},
                outputs="k b",
                inputs="",
                scale="constraint",
            ),
        ),
        needs_base=True,
        additive=False,
    ),
    Algorithm(
        id="boft",
        title="BOFT",
        forms=(
            Form(
                required={"oft_blocks": "m k b b"},
                optional={"rescale": "o *u"},
                outputs="k b",
                inputs="",
                scale="constraint",
            ),
        ),
        needs_base=True,
        additive=False,
    ),
    Algorithm(
        id="oft_peft",
        title="OFT as PEFT stores it",
        forms=(Form(required={"oft_R": "k t"}, optional={}, outputs="", inputs="", scale="none"),),
        needs_base=True,
        additive=False,
        numbers=("neumann_terms",),
    ),
    Algorithm(
        id="boft_peft",
        title="BOFT as PEFT stores it",
        forms=(
            Form(required={"boft_R": "m k b b", "boft_s": "o 1"}, optional={}, inputs="", scale="none"),
            Form(required={"boft_R": "m k b b", "boft_s": "1 o"}, optional={}, inputs="", scale="none"),
        ),
        needs_base=True,
        additive=False,
    ),
)
ALGORITHM_BY_ID: Final[Mapping[AlgorithmId, Algorithm]] = {row.id: row for row in ALGORITHMS}


@functools.cache
def _by_parts() -> Mapping[frozenset[str], tuple[tuple[Algorithm, Form], ...]]:
    found: dict[frozenset[str], list[tuple[Algorithm, Form]]] = {}
    for row in ALGORITHMS:
        for form in row.forms:
            found.setdefault(frozenset(form.required), []).append((row, form))
    return {parts: tuple(rows) for parts, rows in found.items()}


@functools.cache
def list_parts() -> frozenset[str]:
    """Returns the parts that any algorithm has."""
    return frozenset(
        part for row in ALGORITHMS for form in row.forms for part in (*form.required, *form.optional)
    )


def match_algorithm(shapes: Mapping[str, Shape]) -> Match:
    """Returns the row that the parts of one module are of, with their sizes.

    Raises:
        InvalidFileError: if the parts are of no algorithm together (``where`` is one of them), or do not fit.
    """
    return _match(tuple(shapes.items()))


# The modules of one adapter have a few dozen different shapes between them.
@functools.lru_cache(maxsize=4096)
def _match(items: tuple[tuple[str, Shape], ...]) -> Match:
    shapes = dict(items)
    rows = _find_rows(shapes.keys())
    if not rows:
        raise _explain_parts(shapes)
    # Of several forms with the same parts, what is said of a fault comes from one with as many dimensions.
    rows.sort(key=lambda one: all(has_sizes(_patterns(one[1])[part], shape) for part, shape in items))
    failure: InvalidFileError | None = None
    for row, form in rows:
        patterns = {part: _patterns(form)[part] for part in shapes}
        try:
            sizes = match_shapes(patterns, shapes, outputs=form.outputs)
        except InvalidFileError as error:
            failure = error
            continue
        return Match(algorithm=row, form=form, sizes=sizes)
    raise failure or _explain_parts(shapes)


def _patterns(form: Form) -> dict[str, str]:
    return {**form.required, **form.optional}


def _find_rows(names: Set[str]) -> list[tuple[Algorithm, Form]]:
    return [
        (row, form)
        for required, rows in _by_parts().items()
        if required <= names
        for row, form in rows
        if names <= required | form.optional.keys()
    ]


def _explain_parts(shapes: Mapping[str, Shape]) -> InvalidFileError:
    names = set(shapes)
    nearest = max(
        (form for row in ALGORITHMS for form in row.forms),
        key=lambda form: (len(names & form.required.keys()), -len(form.required.keys() - names)),
    )
    missing = sorted(nearest.required.keys() - names)
    if missing and names & nearest.required.keys():
        return InvalidFileError("this tensor is missing; its other half is there", where=missing[0])
    extra = min(names - nearest.required.keys() - nearest.optional.keys(), default=None)
    return InvalidFileError(
        "it is of no algorithm that is known, beside the other tensors of its module", where=extra
    )
