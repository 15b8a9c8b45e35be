from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from conceptry.errors import InvalidImagesError
from conceptry.trainer import latents
from conceptry.trainer.events import TrainEvent
from conceptry.trainer.framing import choose_shapes, crop_anywhere, crop_centre
from conceptry.trainer.images import scan_pictures
from conceptry.trainer.objectives import weighted_error
from conceptry.trainer.preparation import prepared
from conceptry.trainer.randomness import seed_generator
from conceptry.trainer.staging import Stage, read_pictures
from conceptry.trainer.training import train
from tests.fakes.pipelines import make_pipeline
from tests.trainer.runs import paint_pictures, stage_job, write_job


def paint(path: Path, size: tuple[int, int], color: Any = (200, 30, 30), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)
    return path


def prepare(folder: Path, base: Any, **changes: Any) -> Stage:
    return stage_job(write_job("textual_inversion", folder, **changes), folder, base)


def test_unusual_pictures_are_read_as_people_see_them(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    Image.fromarray(np.full((8, 8), 32768, np.uint16)).save(tmp_path / "deep.tif")
    Image.new("1", (8, 8), 1).save(tmp_path / "lines.png")
    Image.new("LA", (8, 8), (0, 0)).save(tmp_path / "veil.png")
    found: dict[str, Any] = {
        picture.name: picture.image.getpixel((4, 4)) for picture in scan_pictures(tmp_path).pictures
    }
    assert found["cmyk.jpg"][0] > 200
    assert max(found["cmyk.jpg"][1:]) < 60
    assert found["deep.tif"] == (128, 128, 128)
    assert found["lines.png"] == found["veil.png"] == (255, 255, 255)


def test_of_an_animation_the_first_picture_is_used_and_that_is_said(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "green")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    (picture,) = scan_pictures(tmp_path).pictures
    assert picture.image.getpixel((0, 0)) == (255, 0, 0)
    assert picture.notes == ("is an animation: the first of its 3 pictures is used",)


def test_equal_pictures_are_said_whatever_their_files(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", (8, 8))
    paint(tmp_path / "b.bmp", (8, 8))
    paint(tmp_path / "c.png", (8, 9))
    notes = {picture.name: picture.notes for picture in scan_pictures(tmp_path).pictures}
    assert notes == {"a.png": (), "b.bmp": ("is the same picture as a.png",), "c.png": ()}


def test_a_huge_picture_is_skipped_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from conceptry.trainer import images

    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    paint(tmp_path / "small.png", (8, 8))
    paint(tmp_path / "huge.png", (40, 40))
    found = scan_pictures(tmp_path)
    assert [picture.name for picture in found.pictures] == ["small.png"]
    assert "40 x 40 pixels are more than 1000" in found.skipped[0].reason


def test_captions_of_windows_are_read_and_others_refused_with_a_command(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", (8, 8))
    (tmp_path / "a.txt").write_bytes("a größe".encode("utf-16"))
    assert scan_pictures(tmp_path).pictures[0].caption == "a größe"
    (tmp_path / "a.txt").write_bytes("a größe".encode("latin1"))
    with pytest.raises(InvalidImagesError, match="not UTF-8") as caught:
        scan_pictures(tmp_path)
    assert caught.value.hint is not None
    assert "iconv" in caught.value.hint


def test_masks_are_found_stretched_or_named(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        paint(tmp_path / f"{name}.png", (8, 8), color=(ord(name), 0, 0))
    paint(tmp_path / "masks" / "a.png", (8, 8), 255, "L")
    paint(tmp_path / "b-masklabel.png", (4, 2), 128, "L")
    paint(tmp_path / "masks" / "c.png", (8, 8), 0, "L")
    (tmp_path / "masks" / "d.png").write_text("no mask", encoding="utf-8")
    paint(tmp_path / "masks" / "z.png", (8, 8), 255, "L")
    found = scan_pictures(tmp_path)
    a, b, c, d = found.pictures
    assert a.mask is not None
    assert (a.mask.size, a.notes) == ((8, 8), ())
    assert b.mask is not None
    assert b.mask.size == (8, 8)
    assert b.notes == ("has a mask of 4 x 2, it is stretched to 8 x 8",)
    assert (c.mask, d.mask) == (None, None)
    assert "black all over" in c.notes[0]
    assert "cannot be read" in d.notes[0]
    assert [(one.name, one.reason) for one in found.skipped] == [
        ("masks/z.png", "is a mask without a picture")
    ]


def test_a_mask_is_turned_as_its_own_tag_says_and_hides_where_it_is_transparent(tmp_path: Path) -> None:
    for name in ("a", "b"):
        paint(tmp_path / f"{name}.png", (4, 8), color=(ord(name), 0, 0))
    lying = Image.new("L", (8, 4), 0)
    lying.paste(255, (0, 0, 4, 4))  # the left half, which is the upper one once it is turned
    tag = Image.Exif()
    tag[0x0112] = 6
    (tmp_path / "masks").mkdir()
    lying.save(tmp_path / "masks" / "a.png", exif=tag)
    clear = Image.new("RGBA", (4, 8), (255, 255, 255, 0))
    clear.paste((255, 255, 255, 255), (0, 0, 4, 4))
    clear.save(tmp_path / "masks" / "b.png")
    for picture in scan_pictures(tmp_path).pictures:
        assert picture.notes == ()
        assert picture.mask is not None
        shown = np.asarray(picture.mask)
        assert shown[:4].min() == 255, picture.name
        assert shown[4:].max() == 0, picture.name


def test_a_masked_loss_is_the_mean_over_what_the_mask_shows() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.randn(2, 3, 4, 4, 4, generator=generator)
    mask = torch.zeros(3, 1, 4, 4)
    mask[:, :, :2] = 1.0
    weights = torch.tensor([1.0, 2.0, 0.5])
    expected = (((prediction - target)[:, :, :2] ** 2).mean(dim=(1, 2, 3)) * weights).mean()
    torch.testing.assert_close(weighted_error(prediction, target, weights, mask), expected)
    torch.testing.assert_close(
        weighted_error(prediction, target, weights, torch.ones_like(mask)),
        weighted_error(prediction, target, weights),
    )


def test_what_a_mask_hides_does_not_change_what_is_learned(tmp_path: Path) -> None:
    base = make_pipeline()
    with prepared(base):
        batches = []
        for name, hidden in (("black", (0, 0, 0)), ("white", (255, 255, 255))):
            folder = tmp_path / name
            image = Image.new("RGB", (16, 16), (90, 140, 30))
            ImageDraw.Draw(image).rectangle((8, 0, 15, 15), fill=hidden)
            (folder / "pictures" / "masks").mkdir(parents=True)
            image.save(folder / "pictures" / "a.png")
            mask = Image.new("L", (16, 16), 255)
            ImageDraw.Draw(mask).rectangle((8, 0, 15, 15), fill=0)
            mask.save(folder / "pictures" / "masks" / "a.png")
            batches.append(prepare(folder, base).context.draw_batch(0))
    one, other = batches
    assert one.mask is not None
    assert other.mask is not None
    assert torch.equal(one.mask, other.mask)
    assert set(one.mask.flatten().tolist()) == {0.0, 1.0}
    assert not torch.equal(one.clean, other.clean)


def test_up_to_three_shapes_of_one_area_hold_every_picture() -> None:
    sizes = [(1000, 1000), (1500, 1000), (1500, 1000), (1000, 1500), (4000, 1000), (1010, 1000)]
    shapes = choose_shapes(sizes, count=3, side_pixels=512, step_pixels=64)
    assert len(shapes) == 3
    assert (512, 512) in shapes
    for width, height in shapes:
        assert width % 64 == height % 64 == 0
        assert 0.8 * 512 * 512 <= width * height <= 512 * 512
    assert choose_shapes(sizes, count=1, side_pixels=512, step_pixels=64) == ((512, 512),)


def test_crops_lie_inside_and_keep_the_shape() -> None:
    generator = seed_generator(0, "crops")
    for size in ((30, 500), (500, 30), (7, 7), (1, 1), (640, 480)):
        for shape in ((512, 512), (640, 384)):
            for box in (
                crop_centre(size, shape),
                *(crop_anywhere(size, shape, generator) for _ in range(20)),
            ):
                left, top, right, bottom = box
                assert 0 <= left < right <= size[0]
                assert 0 <= top < bottom <= size[1]
                if min(size) > 100:
                    assert (right - left) / (bottom - top) == pytest.approx(shape[0] / shape[1], rel=0.02)


def test_in_buckets_every_picture_is_seen_equally_often_and_batches_have_one_shape(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    sizes = [(32, 32), (48, 24), (48, 24), (24, 48), (32, 32), (48, 24)]
    for number, size in enumerate(sizes):
        paint(folder / f"{number}.png", size, color=(40 * number, 10, 10))
        (folder / f"{number}.txt").write_text(f"a creature number {number}", encoding="utf-8")
    base = make_pipeline()
    with prepared(base):
        ready = prepare(tmp_path, base, settings={"buckets": 3, "batch_size": 2})
        batches = [ready.context.draw_batch(step) for step in range(18)]
    seen = Counter(pair.concept for batch in batches for pair in batch.prompts)
    assert len(seen) == 6
    assert set(seen.values()) == {6}
    assert len({batch.noisy.shape for batch in batches}) == 3
    result = train(
        write_job("textual_inversion", tmp_path, settings={"buckets": 3, "batch_size": 2}, steps=3),
        base=base,
        workdir=tmp_path / "work",
        cache_folder=tmp_path / "cache",
    )
    assert result.steps == 3


def test_mirrored_pictures_and_crops_are_drawn_when_asked_for(tmp_path: Path) -> None:
    base = make_pipeline()
    with prepared(base):
        plain = prepare(tmp_path, base).context.latents
        more = prepare(tmp_path, base, settings={"flip": True, "crops": 2}).context
    assert (plain.variants, len(plain.mean)) == (1, 3)
    assert (more.latents.variants, len(more.latents.mean)) == (4, 12)
    assert torch.equal(more.latents.mean[0], plain.mean[0])
    rows = torch.cat(
        [more.latents.pick(torch.arange(3), seed_generator(0, "latents", step)) for step in range(40)]
    )
    assert set(rows.tolist()) == set(range(12))


def test_latents_are_encoded_once_and_then_read_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = latents._Encoder._ask

    def ask(self: Any, picture: Any, frame: Any) -> Any:
        asked.append(picture.name)
        return real(self, picture, frame)

    monkeypatch.setattr(latents._Encoder, "_ask", ask)
    base = make_pipeline()
    with prepared(base):
        first = prepare(tmp_path, base).context.latents
        again = prepare(tmp_path, base).context.latents
        assert asked == ["0.png", "1.png", "2.png"]
        assert torch.equal(first.mean, again.mean)
        assert torch.equal(first.std, again.std)
        (damaged, *_) = sorted((tmp_path / "cache" / "latents").iterdir())
        damaged.write_bytes(damaged.read_bytes()[:30])
        third = prepare(tmp_path, base).context.latents
        assert len(asked) == 4
        assert torch.equal(first.mean, third.mean)
    other = make_pipeline(seed=1)
    with prepared(other):
        assert not torch.equal(prepare(tmp_path, other).context.latents.mean, first.mean)


def test_what_was_done_to_a_picture_is_said_when_training_begins(tmp_path: Path) -> None:
    folder = paint_pictures(tmp_path / "pictures", count=2)
    (folder / "copy.png").write_bytes((folder / "0.png").read_bytes())
    events: list[TrainEvent] = []
    read_pictures(write_job("lora", tmp_path), events.append)
    assert "copy.png is the same picture as 0.png" in [event.message for event in events]
