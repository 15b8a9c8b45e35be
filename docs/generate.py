"""Writes the generated pages of this folder, or with ``--check`` says which are not current."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

DOCS: Final = Path(__file__).parent


def manifest_schema() -> str:
    """Returns the JSON Schema of ``concept.json``, as text."""
    from conceptry.manifest import Manifest

    schema = Manifest.model_json_schema(by_alias=True)
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=2) + "\n"


PAGES: Final[dict[str, Callable[[], str]]] = {
    "concept.schema.json": manifest_schema,
}


def main(arguments: list[str]) -> int:
    """Returns the exit code: 1 when ``--check`` finds a page that is not current."""
    stale: list[str] = []
    for name, generate in PAGES.items():
        page, text = DOCS / name, generate()
        if page.is_file() and page.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if "--check" not in arguments:
            page.write_text(text, encoding="utf-8")
            print(f"written: docs/{name}")
    if stale and "--check" in arguments:
        print(f"not current: {', '.join(stale)}\nhint: run python docs/generate.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
