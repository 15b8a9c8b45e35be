"""``concepts check``: do these concepts fit this base, and one another? Answered from headers and small factors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from conceptry.bases import BaseIdentity, Fit
from conceptry.cli.bases import identify_base, open_base
from conceptry.cli.composing import describe_use
from conceptry.cli.conflicts import conflicts_to_json, describe_conflicts
from conceptry.cli.drift import DriftReader, describe_drifts, drifts_to_json
from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.members import expand, fetch_composition, read_document, read_masks
from conceptry.cli.options import MEMBER, PATH, base_option
from conceptry.cli.progress import track
from conceptry.cli.session import Session, pass_session
from conceptry.cli.show import describe_license
from conceptry.cli.text import count_things
from conceptry.errors import StoreError, UsageError

if TYPE_CHECKING:
    from conceptry.composer.compositions import Composition
    from conceptry.composer.conflicts import Conflict
    from conceptry.composer.layer_deltas import Weights
    from conceptry.composer.overlaps import Overlap
    from conceptry.composer.plan import Plan, PlannedMember
    from conceptry.composition import Member

FIT: Final = click.Choice([fit.word for fit in sorted(Fit, reverse=True) if fit is not Fit.REFUSED])


@click.command(
    "check",
    cls=ConceptsCommand,
    examples=(
        "concepts check me/imp me/look*0.7",
        "concepts check me/imp --base sdxl",
        "concepts check --file composition.toml --base toybox --json",
        "concepts check me/imp me/look me/other --picture conflicts.png",
        "concepts check me/imp --on other-model.safetensors --base sd1-folder",
    ),
)
@click.argument("members", type=MEMBER, nargs=-1, metavar="REF[*STRENGTH]...")
@click.option("--file", type=PATH, metavar="FILE", help="A composition file instead of references.")
@base_option
@click.option("--on", metavar="BASE", help="Another model of the family: say how far it has drifted there.")
@click.option("--fit", type=FIT, help="How closely every concept must fit.  [default: what its kind asks]")
@click.option("--picture", type=PATH, metavar="FILE", help="Draw the overlaps by block to a PNG.")
@pass_session
def check(
    session: Session, /, members: tuple[Member, ...], *, file: Path | None, base: str | None, **given: Any
) -> None:
    """Say whether concepts fit a base and one another.

    Shown are how well each fits, the words that call it, what all licences permit together and because of whom, where
    two change the same weights, and of every pair how far they use the same directions (beside chance), whether they
    reinforce or cancel, whose words open whose gates, which strengths to try, and what of them cannot be compared.
    Without --base, the base that the first concept was made for is taken as declared; with it, also new weights and
    what depends on the base's weights are compared. Exit code 6 when they do not fit.
    """
    read = read_document(members, file)
    document, masks = expand(session, read)
    composition = fetch_composition(session, document, (*read_masks(read, file), *masks))
    drifted = None
    if given["on"] is None:
        identity, weights = _open(session, base or document.base, composition)
    else:
        drifted = DriftReader(session, composition, base or document.base, given["on"])
        identity, weights = drifted.identity, drifted.weights
    plan, overlaps = plan_composition(composition, identity, given["fit"])
    conflicts = _compare(session, plan, weights)
    if given["picture"] is not None:
        _draw(conflicts, given["picture"])
    drifts = () if drifted is None else drifted.measure(plan)
    session.out.emit(
        {**to_json(plan, overlaps), **conflicts_to_json(plan, conflicts), **drifts_to_json(drifts)},
        (*describe(plan, overlaps), *describe_conflicts(plan, conflicts), *describe_drifts(drifts)),
        quiet=(),
    )
    for warning in plan.warnings:
        session.out.warn(warning)


def _open(
    session: Session, base: str | None, composition: Composition
) -> tuple[BaseIdentity, Weights | None]:
    """Returns the base to check against, and its weights where one is named that has any."""
    from conceptry.base_locations import resolve_base

    location = None if base is None else resolve_base(base, session.registry.bases())
    if location is None or location.path is None:
        return find_identity(session, base, composition), None
    pipeline = open_base(session, location)
    from conceptry.composer.fingerprints import identify_pipeline
    from conceptry.composer.layer_deltas import open_weights

    return identify_pipeline(pipeline), open_weights(pipeline)


def _compare(session: Session, plan: Plan, weights: Weights | None) -> tuple[Conflict, ...]:
    with track(session.out, "comparing the concepts"):
        from conceptry.composer.conflicts import find_conflicts

        return find_conflicts(plan, weights)


def _draw(conflicts: tuple[Conflict, ...], path: Path) -> None:
    from conceptry.evaluation.conflict_sheets import save_conflicts

    if not any(one.layers or one.gates or one.words for one in conflicts):
        raise UsageError(
            "there is nothing to draw: no two of these concepts meet where they can be compared",
            hint="leave out --picture",
        )
    try:
        save_conflicts(conflicts, path)
    except OSError as error:
        raise StoreError(f"cannot write {str(path)!r}: {error.strerror}") from error


def find_identity(session: Session, base: str | None, composition: Composition) -> BaseIdentity:
    """Returns the base to check against: the one named, else the one that the first concept was made for."""
    if base is None:
        return composition.members[0].concept.manifest.builds[0].base.identity
    from conceptry.base_locations import resolve_base

    return identify_base(session, resolve_base(base, session.registry.bases()))


def plan_composition(
    composition: Composition, identity: BaseIdentity, fit: str | None = None
) -> tuple[Plan, tuple[Overlap, ...]]:
    """Returns the plan and the overlaps of a composition on a base. Raises IncompatibleError."""
    from conceptry.composer.overlaps import find_idle_parts, find_overlaps
    from conceptry.composer.plan import make_plan

    plan = make_plan(composition, identity, None if fit is None else Fit[fit.upper()])
    said = replace(plan, warnings=(*plan.warnings, *find_idle_parts(plan)))
    return said, find_overlaps(plan)


def to_json(plan: Plan, overlaps: tuple[Overlap, ...]) -> dict[str, Any]:
    """Returns the document of ``concepts check --json``."""
    return {
        "base": {"family": plan.identity.family, "prediction_type": plan.identity.prediction_type},
        "plan": str(plan.digest),
        "concepts": [_member_to_json(member) for member in plan.members],
        "permissions": plan.permissions.model_dump(mode="json"),
        "overlaps": [
            {"first": overlap.first, "second": overlap.second, "modules": list(overlap.modules)}
            for overlap in overlaps
        ],
        "warnings": list(plan.warnings),
    }


def _member_to_json(member: PlannedMember) -> dict[str, Any]:
    return {
        "reference": member.concept.label,
        "digest": str(member.concept.digest),
        "strength": member.strength,
        "build": member.build.id,
        "kinds": list(member.build.kinds),
        "fit": member.verdict.fit.word,
        "reasons": list(member.verdict.reasons),
        "words": {str(old): str(new) for old, new in member.words.items()},
        "use": member.use.model_dump(mode="json", exclude_none=True),
        "license": member.concept.manifest.license.model_dump(mode="json", exclude_none=True),
    }


def describe(plan: Plan, overlaps: tuple[Overlap, ...]) -> Iterator[str]:
    """Returns the plan in lines for people."""
    yield f"base: {plan.identity.family} ({plan.identity.prediction_type})"
    for member in plan.members:
        yield f"{member.concept.label} at strength {member.strength:g}: {'+'.join(member.build.kinds)}"
        yield f"  fit      {member.verdict.fit.word}: {'; '.join(member.verdict.reasons)}"
        yield f"  words    {', '.join(member.words.values()) or 'none'}"
        yield from (f"  used     {text}" for text in describe_use(member.use))
        yield f"  licence  {describe_license(member.concept.manifest.license)}"
    allowed = plan.permissions.model_dump(mode="json")
    yield "together: " + ", ".join(f"{name.replace('_', ' ')} {answer}" for name, answer in allowed.items())
    for overlap in overlaps:
        shared = count_things(len(overlap.modules), "module")
        yield f"overlap: {overlap.first} and {overlap.second} both change {shared}, such as {overlap.modules[0]}"
