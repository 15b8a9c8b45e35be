"""``concepts report``, ``advise`` and ``benchmark-methods`` as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conceptry.evaluation.bench_results import BaseModelId, ResultFile, write_json, write_results
from tests.cli.conftest import Run
from tests.cli.packages import write_package
from tests.evaluation.rows import gather, make_row
from tests.evaluation.strict_html import parse_strictly

EVIL = "<img src=https://example.org/x.png onerror=alert(1)>"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Give a folder of results of two methods."""
    common = {"suite": "toybench-1", "suite_digest": "sha256:0", "protocol": "toybox-1", "sample_passes": 8}
    for method, identity in (("lora", 0.8), ("perfusion", 0.6)):
        rows = tuple(make_row(method, f"s{number}", identity + 0.01 * number, 0.9) for number in range(4))
        found = ResultFile.model_validate(
            {
                **common,
                "base": BaseModelId(family="toybox", digest="sha256:1"),
                "commit": "abc",
                "machine": {},
            }
        )
        write_results(
            tmp_path / "docs" / "toybench" / f"{method}.json", found.model_copy(update={"rows": rows})
        )
    return tmp_path / "docs" / "toybench"


def test_the_page_of_a_concept_says_what_is_known_and_escapes_it(run: Run, tmp_path: Path) -> None:
    run("publish", str(write_package(tmp_path / "evil", "me/evil", title=EVIL, description=EVIL)))
    document = run("report", "me/evil", "--no-draw", "--out", "page.html", "--json").document
    page = Path(document["path"]).read_text(encoding="utf-8")
    assert document["size_bytes"] == len(page.encode())
    parsed = parse_strictly(page)
    assert parsed.pictures == 0
    assert any(EVIL in text for text in parsed.text)
    assert any("me/evil@1.0.0" in text for text in parsed.text)


def test_the_page_of_a_benchmark_is_whole(run: Run, results: Path) -> None:
    head = {"method": "lora", "members": ["creature-20", "cup-20"]}
    shares = {"joint": 0.5, "recall": [0.5, 1.0], "swaps": 0.0, "leaks": None, "region": 1.0}
    groups = [{**head, "way": "attached", **shares}, {**head, "way": "merge-sum", "impossible": EVIL}]
    write_json(results / "multi" / "multi.json", {"rows": groups})
    run("report", "--benchmark", str(results), "--out", "bench.html")
    parsed = parse_strictly(Path("bench.html").read_text(encoding="utf-8"))
    assert {"lora", "perfusion", "creature-20 + cup-20"} <= {text.strip() for text in parsed.text}
    assert any(EVIL in text for text in parsed.text)
    run("benchmark-methods", "--summary", "--out", str(results))
    page = (results.parent / "toybench.md").read_text(encoding="utf-8")
    assert "| lora | attached | creature-20 + cup-20 | 0.50 | 0.50 1.00 |" in page
    (results / "multi" / "multi.json").write_text("{", encoding="utf-8")
    assert "no file of results" in run("report", "--benchmark", str(results), code=4).err


def test_report_and_benchmark_say_what_they_lack(run: Run, tmp_path: Path) -> None:
    assert "needs a concept or --benchmark or --uses" in run("report", code=2).err
    assert "there are no results yet" in run("report", "--benchmark", str(tmp_path), code=3).err
    assert "did you mean 'lora'?" in run("benchmark-methods", "--method", "lorra", "--list", code=2).err
    assert "has no subject 'dragon'" in run("benchmark-methods", "--subject", "dragon", "--list", code=2).err
    said = run("benchmark-methods", "--protocol", "clip-dino", code=2).err
    assert "add --images DIR" in said
    assert "no protocol is called" in run("benchmark-methods", "--protocol", "dino", code=2).err


def test_the_summary_and_the_page_answer_every_claim(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "docs" / "toybench"
    shown = {"dreambooth": 0.9, "textual_inversion": 0.4, "studies/textual_inversion-far-start": 0.2}
    for name, identity in shown.items():
        method = name.rpartition("/")[2]
        rows = [make_row(method, f"s{number}", identity + 0.01 * number, 0.8) for number in range(4)]
        write_results(folder / f"{name}.json", gather(*rows))
    document = run("benchmark-methods", "--summary", "--out", str(folder), "--json").document
    answers = {one["id"]: one["answer"] for one in document["claims"]}
    assert answers["class-word-start"] == "confirmed"
    assert answers["lora-between"] == "not measured"
    assert {row["method"] for row in document["rows"]} == {"dreambooth", "textual_inversion"}
    page = (folder.parent / "toybench.md").read_text(encoding="utf-8")
    assert f"{len(answers)} claims: " in page
    assert (
        "| confirmed | textual_inversion identity 0.415 above textual_inversion-far-start identity 0.215: yes |"
        in page
    )
    assert (
        "confirmed: Starting from the class word"
        in run("benchmark-methods", "--summary", "--out", str(folder)).out
    )
    run("report", "--benchmark", str(folder), "--out", "bench.html")
    assert "What surveys claim" in Path("bench.html").read_text(encoding="utf-8")
    far = folder / "studies" / "textual_inversion-far-start.json"
    write_json(far, {**json.loads(far.read_text(encoding="utf-8")), "sample_passes": 9})
    assert "were not measured alike" in run("report", "--benchmark", str(folder), code=8).err


def test_studies_are_listed_by_themselves(run: Run, tmp_path: Path) -> None:
    document = run("benchmark-methods", "--studies", "--list", "--out", str(tmp_path), "--json").document
    assert {row["method"] for row in document["methods"]} >= {"dreambooth-wrong-class", "lora-strong-word"}
    assert len(document["subjects"]) == 6


def test_list_says_what_is_left(run: Run, results: Path) -> None:
    document = run("benchmark-methods", "--list", "--out", str(results), "--json").document
    assert len(document["subjects"]) == 30
    left = {row["method"]: len(row["left"]) for row in document["methods"]}
    assert left["textual_inversion"] == 30


def test_the_summary_is_written_beside_the_results_and_advise_reads_it(run: Run, results: Path) -> None:
    run("benchmark-methods", "--summary", "--out", str(results))
    docs = results.parent
    document = json.loads((docs / "toybench.json").read_text(encoding="utf-8"))
    assert [row["method"] for row in document["rows"]] == ["lora", "perfusion"]
    assert "| 1 | **lora** |" in (docs / "toybench.md").read_text(encoding="utf-8")
    assert (docs / "toybench-instance.svg").read_text(encoding="utf-8").startswith("<svg")
    advice = run("advise", "--figures", str(docs / "toybench.json"), "--json").document
    assert advice["choices"][0]["method"] == "lora"
    assert run("advise", "--figures", str(docs / "toybench.json"), "--quiet").out == "lora\n"
    said = run("advise", "--figures", str(docs / "toybench.json")).out
    assert "identity 0.8" in said
    assert "concepts train lora" in said


def test_advice_without_figures_says_so(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty.json").write_text('{"rows": [], "styles": []}', encoding="utf-8")
    said = run("advise", "--figures", str(tmp_path / "empty.json")).out
    assert "no method can be recommended by numbers" in said
    assert run("advise", "--figures", "nothing.json", code=3).err
