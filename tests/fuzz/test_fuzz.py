"""A short sample of `make fuzz`, which is a million executions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.fuzz.__main__ import main
from tests.fuzz.execution import execute, make_input
from tests.fuzz.records import SHARD, count_executions, read_records
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


def test_executions_of_several_sessions_add_up_for_the_same_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.fuzz.__main__.digest_code", lambda: "code")
    path, each = tmp_path / "executions.jsonl", sum(target.share for target in TARGETS.values())
    run = ["--records", str(path), "--batch", "1", "--executions"]
    assert main([*run, str(each)]) == 0
    assert main([*run, str(2 * each), "--shard", "3"]) == 0
    assert main([*run, str(3 * each)]) == 0
    records = read_records(path)
    share = TARGETS["header"].share
    assert [(one.start, one.stop) for one in records if one.target == "header"] == [
        (0, share),
        (3 * SHARD, 3 * SHARD + share),
        (share, 2 * share),
    ]
    assert sum(count_executions(records, "code").values()) == 3 * each
    assert sum(count_executions([*records, *records], "code").values()) == 3 * each
    assert not any(count_executions(records, "other code").values())
