"""A program that pulls from a web server which fails in every way of ``FAULTS``, at several places of each file.

After each fault: the right bytes, or an error in words; nothing half there; the same pull works once the server is
well; no credential went to another origin; time and memory stayed bounded. Printed as a table of counts.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from conceptry.digests import Digest
from conceptry.errors import ConceptryError
from conceptry.names import Reference, RemoteName
from conceptry.registry import Registry
from conceptry.registry.answers import find_origin
from conceptry.registry.http import Credential, Limits, Transport
from conceptry.registry.protocol import Remote
from conceptry.registry.static_http import StaticRemote
from tests.faults.results import WEB_CODE, Result, choose_shard, digest_code, keep_result, read_results
from tests.registry.folders import write_folder
from tests.simulators.http_faults import FAULTS
from tests.simulators.http_plays import Fault
from tests.simulators.http_server import FaultServer

BYTES: Final = bytes(range(256)) * 160
SECRET: Final = "Bearer canary-5f2c1e"  # noqa: S105 - a canary
REFERENCE: Final = Reference.parse("me/imp@1.0.0")
QUICK: Final = Limits(
    connect_seconds=2,
    stall_seconds=0.5,
    answer_seconds=1.0,
    min_bytes_per_second=2000,
    pace_seconds=0.5,
    deadline_seconds=20,
    attempts=4,
    backoff_seconds=0.01,
    max_wait_seconds=2,
)
TARGETS: Final = ("blob", "manifest", "list")
MOST_SECONDS: Final = len(TARGETS) * QUICK.deadline_seconds
MOST_BYTES: Final = 12 << 20  # less than the bomb unpacks to
SWEEP: Final = "web"
PAGE: Final = Path("docs/faults-http.md")
WORKERS: Final = 8  # most of the time is spent waiting
CLEAR: Final = frozenset({3, 4, 5})


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A served folder with one concept, and another origin that serves the same."""

    server: FaultServer
    other: FaultServer
    paths: dict[str, str]
    sizes: dict[str, int]


@contextmanager
def serve_site(parent: Path) -> Iterator[Site]:
    """Give the two servers of a folder that ``me/imp@1.0.0`` was pushed to."""
    studio, home = parent / "studio", Registry(parent / "home")
    home.publish(write_folder(parent / "imp", file=BYTES))
    home.push(REFERENCE, studio.as_uri())
    digest = home.resolve(REFERENCE).digest
    paths = {
        "blob": f"/blobs/sha256/{Digest.of_bytes(BYTES).hex}",
        "manifest": f"/manifests/sha256/{digest.hex}",
        "list": "/refs/me/imp/versions.json",
    }
    sizes = {name: (studio / path[1:]).stat().st_size for name, path in paths.items()}
    with FaultServer(studio) as other, FaultServer(studio, other=other.uri) as server:
        yield Site(server=server, other=other, paths=paths, sizes=sizes)


class _Impatient(Registry):
    """A registry whose only remote waits for nothing long."""

    opened: Remote

    def open_remote(self, remote: RemoteName | str) -> Remote:
        return self.opened


def choose_cuts(target: str, size_bytes: int) -> tuple[int, ...]:
    """Return the places where a fault strikes; documents are read whole, so one place tells as much as many."""
    if target != "blob":
        return (size_bytes // 2,)
    return (0, 1, size_bytes // 2, size_bytes - 1, size_bytes)


def pull(site: Site, root: Path) -> str:
    """Return ``right``, ``error``, or what is wrong with the outcome of a pull."""
    credential = Credential(find_origin(site.server.uri), SECRET)
    transport = Transport(site.server.uri, credential=credential, limits=QUICK)
    registry = _Impatient(root)
    registry.opened = StaticRemote(site.server.uri, transport)
    try:
        registry.pull(f"site::{REFERENCE}")
    except ConceptryError as error:
        said = f"{error} {error.hint}"
        if error.exit_code not in CLEAR or not error.message or "canary" in said or "0x" in said:
            return f"an error that is not clear: {type(error).__name__}: {said}"
        return "error" if registry.list() == () else "something is listed after an error"
    finally:
        transport.close()
    return "right" if read_pulled(registry) == BYTES else "other bytes"


def read_pulled(registry: Registry) -> bytes:
    """Return the bytes that a registry has."""
    return registry.get(REFERENCE).blobs[Digest.of_bytes(BYTES)].read_bytes()


def check_point(site: Site, root: Path, fault: Fault, target: str, cut: int) -> tuple[str, list[str]]:
    """Return how a pull ended under a fault, and everything that was wrong."""
    site.server.set_fault(fault, site.paths[target], cut=cut)
    site.other.heal()
    begun = time.monotonic()
    ended = pull(site, root)
    seconds = time.monotonic() - begun
    wrong = [] if ended in ("right", "error") else [ended]
    struck = cut < site.sizes[target]
    if ended in ("right", "error") and not is_expected(fault, target, ended, struck=struck):
        wrong.append(f"{ended} instead of {' or '.join(find_outcomes(fault, target))}")
    if seconds > MOST_SECONDS:
        wrong.append(f"it took {seconds:.1f} seconds")
    if not any(seen.headers.get("authorization") == SECRET for seen in site.server.seen):
        wrong.append("the credential did not reach its own origin")
    if any("authorization" in seen.headers for seen in site.other.seen):
        wrong.append("the credential went to another origin")
    site.server.heal()
    again = pull(site, root)
    if again != "right":
        wrong.append(f"the same pull afterwards: {again}")
    return ended, [f"{fault.name}, {target}, at {cut}: {text}" for text in wrong]


def is_expected(fault: Fault, target: str, ended: str, *, struck: bool) -> bool:
    """Return whether a pull may end so; bytes that were all there before the fault struck are right."""
    return ended in find_outcomes(fault, target) or (not struck and (fault.after_cut or ended == "right"))


def find_outcomes(fault: Fault, target: str) -> tuple[str, ...]:
    """Return how a pull may end under a fault in one of its files. Documents are read whole and have no ranges."""
    if target != "blob" and fault.ranges:
        return ("right", "error")
    wanted = fault.outcome if target == "blob" else fault.documents or fault.outcome
    if target == "list":
        wanted = fault.lists or wanted
    return ("right", "error") if wanted == "either" else (wanted,)


def sweep_fault(number: int) -> tuple[float, list[tuple[str, str, list[str]]]]:
    """Return how long it took, and target, ending and violations of every point of one fault."""
    os.environ.pop("HF_HUB_OFFLINE", None)
    fault = FAULTS[number]
    in_memory = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    parent = Path(tempfile.mkdtemp(prefix="conceptry-faults-", dir=in_memory))
    begun = time.monotonic()
    points: list[tuple[str, str, list[str]]] = []
    try:
        with serve_site(parent) as site:
            pull(site, parent / "first")
            before_bytes = measure_peak()
            for target in TARGETS:
                for cut in choose_cuts(target, site.sizes[target]):
                    ended, wrong = check_point(site, parent / "second", fault, target, cut)
                    shutil.rmtree(parent / "second", ignore_errors=True)
                    points.append((target, ended, wrong))
            grown = measure_peak() - before_bytes
    finally:
        shutil.rmtree(parent, ignore_errors=True)
    if grown > MOST_BYTES:
        points[-1][2].append(f"{fault.name}: the process grew by {grown} bytes")
    return time.monotonic() - begun, points


def measure_peak() -> int:
    """Return the most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def digest_what_runs() -> str:
    """Return the digest of the code of one good pull."""
    with tempfile.TemporaryDirectory() as folder, serve_site(Path(folder)) as site:
        os.environ.pop("HF_HUB_OFFLINE", None)
        pull(site, Path(folder) / "first")
        return digest_code(WEB_CODE)


def main() -> int:
    """Sweep what was not swept on this code, and write the table to ``PAGE``; returns 1 for a violation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="every N-th fault from the I-th on")
    parser.add_argument("--workers", type=int, default=WORKERS)
    parser.add_argument("--only", help="faults whose names contain this text; nothing is kept")
    chosen = parser.parse_args()
    code, known = digest_what_runs(), read_results()
    names = choose_shard([fault.name for fault in FAULTS], chosen.shard)
    numbers = [number for number, fault in enumerate(FAULTS) if fault.name in names]
    if chosen.only:
        numbers = [number for number in numbers if chosen.only in FAULTS[number].name]
    else:
        numbers = [n for n in numbers if getattr(known.get((SWEEP, FAULTS[n].name)), "code", None) != code]
    violations: list[str] = []
    with ProcessPoolExecutor(chosen.workers) as pool:
        for number, (seconds, points) in zip(numbers, pool.map(sweep_fault, numbers), strict=True):
            wrong = [line for _, _, lines in points for line in lines]
            ended = Counter(f"{target} {ending}" for target, ending, _ in points)
            print(f"{FAULTS[number].name}: {dict(ended)}, {seconds:.1f} s", flush=True)  # noqa: T201
            for line in wrong:
                print(f"VIOLATION {line}", file=sys.stderr, flush=True)  # noqa: T201
            if not wrong and not chosen.only:
                kept = dict(sorted(ended.items()))
                name = FAULTS[number].name
                keep_result(Result(sweep=SWEEP, part=name, code=code, points=kept, seconds=round(seconds, 1)))
            violations += wrong
    PAGE.write_text(write_page(code), encoding="utf-8")
    return 1 if violations else 0


def write_page(code: str) -> str:
    """Return the page of counts from the lines that were kept."""
    known = read_results()
    kept = [known[SWEEP, fault.name] for fault in FAULTS if (SWEEP, fault.name) in known]
    present = sum(one.struck for one in kept if one.code == code)
    lines = [
        "# Faults of the web",
        "",
        "Written by `make faults-http` from tests/faults/results.jsonl: a pull of one concept from a server that",
        "fails, on real sockets. `make faults-http SHARD=2/8` sweeps every eighth fault from the second on.",
        "",
        f"- kinds of fault: {len(FAULTS)}, of which {len(kept)} were swept without a violation",
        f"- points (kind, file, place): {sum(one.struck for one in kept)}, of which {present} on this code ({code})",
        "",
        "After each: the right bytes or an error with an exit code of 3, 4 or 5; nothing listed after an error; the",
        f"same pull works once the server is well; at most {MOST_SECONDS:g} s, the deadline that the sweep gives each",
        f"of the {len(TARGETS)} files ({QUICK.deadline_seconds:g} s); at most {MOST_BYTES >> 20} MiB of memory",
        "more than a pull from a good server takes, less than what the bomb unpacks to; no credential at another",
        "origin. Columns: points that ended with the right bytes / with an error, after how they must end. Bytes of a",
        "blob that were all there before the fault struck are right. What may end either way, or otherwise than a",
        "blob, says why.",
        "",
        "| fault | blob | manifest | list of versions | why | code |",
        "|---|---|---|---|---|---|",
    ]
    for fault in FAULTS:
        one = known.get((SWEEP, fault.name))
        counts = one.points if one else {}
        cells = [f"{counts.get(f'{name} right', 0)} / {counts.get(f'{name} error', 0)}" for name in TARGETS]
        swept = "not swept" if one is None else "this" if one.code == code else one.code
        must = [" or ".join(find_outcomes(fault, name)) for name in TARGETS]
        cells = [f"{must[place]}: {cells[place]}" for place in range(len(TARGETS))]
        lines.append(f"| {fault.name} | {' | '.join(cells)} | {fault.why} | {swept} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
