"""Looking at the store."""

from __future__ import annotations

from pathlib import Path

from conceptry.registry import Registry
from tests.cli.conftest import Run
from tests.cli.packages import write_package
from tests.registry.folders import write_folder


def test_empty_store_lists_nothing_and_says_what_to_do(run: Run) -> None:
    finished = run("list")
    assert finished.out == ""
    assert finished.err == (
        "nothing here yet: concepts train and concepts import publish into the store, "
        "concepts pull copies into it\n"
    )


def test_list_shows_what_people_look_for(run: Run, imp: str) -> None:
    head, row = run("list").out.splitlines()
    assert head.split() == ["CONCEPT", "KIND", "BASE", "WORD", "SIZE", "LICENCE", "TITLE"]
    assert row.split()[:4] == ["me/imp@1.0.0", "lora", "sd1", "<imp>"]
    assert row.endswith("CC0-1.0  A small imp")


def test_quiet_list_is_references_for_a_pipe(run: Run, imp: str) -> None:
    assert run("list", "--quiet").out == "me/imp@1.0.0\n"


def test_options_before_the_command_mean_the_same(run: Run, imp: str) -> None:
    assert run("--json", "list").document == run("list", "--json").document


def test_list_shows_the_latest_version_and_with_all_every_one(run: Run, imp: str, tmp_path: Path) -> None:
    run("publish", str(write_package(tmp_path / "next", version="1.1.0")))
    assert run("list", "-q").out == "me/imp@1.1.0\n"
    assert run("list", "me/imp", "--all", "-q").out == "me/imp@1.0.0\nme/imp@1.1.0\n"


def test_filters_leave_out_what_does_not_match(run: Run, imp: str) -> None:
    assert run("list", "--kind", "lora", "--family", "sd1", "-q").out == f"{imp}\n"
    assert run("list", "--kind", "full", "--json").document == {"concepts": [], "count": 0, "adopted": []}
    assert run("list", "--namespace", "you", "-q").out == ""


def test_people_are_shown_a_hundred_rows_and_how_many_there_are(run: Run, tmp_path: Path) -> None:
    registry = Registry()
    for number in range(102):
        registry.publish(write_folder(tmp_path / str(number), name=f"me/imp{number}", file=b"one blob"))
    finished = run("list")
    assert len(finished.out.splitlines()) == 101
    assert finished.err == "100 of 102: --limit 0 shows all\n"
    assert len(run("list", "--limit", "0").out.splitlines()) == 103
    assert len(run("list", "-q").out.splitlines()) == 102
    limited = run("list", "--json", "--limit", "3").document
    assert ([row["name"] for row in limited["concepts"]], limited["count"]) == (
        ["imp0", "imp1", "imp10"],
        102,
    )
    assert len(run("search", "imp", "--limit", "5").out.splitlines()) == 6
    assert run("search", "imp", "--limit", "5", "--json").document["count"] == 102


def test_every_row_is_listed_as_the_first_hundred_are(run: Run, tmp_path: Path) -> None:
    registry = Registry()
    titles = ["Plain", "Blåhaj", "two\u202ewords", "unit\x1fseparator", "tab\there", "  padded  ", ""]
    for number, title in enumerate(titles):
        folder = write_folder(tmp_path / str(number), name=f"me/imp{number}", title=title, file=b"one blob")
        registry.publish(folder)
    registry.yank("me/imp3@1.0.0", "not any more")
    registry.remove("me/imp4@1.0.0")
    some, every = run("list").out, run("list", "--all").out
    assert every == some
    assert "two\\u202ewords" in every
    assert "unit\\x1fseparator (yanked: not any more)" in every


def test_long_json_is_the_same_document_with_a_line_for_each_row(run: Run, tmp_path: Path) -> None:
    registry = Registry()
    for number in range(101):
        registry.publish(write_folder(tmp_path / str(number), name=f"me/imp{number}", file=b"one blob"))
    finished = run("list", "--json")
    short = run("list", "--json", "--limit", "100").document
    assert finished.document["concepts"][:100] == short["concepts"]
    assert {key: finished.document[key] for key in ("count", "adopted")} == {"count": 101, "adopted": []}
    assert len(finished.out.splitlines()) == 105


def test_search_finds_by_words_of_title_and_name(run: Run, imp: str) -> None:
    assert run("search", "small", "imp", "-q").out == f"{imp}\n"
    assert run("search", "dragon").err == "nothing has 'dragon': concepts list shows all\n"


def test_show_prints_manifest_and_digest(run: Run, imp: str) -> None:
    document = run("show", "me/imp", "--json").document
    assert document["reference"] == imp
    assert document["digest"].startswith("sha256:")
    assert document["manifest"]["builds"][0]["parts"][0]["kind"] == "lora"
    assert run("show", "me/imp", "-q").out == f"{document['digest']}\n"


def test_show_says_how_to_call_the_concept(run: Run, imp: str) -> None:
    lines = run("show", "me/imp").out.splitlines()
    assert lines[0] == "me/imp@1.0.0  A small imp"
    assert "word        <imp> (plain text, written before 'creature')" in lines
    assert "licence     CC0-1.0" in lines
    assert "build sd1-lora: lora for sd1 (epsilon)" in lines


def test_identify_says_what_a_file_is(run: Run, imp: str, tmp_path: Path) -> None:
    found = run("identify", str(tmp_path / "imp" / "lora.safetensors"), "--json").document
    assert found["kind"] == "lora"
    assert found["coverage"] == {"explained": 3, "total": 3, "unexplained": []}
    assert {"dialect", "family", "confidence", "reasons"} <= found.keys()
