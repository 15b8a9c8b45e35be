"""What pictures of A1111 and ComfyUI say: prompts, settings, and the files that they were made with."""

from __future__ import annotations

import contextlib
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conceptry.errors import InvalidFileError
from conceptry.formats.picture_graphs import read_graph
from conceptry.formats.picture_notes import Mention, read_parameters

A1111 = """a castle, (night:1.2), <lora:Ukiyo_Style:0.8>, <hypernet:ink:0.5>
second line
Negative prompt: EasyNegative, blurry
Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 3781, Size: 512x768, Model hash: 6CE0161689, \
Model: v1-5-pruned, VAE hash: 735e4c3a44, VAE: vae-ft-mse.pt, \
Lora hashes: "Ukiyo_Style: d1ab3e2ba1c3, other: 0011aabbccdd", TI hashes: "EasyNegative: c74b4e810b03", \
ControlNet 0: "Module: canny, Model: control_v11p_sd15_canny [d14c016b], Weight: 1", \
Version: v1.6.0"""


def test_the_text_of_a1111_is_read_with_every_file_that_it_names() -> None:
    notes = read_parameters(A1111)
    assert (notes.program, notes.negative) == ("a1111", "EasyNegative, blurry")
    assert notes.prompt == "a castle, (night:1.2), <lora:Ukiyo_Style:0.8>, <hypernet:ink:0.5>\nsecond line"
    assert (notes.settings["Steps"], notes.settings["Sampler"]) == ("20", "DPM++ 2M Karras")
    assert set(notes.files) == {
        Mention(kind="checkpoint", name="v1-5-pruned", hashes=("6ce0161689",)),
        Mention(kind="vae", name="vae-ft-mse.pt", hashes=("735e4c3a44",)),
        Mention(kind="lora", name="Ukiyo_Style", strength=0.8, hashes=("d1ab3e2ba1c3",)),
        Mention(kind="lora", name="other", hashes=("0011aabbccdd",)),
        Mention(kind="embedding", name="EasyNegative", hashes=("c74b4e810b03",)),
        Mention(kind="controlnet", name="control_v11p_sd15_canny", hashes=("d14c016b",)),
        Mention(kind="hypernetwork", name="ink", strength=0.5),
    }


def test_tables_of_hashes_and_resources_are_read() -> None:
    hashes = json.dumps({"model": "aabbccddee", "lora:Ink": "0123456789", "embed:bad": "ffffffffff", "x": 1})
    resources = json.dumps([{"type": "lora", "weight": 0.6, "modelName": "Ink", "modelVersionId": 7}])
    text = f"a cat\nSteps: 5, Seed: 1, Hashes: {hashes}, Civitai resources: {resources}"
    notes = read_parameters(text)
    assert notes.prompt == "a cat"
    assert set(notes.files) == {
        Mention(kind="checkpoint", hashes=("aabbccddee",)),
        Mention(kind="lora", name="Ink", strength=0.6, hashes=("0123456789",)),
        Mention(kind="embedding", name="bad", hashes=("ffffffffff",)),
    }


def test_a_prompt_without_settings_is_a_prompt() -> None:
    notes = read_parameters("a cat: red, big\nNegative prompt: dog")
    assert (notes.prompt, notes.negative, notes.settings) == ("a cat: red, big", "dog", {})


RUN = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "SDXL\\base_xl.safetensors"}},
    "2": {
        "class_type": "LoraLoader",
        "inputs": {
            "lora_name": "style/ink.safetensors",
            "strength_model": 0.7,
            "strength_clip": 1,
            "model": ["1", 0],
        },
    },
    "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat, (embedding:easy:1.2)", "clip": ["2", 1]}},
    "4": {"class_type": "CLIPTextEncode", "inputs": {"text": "a dog", "clip": ["2", 1]}},
    "5": {"class_type": "Power Lora Loader (rgthree)", "inputs": {
        "lora_1": {"on": True, "lora": "glow.safetensors", "strength": 0.4},
        "lora_2": {"on": False, "lora": "unused.safetensors", "strength": 1},
    }},
    "6": {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": ["4", 0]}},
    "7": {"class_type": "KSampler", "inputs": {"positive": ["3", 0], "negative": ["6", 0], "seed": 5}},
}  # fmt: skip


def test_the_graph_that_comfyui_ran_is_read_with_its_prompts() -> None:
    notes = read_graph({"prompt": json.dumps(RUN), "workflow": "{}"})
    assert notes is not None
    assert (notes.prompt, notes.negative) == ("a cat, (embedding:easy:1.2)", "a dog")
    assert set(notes.files) == {
        Mention(kind="checkpoint", name="base_xl.safetensors"),
        Mention(kind="lora", name="ink.safetensors", strength=0.7),
        Mention(kind="lora", name="glow.safetensors", strength=0.4),
        Mention(kind="embedding", name="easy"),
    }


def test_the_drawing_of_a_graph_is_read_where_it_stands_alone() -> None:
    nodes = [
        {"type": "LoraLoader", "mode": 0, "widgets_values": ["ink.safetensors", 0.7, 1]},
        {"type": "LoraLoader", "mode": 4, "widgets_values": ["muted.safetensors", 1, 1]},
        {"type": "VAELoader", "widgets_values": ["vae.pt"]},
    ]
    notes = read_graph({"workflow": json.dumps({"nodes": nodes})})
    assert notes is not None
    assert set(notes.files) == {
        Mention(kind="lora", name="ink.safetensors", strength=0.7),
        Mention(kind="vae", name="vae.pt"),
    }
    assert read_graph({"comment": "nothing"}) is None


@pytest.mark.parametrize(
    "text", ["", "[]", "nonsense", "[" * 100_000, '{"a":' * 50_000, "1" * 5000, json.dumps({"n": "x"})[:-1]]
)
def test_a_graph_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidFileError, match="ComfyUI"):
        read_graph({"prompt": text})


def test_links_that_run_in_circles_end() -> None:
    ring = {str(n): {"inputs": {"positive": [str(1 - n), 0], "negative": [str(n), 0]}} for n in range(2)}
    assert read_graph({"prompt": json.dumps(ring)}) is not None


TREES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["a.pt", "lora_name", "text", "1"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["inputs", "nodes", "positive", "negative", "lora", "text"]), inner)
    ),
    max_leaves=20,
)


@given(TREES, st.text(max_size=200))
@settings(max_examples=50, deadline=None)
def test_any_json_and_any_text_is_read_or_refused(tree: object, text: str) -> None:
    for key in ("prompt", "workflow"):
        with contextlib.suppress(InvalidFileError):
            read_graph({key: json.dumps(tree)})
    assert read_parameters(text).program == "a1111"


@pytest.mark.parametrize(
    "part", ["a: ", '"', "<lora:", 'a: "', "\nSteps: 1", "(", ", ", "a: b, ", 'x: "\\', "a: [", "a: {"]
)
def test_long_texts_are_read_in_a_moment(part: str) -> None:
    start = time.process_time()
    read_parameters("a cat\nSteps: 1, " + part * (200_000 // len(part)))
    assert time.process_time() - start < 5
