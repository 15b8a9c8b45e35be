"""``concepts diff`` for people and for programs."""

from __future__ import annotations

import json
from pathlib import Path

from conceptry.digests import Digest, canonical_json
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


def test_files_that_are_no_safetensors_are_compared_by_their_bytes_and_named(
    run: Run, tmp_path: Path
) -> None:
    for version, data in (("1.0.0", b"one"), ("1.1.0", b"two"), ("1.2.0", b"two")):
        folder = write_package(tmp_path / version, version=version, title=f"Title {version}")
        document = json.loads((folder / "concept.json").read_bytes())
        (folder / "lora.safetensors").write_bytes(data)
        file = document["builds"][0]["parts"][0]["files"][0]
        file |= {"size": len(data), "sha256": str(Digest.of_bytes(data))}
        (folder / "concept.json").write_bytes(canonical_json(document))
        run("publish", str(folder))
    finished = run("diff", "me/imp@1.0.0", "me/imp@1.1.0")
    assert "  title: 'Title 1.0.0' -> 'Title 1.1.0'" in finished.out.splitlines()
    assert f"  sd1-lora/lora.safetensors: '{Digest.of_bytes(b'one')}' ->" in finished.out
    said = "'lora.safetensors' of me/imp@1.0.0 is a text file, not a safetensors file: it is compared by its bytes"
    assert said in finished.err
    document = run("diff", "me/imp@1.1.0", "me/imp@1.2.0", "--json").document
    assert (document["files"], document["tensors"]["equal"]) == ([], 0)


def test_a_damaged_file_on_one_side_is_compared_by_its_bytes(run: Run, imp: str, tmp_path: Path) -> None:
    folder = write_package(tmp_path / "next", version="1.1.0")
    document = json.loads((folder / "concept.json").read_bytes())
    (folder / "lora.safetensors").write_bytes(b"no tensors")
    file = document["builds"][0]["parts"][0]["files"][0]
    file |= {"size": 10, "sha256": str(Digest.of_bytes(b"no tensors"))}
    (folder / "concept.json").write_bytes(canonical_json(document))
    run("publish", str(folder))
    found = run("diff", imp, "me/imp@1.1.0", "--json").document
    assert [row["place"] for row in found["files"]] == ["sd1-lora/lora.safetensors"]
    assert found["tensors"] == {"added": [], "removed": [], "changed": [], "equal": 0}
