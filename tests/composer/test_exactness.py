"""Whatever is done to a pipeline while concepts are in it: it is restored to the bit, or the call is refused."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import accelerate
import pytest
import torch
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

from conceptry.composer import Composition, attach, fuse
from conceptry.composer.attach import Attachment
from conceptry.composer.pipelines import encode_prompts
from conceptry.concepts import Concept
from conceptry.errors import IncompatibleError
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
from tests.fakes.pipelines import make_pipeline, render

MAKERS: Final[dict[str, Callable[[Path, Any], Concept]]] = {
    "embedding": make_embedding,
    "layered": make_layered,
    "rank_one": make_rank_one,
    "lora": make_lora,
    "dora": make_dora,
    "full": make_full,
    "hypernetwork": make_hypernetwork,
}
FUSABLE: Final = ("embedding", "lora", "dora", "full")
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
    """Return every weight and buffer under the name that it has without adapters of peft around."""
    found = {}
    for component in ("unet", "text_encoder"):
        for name, value in getattr(pipeline, component).state_dict().items():
            if ".lora_" not in name:
                found[f"{component}.{name.replace('.base_layer.', '.')}"] = value.detach().clone()
    return found


def assert_equal_bits(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


# --- any sequence --------------------------------------------------------------------------------------------------


class Sequences(RuleBasedStateMachine):
    """A pipeline that concepts go into and out of, and its twin to which only the rest is done."""

    concepts: dict[str, Concept]
    other: Concept

    @initialize(dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    def open(self, dtype: torch.dtype) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.pipeline, self.twin = (make_pipeline("sd1").to(dtype) for _ in range(2))
        self.tokenizer = self.pipeline.tokenizer
        self.inside: dict[str, Attachment] = {}
        self.has_adapter = False

    def do(self, change: Callable[[Any], None]) -> None:
        """Do the same to both."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            change(self.pipeline)
            change(self.twin)

    @rule(kind=st.sampled_from(list(MAKERS)), fused=st.booleans(), strength=st.sampled_from([1.0, 0.4, 0.0]))
    def put_in(self, kind: str, fused: bool, strength: float) -> None:
        if kind not in self.inside:
            put = fuse if fused and kind in FUSABLE else attach
            self.inside[kind] = put(Composition(self.concepts[kind] * strength), self.pipeline)

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def take_out(self, data: st.DataObject) -> None:
        self.inside.pop(data.draw(st.sampled_from(sorted(self.inside)))).detach()

    @precondition(lambda self: self.inside)
    @rule(data=st.data(), strength=st.sampled_from([1.0, -0.7, 0.0]))
    def change_strength(self, data: st.DataObject, strength: float) -> None:
        attachment = self.inside[data.draw(st.sampled_from(sorted(self.inside)))]
        (member,) = attachment.composition.members
        attachment.set_strengths({str(member.concept.manifest.name): strength})

    @precondition(lambda self: "lora" in self.inside)
    @rule()
    def replace(self) -> None:
        attachment = self.inside["lora"]
        (member,) = attachment.composition.members
        here = member.concept.manifest.name
        other = self.other if here == self.concepts["lora"].manifest.name else self.concepts["lora"]
        attachment.replace(str(here), other)

    @rule()
    def fail_inside(self) -> None:
        if not self.inside:
            with (
                pytest.raises(KeyboardInterrupt),
                attach(Composition(*self.concepts.values()), self.pipeline),
            ):
                raise KeyboardInterrupt

    @rule(kind=st.sampled_from([AttnProcessor, AttnProcessor2_0]))
    def set_processor(self, kind: Any) -> None:
        self.do(lambda pipeline: pipeline.unet.set_attn_processor(kind()))

    @rule()
    def move(self) -> None:
        self.do(lambda pipeline: pipeline.to("cpu"))

    @rule()
    def draw(self) -> None:
        prompt = PROMPT if self.pipeline.unet.dtype == torch.float32 else "a cat"
        if self.pipeline.unet.dtype == torch.float32:
            render(self.pipeline, prompt, steps=1)

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
        weights = {"lora", "dora", "full", "rank_one", "hypernetwork"} & self.inside.keys()
        if weights:
            with pytest.raises(IncompatibleError, match="fuse_qkv_projections"):
                self.pipeline.fuse_qkv_projections()

    def teardown(self) -> None:
        if hasattr(self, "inside"):
            for attachment in self.inside.values():
                attachment.detach()
            assert_equal_bits(read_bits(self.pipeline), read_bits(self.twin))
            assert self.pipeline.tokenizer is self.tokenizer
            processors = [type(one) for one in self.pipeline.unet.attn_processors.values()]
            assert processors == [type(one) for one in self.twin.unet.attn_processors.values()]
            assert not any(module._forward_hooks for module in self.pipeline.unet.modules())
            assert "encode_prompt" not in vars(self.pipeline)


def add_adapter(pipeline: Any) -> None:
    """Let peft put its layers around some of the UNet's, as ``load_lora_weights`` does."""
    from peft import LoraConfig

    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k"], init_lora_weights=False)
    pipeline.unet.add_adapter(config, adapter_name="theirs")


def run_sequences(concepts: dict[str, Concept], folder: Path, *, examples: int, steps: int) -> None:
    class WithConcepts(Sequences):
        pass

    WithConcepts.concepts = concepts
    WithConcepts.other = make_lora(folder / "other", make_pipeline("sd1"), seed=21, name="test/other")
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


def test_every_bit_comes_back_after_any_sequence(concepts: dict[str, Concept], tmp_path: Path) -> None:
    run_sequences(concepts, tmp_path, examples=5, steps=8)


@pytest.mark.slow
def test_every_bit_comes_back_after_many_long_sequences(concepts: dict[str, Concept], tmp_path: Path) -> None:
    run_sequences(concepts, tmp_path, examples=100, steps=20)


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
    pipeline.fuse_qkv_projections()
    for kind in ("lora", "full", "rank_one", "hypernetwork"):
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
    plain = render(pipeline, PROMPT)
    for kinds in (("lora",), ("full", "dora"), ("embedding",), ("rank_one", "layered"), tuple(MAKERS)):
        composition = Composition(*(concepts[kind] for kind in kinds))
        with attach(composition, plain_pipeline):
            expected = render(plain_pipeline, PROMPT)
        with attach(composition, pipeline):
            assert torch.allclose(render(pipeline, PROMPT), expected, rtol=1e-2, atol=2e-2), kinds
        assert torch.equal(render(pipeline, PROMPT), plain), kinds
    inner = {
        name: getattr(getattr(pipeline, name), "_orig_mod", getattr(pipeline, name))
        for name in ("unet", "text_encoder")
    }
    for name, module in inner.items():
        assert_equal_bits(
            {f"{name}.{key}": value for key, value in module.state_dict().items()},
            {key: value for key, value in before.items() if key.startswith(f"{name}.")},
        )


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
