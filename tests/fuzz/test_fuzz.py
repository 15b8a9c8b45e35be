"""A short sample of `make fuzz`, which is a million executions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.fuzz.execution import execute, make_input
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_mutated_input_ends_in_a_value_or_an_error_of_our_own(target: str) -> None:
    failures = list(execute(target, range(400 * TARGETS[target].share)))
    assert not failures


@pytest.mark.parametrize("target", TARGETS)
def test_execution_can_be_repeated_by_its_number(target: str) -> None:
    assert make_input(target, 7) == make_input(target, 7)
    assert len({make_input(target, number) for number in range(100)}) > 90


def test_fuzzer_reports_what_escapes_and_what_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(data: bytes) -> None:
        raise KeyError("escaped")

    def hang(data: bytes) -> None:
        while True:
            pass

    for run, reason in ((fail, "KeyError"), (hang, "_TooLong")):
        monkeypatch.setattr("tests.fuzz.execution.MAX_SECONDS", 0.05)
        monkeypatch.setitem(TARGETS, "broken", replace(TARGETS["header"], run=run))
        assert reason in next(execute("broken", range(1))).reason
