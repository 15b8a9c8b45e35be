"""The conflict report of ``concepts check``, for programs and for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from conceptry.composer.conflicts import Conflict
    from conceptry.composer.plan import Plan
    from conceptry.manifest import License

_WORST_LAYERS: Final = 3


def conflicts_to_json(plan: Plan, conflicts: Sequence[Conflict]) -> dict[str, Any]:
    """Returns what ``check --json`` says of pairs, and of whom the permissions depend on."""
    from conceptry.licenses import explain_permissions

    return {
        "conflicts": [_conflict_to_json(one) for one in conflicts],
        "licenses": [asdict(one) for one in explain_permissions(_list_licenses(plan))],
        "credits": _list_credits(plan),
    }


def _conflict_to_json(one: Conflict) -> dict[str, Any]:
    layers = [layer._asdict() for layer in one.layers]
    return {**asdict(one), "layers": layers, "severity": one.severity, "overlap": one.overlap}


def describe_conflicts(plan: Plan, conflicts: Sequence[Conflict]) -> Iterator[str]:
    """Returns the report in lines."""
    from conceptry.licenses import explain_permissions

    for verdict in explain_permissions(_list_licenses(plan)):
        if verdict.answer != "yes" and verdict.permission != "credit_required":
            asked = verdict.permission.replace("_", " ")
            yield f"{asked}: {verdict.answer}, because of {', '.join(verdict.because)}"
    credits = _list_credits(plan)
    if credits:
        named = [", ".join(one["authors"]) or f"the author of {one['reference']}" for one in credits]
        yield f"credit: {'; '.join(dict.fromkeys(named))}"
    for one in conflicts:
        yield f"{one.first} with {one.second}: {_say(one)}"
        yield from (
            f"  {max(layer.input_overlap, layer.output_overlap):6.1f} x chance, cosine {layer.cosine:+.2f}  "
            f"{layer.module}"
            for layer in (one.layers if one.severity != "none" else ())[:_WORST_LAYERS]
        )
        for gate in one.gates:
            fires = "fires" if gate.fires else "stays shut"
            yield f"  {gate.word} at the gate of {gate.opens}: similarity {gate.similarity:.2f}, {fires}"
        yield from (f"  not compared: {text}" for text in one.not_compared)
        yield from (f"  advice: {text}" for text in one.advice)


def _say(one: Conflict) -> str:
    verdict = f"{one.severity} conflict" if one.severity != "none" else "no conflict"
    if one.layers:
        relation = "reinforcing" if one.cosine > 0.05 else "cancelling" if one.cosine < -0.05 else "neither"
        return f"{verdict} ({one.overlap:.1f} x chance, cosine {one.cosine:+.2f}, {relation})"
    if one.gates:
        return f"{verdict}, by their gates"
    if one.not_compared:
        return "not compared"
    return "no layer in common"


def _list_licenses(plan: Plan) -> list[tuple[str, License]]:
    return [(member.concept.label, member.concept.manifest.license) for member in plan.members]


def _list_credits(plan: Plan) -> list[dict[str, Any]]:
    """Returns whom to credit: all whose licences ask for it, and those that do not say."""
    from conceptry.licenses import read_permissions

    return [
        {"reference": member.concept.label, "authors": list(member.concept.manifest.authors), "asked": asked}
        for member in plan.members
        if (asked := read_permissions(member.concept.manifest.license).credit_required) != "no"
    ]
