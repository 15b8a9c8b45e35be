"""A reader of pages that is stricter than any browser."""

from __future__ import annotations

from html.parser import HTMLParser


class Strict(HTMLParser):
    """Refuses what a browser would have to repair, and everything that leads out of the page."""

    VOID = frozenset({"meta", "img", "br", "rect", "line", "circle", "polyline"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pictures = 0
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag not in {"script", "link", "iframe", "object", "base", "form", "a"}
        for name, value in attributes:
            assert not name.startswith("on")
            if name in {"src", "href", "xlink:href", "action", "data"}:
                assert value is not None
                assert value.startswith(("data:image/png;base64,", "data:image/webp;base64,"))
                self.pictures += 1
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag in self.VOID

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parse_strictly(page: str) -> Strict:
    """Returns what a page holds. Fails for elements that are not closed and for addresses."""
    parser = Strict()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    assert "url(" not in page
    assert "default-src 'none'" in page or "default-src &#x27;none&#x27;" in page
    return parser
