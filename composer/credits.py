"""What the manifests of several concepts say together: licences, rights, words and prompts of what is made of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from conceptry.composer.plan import Plan, PlannedMember
from conceptry.licenses import combine_licenses
from conceptry.manifest import License, Rights, Token, Usage


def combine_credits(plan: Plan) -> dict[str, Any]:
    """Returns the fields of a manifest that follow from those of the concepts, whatever is made of them."""
    manifests = [member.concept.manifest for member in plan.members]
    prompts = dict.fromkeys(text for member in plan.members for text in rewrite_prompts(member))
    return {
        "tags": tuple(dict.fromkeys(tag for one in manifests for tag in one.tags)),
        "authors": tuple(dict.fromkeys(author for one in manifests for author in one.authors)),
        "license": combine_licenses(list_licenses(plan)),
        "rights": combine_rights([one.rights for one in manifests]),
        "tokens": list_tokens(plan),
        "usage": Usage(prompts=tuple(prompts)),
    }


def list_licenses(plan: Plan) -> list[tuple[str, License]]:
    """Returns the licence of each concept, with its label."""
    return [(member.concept.label, member.concept.manifest.license) for member in plan.members]


def list_tokens(plan: Plan) -> tuple[Token, ...]:
    """Returns the words of all, as they are called together; a plain word that several have is there once."""
    found: dict[str, Token] = {}
    for member in plan.members:
        for token in member.concept.manifest.tokens:
            word = member.words.get(token.placeholder, token.placeholder)
            found.setdefault(str(word), token.model_copy(update={"placeholder": word}))
    return tuple(found.values())


def rewrite_prompts(member: PlannedMember) -> Iterator[str]:
    """Returns the prompts that a concept suggests, with the words that call it here."""
    for prompt in member.concept.manifest.usage.prompts:
        text = prompt
        for old, new in member.words.items():
            text = text.replace(old, new)
        yield text


def combine_rights(rights: list[Rights]) -> Rights:
    """Returns what all say alike; where they differ it is unknown, and people come before anything else."""
    depicted = {one.depicts for one in rights}
    consents = {one.consent for one in rights}
    depicts = depicted.pop() if len(depicted) == 1 else "person" if "person" in depicted else "unknown"
    return Rights(depicts=depicts, consent=consents.pop() if len(consents) == 1 else "unknown")
