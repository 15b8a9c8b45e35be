"""Pages as one HTML file each: pictures, curves and tables inside, nothing from elsewhere, every text escaped.

A policy in the page forbids scripts and any address, so that a browser opens it the same way without a network.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Final

from PIL import Image

from conceptry.errors import StoreError

_MAX_PIXELS: Final = 256
_SHORT_CHARS: Final = 44
_STRIP_HIGH: Final = 96
_STRIP_WIDE: Final = 960
_STRIP_QUALITY: Final = 82
_TILE_WIDE: Final = 100
_POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE: Final = """
body{font:15px/1.5 system-ui,sans-serif;color:#1e2026;background:#fff;max-width:1280px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin:0 0 .25rem;overflow-wrap:anywhere}h2{font-size:1.15rem;margin:2rem 0 .5rem}
p{max-width:1080px}p.note{color:#5b606b;margin:.6rem 0 .3rem}h2+p.note{margin-top:0}
table{border-collapse:separate;border-spacing:0;font-variant-numeric:tabular-nums}
div.wide,table.facts,svg{margin:.3rem 0 .9rem}
th,td{padding:.25rem .6rem;text-align:left;border-bottom:1px solid #e3e5e9;vertical-align:top;white-space:nowrap}
td.long{white-space:normal;min-width:18rem}td.number,th.number{text-align:right}
div.wide{overflow-x:auto}div.wide th:first-child,div.wide td:first-child{position:sticky;left:0;background:#fff}
table.facts th{font-weight:400;color:#5b606b}table.facts td{white-space:normal;overflow-wrap:anywhere}
div.wide tr.front td{background:#fff6f2}
div.pictures{display:flex;flex-wrap:wrap;gap:.6rem;margin:.3rem 0}figure{margin:0;width:132px}
figure img{width:128px;height:auto;image-rendering:pixelated;border:1px solid #e3e5e9}
figcaption{font-size:.75rem;color:#5b606b;overflow-wrap:anywhere}figure.strip{width:100%}
figure.strip img{max-width:100%}div.row img{width:100%;border:0}div.cells{display:grid;font-size:.7rem;line-height:1.25}
div.cells span{padding:.1rem .3rem;color:#5b606b;overflow-wrap:anywhere}
svg{max-width:720px;width:100%;height:auto;display:block}
@media (max-width:640px){div.wide td:first-child{white-space:normal;min-width:7rem;max-width:9.5rem}}
summary{cursor:pointer;color:#5b606b;margin:.4rem 0}
@media (prefers-color-scheme:dark){body{background:#16181d;color:#e6e8ec}th,td,figure img{border-color:#333841}
p.note,figcaption,summary,div.cells span,table.facts th{color:#a0a6b1}div.wide tr.front td{background:#2a211d}
div.wide th:first-child,div.wide td:first-child{background:#16181d}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One picture and what is written below it."""

    picture: Image.Image
    caption: str


def make_page(title: str, parts: Iterable[str]) -> str:
    """Returns a whole document; ``parts`` are HTML already, ``title`` is text."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY, quote=True)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>{escape(title)}</h1>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def write_page(path: Path, page: str) -> None:
    """Writes a page beside its name and renames it. Raises StoreError."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(page, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise StoreError(
            f"the page cannot be written to {str(path)!r}: {error}", hint="name another file with --out"
        ) from error


def make_heading(text: str, *notes: str) -> str:
    """Returns a heading, and notes in grey below it."""
    return f"<h2>{escape(text)}</h2>" + "".join(make_note(note) for note in notes)


def make_note(text: str) -> str:
    """Returns a line in grey."""
    return f'<p class="note">{escape(text)}</p>'


def make_table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], *, marked: Sequence[bool] | None = None
) -> str:
    """Returns a table; numbers stand at the right, rows that are marked are tinted, what is absent is a dash."""
    numeric = [all(_is_number(row[place]) for row in rows) for place in range(len(columns))]
    head = "".join(_cell("th", name, is_number=numeric[place]) for place, name in enumerate(columns))
    lines = []
    for number, row in enumerate(rows):
        tint = ' class="front"' if marked is not None and marked[number] else ""
        cells = "".join(
            _cell("td", format_value(value), is_number=numeric[place]) for place, value in enumerate(row)
        )
        lines.append(f"<tr{tint}>{cells}</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _is_number(value: Any) -> bool:
    """Whether a value is a number, an interval of two, or absent."""
    if isinstance(value, list | tuple):
        return all(isinstance(one, int | float) for one in value)
    return isinstance(value, int | float | None)


def _cell(tag: str, text: str, *, is_number: bool) -> str:
    name = "number" if is_number else "long" if len(text) > _SHORT_CHARS else None
    kind = "" if name is None else f' class="{name}"'
    return f"<{tag}{kind}>{escape(text)}</{tag}>"


def make_facts(rows: Iterable[tuple[str, Any]]) -> str:
    """Returns names and values as a table of two columns, whose values wrap where a window is narrow."""
    lines = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(format_value(value))}</td></tr>'
        for name, value in rows
    )
    return f'<table class="facts"><tbody>{lines}</tbody></table>'


def make_details(summary: str, body: str) -> str:
    """Returns ``body``, which is HTML already, folded below a line that opens it."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def format_value(value: Any) -> str:
    """Returns a value for people: three digits of a share, a dash for what is absent or no number."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "\u2013"
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {format_value(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return " to ".join(format_value(item) for item in value)
    return str(value)


def make_pictures(figures: Iterable[Figure], *, strip: bool = False) -> str:
    """Returns pictures with their captions; ``strip`` gives each the whole width."""
    name = ' class="strip"' if strip else ""
    parts = [
        f'<figure{name}><img{_size_strip(figure.picture) if strip else ""} alt="{escape(figure.caption, quote=True)}" '
        f'src="{embed_picture(figure.picture, exact=not strip)}">'
        f"<figcaption>{escape(figure.caption)}</figcaption></figure>"
        for figure in figures
    ]
    return f'<div class="pictures">{"".join(parts)}</div>'


def make_captioned_strip(picture: Image.Image, caption: str, cells: Sequence[tuple[int, str]]) -> str:
    """Returns a strip of square pictures with a text under each, or under several; a narrow window scrolls it.

    Args:
        picture: squares side by side.
        caption: said above them.
        cells: how many squares each text stands under, and the text; together all squares.
    """
    count = sum(width for width, _ in cells)
    texts = "".join(f'<span style="grid-column:span {width}">{escape(text)}</span>' for width, text in cells)
    return (
        f'<figure class="strip"><figcaption>{escape(caption)}</figcaption><div class="wide">'
        f'<div class="row" style="width:{count * _TILE_WIDE}px">'
        f'<img alt="{escape(caption, quote=True)}" src="{embed_picture(picture, exact=False)}">'
        f'<div class="cells" style="grid-template-columns:repeat({count},1fr)">{texts}</div></div></div></figure>'
    )


def _size_strip(picture: Image.Image) -> str:
    """The width of a strip in a wide window: as high as others, however many pictures it has."""
    wide = min(_STRIP_WIDE, round(_STRIP_HIGH * picture.width / picture.height))
    return f' style="width:{wide}px"'


def embed_picture(picture: Image.Image, *, exact: bool = True) -> str:
    """Returns a picture as a ``data:`` address: PNG, or WebP of a fifth of its size where it need not be ``exact``.

    One above 256 pixels high is made smaller.
    """
    small = picture.convert("RGB")
    if small.height > _MAX_PIXELS:
        small = small.resize((round(small.width * _MAX_PIXELS / small.height), _MAX_PIXELS))
    data = io.BytesIO()
    if exact:
        small.save(data, format="PNG", optimize=True)
    else:
        small.save(data, format="WEBP", quality=_STRIP_QUALITY)
    kind = "png" if exact else "webp"
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
