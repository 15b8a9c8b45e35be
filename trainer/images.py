"""The training pictures of a folder: every file is used, or named as skipped with the reason."""

from __future__ import annotations

import codecs
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from conceptry.digests import Digest, canonical_json
from conceptry.documents import MAX_DOCUMENT_BYTES, MAX_STRING_CHARS, load_strict_json
from conceptry.errors import ConceptryError, InvalidImagesError
from conceptry.trainer.masks import find_mask, is_mask, list_lone_masks

SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MAX_PIXELS: Final = 100_000_000
_BITS_PER_SAMPLE: Final = 258  # the tag of TIFF 6.0
_USUAL_WHITE: Final = 65535.0
CAPTIONS_NAME: Final = "captions.jsonl"
INSTANCE_NAME: Final = "instance.json"
_ALPHA_MODES: Final = frozenset({"LA", "PA", "RGBA", "La", "RGBa"})
_HINT: Final = f"put PNG, JPEG or WebP pictures into it; captions go into {CAPTIONS_NAME} or NAME.txt"


@dataclass(frozen=True, slots=True)
class Picture:
    """One readable picture: upright RGB, and its caption where somebody wrote one."""

    name: str
    image: Image.Image
    caption: str | None
    mask: Image.Image | None = None
    """Gray, of the picture's size: where it is white the loss counts; None counts everywhere."""

    notes: tuple[str, ...] = ()
    """What was done to it that its owner may not expect."""

    subject: int = 0
    """Which subject of the run it shows."""

    @property
    def pixels(self) -> Digest:
        """The digest of size and pixels; copies in another format of file are the same picture."""
        header = f"{self.image.width}x{self.image.height}:".encode()
        return Digest.of_bytes(header + self.image.tobytes())


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that cannot be trained on, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class PictureFolder:
    """What lies in a folder: the pictures in order of name, the skipped files, and ``instance.json`` unread."""

    pictures: tuple[Picture, ...]
    skipped: tuple[Skipped, ...]
    instance: Any | None

    @property
    def digest(self) -> Digest:
        """The digest of names, pixels and captions; copies in another format of file are the same data."""
        rows = [
            [picture.name, picture.image.size, str(Digest.of_bytes(picture.image.tobytes())), picture.caption]
            for picture in self.pictures
        ]
        rows += [
            [picture.name, "mask", str(Digest.of_bytes(picture.mask.tobytes()))]
            for picture in self.pictures
            if picture.mask is not None
        ]
        return Digest.of_bytes(canonical_json(rows))


@dataclass(frozen=True, slots=True)
class PictureFacts:
    """What a run says of its pictures once they are encoded; they themselves are gone."""

    names: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    instance: Any | None
    digest: Digest

    @classmethod
    def of(cls, folder: PictureFolder) -> PictureFacts:
        """Returns the facts of a folder that was read."""
        names = tuple(picture.name for picture in folder.pictures)
        return cls(names, folder.skipped, folder.instance, folder.digest)


def scan_pictures(folder: Path) -> PictureFolder:
    """Returns the pictures of ``folder``: EXIF orientation applied, transparency put over white, captions beside.

    ``captions.jsonl`` (lines of ``{"file_name", "text"}``) goes before ``NAME.txt``. The mask of ``NAME.png`` is
    ``masks/NAME.png`` or ``NAME-masklabel.png``. Of an animation the first picture is taken; equal pictures are said.

    Raises:
        InvalidImagesError: if there is no folder, no picture that can be read, or a malformed caption file.
    """
    if not folder.is_dir():
        raise InvalidImagesError(
            f"{str(folder)!r} is no folder of pictures", hint="name the folder that holds them"
        )
    captions = _read_caption_lines(folder / CAPTIONS_NAME)
    pictures: list[Picture] = []
    skipped: list[Skipped] = []
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.name in {CAPTIONS_NAME, INSTANCE_NAME} or _is_caption(path) or is_mask(path):
            continue
        found = _read_picture(path, captions)
        (pictures if isinstance(found, Picture) else skipped).append(found)  # type: ignore[arg-type]
    _check_any(folder, pictures, skipped)
    skipped += _name_orphans(folder, pictures, captions)
    skipped += [Skipped(name, "is a mask without a picture") for name in list_lone_masks(folder, pictures)]
    return PictureFolder(
        tuple(_note_copies(pictures)), tuple(skipped), _read_instance(folder / INSTANCE_NAME)
    )


def join_folders(folders: Mapping[str, PictureFolder]) -> PictureFolder:
    """Returns the pictures of several subjects as one folder, each named with its subject's word before it.

    What ``instance.json`` says is the first subject's.
    """
    pictures = [
        replace(picture, name=f"{word}/{picture.name}", subject=number)
        for number, (word, folder) in enumerate(folders.items())
        for picture in folder.pictures
    ]
    skipped = [
        Skipped(f"{word}/{one.name}", one.reason)
        for word, folder in folders.items()
        for one in folder.skipped
    ]
    first = next(iter(folders.values()))
    return PictureFolder(tuple(pictures), tuple(skipped), first.instance)


def _note_copies(pictures: list[Picture]) -> Iterator[Picture]:
    first: dict[Digest, str] = {}
    for picture in pictures:
        original = first.setdefault(picture.pixels, picture.name)
        if original == picture.name:
            yield picture
        else:
            yield replace(picture, notes=(*picture.notes, f"is the same picture as {original}"))


def _check_any(folder: Path, pictures: list[Picture], skipped: list[Skipped]) -> None:
    if pictures:
        return
    if skipped:
        first = skipped[0]
        more = f", and {len(skipped) - 1} more" if len(skipped) > 1 else ""
        raise InvalidImagesError(
            f"no picture in {str(folder)!r} can be read: {first.name} {first.reason}{more}",
            where=f"images/{first.name}",
            hint=_HINT,
        )
    texts = [
        path.name for path in folder.iterdir() if path.suffix.lower() == ".txt" or path.name == CAPTIONS_NAME
    ]
    if texts:
        message = f"{str(folder)!r} holds captions ({sorted(texts)[0]}) but no pictures"
        raise InvalidImagesError(message, hint="captions lie beside their pictures: a.txt beside a.png")
    raise InvalidImagesError(f"{str(folder)!r} is empty", hint=_HINT)


def _is_caption(path: Path) -> bool:
    return path.suffix.lower() == ".txt"


def _read_picture(path: Path, captions: dict[str, str]) -> Picture | Skipped:
    if path.is_dir():
        return Skipped(path.name, "is a folder; pictures in subfolders are not read")
    if path.name.startswith("."):
        return Skipped(path.name, "is hidden")
    if path.suffix.lower() not in SUFFIXES:
        return Skipped(path.name, f"has no picture suffix ({', '.join(sorted(SUFFIXES))})")
    try:
        image, notes = _load_upright(path)
    except UnidentifiedImageError:
        return Skipped(path.name, "is no picture, whatever its suffix says")
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return Skipped(path.name, f"cannot be decoded ({reason[:120]})")
    mask, more = find_mask(path, image.size)
    return Picture(
        path.name,
        image,
        captions.get(path.name) or _read_caption(path.with_suffix(".txt")),
        mask,
        notes=(*notes, *more),
    )


def _load_upright(path: Path) -> tuple[Image.Image, tuple[str, ...]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a broken EXIF block of a good picture is no news to anybody
        with Image.open(path, formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise ValueError(f"{opened.width} x {opened.height} pixels are more than {MAX_PIXELS}")
            frames = int(getattr(opened, "n_frames", 1))
            opened.seek(0)
            opened.load()
            upright = ImageOps.exif_transpose(opened)
            bits = getattr(opened, "tag_v2", {}).get(_BITS_PER_SAMPLE, (0,))
    notes = (f"is an animation: the first of its {frames} pictures is used",) if frames > 1 else ()
    if upright.mode.startswith(("I", "F")):
        image, white = _reduce_depth(upright, bits[0])
        said = (
            () if white == _USUAL_WHITE else (f"has no 8 or 16 bits a shade: {white:g} is taken for white",)
        )
        return image, (*notes, *said)
    return _flatten(upright), notes


def _reduce_depth(image: Image.Image, bits: int) -> tuple[Image.Image, float]:
    """Returns the picture in 8 bits a channel, and the value that became white.

    Of integers the depth says it where it is known; of floats it is 1 where none is brighter.
    """
    values = np.nan_to_num(np.array(image, dtype=np.float32), posinf=0.0, neginf=0.0)  # no number is black
    brightest = float(values.max(initial=0))
    if image.mode.startswith("F"):
        white = next((one for one in (1.0, 255.0, _USUAL_WHITE) if brightest <= one), brightest)
    elif 8 < bits < 16 and brightest < 1 << bits:
        white = float((1 << bits) - 1)
    else:
        white = 255.0 if brightest <= 255 else _USUAL_WHITE
    shades = (values * (255 / white)).clip(0, 255).round().astype(np.uint8)
    return Image.fromarray(shades).convert("RGB"), white


def _flatten(image: Image.Image) -> Image.Image:
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque.convert("RGB")
    return image.convert("RGB")


# --- captions ------------------------------------------------------------------------------------------------------


def _read_caption_lines(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    captions: dict[str, str] = {}
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        if line.strip():
            name, text = _parse_line(line, number)
            captions[name] = text
    return captions


def _parse_line(line: str, number: int) -> tuple[str, str]:
    where = f"{CAPTIONS_NAME}:{number}"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidImagesError(f"not JSON: {line[:60]!r}", where=where, hint="one object a line") from error
    name, text = (row.get("file_name"), row.get("text")) if isinstance(row, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(text, str):
        raise InvalidImagesError(
            f"a caption line needs the texts file_name and text, this one is {line[:60]!r}",
            where=where,
            hint='write {"file_name": "a.png", "text": "a photo of ..."}',
        )
    return name, _check_caption(text, where)


def _read_caption(path: Path) -> str | None:
    if not path.is_file():
        return None
    return _check_caption(_read_text(path), path.name) or None


def _check_caption(text: str, where: str) -> str:
    text = " ".join(text.split())
    if len(text) > MAX_STRING_CHARS:
        message = f"the caption has {len(text)} characters, at most {MAX_STRING_CHARS} are allowed"
        raise InvalidImagesError(
            message, where=where, hint="shorten it; the base reads some twenty to seventy words"
        )
    return text


def _read_text(path: Path) -> str:
    if path.stat().st_size > MAX_DOCUMENT_BYTES:
        raise InvalidImagesError(f"{path.name} has more than {MAX_DOCUMENT_BYTES} bytes", where=path.name)
    try:
        data = path.read_bytes()
        # What editors of Windows call Unicode says so in its first two bytes.
        encoding = "utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
        text = data.decode(encoding)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidImagesError(
            f"{path.name} is not UTF-8 text",
            where=path.name,
            hint=f"save it as UTF-8: iconv -f latin1 -t utf-8 {path.name} -o {path.name}.new",
        ) from error
    if "\0" in text:
        raise InvalidImagesError(
            f"{path.name} is not UTF-8 text: every other byte is nothing, as in UTF-16",
            where=path.name,
            hint=f"save it as UTF-8: iconv -f utf-16le -t utf-8 {path.name} -o {path.name}.new",
        )
    return text


def _name_orphans(folder: Path, pictures: list[Picture], captions: dict[str, str]) -> list[Skipped]:
    names = {picture.name for picture in pictures}
    stems = {Path(name).stem for name in names}
    lone = [
        Skipped(name, f"is captioned in {CAPTIONS_NAME} but not used")
        for name in captions
        if name not in names
    ]
    lone += [
        Skipped(path.name, "is a caption without a picture")
        for path in sorted(folder.iterdir())
        if _is_caption(path) and path.stem not in stems
    ]
    return lone


def _read_instance(path: Path) -> Any | None:
    if not path.is_file():
        return None
    try:
        return load_strict_json(path.read_bytes())
    except ConceptryError as error:
        raise InvalidImagesError(
            f"{INSTANCE_NAME} cannot be kept: {error.message}", where=INSTANCE_NAME
        ) from error
