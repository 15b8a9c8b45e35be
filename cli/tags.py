"""Concepts that prompts name, as ``<lora:imp:0.8>`` or ``embedding:imp``: found in the store and adopted folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from conceptry.cli.session import Session
from conceptry.errors import NotFoundError, UsageError
from conceptry.names import LATEST, Reference

if TYPE_CHECKING:
    from conceptry.composer.prompts import Tag
    from conceptry.composer.report import Report
    from conceptry.composition import CompositionDocument
    from conceptry.formats.picture_records import Wording
    from conceptry.registry.mentions import Match, Shelf


class TagReader:
    """Finds the concepts that prompts name; a name is looked up once."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._found: dict[Tag, Reference] = {}
        self._shelf: Shelf | None = None

    def add_members(
        self, document: CompositionDocument | None, prompt: str, negative: str
    ) -> tuple[CompositionDocument | None, dict[str, str]]:
        """Returns the composition with what the prompts name, and the concept of each ``embedding:name``.

        Raises:
            UsageError: for a tag that cannot be followed, or a name that several have.
            NotFoundError: if nothing is called so.
        """
        from conceptry.composer.prompts import find_tags
        from conceptry.composition import CompositionDocument, Member

        tags = dict.fromkeys(find_tags(prompt))
        outside = [tag for tag in find_tags(negative) if tag.kind != "embedding"]
        if outside:
            raise UsageError(
                f"{outside[0]} stands in the negative prompt, and a {outside[0].kind} changes both",
                hint=f"write it into --prompt, with a negative strength: {replace(outside[0], strength=-0.5)}",
            )
        tags |= dict.fromkeys(find_tags(negative))
        if not tags:
            return document, {}
        named = list(document.concepts) if document else []
        known = {one.reference.concept for one in named}
        for tag in tags:
            reference = self._find(tag)
            if tag.kind != "embedding" or reference.concept not in known:
                named.append(Member(reference=reference, strength=tag.strength))
                known.add(reference.concept)
        called = {tag.name: str(self._find(tag).concept) for tag in tags if tag.kind == "embedding"}
        if document is None:
            return CompositionDocument(concepts=tuple(named)), called
        return document.model_copy(update={"concepts": tuple(named)}), called

    def _find(self, tag: Tag) -> Reference:
        if tag in self._found:
            return self._found[tag]
        from conceptry.registry.mentions import Shelf

        self._shelf = self._shelf or Shelf(self._session.registry)
        matches = [match for match in self._shelf.find_name(tag.name, tag.kind) if self._is_kind(match, tag)]
        names = list(dict.fromkeys(Reference.parse(match.reference).concept for match in matches))
        if not names:
            raise NotFoundError(
                f"the prompt names the {tag.kind} {tag.name!r}, and nothing in the store is called so",
                hint=f"concepts import FILE --name me/{tag.name.lower()[:40]}, or concepts adopt FOLDER",
            )
        if len(names) > 1:
            raise UsageError(
                f"{tag.name!r} may be {', '.join(map(str, names[:5]))}",
                hint=f"write the whole name, such as {replace(tag, name=str(names[0]))}",
            )
        self._found[tag] = Reference(names[0], LATEST)
        return self._found[tag]

    def _is_kind(self, match: Match, tag: Tag) -> bool:
        """Returns whether a version is what the tag asks for; what a file is that was never used is seen later."""
        if tag.kind != "hypernetwork" or match.path is not None:
            return True
        return tag.kind in self._session.registry.manifest(Reference.parse(match.reference)).kinds


def settle_wording(prompt: str, negative: str, called: Mapping[str, str], report: Report | None) -> Wording:
    """Returns what of the prompts is encoded: without tags, and with the words that call the concepts here."""
    from conceptry.composer.prompts import replace_tags
    from conceptry.formats.picture_records import Wording

    words: dict[str, str] = {}
    for applied in report.concepts if report else ():
        name = str(Reference.parse(applied.label).concept)
        words[name] = " ".join(applied.words.values())

    def call(name: str) -> str:
        return words[called[name]]

    return Wording(prompt=replace_tags(prompt, call), negative=replace_tags(negative, call))
