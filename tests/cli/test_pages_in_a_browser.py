"""What ``concepts report`` writes, opened in a real browser: nothing from elsewhere, pictures that decode, tables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from conceptry.base_locations import resolve_base
from conceptry.composer.loading import load_pipeline
from conceptry.evaluation.bench_results import write_results
from tests.cli.conftest import Run
from tests.evaluation.browser import Page, find_browser, open_browser
from tests.evaluation.models import save_models
from tests.evaluation.rows import gather, make_row
from tests.fakes.concepts import make_lora
from tests.trainer.runs import paint_pictures

BROWSER = find_browser()
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine: make system-packages"),
    pytest.mark.filterwarnings("ignore"),  # other libraries' remarks
]
DECODE = "Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth, () => 0)))"
WIDTHS = "[document.documentElement.scrollWidth, innerWidth]"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with open_browser(str(BROWSER), tmp_path_factory.mktemp("browser") / "profile") as page:
        yield page


def look_at(page: Page, path: Path) -> list[str]:
    """Returns the headings of a page that is whole by itself, in wide, narrow and dark windows."""
    for width, scheme in ((1200, "light"), (360, "light"), (1200, "dark")):
        page.open(path.resolve().as_uri(), width=width, scheme=scheme)
        asked = [address for address in page.requests if not address.startswith("data:image/")]
        assert asked == [path.resolve().as_uri()]
        assert page.complaints == []
        content, window = page.ask(WIDTHS)
        assert content <= window == width
    pictures = page.ask(DECODE)
    assert pictures
    assert min(pictures) > 0
    headings: list[str] = page.ask("[...document.querySelectorAll('h1, h2')].map(e => e.innerText)")
    return headings


def test_a_page_that_asks_for_anything_or_holds_a_broken_picture_would_be_noticed(
    page: Page, tmp_path: Path
) -> None:
    leaky = tmp_path / "leaky.html"
    leaky.write_text('<img src="http://127.0.0.1:9/x.png"><img src="data:image/png;base64,AAAA">')
    page.open(leaky.as_uri())
    assert "http://127.0.0.1:9/x.png" in page.requests
    assert page.complaints
    assert page.ask(DECODE) == [0, 0]


def test_the_page_of_a_benchmark_is_whole_in_a_browser(run: Run, page: Page, tmp_path: Path) -> None:
    folder = tmp_path / "toybench"
    for method, identity in (("lora", 0.8), ("perfusion", 0.6)):
        rows = []
        for number in range(5):
            strip = folder / "pictures" / method / f"s{number}.webp"
            strip.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (640, 64), (40 * number, 90, 200)).save(strip)
            shown = str(strip.relative_to(folder))
            rows.append(make_row(method, f"s{number}", identity + 0.01 * number, 0.9, pictures=shown))
        write_results(folder / f"{method}.json", gather(*rows))
    run("report", "--benchmark", str(folder), "--out", "bench.html")
    headings = look_at(page, Path("bench.html"))
    assert headings[:2] == ["ToyBench: toybench-1", "Things"]
    assert {"lora", "perfusion"} <= set(headings)
    cells = page.ask("[...document.querySelectorAll('tbody tr')].map(r => r.cells[0].innerText)")
    assert cells[:2] == ["lora", "perfusion"]
    assert page.ask("document.querySelectorAll('svg circle').length") == 2
    assert page.ask("document.images.length") == 10
    assert page.ask("[...document.querySelectorAll('summary')].map(e => e.innerText)") == ["2 more"] * 2


def test_the_page_of_a_concept_is_whole_in_a_browser(
    run: Run, page: Page, tmp_path: Path, base: Path
) -> None:
    folder = tmp_path / "imp"
    make_lora(folder, load_pipeline(resolve_base(str(base), {})), name="me/imp")
    losses = [[step, 1.0 / (1 + step)] for step in range(20)]
    (folder / "train.json").write_text(json.dumps({"seconds": 2.5, "losses": losses}), encoding="utf-8")
    run("publish", str(folder))
    save_models(tmp_path / "models")
    paint_pictures(tmp_path / "held-out", 4)
    models = [f"--{name}={tmp_path / 'models' / name}" for name in ("clip", "dino")]
    given = ["--base", str(base), "--protocol", "clip-dino", "-n", "1", "--steps", "1"]
    out = ["--references", str(tmp_path / "held-out"), "--out", "imp.html"]
    run("report", "me/imp", *given, *models, *out)
    headings = look_at(page, Path("imp.html"))
    assert headings[0] == "me/imp@1.0.0"
    assert {"What it is", "What it does", "How it was trained", "The thing itself"} <= set(headings)
    measures = page.ask("[...document.querySelectorAll('div.wide tbody tr')].map(r => r.cells[0].innerText)")
    assert {"identity", "prompt", "preservation", "diversity"} <= set(measures)
    assert page.ask("document.querySelectorAll('svg polyline').length") == 1
