"""Contact sheets: every picture is on them, at its place."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from conceptry.evaluation.sheets import SheetRow, draw_sheet, save_sheet


def test_each_picture_is_at_its_row_and_column() -> None:
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]
    tiles = [Image.new("RGB", (8, 8), color) for color in colors]
    sheet = draw_sheet(
        ["one", "two"], [SheetRow("a", "", (tiles[0], tiles[1])), SheetRow("b", "", tuple(tiles[2:]))]
    )
    found = {color for _, color in sheet.getcolors(1 << 24) or []}
    assert set(colors) <= found
    columns = {
        color: [x for x in range(sheet.width) if sheet.getpixel((x, 120)) == color] for color in colors[:2]
    }
    assert max(columns[colors[0]]) < min(columns[colors[1]])


def test_small_pictures_are_enlarged_without_smoothing() -> None:
    checker = Image.new("RGB", (2, 1), (0, 0, 0))
    checker.putpixel((1, 0), (255, 0, 255))
    sheet = draw_sheet(["x"], [SheetRow("", "", (checker,))], cell_pixels=64)
    pink = [color for count, color in sheet.getcolors(1 << 24) or [] if count > 500]
    assert (255, 0, 255) in pink
    assert (127, 0, 127) not in pink


def test_a_saved_sheet_leaves_no_partial_file(tmp_path: Path) -> None:
    save_sheet(draw_sheet(["x"], []), tmp_path / "sheet.png")
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]
