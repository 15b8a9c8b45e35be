from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conceptry.errors import InvalidImagesError
from conceptry.trainer.framing import Frame, crop_centre
from conceptry.trainer.images import scan_pictures
from conceptry.trainer.latents import to_pixels

RED = (200, 30, 30)


def paint(path: Path, size: tuple[int, int] = (20, 16), color: tuple[int, ...] = RED, **options: Any) -> Path:
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[len(color)]
    Image.new(mode, size, color if len(color) > 1 else color[0]).save(path, **options)
    return path


def test_pictures_come_in_order_of_name_with_their_captions(tmp_path: Path) -> None:
    paint(tmp_path / "b.png")
    paint(tmp_path / "a.jpg")
    paint(tmp_path / "c.webp")
    (tmp_path / "b.txt").write_text("from the\n text file", encoding="utf-8")
    lines = [{"file_name": "a.jpg", "text": "from the lines"}, {"file_name": "b.png", "text": "lines win"}]
    (tmp_path / "captions.jsonl").write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    (tmp_path / "c.txt").write_text("  ", encoding="utf-8")

    found = scan_pictures(tmp_path)

    assert [(picture.name, picture.caption) for picture in found.pictures] == [
        ("a.jpg", "from the lines"),
        ("b.png", "lines win"),
        ("c.webp", None),
    ]
    assert found.skipped == ()


def test_every_file_that_is_not_used_is_named_with_the_reason(tmp_path: Path) -> None:
    paint(tmp_path / "good.png")
    (tmp_path / "letter.png").write_text("dear reader", encoding="utf-8")
    whole = paint(tmp_path / "cut.png", (64, 64)).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "notes.pdf").write_bytes(b"%PDF")
    (tmp_path / "lonely.txt").write_text("a caption", encoding="utf-8")
    (tmp_path / "more").mkdir()

    found = scan_pictures(tmp_path)

    assert [picture.name for picture in found.pictures] == ["good.png"]
    reasons = {skipped.name: skipped.reason for skipped in found.skipped}
    assert reasons.keys() == {"letter.png", "cut.png", "empty.jpg", "notes.pdf", "lonely.txt", "more"}
    assert "no picture" in reasons["letter.png"]
    assert "cannot be decoded" in reasons["cut.png"]
    assert "suffix" in reasons["notes.pdf"]
    assert "without a picture" in reasons["lonely.txt"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "is empty"),
        ({"a.txt": b"a caption"}, "captions (a.txt) but no pictures"),
        ({"captions.jsonl": b'{"file_name": "a.png", "text": "x"}'}, "but no pictures"),
        ({"a.png": b"just text"}, "no picture in"),
        ({"a.png": b"\x89PNG\r\n\x1a\n\0\0"}, "no picture in"),
    ],
)
def test_a_folder_without_a_readable_picture_is_refused_with_a_hint(
    tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InvalidImagesError) as caught:
        scan_pictures(tmp_path)
    assert message in caught.value.message
    assert caught.value.hint
    assert caught.value.exit_code == 2


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidImagesError, match="no folder"):
        scan_pictures(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "line", ['{"file_name": "a.png"}', "not json", '["a.png", "x"]', '{"file_name": 3, "text": "x"}']
)
def test_a_malformed_caption_line_is_named_by_its_number(tmp_path: Path, line: str) -> None:
    paint(tmp_path / "a.png")
    (tmp_path / "captions.jsonl").write_text('{"file_name": "a.png", "text": "x"}\n' + line, encoding="utf-8")
    with pytest.raises(InvalidImagesError) as caught:
        scan_pictures(tmp_path)
    assert caught.value.where == "captions.jsonl:2"


def test_a_photo_taken_sideways_is_turned_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 10), "white")
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to see it upright
    image.save(tmp_path / "a.png", exif=exif)

    (picture,) = scan_pictures(tmp_path).pictures

    assert picture.image.size == (10, 20)
    assert picture.image.getpixel((9, 0)) == (255, 0, 0)


def test_transparency_is_put_over_white(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", color=(0, 0, 0, 0))
    paint(tmp_path / "b.png", color=(0, 0, 0, 128))
    palette = Image.new("P", (4, 4), 0)
    palette.info["transparency"] = 0
    palette.save(tmp_path / "c.png", transparency=0)

    clear, half, indexed = (picture.image.getpixel((1, 1)) for picture in scan_pictures(tmp_path).pictures)

    assert clear == (255, 255, 255)
    assert half == (127, 127, 127)
    assert indexed == (255, 255, 255)


def test_gray_pictures_of_8_and_16_bits_keep_their_shades(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", color=(77,))
    deep = np.array([[0, 32768], [65535, 65535]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "b.png")

    gray, wide = (picture.image for picture in scan_pictures(tmp_path).pictures)

    assert gray.getpixel((0, 0)) == (77, 77, 77)
    assert wide.getpixel((0, 0)) == (0, 0, 0)
    assert wide.getpixel((1, 0)) == (128, 128, 128)
    assert wide.getpixel((0, 1)) == (255, 255, 255)


def test_gray_pictures_of_floats_and_of_12_bits_keep_their_shades_and_say_what_is_white(
    tmp_path: Path,
) -> None:
    shades = np.array([[0.0, 0.5], [0.25, 1.0]], dtype=np.float32)
    Image.fromarray(np.where(shades == 0, np.nan, shades)).save(tmp_path / "a.tif")
    Image.fromarray(shades * 200).save(tmp_path / "b.tif")
    (tmp_path / "c.tif").write_bytes(make_12_bit_tiff([[0, 2048], [2048, 4095]]))

    floats, bytes_, twelve = scan_pictures(tmp_path).pictures

    assert np.array(floats.image)[..., 0].tolist() == [[0, 128], [64, 255]]
    assert floats.notes == ("has no 8 or 16 bits a shade: 1 is taken for white",)
    assert np.array(bytes_.image)[..., 0].tolist() == [[0, 100], [50, 200]]
    assert np.array(twelve.image)[..., 0].tolist() == [[0, 128], [128, 255]]
    assert twelve.notes == ("has no 8 or 16 bits a shade: 4095 is taken for white",)


def make_12_bit_tiff(rows: list[list[int]]) -> bytes:
    """Returns a TIFF of two columns, whose two samples of 12 bits a row are packed into three bytes."""
    pixels = b"".join((left << 12 | right).to_bytes(3, "big") for left, right in rows)
    entries = {
        256: 2,
        257: len(rows),
        258: 12,
        259: 1,
        262: 1,
        273: 8,
        277: 1,
        278: len(rows),
        279: len(pixels),
    }
    ifd = struct.pack("<H", len(entries))
    ifd += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    return struct.pack("<2sHI", b"II", 42, 8 + len(pixels)) + pixels + ifd + bytes(4)


def test_a_caption_in_utf_16_that_does_not_say_so_is_refused_with_the_way_out(tmp_path: Path) -> None:
    paint(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a photo", encoding="utf-16-le")
    with pytest.raises(InvalidImagesError, match="as in UTF-16") as caught:
        scan_pictures(tmp_path)
    assert caught.value.where == "a.txt"
    assert "utf-16le" in (caught.value.hint or "")


def test_instance_json_is_kept_as_it_is_and_never_used(tmp_path: Path) -> None:
    paint(tmp_path / "a.png")
    (tmp_path / "instance.json").write_text('{"seed": 7, "anything": [1, {"x": null}]}', encoding="utf-8")
    assert scan_pictures(tmp_path).instance == {"seed": 7, "anything": [1, {"x": None}]}


def test_the_data_digest_follows_pixels_and_captions_not_the_file_format(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    paint(first / "a.png")
    paint(second / "a.png", compress_level=0)
    assert (first / "a.png").read_bytes() != (second / "a.png").read_bytes()
    same = scan_pictures(first).digest
    assert scan_pictures(second).digest == same
    (second / "a.txt").write_text("a caption", encoding="utf-8")
    assert scan_pictures(second).digest != same


def test_odd_sizes_become_the_centred_square_of_the_base() -> None:
    image = Image.new("RGB", (31, 11), "white")
    for x in range(10, 21):
        for y in range(11):
            image.putpixel((x, y), (0, 0, 0))
    square = to_pixels(Frame(crop_centre(image.size, (16, 16)), (16, 16)).apply(image))
    assert square.shape == (3, 16, 16)
    assert float(square.max()) == -1.0
