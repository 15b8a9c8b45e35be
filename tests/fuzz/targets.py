"""What is fuzzed: each target takes bytes, and may end in nothing but a value or an error of our own."""

from __future__ import annotations

import functools
import io
import json
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from safetensors import SafetensorError, deserialize

from conceptry.errors import ConceptryError
from conceptry.formats.containers import SNIFFED_BYTES, recognise_container
from conceptry.formats.header import Header, parse_header
from conceptry.formats.identify import identify_header
from conceptry.formats.pickle_reader import read_pickle
from conceptry.formats.pickle_trees import flatten
from conceptry.formats.pictures import read_picture
from conceptry.formats.torch_files import read_torch_file
from conceptry.formats.torch_pickles import MARKS, TorchBuilder
from tests.formats import hostile
from tests.formats.test_hostile_files import CALLS, SIZES, STRUCTURES


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One reader, the inputs that mutations start from, and what wraps the mutated bytes."""

    run: Callable[[bytes], None]
    seeds: Callable[[], Sequence[bytes]]
    words: Callable[[], Sequence[bytes]]
    wrap: Callable[[bytes, Random], bytes] = lambda data, random: data
    share: int = 1
    """How many of the executions it gets, against the others."""


# --- safetensors headers ---------------------------------------------------------------------------------------------


def _run_header(data: bytes) -> None:
    header = _parse(data)
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8:
        # A line break more is as good as none, and leaves the whole header to the thorough reader.
        broken = _parse((int.from_bytes(data[:8], "little") + 1).to_bytes(8, "little") + b"{\n" + data[9:])
        if (header and [*header.tensors.items()]) != (broken and [*broken.tensors.items()]):
            raise AssertionError("the quick and the thorough reader differ")
    if header is None:
        return
    # What we accept, the library accepts, and sees the same tensors.
    try:
        theirs = deserialize(data)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise AssertionError("accepted here, refused by the library") from error
    if {name for name, _ in theirs} != set(header.tensors):
        raise AssertionError("another set of tensors than the library's")


def _list_headers() -> list[bytes]:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    late = {"dtype": "BF16", "shape": [1, 2], "data_offsets": [8, 12]}
    documents: list[object] = [
        {},
        {"a": entry},
        {"__metadata__": {"format": "pt"}, "a": entry, "b": late},
        {"__metadata__": {}, "empty": {"dtype": "F16", "shape": [0, 4], "data_offsets": [0, 0]}},
        {"x" * 80: entry, "lora_unet_a.lora_down.weight": late},
    ]
    return [json.dumps(document).encode() for document in documents]


def _list_header_words() -> list[bytes]:
    words = (
        '"dtype" "shape" "data_offsets" "__metadata__" "F32" "F8_E4M3" "U8" "F4" [0,8] [8,8] [8,12] [0] [] {} : , { } '
        '[ ] null true 1e0 -0 0 8 12 NaN 18446744073709551616 "\\u0000" "\\ud800" "a" "b" "../" \\ "'
    )
    return [word.encode() for word in words.split()] + [b" ", b"\n", b"\xff", b"\0"]


def _wrap_header(data: bytes, random: Random) -> bytes:
    length = (
        len(data) if random.random() < 0.95 else random.choice((0, 1, len(data) + 1, 1 << 40, (1 << 64) - 1))
    )
    return length.to_bytes(8, "little") + data + bytes(random.choice((0, 8, 8, 12, 12, 13)))


def _parse(data: bytes) -> Header | None:
    try:
        return parse_header(io.BytesIO(data), "file")
    except ConceptryError:
        return None


# --- pickles ---------------------------------------------------------------------------------------------------------


def _run_pickle(data: bytes) -> None:
    try:
        value, _ = read_pickle(data, TorchBuilder())
        tree = flatten(value)
        json.dumps(tree.values)
    except ConceptryError:
        return
    for tensor in tree.tensors.values():
        if tensor.offset + tensor.span > tensor.storage.elements * 8:
            raise AssertionError("a tensor that leaves its storage")


def _list_pickles() -> list[bytes]:
    bodies = [*CALLS.values(), *STRUCTURES.values(), *SIZES.values()]
    nested = hostile.dictionary(
        {
            "string_to_token": hostile.dictionary({"*": hostile.number(265)}),
            "string_to_param": hostile.dictionary({"*": hostile.tensor()}),
            "name": hostile.text("imp"),
            "step": hostile.number(100),
        }
    )
    return [hostile.GOOD, hostile.program(nested), *(hostile.program(body)[:2000] for body in bodies)]


def _list_pickle_words() -> list[bytes]:
    opcodes = [
        bytes([code])
        for code in b"().NJKMGTUXBC]}taeusqrhjcRbQ\x80\x81\x85\x86\x87\x88\x89\x8a\x8c\x8d\x8e\x93\x94\x95"
    ]
    names = [hostile.name(*mark.rpartition(".")[::2]) for mark in MARKS]
    return [
        *opcodes,
        *names,
        hostile.tensor(),
        hostile.storage(),
        b"(t",
        b")R",
        b"h\x00",
        b"q\x00",
        b"]",
        b"}",
    ]


def _run_torch_file(data: bytes) -> None:
    try:
        read_torch_file(io.BytesIO(data))
    except ConceptryError:
        return


def _list_torch_files() -> list[bytes]:
    bodies = [hostile.GOOD[2:-1], *SIZES.values()]
    zips = [hostile.archive(), hostile.archive(more={"archive/byteorder": b"little"})]
    return [*zips, *(hostile.legacy(body)[:2000] for body in bodies)]


def _list_torch_words() -> list[bytes]:
    return [
        *_list_pickle_words(),
        b"PK\x03\x04",
        b"PK\x01\x02",
        b"PK\x05\x06",
        b"PK\x06\x06",
        b"archive/data/0",
    ]


def _wrap_torch(data: bytes, random: Random) -> bytes:
    """Half of the time the mutated bytes are a pickle in a sound archive."""
    return hostile.archive(data) if random.random() < 0.3 else data


# --- identification --------------------------------------------------------------------------------------------------


def _run_identification(data: bytes) -> None:
    recognise_container(data[:SNIFFED_BYTES])
    try:
        found = identify_header(parse_header(io.BytesIO(data), "file"))
    except ConceptryError:
        return
    if found.coverage.explained + len(found.coverage.unexplained) != found.coverage.total:
        raise AssertionError("coverage that does not add up")
    json.dumps(found.to_json())


_STEMS: Final = (
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k",
    "lora_te1_text_model_encoder_layers_0_mlp_fc1",
    "lora_unet_output_blocks_11_1_proj_in",
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0",
    "base_model.model.mid_block.attentions.0.proj_in",
    "diffusion_model.double_blocks.0.img_attn.qkv",
    "transformer.single_transformer_blocks.0.norm.linear",
    "text_encoder.text_model.encoder.layers.3.self_attn.q_proj",
    "<imp>",
    "emb_params",
    "clip_l",
    "clip_g",
    "string_to_param.*",
)
_SUFFIXES: Final = (
    *(
        ".lora_down.weight",
        ".lora_up.weight",
        ".lora_mid.weight",
        ".alpha",
        ".lora_A.weight",
        ".lora_B.weight",
    ),
    *(".hada_w1_a", ".hada_w1_b", ".lokr_w1", ".dora_scale", ".diff", ".oft_blocks", "_lora.down.weight", ""),
)


def _list_identified() -> list[bytes]:
    """Returns lines of ``name shape``, of which ``_wrap_identified`` always makes a well-formed header."""
    lines = [f"{stem}{suffix}\t4,768" for stem in _STEMS for suffix in _SUFFIXES]
    return ["\n".join(lines[at : at + 14]).encode() for at in range(0, len(lines), 14)]


def _list_identified_words() -> list[bytes]:
    sizes = (
        "768",
        "1024",
        "1280",
        "320",
        "3072",
        "1",
        "0",
        ",",
        "4,4,3,3",
        "\t",
        "\n",
        "_",
        ".",
        "default.",
        "transformer_",
    )
    return [*(word.encode() for word in (*_STEMS, *_SUFFIXES, *sizes))]


def _wrap_identified(data: bytes, random: Random) -> bytes:
    document: dict[str, object] = {
        "__metadata__": {"ss_base_model_version": random.choice(("sd_v1", "sdxl_base", ""))}
    }
    position = 0
    for line in data.decode("utf-8", "replace").split("\n"):
        name, _, shape = line.partition("\t")
        sizes = [int(size) % 65_536 for size in shape.split(",")[:5] if size.isascii() and size.isdigit()]
        document[name] = {"dtype": "F16", "shape": [*sizes, 0], "data_offsets": [position, position]}
    head = json.dumps(document).encode()
    return len(head).to_bytes(8, "little") + head


# --- pictures --------------------------------------------------------------------------------------------------------


def _run_picture(data: bytes) -> None:
    try:
        read_picture(io.BytesIO(data))
    except ConceptryError:
        return


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def _list_pictures() -> list[bytes]:
    """Returns chunks without their checksums, as ``kind size data``: ``_wrap_picture`` adds what is around them."""
    document = b'{"string_to_param": {"*": {"TORCHTENSOR": [[1.0, 2.0]]}}, "name": "imp", "step": 1}'
    rows = b"".join(bytes([kind]) + bytes(range(1, 25)) for kind in (0, 1, 2, 3, 4, 0))
    return [
        b"T" + document,
        b"T" + b'{"a": {"TORCHTENSOR": [[1, 2], [3, 4]]}, "b": [1, null, "x"]}',
        b"P" + struct.pack(">IIBBBBB", 8, 6, 8, 2, 0, 0, 0) + rows,
        b"P" + struct.pack(">IIBBBBB", 6, 6, 8, 6, 0, 0, 0) + rows,
    ]


def _wrap_picture(data: bytes, random: Random) -> bytes:
    import base64

    chunks = _chunk(b"IHDR", data[1:14])
    if data[:1] == b"T":
        chunks = _chunk(b"tEXt", b"sd-ti-embedding\0" + base64.b64encode(data[1:]))
    else:
        chunks += _chunk(b"IDAT", zlib.compress(data[14:]))
    return b"\x89PNG\r\n\x1a\n" + chunks + (_chunk(b"IEND", b"") if random.random() < 0.98 else b"")


def _list_picture_words() -> list[bytes]:
    words = b'"TORCHTENSOR": [ ] { } [[1.0]] [1,[2]] null 1e400 NaN "a" , : \x00\x00\x00\x08 \xff\xff\xff\xff'
    return words.split(b" ")


TARGETS: Final[dict[str, Target]] = {
    "header": Target(
        run=_run_header, seeds=_list_headers, words=_list_header_words, wrap=_wrap_header, share=4
    ),
    "pickle": Target(run=_run_pickle, seeds=_list_pickles, words=_list_pickle_words, share=4),
    "torch_file": Target(
        run=_run_torch_file, seeds=_list_torch_files, words=_list_torch_words, wrap=_wrap_torch, share=1
    ),
    "identification": Target(
        run=_run_identification,
        seeds=_list_identified,
        words=_list_identified_words,
        wrap=_wrap_identified,
        share=2,
    ),
    "picture": Target(
        run=_run_picture, seeds=_list_pictures, words=_list_picture_words, wrap=_wrap_picture, share=1
    ),
}


@functools.cache
def list_seeds(name: str) -> tuple[bytes, ...]:
    """Returns the inputs that mutations of a target start from."""
    return tuple(TARGETS[name].seeds())


@functools.cache
def list_words(name: str) -> tuple[bytes, ...]:
    """Returns what is inserted into inputs of a target."""
    return tuple(TARGETS[name].words())
