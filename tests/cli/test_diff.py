"""``concepts diff`` for people and for programs."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Run
from tests.cli.packages import TO_Q, write_package

TO_K = TO_Q.replace("to_q", "to_k")


def test_difference_of_two_versions_is_a_list_for_people(run: Run, imp: str, tmp_path: Path) -> None:
    run(
        "publish",
        str(write_package(tmp_path / "next", version="1.1.0", title="Larger", modules=(TO_Q, TO_K))),
    )
    lines = run("diff", imp, "me/imp").out.splitlines()
    assert lines[0] == "from me/imp@1.0.0 to me/imp@1.1.0"
    assert "  title: 'A small imp' -> 'Larger'" in lines
    assert "  builds.sd1-lora.parts[0].method.modules: 1 -> 2" in lines
    assert lines[-1] == "6 tensors: 3 added, 0 removed, 0 changed, 3 equal"


def test_difference_as_json_names_every_tensor(run: Run, imp: str, tmp_path: Path) -> None:
    run("publish", str(write_package(tmp_path / "next", version="1.1.0", modules=(TO_K,))))
    document = run("diff", imp, "me/imp@1.1.0", "--json").document
    assert document["equal"] is False
    assert len(document["tensors"]["added"]) == len(document["tensors"]["removed"]) == 3
    same = run("diff", imp, imp, "--json").document
    assert (same["equal"], same["fields"]) == (True, [])


def test_unknown_version_is_not_found(run: Run, imp: str) -> None:
    run("diff", imp, "me/imp@9.0.0", code=3)
