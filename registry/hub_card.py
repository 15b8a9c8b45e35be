"""The model card: what the Hub shows of a concept, made from its manifest alone, always with the same bytes."""

from __future__ import annotations

import json
import pkgutil
import re
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final

from conceptry.manifest import License, Manifest
from conceptry.registry.hub_layout import GENERIC_TAG, name_member

_HUB_MODEL: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]*[A-Za-z0-9]", re.ASCII)
_TAG: Final = re.compile(r"[^A-Za-z0-9+._:/-]+", re.ASCII)
_GALLERY_TAGS: Final = {"lora": "template:sd-lora"}


def make_card(manifest: Manifest) -> bytes:
    """Returns the card as it is committed: metadata that the Hub reads, then a page for people."""
    front = "".join(f"{key}: {_to_yaml(value)}\n" for key, value in _describe(manifest).items())
    return f"---\n{front}---\n\n{_write_page(manifest)}".encode()


def describe_tags(manifest: Manifest) -> tuple[str, ...]:
    """Returns the tags by which the concept is found: ours, its kinds, its base families, then its author's own."""
    families = [build.base.family for build in manifest.builds]
    gallery = [_GALLERY_TAGS[kind] for kind in manifest.kinds if kind in _GALLERY_TAGS]
    own = [_TAG.sub("-", tag).strip("-") for tag in manifest.tags]
    tags = [
        GENERIC_TAG,
        "text-to-image",
        *manifest.kinds,
        *families,
        *gallery,
        f"concept:{manifest.name}",
        *own,
    ]
    return tuple(dict.fromkeys(tag for tag in tags if tag))


def _describe(manifest: Manifest) -> dict[str, Any]:
    bases = [build.base.repo for build in manifest.builds if build.base.repo]
    models = list(dict.fromkeys(repo for repo in bases if _HUB_MODEL.fullmatch(repo)))
    card: dict[str, Any] = {"tags": list(describe_tags(manifest)), "pipeline_tag": "text-to-image"}
    if models:
        card |= {"base_model": models[0] if len(models) == 1 else models, "base_model_relation": "adapter"}
    if manifest.tokens:
        card["instance_prompt"] = _write_prompt(manifest)
    card |= _describe_license(manifest.license)
    if pictures := list(_iter_pictures(manifest)):
        card["widget"] = pictures
    return card | {"conceptry": {"concept": str(manifest.name), "title": manifest.title}}


def _write_prompt(manifest: Manifest) -> str:
    token = next((row for row in manifest.tokens if row.role == "required"), manifest.tokens[0])
    plain = token.vectors == 0 and token.superclass
    return f"{token.placeholder} {token.superclass}" if plain else str(token.placeholder)


def _describe_license(terms: License) -> dict[str, str]:
    known = _read_licenses()
    wanted = (terms.spdx or "").lower()
    wanted = known["spdx"].get(wanted, wanted)
    if wanted in known["ids"]:
        return {"license": wanted}
    name = terms.spdx or terms.name
    if name is None:
        return {}
    link = {"license_link": terms.url} if terms.url else {}
    return {"license": "other", "license_name": name, **link}


@cache
def _read_licenses() -> Mapping[str, Any]:
    return tomllib.loads((pkgutil.get_data(__package__, "hub_licenses.toml") or b"").decode("utf-8"))


def _iter_pictures(manifest: Manifest) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    prompts = manifest.usage.prompts or (_write_prompt(manifest) if manifest.tokens else str(manifest.name),)
    for file in manifest.iter_files():
        if file.role == "preview" and file.path not in seen:
            text = prompts[len(seen) % len(prompts)]
            seen.add(file.path)
            yield {"text": text, "output": {"url": name_member(file.path)}}


def _write_page(manifest: Manifest) -> str:
    kinds = ", ".join(manifest.kinds)
    bases = ", ".join(dict.fromkeys(build.base.family for build in manifest.builds))
    lines = [f"# {manifest.title or manifest.name}", ""]
    if manifest.description:
        lines += [manifest.description, ""]
    lines += [f"`{manifest.name}` {manifest.version}: {kinds} for {bases}.", ""]
    for token in manifest.tokens:
        lines.append(
            f"- word: `{token.placeholder}`" + (f" (a {token.superclass})" if token.superclass else "")
        )
    usage = manifest.usage
    lines.append(f"- strength: {usage.strength:g} (from {usage.min:g} to {usage.max:g})")
    lines += [f"- prompt: `{prompt}`" for prompt in usage.prompts[:8]]
    lines += ["", "Every version is a git tag (`v1.2.3`) and never changes; `concept.json` has its digests."]
    return "\n".join([*lines, ""])


def _to_yaml(value: Any) -> str:
    """JSON is YAML; what YAML would not print is escaped, so that no text of an author ends the metadata."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    return f"\\u{ord(char):04x}" if ord(char) <= 0xFFFF else f"\\U{ord(char):08x}"
