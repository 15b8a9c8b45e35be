"""``make mutants``: a seeded sample of wrong changes to ``core`` and ``registry``, each run against its tests.

The tools of the field (mutmut, cosmic-ray) want one source folder and a file that is changed in place; here folders at
the root are the packages, and others may be working in them. So what is wrong is made in memory: a function's code in a
child of a process that has collected all tests (``warm.py``), and what stands outside functions as a whole module, by
an import hook in a child of a process that has imported the libraries. Programs that tests start as processes of their
own do not have it: what only they would notice counts as survived.

Results are lines of ``results.jsonl``; a mutant is run again once its module changed. ``reasons.toml`` says of
survivors why.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import resource
import signal
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from tests.mutants.mutations import Mutation, apply_mutation, describe_change
from tests.mutants.samples import SEED, choose_sample, list_points, read_sample

ROOT: Final = Path(__file__).parent.parent.parent
RESULTS: Final = Path(__file__).parent / "results.jsonl"
REASONS: Final = Path(__file__).parent / "reasons.toml"
PAGE: Final = ROOT / "docs" / "mutants.md"
ROOMS: Final = {"core": "conceptry", "registry": "conceptry.registry"}
CPU_SECONDS: Final = 60
WALL_SECONDS: Final = 600
UNDECIDED: Final = "undecided"
_BROKEN: Final = 99
_MISUSED: Final = 4  # pytest's own code
# What imports long, and no test changes.
LIBRARIES: Final = (
    "pytest", "pydantic", "sqlite_utils", "tomlkit", "urllib3", "fsspec", "huggingface_hub", "numpy",
    "ml_dtypes", "click", "rich", "semver", "rfc8785", "safetensors",
)  # fmt: skip
# Whole behaviours, which most modules of the room take part in; run after the tests that name the module.
COMMON: Final = {
    "core": ("tests/core",),
    "registry": (
        "tests/registry/test_publish.py",
        "tests/registry/test_references.py",
        "tests/registry/test_transfer.py",
        "tests/registry/test_verify.py",
        "tests/registry/test_sync.py",
        "tests/registry/test_collection.py",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How one mutant ended."""

    module: str
    code: str
    """Digest of the module's source."""

    key: str
    line: int
    function: str
    before: str
    after: str
    outcome: str
    """``killed``, ``survived``, or ``endless``, which counts as killed."""

    seconds: float

    @property
    def name(self) -> tuple[str, str, str]:
        """Which mutant it is."""
        return self.module, self.code, self.key


def read_sources() -> dict[str, str]:
    """Return the text of every module that is mutated."""
    return {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for room in ROOMS
        for path in sorted((ROOT / room).glob("*.py"))
        if path.name != "__init__.py"
    }


def name_module(module: str) -> str:
    """Return how a module is imported."""
    room, _, file = module.partition("/")
    return f"{ROOMS[room]}.{file.removesuffix('.py')}"


def list_tests(module: str) -> list[str]:
    """Return the test files for a module: the one of its name, those that import it, then those of whole behaviours."""
    room = module.partition("/")[0]
    dotted = name_module(module)
    stem = dotted.rpartition(".")[2]
    quick = [
        path
        for folder in ("core", "registry", "property")
        for path in (ROOT / "tests" / folder).glob("test_*.py")
    ]
    same = [path for path in quick if path.stem == f"test_{stem}"]
    naming = [
        path
        for path in sorted(quick)
        if f"from {dotted} import" in (text := path.read_text(encoding="utf-8"))
        or (room == "registry" and f"import {stem}\n" in text)
    ]
    files = [path.relative_to(ROOT).as_posix() for path in dict.fromkeys([*same, *naming])]
    return list(dict.fromkeys([*files[:6], *COMMON[room]]))


class _Wrong(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Puts a wrong module in the place of the right one."""

    def __init__(self, module: str, mutation: Mutation | None) -> None:
        self._path, self._mutation = ROOT / module, mutation
        self._name = name_module(module)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        return importlib.util.spec_from_file_location(fullname, self._path, loader=self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        source = self._path.read_text(encoding="utf-8")
        tree: Any = source if self._mutation is None else apply_mutation(source, self._mutation)
        exec(compile(tree, str(self._path), "exec"), module.__dict__)  # noqa: S102 - the project's own source


def run_mutant(module: str, mutation: Mutation | None) -> str:
    """Return how the tests of a module end with a mutation of it: ``killed``, ``survived`` or ``endless``."""
    child = os.fork()
    if child == 0:
        _run_tests(module, mutation)
    deadline = time.monotonic() + WALL_SECONDS
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            if code in (_BROKEN, _MISUSED):
                raise RuntimeError(f"the tests of {module} could not be run")
            return {0: "survived", -signal.SIGXCPU: "endless", -signal.SIGKILL: "endless"}.get(code, "killed")
        time.sleep(0.1)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return UNDECIDED  # waiting says how busy the machine is, not what the mutant does


def _run_tests(module: str, mutation: Mutation | None) -> None:
    code = _BROKEN
    try:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
        silent = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(silent, descriptor)
        sys.meta_path.insert(0, _Wrong(module, mutation))
        pytest = importlib.import_module("pytest")
        late = "ignore::pytest.PytestAssertRewriteWarning"  # of plugins whose libraries are imported already
        words = ["-q", "-x", "-p", "no:cacheprovider", "-W", late, *list_tests(module)]
        code = int(pytest.main(words))
    finally:
        os._exit(code)


def count_lines() -> int:
    """Return how many results are kept, of which some are of the same mutant."""
    return len(RESULTS.read_text(encoding="utf-8").splitlines()) if RESULTS.exists() else 0


def read_results(first: int = 0) -> dict[tuple[str, str, str], Result]:
    """Return what was kept, by mutant, from a line on."""
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else []
    found = [Result(**json.loads(line)) for line in lines[first:] if line]
    return {one.name: one for one in found}


def digest_module(module: str) -> str:
    """Return the first digits of the digest of a module's source."""
    return hashlib.sha256((ROOT / module).read_bytes()).hexdigest()[:12]


def main() -> int:
    """Run what was not run, for as long as is allowed, and write the page; returns 1 below 85 %."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, help="so many instead of all that were drawn")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no mutant later than this")
    parser.add_argument(
        "--check", action="store_true", help="only check that the tests pass with no mutation"
    )
    parser.add_argument(
        "--again", action="store_true", help="try those that survived again: there are new tests"
    )
    chosen = parser.parse_args()
    os.chdir(ROOT)
    os.nice(10)
    for library in LIBRARIES:
        importlib.import_module(library)
    kept, begun = read_sample(), time.monotonic()
    sample = choose_sample(kept, list_points(read_sources()), chosen.sample or len(kept))
    if chosen.check:
        wrong = [
            module
            for module in sorted({module for module, _ in sample})
            if run_mutant(module, None) != "survived"
        ]
        print(f"tests that do not pass by themselves: {wrong}")  # noqa: T201
        return 1 if wrong else 0
    known, lines = read_results(), count_lines()
    if chosen.again:
        known = {name: one for name, one in known.items() if one.outcome != "survived"}
    _try_warm(sample, known, begun + chosen.seconds)
    known |= read_results(lines)
    for module, mutation in sample:
        if (module, digest_module(module), mutation.key) in known:
            continue
        if time.monotonic() - begun > chosen.seconds:
            break
        _keep(module, mutation, run_mutant)
    known = read_results()
    names = [(module, digest_module(module), mutation.key) for module, mutation in sample]
    done = [known[name] for name in names if name in known]
    PAGE.write_text(write_page(done, len(sample)), encoding="utf-8")
    killed = sum(one.outcome != "survived" for one in done)
    return 1 if len(done) < len(sample) or killed < 0.85 * len(done) else 0


def _try_warm(
    sample: list[tuple[str, Mutation]], known: Mapping[tuple[str, str, str], Result], deadline: float
) -> None:
    """Tries the mutants of functions in a child, where every module of ours is imported; leaves out all others."""
    wanted = [one for one in sample if (one[0], digest_module(one[0]), one[1].key) not in known]
    child = os.fork() if wanted else None
    if child is None:
        return
    if child:
        os.waitpid(child, 0)
        return

    class Loop:
        """A plugin in the place of pytest's own loop."""

        def pytest_runtestloop(self, session: Any) -> bool:
            """Tries mutants instead of running tests."""
            tests = warm.WarmTests()
            tests.collect(session, sorted({name_module(module) for module, _ in wanted}))
            for module, mutation in wanted:
                if time.monotonic() > deadline:
                    break
                with contextlib.suppress(warm.NotInFunctionError):
                    _keep(module, mutation, tests.try_mutation)
            return True

    warm = importlib.import_module("tests.mutants.warm")
    pytest = importlib.import_module("pytest")
    late = "ignore::pytest.PytestAssertRewriteWarning"
    pytest.main(["-q", "-s", "-p", "no:cacheprovider", "-W", late, *warm.TESTS], plugins=[Loop()])
    os._exit(0)


def _keep(module: str, mutation: Mutation, run: Callable[[str, Mutation], str]) -> None:
    """Tries one mutant, and keeps how it ended."""
    source, begun = (ROOT / module).read_text(encoding="utf-8"), time.monotonic()
    outcome = run(module, mutation)
    before, after = describe_change(source, mutation)
    result = Result(
        module=module,
        code=digest_module(module),
        key=mutation.key,
        line=mutation.line,
        function=mutation.function,
        before=before,
        after=after,
        outcome=outcome,
        seconds=round(time.monotonic() - begun, 1),
    )
    print(f"{outcome}: {module}:{result.line} {result.before} -> {result.after}", flush=True)  # noqa: T201
    if outcome != UNDECIDED:
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(result), sort_keys=True) + "\n")


def write_page(done: list[Result], wanted: int) -> str:
    """Return the page: how many were killed, and each survivor with its reason."""
    counts = Counter(one.outcome for one in done)
    killed = counts["killed"] + counts["endless"]
    share = 100 * killed / len(done) if done else 0.0
    reasons = tomllib.loads(REASONS.read_text(encoding="utf-8")) if REASONS.exists() else {}
    lines = [
        "# Mutants",
        "",
        "Written by `make mutants`, which goes on where it stopped: small wrong changes to `core` and `registry`,",
        f"drawn with a fixed seed ({SEED}), each against the tests that name its module and those of whole behaviours.",
        "",
        "The sample was drawn once and is kept (`tests/mutants/sample.jsonl`): every mutant that had been",
        "tried by 2026-11-22, killed or not, and more from outside functions up to their share. A change of sources",
        "moves none: each is found again by its function and text, and one whose code has gone is replaced by a",
        "further draw. Tests have been written against its survivors, so of others more survive: of 66 further ones in",
        "functions, drawn and tried on that day without a look at them, 53 were killed.",
        "",
        f"Run: {len(done)} of a sample of {wanted}. Killed: {killed} ({share:.1f} %), of which {counts['endless']} by",
        f"the time limit ({CPU_SECONDS} s of processor time). Survived: {counts['survived']}.",
        "",
        "| survivor | in | before | after | why |",
        "|---|---|---|---|---|",
    ]
    for one in sorted(done, key=lambda one: (one.module, one.line)):
        if one.outcome == "survived":
            why = reasons.get(one.module, {}).get(one.before, "")
            cells = [f"{one.module}:{one.line}", one.function, f"`{one.before}`", f"`{one.after}`", why]
            lines.append(f"| {' | '.join(cell.replace('|', '/').replace(chr(10), ' ') for cell in cells)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
