"""Whatever is done to a pipeline while concepts are in it: it is restored to the bit, or the call is refused."""

from __future__ import annotations

import copy
import re
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import accelerate
import pytest
import torch
from diffusers.hooks import apply_group_offloading
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from conceptry.composer import Composition, attach, export, fuse
from conceptry.composer.attach import Attachment
from conceptry.composer.pipelines import encode_prompts
from conceptry.composition import Region, Schedule, Use
from conceptry.concepts import Concept
from conceptry.errors import IncompatibleError
from tests.composer.test_failures import Strike
from tests.composer.test_fusing import make_dora
from tests.fakes.concepts import (
    make_embedding,
    make_full,
    make_hypernetwork,
    make_layered,
    make_lora,
    make_rank_one,
)
from tests.fakes.forwards import measure_difference, run_components
from tests.fakes.kinds import KIND_BY_ID, find_word, make_kind
from tests.fakes.pipelines import Shape, make_pipeline, render

MAKERS: Final[dict[str, Callable[[Path, Any], Concept]]] = {
    "embedding": make_embedding,
    "layered": make_layered,
    "rank_one": make_rank_one,
    "lora": make_lora,
    "dora": make_dora,
    "full": make_full,
    "hypernetwork": make_hypernetwork,
}
TOKENIZERS: Final = ("tokenizer", "tokenizer_2")
GROUPS: Final = {
    "onload_device": torch.device("cpu"),
    "offload_device": torch.device("cpu"),
    "offload_type": "leaf_level",
}
PROMPT: Final = "a <e> and a <p> and a <r>, zork cat"


@pytest.fixture(scope="module")
def concepts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Concept]:
    pipeline = make_pipeline("sd1")
    folder = tmp_path_factory.mktemp("concepts")
    made = {kind: make(folder / kind, pipeline) for kind, make in MAKERS.items()}
    for concept in made.values():
        for path in concept.blobs.values():
            path.chmod(0o444)  # as in a store; factors are then used where they lie
    return made


def read_bits(pipeline: Any) -> dict[str, torch.Tensor]:
    """Return every weight and buffer, also those not saved, under its name without adapters of peft around."""
    found = {}
    for component in ("unet", "text_encoder", "text_encoder_2"):
        part = getattr(pipeline, component, None)
        for name, value in () if part is None else (*part.named_parameters(), *part.named_buffers()):
            if ".lora_" not in name:
                found[f"{component}.{name.replace('.base_layer.', '.')}"] = value.detach().clone()
    return found


def assert_equal_bits(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


# --- any sequence --------------------------------------------------------------------------------------------------


HALVES: Final = (torch.float16, torch.bfloat16)


class Sequences(RuleBasedStateMachine):
    """A pipeline that concepts go into and out of, and its twin to which only the rest is done."""

    folder: Path
    shape: Shape
    concepts: dict[str, Concept]
    other: Concept

    @initialize(
        dtype=st.sampled_from([torch.float32, *HALVES]), compiled=st.sampled_from([False, False, True])
    )
    def open(self, dtype: torch.dtype, compiled: bool) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.pipeline, self.twin = (make_pipeline(self.shape).to(dtype) for _ in range(2))
        self.tokenizers = [getattr(self.pipeline, name, None) for name in TOKENIZERS]
        self.inside: dict[str, Attachment] = {}
        self.has_adapter = self.is_offloaded = False
        self.is_compiled = compiled
        if compiled:
            self.do(lambda pipeline: pipeline.unet.compile(backend=Compiler()))
        self.call = vars(self.pipeline.unet).get("_compiled_call_impl")

    def do(self, change: Callable[[Any], None]) -> None:
        """Do the same to both."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            change(self.pipeline)
            change(self.twin)

    def check_refusal(self, error: IncompatibleError, known: str) -> None:
        """Weights that lie elsewhere may be refused, and what is known."""
        found = re.search(known, error.message) if known else None
        if found is None and not (self.is_offloaded and "not in memory" in error.message):
            raise error

    def choose(self, data: st.DataObject) -> tuple[Attachment, Concept]:
        attachment = self.inside[data.draw(st.sampled_from(sorted(self.inside)))]
        return attachment, attachment.composition.members[0].concept

    @rule(
        kind=st.sampled_from(sorted(KIND_BY_ID)),
        fused=st.booleans(),
        strength=st.sampled_from([1.0, 0.4, 0.0]),
    )
    def put_in(self, kind: str, fused: bool, strength: float) -> None:
        if kind in self.inside:
            return
        put = fuse if fused and KIND_BY_ID[kind].fusable else attach
        try:
            self.inside[kind] = put(Composition(self.concepts[kind] * strength), self.pipeline)
        except IncompatibleError as error:
            self.check_refusal(error, "")

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def take_out(self, data: st.DataObject) -> None:
        self.inside.pop(data.draw(st.sampled_from(sorted(self.inside)))).detach()

    @precondition(lambda self: self.inside)
    @rule(data=st.data(), strength=st.sampled_from([1.0, -0.7, 0.0]))
    def change_strength(self, data: st.DataObject, strength: float) -> None:
        attachment, concept = self.choose(data)
        attachment.set_strengths({str(concept.manifest.name): strength})

    @precondition(lambda self: self.inside)
    @rule(data=st.data(), place=st.integers(1, 12), strength=st.sampled_from([0.3, 0.9]))
    def run_out_of_memory(self, data: st.DataObject, place: int, strength: float) -> None:
        attachment, concept = self.choose(data)
        before, bits = attachment.composition, read_bits(self.pipeline)
        try:
            with Strike(place):
                attachment.set_strengths({str(concept.manifest.name): strength})
        except MemoryError:
            assert attachment.composition is before
            assert_equal_bits(read_bits(self.pipeline), bits)

    @precondition(lambda self: self.inside)
    @rule(
        data=st.data(),
        schedule=st.sampled_from([None, Schedule(start=0.5), Schedule(stop=0.4, ramp=0.2)]),
        region=st.sampled_from([None, None, Region(box=(0, 0, 0.5, 1))]),
        parts=st.sampled_from([{}, {"unet.mid_block": 0.5}, {"unet": 0.0}]),
    )
    def change_use(self, data: st.DataObject, schedule: Any, region: Any, parts: dict[str, float]) -> None:
        attachment, concept = self.choose(data)
        use = {str(concept.manifest.name): Use(parts=parts, schedule=schedule, region=region)}
        try:
            attachment.change(Composition(concept, use=use))
        except IncompatibleError as error:
            self.check_refusal(error, "follows the steps|cannot be run in passes")

    @precondition(lambda self: not self.is_offloaded)
    @rule(way=st.sampled_from(["sum", "switch", "composite", "focus"]))
    def draw_all_at_once(self, way: Any) -> None:
        """All kinds in one composition, in every way, and an error when the picture is drawn."""
        if self.inside or (self.is_compiled and way in ("composite", "focus")):
            return
        composition = Composition(*self.concepts.values(), way=way)
        with suppress(KeyboardInterrupt), attach(composition, self.pipeline):
            if not self.is_compiled:
                self.draw()
            raise KeyboardInterrupt

    @precondition(lambda self: "lora" in self.inside)
    @rule()
    def replace(self) -> None:
        attachment = self.inside["lora"]
        (member,) = attachment.composition.members
        here = member.concept.manifest.name
        other = self.other if here == self.concepts["lora"].manifest.name else self.concepts["lora"]
        attachment.replace(str(here), other)

    @rule(kind=st.sampled_from([AttnProcessor, AttnProcessor2_0]))
    def set_processor(self, kind: Any) -> None:
        self.do(lambda pipeline: pipeline.unet.set_attn_processor(kind()))

    @precondition(lambda self: not self.is_offloaded)
    @rule()
    def move(self) -> None:
        self.do(lambda pipeline: pipeline.to("cpu"))

    @precondition(lambda self: self.pipeline.unet.dtype == torch.float32 and not self.is_offloaded)
    @rule(dtype=st.sampled_from(HALVES))
    def cast(self, dtype: torch.dtype) -> None:
        self.do(lambda pipeline: pipeline.to(dtype))

    @precondition(lambda self: not self.is_offloaded and not self.has_adapter)
    @rule()
    def offload(self) -> None:
        self.do(lambda pipeline: accelerate.cpu_offload(pipeline.unet, execution_device="cpu"))
        self.is_offloaded = True

    @precondition(lambda self: not self.is_offloaded and not self.has_adapter)
    @rule()
    def export(self) -> None:
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        export(Composition(self.concepts["lora"] * 0.5), self.pipeline, folder / "lora.safetensors")

    @precondition(lambda self: not self.is_compiled)
    @rule()
    def draw(self) -> None:
        words = [find_word(concept) for kind, concept in self.concepts.items() if kind in self.inside]
        picture = render(self.pipeline, " ".join(["a cat", *words]), steps=1)
        assert picture.dtype == self.pipeline.unet.dtype

    @precondition(lambda self: not self.is_offloaded)
    @rule()
    def load_adapter_of_diffusers(self) -> None:
        if not self.has_adapter:
            self.do(add_adapter)
            self.has_adapter = True

    @rule()
    def unload_adapter_of_diffusers(self) -> None:
        if self.has_adapter:
            self.do(lambda pipeline: pipeline.unet.unload_lora())
            self.has_adapter = False

    @precondition(lambda self: self.inside)
    @rule()
    def join_projections(self) -> None:
        if not self.inside.keys() <= {"embedding"}:
            with pytest.raises(IncompatibleError, match="fuse_qkv_projections"):
                self.pipeline.fuse_qkv_projections()

    def teardown(self) -> None:
        if not hasattr(self, "inside"):
            return
        for attachment in self.inside.values():
            attachment.detach()
        if self.is_offloaded:
            self.do(lambda pipeline: accelerate.hooks.remove_hook_from_module(pipeline.unet, recurse=True))
        assert_equal_bits(read_bits(self.pipeline), read_bits(self.twin))
        assert [getattr(self.pipeline, name, None) for name in TOKENIZERS] == self.tokenizers
        processors = [type(one) for one in self.pipeline.unet.attn_processors.values()]
        assert processors == [type(one) for one in self.twin.unet.attn_processors.values()]
        assert list_hooks(self.pipeline) == list_hooks(self.twin)
        assert vars(self.pipeline.unet).get("_compiled_call_impl") is self.call
        for name in ("unet", "scheduler"):
            mine, twins = (vars(getattr(one, name)).keys() for one in (self.pipeline, self.twin))
            assert mine == twins, name
        assert "encode_prompt" not in vars(self.pipeline)


def list_hooks(pipeline: Any) -> dict[str, int]:
    """Return how many hooks of either sort stand before and after each module."""
    return {
        f"{component}.{name.replace('.base_layer', '')}": len(module._forward_hooks)
        + len(module._forward_pre_hooks)
        for component, part in pipeline.components.items()
        if isinstance(part, torch.nn.Module)
        for name, module in part.named_modules()
    }


def add_adapter(pipeline: Any) -> None:
    """Let peft put its layers around some of the UNet's, as ``load_lora_weights`` does."""
    from peft import LoraConfig

    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k"], init_lora_weights=False)
    pipeline.unet.add_adapter(config, adapter_name="theirs")


def run_sequences(folder: Path, shape: Shape, *, examples: int, steps: int) -> None:
    pipeline = make_pipeline(shape)
    made = {kind: make_kind(folder, pipeline, kind) for kind in KIND_BY_ID}
    other_lora = make_kind(folder, pipeline, "lora", label="other", seed=21)
    for concept in (*made.values(), other_lora):
        for path in concept.blobs.values():
            path.chmod(0o444)  # as in a store; factors are then used where they lie

    class WithConcepts(Sequences):
        pass

    WithConcepts.folder, WithConcepts.shape = folder, shape
    WithConcepts.concepts, WithConcepts.other = made, other_lora
    run_state_machine_as_test(
        WithConcepts,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            derandomize=True,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_every_bit_comes_back_after_any_sequence(tmp_path: Path) -> None:
    run_sequences(tmp_path, "sd1", examples=5, steps=8)


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["sd1", "sdxl"])
def test_every_bit_comes_back_after_many_long_sequences(shape: Shape, tmp_path: Path) -> None:
    run_sequences(tmp_path, shape, examples=100 if shape == "sd1" else 40, steps=20)


# --- what is done in between ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("put", [attach, fuse])
def test_a_pipeline_that_is_cast_meanwhile_has_the_bases_bits_in_its_new_precision(
    put: Any, concepts: dict[str, Concept]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline, twin = make_pipeline("sd1"), make_pipeline("sd1").to(torch.bfloat16)
        attachment = put(Composition(concepts["lora"], concepts["full"]), pipeline)
        pipeline.to(torch.bfloat16)
        attachment.set_strengths({"test/lora": 0.5})
        attachment.detach()
    assert_equal_bits(read_bits(pipeline), read_bits(twin))


@pytest.mark.parametrize("put", [attach, fuse])
def test_weights_that_are_offloaded_meanwhile_are_restored_where_they_lie(
    put: Any, concepts: dict[str, Concept]
) -> None:
    pipeline = make_pipeline("sd1")
    expected = read_bits(pipeline)
    attachment = put(Composition(concepts["lora"], concepts["full"], concepts["dora"]), pipeline)
    inside = run_components(pipeline, PROMPT)
    accelerate.cpu_offload(pipeline.unet, execution_device="cpu")
    assert measure_difference(run_components(pipeline, PROMPT), inside) < 1e-6
    attachment.detach()
    accelerate.hooks.remove_hook_from_module(pipeline.unet, recurse=True)
    assert_equal_bits(read_bits(pipeline), expected)


def test_weights_that_were_offloaded_before_are_refused(concepts: dict[str, Concept]) -> None:
    pipeline = make_pipeline("sd1")
    accelerate.cpu_offload(pipeline.unet, execution_device="cpu")
    with pytest.raises(IncompatibleError, match="not in memory") as caught:
        attach(Composition(concepts["full"]), pipeline)
    assert "remove_all_hooks" in str(caught.value.hint)


def test_weights_that_are_offloaded_by_group_take_nothing_into_them(concepts: dict[str, Concept]) -> None:
    """diffusers keeps copies by group, and puts them in the place of what is changed since."""
    pipeline = make_pipeline("sd1")
    apply_group_offloading(pipeline.unet, **GROUPS)
    before, plain = read_bits(pipeline), render(pipeline, PROMPT)
    for put, kind in ((fuse, "lora"), (fuse, "full"), (attach, "full"), (attach, "dora")):
        with pytest.raises(IncompatibleError, match="offloaded by group") as caught:
            put(Composition(concepts[kind]), pipeline)
        assert "unfused" in str(caught.value.hint)
    for kind in ("lora", "rank_one"):  # beside the weights
        with attach(Composition(concepts[kind]), pipeline):
            assert not torch.allclose(render(pipeline, PROMPT), plain, rtol=1e-3, atol=1e-3), kind
        assert torch.equal(render(pipeline, PROMPT), plain), kind
    assert_equal_bits(read_bits(pipeline), before)


def test_weights_that_are_offloaded_by_group_meanwhile_come_back(concepts: dict[str, Concept]) -> None:
    pipeline = make_pipeline("sd1")
    before = read_bits(pipeline)
    attachment = fuse(Composition(concepts["lora"]), pipeline)
    with pytest.raises(IncompatibleError, match="enable_group_offload"):
        pipeline.unet.enable_group_offload(**GROUPS)
    apply_group_offloading(pipeline.unet, **GROUPS)  # a function of its own, which nothing can refuse
    attachment.detach()
    assert_equal_bits(read_bits(pipeline), before)


def test_calls_that_would_break_what_is_inside_are_refused_and_work_again_after(
    concepts: dict[str, Concept],
) -> None:
    pipeline = make_pipeline("sd1")
    with fuse(Composition(concepts["lora"]), pipeline):
        for owner, call in (
            (pipeline, "fuse_qkv_projections"),
            (pipeline, "fuse_lora"),
            (pipeline.unet, "fuse_lora"),
        ):
            with pytest.raises(IncompatibleError, match=call) as caught:
                getattr(owner, call)()
            assert "detach" in str(caught.value.hint)
    changing = concepts.keys() - {"embedding"}
    for kind in changing:
        with (
            attach(Composition(concepts[kind]), pipeline),
            pytest.raises(IncompatibleError, match="fuse_qkv_projections"),
        ):
            pipeline.fuse_qkv_projections()
    pipeline.fuse_qkv_projections()
    for kind in changing:
        with pytest.raises(IncompatibleError, match="fused into one layer"):
            attach(Composition(concepts[kind]), pipeline)
    with attach(Composition(concepts["embedding"]), pipeline):
        pass
    pipeline.unfuse_qkv_projections()
    with attach(Composition(concepts["lora"]), pipeline):
        pass


@pytest.mark.parametrize("put", [attach, fuse])
@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_an_adapter_of_diffusers_comes_and_goes_while_a_concept_is_inside(
    put: Any, first: str, concepts: dict[str, Concept]
) -> None:
    pipeline = make_pipeline("sd1")
    plain = read_bits(pipeline)
    with put(Composition(concepts["lora"]), pipeline):
        ours = run_components(pipeline, PROMPT)
    add_adapter(pipeline)
    theirs = run_components(pipeline, PROMPT)
    if first == "ours":
        pipeline.unet.unload_lora()
    attachment = put(Composition(concepts["lora"]), pipeline)
    if first == "ours":
        add_adapter(pipeline)
    both = run_components(pipeline, PROMPT)
    assert measure_difference(both, ours) > 1e-3
    assert measure_difference(both, theirs) > 1e-3
    pipeline.unet.unload_lora()
    assert measure_difference(run_components(pipeline, PROMPT), ours) < 1e-6
    attachment.detach()
    assert_equal_bits(read_bits(pipeline), plain)


def test_encodings_from_elsewhere_are_refused_before_anything_is_drawn(
    sd1: Any, concepts: dict[str, Concept]
) -> None:
    elsewhere = encode_prompts(sd1, ["a cat", ""]).detach() * 1.1
    options = {"height": 16, "width": 16, "num_inference_steps": 1, "output_type": "latent"}
    for kind in ("embedding", "rank_one", "layered"):
        with attach(Composition(concepts[kind]), sd1):
            with pytest.raises(IncompatibleError, match="prompt_embeds") as caught:
                sd1(prompt_embeds=elsewhere[:1], negative_prompt_embeds=elsewhere[1:], **options)
            assert "prompt=" in str(caught.value.hint)
            own = encode_prompts(sd1, ["a <e> <r> <p>", ""]).detach()
            sd1(prompt_embeds=own[:1], negative_prompt_embeds=own[1:], **options)
    with attach(Composition(concepts["lora"]), sd1):
        sd1(prompt_embeds=elsewhere[:1], negative_prompt_embeds=elsewhere[1:], **options)


# --- compiled ------------------------------------------------------------------------------------------------------


class Compiler:
    """A backend that runs what it is given and counts how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.calls += 1
        return graph.forward


def compile_parts(pipeline: Any, way: str, backend: Compiler) -> None:
    """Compile the UNet and the text encoder in one of the two ways that torch has."""
    for name in ("unet", "text_encoder"):
        module = getattr(pipeline, name)
        if way == "wrapped":
            setattr(pipeline, name, torch.compile(module, backend=backend))
        else:
            module.compile(backend=backend)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["wrapped", "in place"])
def test_pictures_of_a_compiled_pipeline_change_and_return(way: str, concepts: dict[str, Concept]) -> None:
    plain_pipeline, pipeline = make_pipeline("sd1"), make_pipeline("sd1")
    before = copy.deepcopy(read_bits(pipeline))
    compile_parts(pipeline, way, Compiler())
    plain, uncompiled = render(pipeline, PROMPT), render(plain_pipeline, PROMPT)
    for kinds in (("lora",), ("full", "dora"), ("embedding",), ("rank_one", "layered"), tuple(MAKERS)):
        composition = Composition(*(concepts[kind] for kind in kinds))
        with attach(composition, plain_pipeline):
            expected = render(plain_pipeline, PROMPT)
        assert not torch.allclose(expected, uncompiled, rtol=0.1, atol=0.1), kinds
        with attach(composition, pipeline):
            assert torch.allclose(render(pipeline, PROMPT), expected, rtol=1e-2, atol=2e-2), kinds
        assert torch.equal(render(pipeline, PROMPT), plain), kinds
    for name in ("unet", "text_encoder"):
        setattr(pipeline, name, getattr(getattr(pipeline, name), "_orig_mod", getattr(pipeline, name)))
    assert_equal_bits(read_bits(pipeline), before)


@pytest.mark.slow
def test_switching_adapters_compiles_nothing_anew(tmp_path: Path) -> None:
    pipeline, backend = make_pipeline("sd1"), Compiler()
    first, second = (
        make_lora(tmp_path / str(seed), pipeline, name=f"test/l{seed}", seed=seed) for seed in (1, 2)
    )
    pipeline.unet = torch.compile(pipeline.unet, backend=backend)
    plain = render(pipeline, "a cat")
    attachment = attach(Composition(first), pipeline)
    pictures = [plain, render(pipeline, "a cat")]
    compiled = backend.calls
    attachment.replace("test/l1", second)
    pictures.append(render(pipeline, "a cat"))
    attachment.set_strengths({"test/l2": 0.5})
    pictures.append(render(pipeline, "a cat"))
    attachment.detach()
    assert torch.equal(render(pipeline, "a cat"), plain)
    assert backend.calls == compiled
    assert all(not torch.equal(one, other) for one, other in pairwise(pictures))
