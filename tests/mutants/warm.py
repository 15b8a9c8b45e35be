"""Mutants in children of a process that has collected every test: one costs the tests that call what it changes.

First a child runs each test once and notes which functions it calls, and how long it takes; that is kept by name, and
only what is new is run again. A test that calls a function only since then is missed, which may let a mutant live and
never kills one. A wrong function is then put in the place of the right one by its code object alone, in a child again,
so that everybody who has imported it has the wrong one. Whatever stands outside functions is for ``__main__``'s way,
which imports the module anew.
"""

from __future__ import annotations

import ast
import functools
import gc
import importlib
import json
import os
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any, Final

import pytest
from _pytest.runner import runtestprotocol

from tests.mutants.mutations import Mutation, apply_mutation

ROOT: Final = Path(__file__).parent.parent.parent
LAST: Final = (
    "tests/faults/test_faults.py::test_every_state_that_a_loss_of_power_may_leave_is_whole",
    "tests/faults/test_faults.py::test_what_earlier_commands_brought_outlives_a_loss_of_power_in_a_later_one",
)
"""Run for every function of the registry that survives the others: what it does they do in processes of their own."""

TESTS: Final = ("tests/core", "tests/registry", "tests/property", *LAST)
MOST_SECONDS: Final = 10.0
"""Of tests, by what each took without a mutant: those of the module's name first, then the quickest."""

LEAST_CPU_SECONDS: Final = 10
WALL_SECONDS: Final = 900
Place = tuple[str, str]
"""A function: its module's file as seen from the root, and its qualified name."""


class NotInFunctionError(Exception):
    """Raised where a mutant changes what runs when its module is imported, or cannot be put into a living function."""


@dataclass(frozen=True, slots=True)
class Calls:
    """Which tests call a function, and what each test costs."""

    tests: Mapping[Place, Sequence[str]]
    seconds: Mapping[str, float]


@dataclass(slots=True)
class WarmTests:
    """All tests, collected in this process: a pytest plugin whose loop is ours."""

    items: dict[str, pytest.Item] = field(default_factory=dict)
    functions: dict[Place, list[FunctionType]] = field(default_factory=dict)
    calls: Calls = field(default_factory=lambda: Calls({}, {}))

    def collect(self, session: pytest.Session, modules: Sequence[str]) -> None:
        """Takes the tests of a session over, and notes what those call of which it is not known."""
        self.items = {item.nodeid: item for item in session.items}
        for module in modules:
            importlib.import_module(module)
        self.functions = _find_functions()
        place = Path(tempfile.gettempdir()) / f"conceptry-calls-{os.getuid()}.json"
        document = _read_calls(place)
        if not self.items.keys() <= document["seconds"].keys():
            _fork(lambda: self._note_calls(place), cpu_seconds=3600)
            document = _read_calls(place)
        tests: dict[Place, list[str]] = {(path, name): names for path, name, names in document["tests"]}
        moved = {name: names for (_, name), names in tests.items()}
        for path, name in self.functions.keys() - tests.keys():
            tests[path, name] = moved.get(name, [])  # a function that was moved to another module
        self.calls = Calls(tests, document["seconds"])
        gc.collect()
        gc.freeze()

    def choose_tests(self, module: str, place: Place) -> list[str]:
        """Returns the tests that call a function, in the order in which they are run."""
        stem = module.rpartition("/")[2].removesuffix(".py")
        names = sorted(
            (name for name in self.calls.tests.get(place, ()) if name in self.items),
            key=lambda name: (f"test_{stem}.py" not in name, self.calls.seconds[name]),
        )
        chosen, seconds = list[str](), 0.0
        for name in names:
            if not chosen or seconds + self.calls.seconds[name] <= MOST_SECONDS:
                chosen.append(name)
                seconds += self.calls.seconds[name]
        last = LAST if module.startswith("registry/") else ()
        return [*chosen, *(name for name in last if name in self.calls.seconds)]

    def try_mutation(self, module: str, mutation: Mutation) -> str:
        """Returns how the tests end with a wrong function: ``killed``, ``survived``, ``endless`` or ``undecided``.

        A test that fails is run again without the mutant, which counts only if it passes then.

        Raises:
            NotInFunctionError: if the mutant is none of a function that lives here.
        """
        source = (ROOT / module).read_text(encoding="utf-8")
        line, qualified = _find_function(source, mutation)
        place = module, qualified
        living = self.functions.get(place, [])
        code = _pick_code(
            compile(apply_mutation(source, mutation), str(ROOT / module), "exec"), qualified, line
        )
        if not living or code is None or any(one.__code__.co_freevars != code.co_freevars for one in living):
            raise NotInFunctionError(module)
        names = self.choose_tests(module, place)
        if not self.calls.tests.get(place):
            raise NotInFunctionError(module)
        seconds = sum(self.calls.seconds[name] for name in names)

        def run() -> str | None:
            for one in living:
                one.__code__ = code
            return self._run(names)

        said = _fork(run, cpu_seconds=int(LEAST_CPU_SECONDS + 3 * seconds))
        if not said.startswith("failed "):
            return said
        failed = said.removeprefix("failed ")
        return "killed" if _fork(lambda: self._run([failed])) == "survived" else "undecided"

    def _run(self, names: Sequence[str]) -> str | None:
        """Returns the first test that fails."""
        items = [self.items[name] for name in names]
        for item, following in zip(items, [*items[1:], None], strict=True):
            if any(one.failed for one in runtestprotocol(item, log=False, nextitem=following)):
                return f"failed {item.nodeid}"
        return None

    def _note_calls(self, place: Path) -> None:
        called: set[CodeType] = set()
        document = _read_calls(place)
        tests: dict[Place, list[str]] = {(path, name): names for path, name, names in document["tests"]}
        seconds: dict[str, float] = document["seconds"]

        def trace(frame: FrameType, event: str, argument: Any) -> None:
            called.add(frame.f_code)

        for name, item in self.items.items():
            if name in seconds:
                continue
            called.clear()
            begun = time.process_time()
            threading.settrace(trace)
            sys.settrace(trace)
            try:
                failed = any(one.failed for one in runtestprotocol(item, log=False, nextitem=None))
            finally:
                sys.settrace(None)
                threading.settrace(None)
            seconds[name] = round(time.process_time() - begun, 3)
            for code in () if failed else called:
                found = locate_code(code)
                if found is not None:
                    tests.setdefault(found, []).append(name)
        document["tests"] = [[*key, names] for key, names in tests.items()]
        private = place.with_suffix(f".{os.getpid()}")
        private.write_text(json.dumps(document), encoding="utf-8")
        private.replace(place)


def locate_code(code: CodeType) -> Place | None:
    """Return where a code object of ``core`` or ``registry`` stands, None for any other."""
    path = _follow(code.co_filename)
    if not path.startswith((f"{ROOT}/core/", f"{ROOT}/registry/")):
        return None
    return path[len(str(ROOT)) + 1 :], code.co_qualname


_follow = functools.lru_cache(maxsize=None)(os.path.realpath)


def _find_functions() -> dict[Place, list[FunctionType]]:
    found: dict[Place, list[FunctionType]] = {}
    for one in gc.get_objects():
        if type(one) is FunctionType and (place := locate_code(one.__code__)) is not None:
            found.setdefault(place, []).append(one)
    return found


def _find_function(source: str, mutation: Mutation) -> tuple[int, str]:
    """Returns first line and qualified name of the outermost function in whose body the mutant is."""
    tree = ast.parse(source)
    node = next(node for place, node in enumerate(ast.walk(tree)) if place == mutation.place)
    for qualified, function in _iter_functions(tree.body, ""):
        if any(inner is node for statement in function.body for inner in ast.walk(statement)):
            first = min([function.lineno, *(one.lineno for one in function.decorator_list)])
            return first, qualified
    raise NotInFunctionError


def _iter_functions(
    body: Iterable[ast.stmt], above: str
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{above}{statement.name}", statement
        elif isinstance(statement, ast.ClassDef):
            yield from _iter_functions(statement.body, f"{above}{statement.name}.")
        elif isinstance(statement, ast.If):
            yield from _iter_functions([*statement.body, *statement.orelse], above)


def _pick_code(module: CodeType, qualified: str, line: int) -> CodeType | None:
    waiting = [module]
    while waiting:
        code = waiting.pop()
        if code.co_qualname == qualified and code.co_firstlineno == line:
            return code
        waiting += [one for one in code.co_consts if isinstance(one, CodeType)]
    return None


def _fork(work: Any, *, cpu_seconds: int = 600) -> str:
    """Returns what ``work`` says in a child without output: its text, ``survived`` if it says nothing."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _work_silently(work, writing, cpu_seconds)
    os.close(writing)
    deadline = time.monotonic() + max(WALL_SECONDS, 3 * cpu_seconds)
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.02)
    else:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return "undecided"  # waiting says how busy the machine is, not what the mutant does
    with os.fdopen(reading, "rb") as pipe:
        os.set_blocking(pipe.fileno(), False)
        said = (pipe.read() or b"").decode("utf-8", "replace")
    code = os.waitstatus_to_exitcode(status)
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return "endless"
    return said or ("survived" if code == 0 else "killed")


def _work_silently(work: Any, writing: int, cpu_seconds: int) -> None:
    code = 1
    try:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 5))
        silent = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(silent, descriptor)
        said = work()
        os.write(writing, (said or "").encode())
        code = 0
    finally:
        os._exit(code)


def _read_calls(place: Path) -> dict[str, Any]:
    if not place.exists():
        return {"tests": [], "seconds": {}}
    document: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
    return document
