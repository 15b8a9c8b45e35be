"""Claim: a concept takes the place of another in milliseconds, and costs no more in use than its peers.

``python benchmarks/switching.py [OUT.json] [--base sd15|sdxl|narrow] [--only PART]... [--rounds N] [--seconds S]``: the
real denoisers of SD1.5 and SDXL with random weights, adapters of rank 16 on all attention projections, diffusers and
PEFT beside us in one run on one thread. Processor time is what is compared, because other programs may run beside this
one; the clock's time is printed with it. Parts are memory, attaching, replacing, twentieth, fusing and steps; each runs
in a process of its own, says on stderr what it is at, and puts what it found into OUT beside what the others did, so
that they may run one by one: ``--base sdxl --only attaching``. Steps are paired (``paired_steps.py``): at most N
rounds, for about S seconds. SD1.5 needs about 9 GB of memory, SDXL 17; what does not fit is left out and named; with
``narrow``, SDXL at an eighth of its widths, the script itself can be tried, and no claim. With ``--device cuda``
everything lies on the accelerator, the clock is compared, and memory is the accelerator's.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import diffusers
import torch
from benches import (
    BASES,
    PEER_NAME,
    Bench,
    count_bytes,
    drop_pages,
    list_changed,
    load_peer,
    read_memory,
)
from measuring import describe_machine
from paired_steps import make_step, run_rounds, share_weights, weigh_pairs

from conceptry.composer import Composition, attach, fingerprints, fuse, packs
from conceptry.formats.lora import LORA_NAME
from tests.fakes.concepts import make_embedding, make_rank_one

RUNS: Final = 7
ROUNDS: Final = 40
WHOLE_LATENT: Final = 64
USUAL_BASES: Final = ("sd15", "sdxl")
STEP_SECONDS: Final = 150.0
COPIED_BYTES: Final = 1 << 30


def measure_attaching(bench: Bench) -> dict[str, Any]:
    """Measures an adapter from its file, from memory, and by diffusers; cold is with nothing cached anywhere."""
    bench.prepare(1, peers=1)
    watch, pipeline, folders, concepts = bench.watch, bench.pipeline, bench.folders, bench.concepts
    for number in range(RUNS):
        bench.say(f"attaching, {number + 1} of {RUNS}")
        packs.forget_packs()
        watch.measure("attach from its file", lambda: attach(Composition(concepts[0]), pipeline)).detach()
        watch.measure("attach from memory", lambda: attach(Composition(concepts[0]), pipeline)).detach()
        watch.measure("diffusers load", lambda: load_peer(pipeline, folders[0], "a"))
        watch.measure("diffusers unload", pipeline.unload_lora_weights)
    for number in range(3):
        bench.say(f"attaching, cold, {number + 1} of 3")
        packs.forget_packs()
        fingerprints._READINGS.clear()
        drop_pages(folders[0] / LORA_NAME)
        watch.measure("attach, cold", lambda: attach(Composition(concepts[0]), pipeline)).detach()
        drop_pages(folders[0] / PEER_NAME)
        watch.measure("diffusers load, cold", lambda: load_peer(pipeline, folders[0], "a"))
        pipeline.unload_lora_weights()
    return {}


def measure_replacing(bench: Bench) -> dict[str, Any]:
    """Measures one adapter in the place of another, and other strengths."""
    bench.prepare(2, peers=2)
    watch, pipeline, folders, concepts = bench.watch, bench.pipeline, bench.folders, bench.concepts
    bench.say("replacing")
    names = [str(concept.manifest.name) for concept in concepts]
    attachment = attach(Composition(concepts[0]), pipeline)
    attachment.replace(names[0], concepts[1])
    for _ in range(RUNS):
        watch.measure("replace", lambda: attachment.replace(names[1], concepts[0]))
        watch.measure("replace", lambda: attachment.replace(names[0], concepts[1]))
        watch.measure("set_strengths", lambda: attachment.set_strengths({names[1]: 0.6}))
        watch.measure("set_strengths", lambda: attachment.set_strengths({names[1]: 0.7}))
    attachment.detach()
    for folder, name in zip(folders, ("a", "b"), strict=False):
        load_peer(pipeline, folder, name)
    for number in range(RUNS):
        bench.say(f"replacing by diffusers, {number + 1} of {RUNS}")
        watch.measure("diffusers set_adapters", lambda: pipeline.set_adapters("a"))
        watch.measure("diffusers set_adapters", lambda: pipeline.set_adapters("b"))
        watch.measure("diffusers delete and load", lambda: replace_peer(pipeline, folders[0]))
    pipeline.unload_lora_weights()
    return {}


def replace_peer(pipeline: Any, folder: Path) -> None:
    """Lets diffusers delete an adapter and load it again."""
    pipeline.delete_adapters("a")
    load_peer(pipeline, folder, "a")


def measure_fusing(bench: Bench) -> dict[str, Any]:
    """Measures one adapter in the place of another inside the weights, and what moving these bytes alone takes."""
    if not bench.has_memory():
        return {}
    bench.prepare(2, peers=1)
    watch, pipeline, folders, concepts = bench.watch, bench.pipeline, bench.folders, bench.concepts
    bench.say("replacing, fused")
    names = [str(concept.manifest.name) for concept in concepts]
    weights = list_changed(pipeline)
    attachment = fuse(Composition(concepts[0]), pipeline)
    attachment.replace(names[0], concepts[1])
    for _ in range(RUNS // 2):
        watch.measure("replace, fused", lambda: attachment.replace(names[1], concepts[0]))
        watch.measure("replace, fused", lambda: attachment.replace(names[0], concepts[1]))
    attachment.detach()
    part: list[torch.Tensor] = []
    while len(part) < len(weights) and count_bytes(part) < COPIED_BYTES:
        part.append(weights[len(part)])
    others = [torch.zeros_like(weight.data) for weight in part]
    share = count_bytes(weights) / count_bytes(part)
    bench.say("copying as many bytes")
    for _ in range(RUNS):
        watch.measure("copy of the same bytes", lambda: copy_all(part, others), times=share)
    del others
    for number in range(RUNS // 2):
        bench.say(f"fusing, {number + 1} of {RUNS // 2}")
        load_peer(pipeline, folders[0], "a")
        watch.measure("diffusers fuse_lora", pipeline.fuse_lora)
        watch.measure("diffusers unfuse_lora", pipeline.unfuse_lora)
        pipeline.unload_lora_weights()
        attachment = watch.measure("fuse", lambda: fuse(Composition(concepts[0]), pipeline))
        watch.measure("detach what is fused", attachment.detach)
    return {}


def copy_all(weights: list[torch.Tensor], others: list[torch.Tensor]) -> None:
    """Moves as many bytes as a fused replacement must at least."""
    for weight, other in zip(weights, others, strict=True):
        other.copy_(weight.data)


def measure_memory(bench: Bench) -> dict[str, Any]:
    """Returns what the process grows by when an adapter is attached, and when it is fused, beside what it may."""
    bench.prepare(1, peers=0)
    pipeline, concept = bench.pipeline, bench.concepts[0]
    parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    base = count_bytes(tensor for part in parts for tensor in part.state_dict().values())
    pack = concept.locate(next(concept.manifest.iter_files())).stat().st_size
    ways = {"memory, attached": (attach, pack)}
    if bench.has_memory():
        ways["memory, fused"] = (fuse, pack + count_bytes(list_changed(pipeline)))
    found = {}
    for name, (put, allowed) in ways.items():
        packs.forget_packs()
        gc.collect()
        bench.say(name)
        before = read_memory(bench.watch.device)
        attachment = put(Composition(concept), pipeline)
        after = read_memory(bench.watch.device)
        found[name] = {
            "grown_bytes": after[0] - before[0],
            "private_bytes": after[1] - before[1],
            "allowed_bytes": allowed + 0.05 * base,
            "base_bytes": base,
        }
        attachment.detach()
    return {"memory": found}


def measure_twentieth(bench: Bench) -> dict[str, Any]:
    """Measures twenty adapters one after another."""
    bench.prepare(20, peers=0)
    for number in range(3):
        bench.say(f"attaching twenty, {number + 1} of 3")
        attachments = []
        for place, concept in enumerate(bench.concepts):
            name = {0: "attach the 1st of 20", 19: "attach the 20th of 20"}.get(place, "attach others")
            put = partial(attach, Composition(concept), bench.pipeline)
            attachments.append(bench.watch.measure(name, put))
        for attachment in attachments:
            attachment.detach()
    return {}


def measure_steps(bench: Bench, *, rounds: int, seconds: float) -> dict[str, Any]:
    """Returns what each way adds to a denoising step, in pairs with what it is held against."""
    bench.prepare(1, peers=1)
    own, pipeline = bench.concepts[0], bench.pipeline
    words = [make_embedding(bench.folder / "e", pipeline), make_rank_one(bench.folder / "r", pipeline)]
    ways: dict[str, Callable[[Any], Any]] = {
        "step, base": lambda pipeline: None,
        "step, base again": lambda pipeline: None,
        "step, LoRA of PEFT": lambda pipeline: load_peer(pipeline, bench.folders[0], "a"),
        "step, LoRA attached": lambda pipeline: attach(Composition(own), pipeline),
        "step, embedding attached": lambda pipeline: attach(Composition(words[0]), pipeline),
        "step, Perfusion attached": lambda pipeline: attach(Composition(words[1]), pipeline),
    }
    if bench.has_memory():
        ways["step, LoRA fused"] = lambda pipeline: fuse(Composition(own), pipeline)
    steps = {}
    for name, put in ways.items():
        bench.say(f"preparing: {name}")
        shared = share_weights(pipeline)
        put(shared)
        steps[name] = make_step(shared, bench.base.latent)
    found = run_rounds(steps, now=bench.watch.now, rounds=rounds, limit_seconds=seconds, say=bench.say)
    bench.watch.seconds |= found
    bench.say(f"two steps of {WHOLE_LATENT} x {WHOLE_LATENT} latents")
    whole = make_step(share_weights(pipeline), WHOLE_LATENT)
    for _ in range(2):
        bench.watch.measure("step, base, whole", whole)
    least = min(bench.watch.seconds["step, base, whole"])
    return {
        "pairs": [
            {"ours": ours, "peer": peer}
            | weigh_pairs(found[ours], found[peer], None if most is None or most == 1 else least)
            for ours, peer, most in STEP_CLAIMS
            if ours in found
        ]
    }


PARTS: Final[Mapping[str, Callable[..., dict[str, Any]]]] = {
    "memory": measure_memory,
    "attaching": measure_attaching,
    "replacing": measure_replacing,
    "twentieth": measure_twentieth,
    "fusing": measure_fusing,
    "steps": measure_steps,
}
CLAIMS: Final = (
    # what, beside what, at least how many times as fast
    ("attach from its file", "diffusers load", 10.0),
    ("replace", "diffusers delete and load", 20.0),
    ("replace", "diffusers set_adapters", 4.0),
    ("replace, fused", "copy of the same bytes", 1 / 5),
    ("attach the 20th of 20", "attach the 1st of 20", 1 / 1.2),
)
STEP_CLAIMS: Final = (
    # What, beside what, at most how many times as slow. The base beside itself shows what is noise. What words cost
    # does not depend on the size of the picture, so that a share of a step is that of one of usual size.
    ("step, base again", "step, base", None),
    ("step, LoRA attached", "step, LoRA of PEFT", 1.0),
    ("step, LoRA fused", "step, base", 1.0),
    ("step, embedding attached", "step, base", 1.03),
    ("step, Perfusion attached", "step, base", 1.03),
)


# --- one part, and all of them -------------------------------------------------------------------------------------


def measure_part(id: str, part: str, device: torch.device, options: dict[str, Any]) -> dict[str, Any]:
    """Returns what one part measured on one base, as the JSON file has it."""
    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(id, Path(name), device)
        found = PARTS[part](bench, **options if part == "steps" else {})
        changed = count_bytes(list_changed(bench.pipeline))
        bench.say("done")
    return {
        "part": part,
        "seconds": bench.watch.seconds,
        "clock_seconds": bench.watch.clock,
        "pairs": [],
        **found,
        "changed_bytes": changed,
        "left_out": bench.left_out,
    }


def list_claims(rows: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns what the parts that are there say of the claims."""
    seconds = {name: values for row in rows.values() for name, values in row["seconds"].items()}
    claims = []
    for ours, peer, wanted in CLAIMS:
        if ours in seconds and peer in seconds:
            times = statistics.median(seconds[peer]) / statistics.median(seconds[ours])
            claims.append({"ours": ours, "peer": peer, "times": times, "wanted": wanted})
    return claims


def show(id: str, row: dict[str, Any]) -> None:
    """Prints what one part measured on one base."""
    print(f"\n{id}, {row['part']}: {row['changed_bytes'] / 1e6:.0f} MB of weights change")
    print(f"{'median':>12}{'least':>12}{'clock':>12}")
    for name, seconds in row["seconds"].items():
        columns = [statistics.median(seconds), min(seconds)]
        columns += [statistics.median(row["clock_seconds"][name])] if name in row["clock_seconds"] else []
        print("".join(f"{1000 * column:9.2f} ms" for column in columns) + f"  {name}")
    for claim in list_claims({"one": row}):
        verdict = "holds" if claim["times"] >= claim["wanted"] else "FALLS SHORT"
        print(
            f"{claim['times']:7.2f} times as fast as {claim['peer']}, {claim['wanted']:.2f} wanted: "
            f"{claim['ours']}: {verdict}"
        )
    wanted = {(ours, peer): most for ours, peer, most in STEP_CLAIMS}
    for pair in row["pairs"]:
        low, high = pair["interval"]
        most = wanted[pair["ours"], pair["peer"]]
        verdict = "the noise" if most is None else f"at most {most:.2f}: {_judge(low, high, most)}"
        print(
            f"{pair['ratio']:7.4f} ({low:.4f} to {high:.4f}; {1000 * pair['added_seconds']:+.1f} ms; {pair['rounds']} "
            f"rounds) times {pair['peer']}: {pair['ours']}: {verdict}"
        )
    for name, one in row.get("memory", {}).items():
        verdict = "holds" if one["grown_bytes"] <= one["allowed_bytes"] else "FALLS SHORT"
        grown, own, allowed, base = (
            one[f"{key}_bytes"] / 1e6 for key in ("grown", "private", "allowed", "base")
        )
        print(
            f"{grown:7.0f} MB more than the base's {base:.0f} MB, {own:.0f} of them in no file, "
            f"{allowed:.0f} allowed: {name}: {verdict}"
        )
    for text in row["left_out"]:
        print(f"left out: {text}")


def _judge(low: float, high: float, most: float) -> str:
    if high <= most:
        return "holds"
    return "FALLS SHORT" if low > most else "within the interval"


def main() -> None:
    """Measures each part of each base in a process of its own, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, nargs="?", help="where the figures of all parts are kept")
    parser.add_argument("--base", choices=BASES, action="append")
    parser.add_argument("--only", choices=PARTS, action="append", help="a part; repeatable")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of steps, at most")
    parser.add_argument("--seconds", type=float, default=STEP_SECONDS, help="for the rounds of steps")
    parser.add_argument("--device", default="cpu", help="where everything lies and is computed")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    options = {"rounds": given.rounds, "seconds": given.seconds}
    if given.child:
        row = measure_part(given.base[0], given.only[0], torch.device(given.device), options)
        given.child.write_text(json.dumps(row), encoding="utf-8")
        return
    document: dict[str, Any] = {"bases": {}}
    if given.out is not None and given.out.is_file():
        document = json.loads(given.out.read_text(encoding="utf-8"))
    for id in given.base or USUAL_BASES:
        parts = document["bases"].setdefault(id, {"parts": {}})["parts"]
        for part in given.only or PARTS:
            parts[part] = run_child(id, part, given.device, options)
            show(id, parts[part])
            document["machine"] = describe_machine()
            document["bases"][id]["claims"] = list_claims(parts)
            if given.out is not None:
                given.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def run_child(id: str, part: str, device: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what one part measured in a process of its own, whose progress is on stderr."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "part.json"
        words = ["--base", id, "--only", part, "--device", device, "--child", str(answer)]
        words += [word for name, value in options.items() for word in (f"--{name}", str(value))]
        subprocess.run([sys.executable, __file__, *words], check=True)
        found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return found


if __name__ == "__main__":
    main()
