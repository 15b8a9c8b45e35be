"""An error in the middle: out of memory at any sum or copy, Ctrl-C at any line. What was begun is undone."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from conceptry.composer import Composition, attach, detach, fuse, standins
from conceptry.composer.attach import Attachment
from conceptry.composition import Schedule, Use
from conceptry.concepts import Concept
from tests.composer.test_fusing import make_dora
from tests.composer.test_lora_algorithms import ONE_EACH
from tests.fakes.concepts import (
    list_paths,
    make_embedding,
    make_full,
    make_hypernetwork,
    make_layered,
    make_lora,
    make_rank_one,
)
from tests.fakes.modules import make_module
from tests.fakes.pipelines import assert_same, make_pipeline, render, snapshot

Concepts = dict[str, Concept]
PROMPT: Final = "a <e> and a <p> and a <r>, zork cat"
ALL: Final = ("embedding", "layered", "rank_one", "hypernetwork", "lora", "full", "dora")


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return make_pipeline("sd1")


def make_concepts(folder: Path, pipeline: Any) -> Concepts:
    made = {
        "embedding": make_embedding(folder / "e", pipeline),
        "layered": make_layered(folder / "p", pipeline),
        "rank_one": make_rank_one(folder / "r", pipeline),
        "hypernetwork": make_hypernetwork(folder / "h", pipeline),
        "lora": make_lora(folder / "l", pipeline),
        "other": make_lora(folder / "o", pipeline, seed=21, name="test/other"),
        "full": make_full(folder / "f", pipeline),
        "dora": make_dora(folder / "d", pipeline),
    }
    for concept in made.values():
        for path in concept.blobs.values():
            path.chmod(0o444)  # as in a store
    return made


def make_small_concepts(folder: Path, pipeline: Any) -> Concepts:
    path = list_paths(pipeline)[0]
    row, form = next((row, form) for _, row, form in ONE_EACH if row.id == "lora")
    shape = tuple(pipeline.unet.get_submodule(path).weight.shape)
    makers = {"lora": 1, "other": 2}
    made = {
        name: make_lora(
            folder / name,
            pipeline,
            name=f"test/{name}",
            modules={f"unet.{path}": make_module(row, form, shape, seed=seed)},
        )
        for name, seed in makers.items()
    }
    return {**made, "full": make_full(folder / "full", pipeline, names=[f"{path}.weight"])}


# --- what is done --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Operation:
    """What is in the pipeline before, and what is then begun; the answer of the first is what the second is given."""

    before: Callable[[Any, Concepts], Any]
    act: Callable[[Any, Concepts, Any], object]


def compose(concepts: Concepts, *kinds: str, **options: Any) -> Composition:
    return Composition(*(concepts[kind] * 0.7 for kind in kinds), **options)


def put_in(put: Callable[..., Attachment], *kinds: str) -> Callable[..., Attachment]:
    return lambda pipeline, concepts, *_: put(compose(concepts, *kinds), pipeline)


def change_use(_: Any, concepts: Concepts, attachment: Attachment) -> object:
    use = {
        "test/lora": Use(parts={"unet.mid_block": 0.5}, schedule=Schedule(start=0.5)),
        "test/full": Use(parts={"unet": -1.0}),
    }
    return attachment.change(compose(concepts, "lora", "full", use=use))


def change_words(_: Any, concepts: Concepts, attachment: Attachment) -> object:
    rename = {"test/embedding": {"<e>": "<new>"}}
    return attachment.change(compose(concepts, "embedding", "lora", rename=rename))


def take_one_of_two(pipeline: Any, concepts: Concepts) -> Attachment:
    first = fuse(compose(concepts, "lora", "full"), pipeline)
    fuse(compose(concepts, "other"), pipeline)
    return first


def nothing(*_: Any) -> None:
    pass


FUSED: Final = {
    "fuse": Operation(nothing, put_in(fuse, "lora", "full")),
    "replace": Operation(
        put_in(fuse, "lora", "full"), lambda _, concepts, one: one.replace("test/lora", concepts["other"])
    ),
    "set_strengths": Operation(
        put_in(fuse, "lora", "full"),
        lambda _, __, one: one.set_strengths({"test/lora": 0.2, "test/full": 1.0}),
    ),
    "use": Operation(put_in(fuse, "lora", "full"), change_use),
    "detach": Operation(take_one_of_two, lambda _, __, one: one.detach()),
}
OTHERS: Final = {
    "fuse all": Operation(nothing, put_in(fuse, "embedding", "lora", "full", "dora")),
    "attach all": Operation(nothing, put_in(attach, *ALL)),
    "detach all": Operation(put_in(attach, *ALL), lambda _, __, one: one.detach()),
    "replace attached": Operation(
        put_in(attach, "rank_one", "lora", "full"),
        lambda _, concepts, one: one.replace("test/lora", concepts["dora"]),
    ),
    "rename": Operation(put_in(attach, "embedding", "lora"), change_words),
    "switch": Operation(
        put_in(fuse, "lora", "full"),
        lambda _, concepts, one: one.change(compose(concepts, "lora", "full", way="switch", period=1)),
    ),
    "focus": Operation(
        put_in(attach, "lora", "rank_one"),
        lambda _, concepts, one: one.change(compose(concepts, "lora", "rank_one", way="focus")),
    ),
}


# --- what goes wrong -----------------------------------------------------------------------------------------------


class Strike(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises at one sum or copy into a tensor while a block runs, or from that one on; counts them."""

    def __init__(
        self, place: int = 0, error: type[BaseException] = MemoryError, *, lasts: bool = False
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0
        self._place, self._error, self._lasts = place, error, lasts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func._schema.is_mutable
        if not func._schema.is_mutable:
            pass
        elif self.count == self._place or (self._lasts and self.count > self._place > 0):
            raise self._error("out of memory")
        return func(*args, **(kwargs or {}))


Line = tuple[str, int]
CHANGING: Final = frozenset(
    {
        *(
            "attach",
            "slots",
            "standins",
            "undoing",
            "full",
            "deltas",
            "lora",
            "hooks",
            "guards",
            "placeholders",
        ),
        *(
            "tokens",
            "compiled",
            "layered",
            "rank_one",
            "hypernetworks",
            "tables",
            "steering",
            "focus",
            "emphasis",
        ),
    }
)
"""Modules of the composer that change anything; the others read."""


@contextmanager
def watch_lines(strike_at: tuple[Line, int] | None = None) -> Iterator[Counter[Line]]:
    """Gives how often each line of the composer ran; Ctrl-C comes before the one at ``strike_at``."""
    seen: Counter[Line] = Counter()

    def look(frame: FrameType, event: str, _: Any) -> Any:
        path = Path(frame.f_code.co_filename)
        if path.parent.name != "composer" or path.stem not in CHANGING:
            return None
        if event == "line":
            line = (frame.f_code.co_filename, frame.f_lineno)
            seen[line] += 1
            if strike_at is not None and (line, seen[line]) == strike_at:
                raise KeyboardInterrupt
        return look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        yield seen
    finally:
        sys.settrace(before)


@dataclass(slots=True)
class Case:
    """One operation on one pipeline, which is empty before it, and what is in it after it."""

    operation: Operation
    pipeline: Any
    concepts: Concepts
    empty: dict[str, Any]
    after: dict[str, Any]

    def run(self, trouble: Any, *, undone: bool) -> Any:
        """Do the operation in trouble; all is as before it then, a second try works, and everything comes out."""
        given = self.operation.before(self.pipeline, self.concepts)
        before = take_stock(self.pipeline)
        with pytest.raises((MemoryError, KeyboardInterrupt, torch.OutOfMemoryError)), trouble as found:
            self.operation.act(self.pipeline, self.concepts, given)
        if undone:
            assert_same(before, take_stock(self.pipeline))
            self.operation.act(self.pipeline, self.concepts, given)
            assert_same(self.after, take_stock(self.pipeline))
        self.take_out()
        return found

    def run_well(self) -> None:
        """Do the operation, and take everything out."""
        given = self.operation.before(self.pipeline, self.concepts)
        self.operation.act(self.pipeline, self.concepts, given)
        assert_same(self.after, take_stock(self.pipeline))
        self.take_out()

    def take_out(self) -> None:
        detach(self.pipeline)
        assert_same(self.empty, take_stock(self.pipeline))
        assert not standins._Waiting.targets
        assert not len(standins._STAND_INS)


def take_stock(pipeline: Any) -> dict[str, Any]:
    """Return all that an operation may change: bits, tokenizers, hooks of both sorts, and what stands over methods."""
    owners = {"pipeline": pipeline, "unet": pipeline.unet, "scheduler": pipeline.scheduler}
    found = snapshot(pipeline, with_settings=False)
    made = {id(one) for one in pipeline.unet.parameters() if standins.is_made(one)}
    for key, value in found.items():
        if isinstance(value, tuple) and isinstance(value[-1], torch.Tensor):
            # The memory of a sum may be another, and so may a bias that the base lacks.
            found[key] = (*value[:2], None if value[2] in made else value[2], value[-1])
    for name, owner in owners.items():
        found[f"{name}#own"] = sorted(key for key in vars(owner) if "tokenizer" not in key)
    return found


def make_case(operation: Operation, pipeline: Any, concepts: Concepts) -> Case:
    empty = take_stock(pipeline)
    operation.act(pipeline, concepts, operation.before(pipeline, concepts))
    case = Case(operation, pipeline, concepts, empty, take_stock(pipeline))
    case.take_out()
    return case


def count(case: Case, trouble: Any) -> Any:
    given = case.operation.before(case.pipeline, case.concepts)
    with trouble as found:
        case.operation.act(case.pipeline, case.concepts, given)
    case.take_out()
    return found


# --- tests ---------------------------------------------------------------------------------------------------------


def strike_everywhere(case: Case, *, undone: bool) -> None:
    places = count(case, Strike()).count
    assert places > 2
    for place in range(1, places + 1):
        error = (MemoryError, torch.OutOfMemoryError, KeyboardInterrupt)[place % 3]
        case.run(Strike(place, error), undone=undone)
        if place in (1, places // 2):
            case.run(Strike(place, lasts=True), undone=False)


@pytest.mark.parametrize(
    "name",
    [
        "fuse",
        "detach",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("replace", "set_strengths")),
    ],
)
def test_out_of_memory_at_any_sum_or_copy_is_undone_and_a_second_try_works(
    name: str, pipeline: Any, tmp_path: Path
) -> None:
    case = make_case(FUSED[name], pipeline, make_small_concepts(tmp_path, pipeline))
    strike_everywhere(case, undone=name != "detach")


SUMMED: Final = [name for name in FUSED | OTHERS if name not in ("rename", "focus", "detach all")]
"""Operations that add anything up; the others move hooks and words alone."""


@pytest.mark.slow
@pytest.mark.parametrize("name", SUMMED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_out_of_memory_at_any_sum_or_copy_of_any_kind_is_undone(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    pipeline = make_pipeline("sd1")
    concepts = make_concepts(tmp_path, pipeline)
    pipeline.to(dtype)
    case = make_case((FUSED | OTHERS)[name], pipeline, concepts)
    strike_everywhere(case, undone="detach" not in name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FUSED, *OTHERS])
def test_ctrl_c_at_any_line_leaves_nothing_that_detach_does_not_take_out(name: str, tmp_path: Path) -> None:
    pipeline = make_pipeline("sd1")
    case = make_case((FUSED | OTHERS)[name], pipeline, make_concepts(tmp_path, pipeline))
    seen = count(case, watch_lines())
    assert len(seen) > 50
    for line, times in seen.items():
        for occurrence in {1, times}:
            found = case.run(watch_lines((line, occurrence)), undone=False)
            assert found[line] == occurrence, line
            case.run_well()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["sum", "switch", "composite", "focus"])
def test_out_of_memory_while_a_picture_is_drawn_spoils_neither_the_next_nor_the_base(
    way: Any, pipeline: Any, tmp_path: Path
) -> None:
    concepts = make_concepts(tmp_path, pipeline)
    empty = take_stock(pipeline)
    use = {"test/lora": Use(schedule=Schedule(stop=0.5))} if way in ("sum", "switch") else {}
    put = fuse if way != "focus" else attach
    put(compose(concepts, "lora", "full", way=way, period=1, use=use), pipeline)
    expected, stock = render(pipeline, PROMPT), take_stock(pipeline)
    with Strike() as all_of_them:
        render(pipeline, PROMPT)
    for place in range(1, all_of_them.count + 1, 23):
        with pytest.raises(MemoryError), Strike(place):
            render(pipeline, PROMPT)
        assert torch.equal(render(pipeline, PROMPT), expected), place
        assert_same(stock, take_stock(pipeline))
    with pytest.raises(MemoryError), Strike(all_of_them.count // 2):
        render(pipeline, PROMPT)
    detach(pipeline)
    assert_same(empty, take_stock(pipeline))
