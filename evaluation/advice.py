"""Which method to take: what ToyBench measured, weighed by what somebody needs, with the numbers.

The figures are those of ``docs/toybench.json`` as it was shipped. They come from a small base in a drawn world: they
say how methods compare, not what they reach on a large base; where there are none, that is said, nothing is invented.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Literal

from conceptry.bases import FamilyId
from conceptry.errors import InvalidFileError, NotFoundError
from conceptry.evaluation.bench_summary import FEWEST_SUBJECTS
from conceptry.evaluation.toybench import load_suite
from conceptry.trainer.methods import TRAINER_BY_ID
from conceptry.trainer.settings import resolve_settings

SHIPPED_NAME: Final = "toybench.json"
Fineness = Literal["editable", "balanced", "exact"]
DeviceClass = Literal["processor", "small", "large"]

# Weight of identity against prompt agreement in their weighted harmonic mean: F-measure with this beta.
_BETA: Final[Mapping[Fineness, float]] = {"editable": 0.5, "balanced": 1.0, "exact": 2.0}
_DEFAULT_WAY: Final = "attached"
"""How a composition puts concepts together where nobody says otherwise, by its name in the benchmark."""

# A preset that trains this pattern holds gradients of all weights, which wants a large device.
_ALL_WEIGHTS: Final = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What somebody wants to do."""

    concepts: int = 1
    subject: Literal["object", "style"] = "object"
    fineness: Fineness = "balanced"
    device: DeviceClass = "small"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One method, how well it answers the need, the numbers behind that, and the command that uses it."""

    method: str
    trainer: str
    score: float
    identity: float
    interval: tuple[float, float] | None
    prompt: float
    together: float | None
    """Share of pictures with all members, each once, of compositions like what is needed; None: not measured."""

    subjects: int
    of_subjects: int
    """How many the benchmark has."""

    size_bytes: int
    settings: tuple[str, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """The choices, best first; none where nothing was measured."""

    need: Need
    source: str
    choices: tuple[Choice, ...]
    remarks: tuple[str, ...]
    is_firm: bool = False
    """Whether the first choice was measured on all subjects, beside others."""


def read_figures(path: Path | None) -> tuple[str, Mapping[str, Any]] | None:
    """Returns where the figures come from and what they are; None where none are shipped and no file is named.

    Raises:
        NotFoundError: if the named file is not there.
        InvalidFileError: if it is no summary of the benchmark.
    """
    if path is not None:
        if not path.is_file():
            raise NotFoundError(
                f"no figures at {str(path)!r}",
                hint="concepts benchmark-methods --summary writes toybench.json",
            )
        return str(path), _parse(path.read_text(encoding="utf-8"), str(path))
    shipped = files(__package__).joinpath(SHIPPED_NAME)
    if shipped.is_file():
        return "the figures that were shipped", _parse(shipped.read_text(encoding="utf-8"), SHIPPED_NAME)
    beside = Path(__file__).resolve().parent.parent / "docs" / SHIPPED_NAME
    if beside.is_file():
        return str(beside), _parse(beside.read_text(encoding="utf-8"), str(beside))
    return None


def _parse(text: str, name: str) -> Mapping[str, Any]:
    try:
        document = json.loads(text)
        rows = [*document["rows"], *document.get("styles", ())]
        for row in rows:
            str(row["method"]), float(row["identity"]), float(row["prompt"]), list(row["interval"] or ())
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidFileError(
            f"{name!r} is no summary of the benchmark", hint="concepts benchmark-methods --summary writes one"
        ) from error
    return document  # type: ignore[no-any-return]


def advise(need: Need, figures: tuple[str, Mapping[str, Any]] | None) -> Advice:
    """Returns the methods that the figures favour for a need, best first, each with its numbers."""
    if figures is None:
        remark = "nothing was measured yet, so nothing can be recommended by numbers"
        return Advice(need=need, source="", choices=(), remarks=(remark,))
    source, document = figures
    rows = document.get("styles", ()) if need.subject == "style" else document["rows"]
    groups = _find_groups(document, need)
    choices = [choice for choice in (_judge(row, need, groups) for row in rows) if choice is not None]
    ordered = sorted(choices, key=_order)
    is_firm = bool(ordered) and ordered[0].subjects >= ordered[0].of_subjects and len(ordered) > 1
    remarks = [*_doubt(ordered), *_list_remarks(document, need), *_list_gaps(rows, need)]
    remarks += _say_together(ordered, groups, need)
    return Advice(need=need, source=source, choices=tuple(ordered), remarks=tuple(remarks), is_firm=is_firm)


def _order(one: Choice) -> tuple[bool, int, float, int, str]:
    """Those on all subjects first, as means over different ones cannot be compared; then what was seen to work."""
    tier = 1 if one.together is None else 0 if one.together > 0 else 2
    return (one.subjects < one.of_subjects, tier, -one.score, one.size_bytes, one.method)


def _doubt(ordered: Sequence[Choice]) -> list[str]:
    if not ordered or ordered[0].subjects >= ordered[0].of_subjects:
        return []
    first = ordered[0]
    return [
        f"nothing is firm yet: {first.method} was measured on only {first.subjects} of {first.of_subjects} subjects"
    ]


def _find_groups(document: Mapping[str, Any], need: Need) -> dict[str, list[float]]:
    """Returns the joint success of each method in compositions like the one that is needed, or the nearest smaller."""
    styles = {one.id for one in load_suite().subjects if one.subject == "style"}
    fitting = [
        row
        for row in document.get("compositions", ())
        if row.get("way") == _DEFAULT_WAY
        and isinstance(row.get("joint"), int | float)
        and bool(styles & set(row["members"])) == (need.subject == "style")
    ]
    counts = {len(row["members"]) for row in fitting if len(row["members"]) <= need.concepts}
    found: dict[str, list[float]] = {}
    for row in fitting if need.concepts > 1 else ():
        if len(row["members"]) == max(counts, default=0):
            found.setdefault(str(row["method"]), []).append(float(row["joint"]))
    return found


def _judge(row: Mapping[str, Any], need: Need, groups: Mapping[str, Sequence[float]]) -> Choice | None:
    """Returns the row as a choice; None where the device cannot carry it or no trainer of ours makes it."""
    variants = {one.id: one for one in load_suite().variants}
    variant = variants.get(row["method"])
    trainer = TRAINER_BY_ID.get(variant.method if variant else row["method"])
    if trainer is None or (need.device != "large" and trains_all_weights(trainer.id)):
        return None
    identity, prompt = float(row["identity"]), float(row["prompt"])
    score = weigh(identity, prompt, _BETA[need.fineness])
    subjects = int(row.get("instances", row.get("styles", 0)))
    kind = "style" if need.subject == "style" else "instance"
    all_ = sum(1 for one in load_suite().subjects if one.subject == kind)
    counted = f"{subjects} subjects" if subjects >= all_ else f"only {subjects} of {all_} subjects"
    reasons = [f"identity {identity:.2f}, prompt {prompt:.2f} over {counted}"]
    preservation, joint = row.get("preservation"), groups.get(str(row["method"]))
    together = sum(joint) / len(joint) if joint else None
    if together is not None and joint:
        score *= together
        reasons.append(f"all members are in {together:.0%} of the pictures of {len(joint)} compositions")
    elif need.concepts > 1 and isinstance(preservation, int | float):
        # What moves the superclass when it is not called disturbs the other concepts of a composition too.
        score *= max(0.0, min(1.0, float(preservation))) ** (need.concepts - 1)
        reasons.append(
            f"leaves {float(preservation):.0%} of the superclass as it was, which {need.concepts} concepts need"
        )
    settings = dict(variant.settings) if variant else {}
    gate = {f"gate.{key}": value for key, value in (variant.gate or {}).items()} if variant else {}
    interval = row["interval"] if subjects >= FEWEST_SUBJECTS else None
    return Choice(
        method=str(row["method"]),
        trainer=trainer.id,
        score=score,
        identity=identity,
        interval=None if interval is None else (float(interval[0]), float(interval[1])),
        prompt=prompt,
        together=together,
        subjects=subjects,
        of_subjects=all_,
        size_bytes=int(row.get("size_bytes", 0)),
        settings=tuple(f"{key}={json.dumps(value)}" for key, value in {**settings, **gate}.items()),
        reasons=tuple(reasons),
    )


def trains_all_weights(method: str) -> bool:
    """Returns whether a method's preset trains the denoiser as a whole."""
    return _ALL_WEIGHTS in resolve_settings(method, FamilyId("sd1"), {}).targets


def weigh(identity: float, prompt: float, beta: float) -> float:
    """Returns the F-measure of two scores, brought into [0, 1] first; ``beta`` above 1 weighs identity more."""
    one, other = (min(1.0, max(0.0, value)) for value in (identity, prompt))
    if not math.isfinite(one + other) or one + other == 0:
        return 0.0
    square = beta * beta
    return (1 + square) * one * other / (square * other + one)


def _list_remarks(document: Mapping[str, Any], need: Need) -> list[str]:
    base = document.get("base", {})
    passes = document.get("sample_passes") or "its own number of"
    remarks = [
        f"measured on {base.get('family', 'an unknown base')} with {passes} sample passes for each method: an order of "
        "methods, not what they reach on a larger base"
    ]
    if need.device != "large":
        remarks.append("methods that train all weights are left out: they need a large device")
    return remarks


def _say_together(ordered: Sequence[Choice], groups: Mapping[str, Sequence[float]], need: Need) -> list[str]:
    """Returns what stands for how several concepts do together, of methods that were not composed."""
    if need.concepts < 2 or not ordered:
        return []
    others = [one.method for one in ordered if one.together is None]
    if len(others) == len(ordered):
        return [
            "how several concepts do together was not measured: preservation of the superclass stands for it"
        ]
    remarks = []
    if not any(one.together for one in ordered):
        remarks.append(f"no method that was composed has put {need.concepts} concepts into one picture")
    if others:
        said = ", ".join(others)
        remarks.append(f"not composed, so that preservation of the superclass stands for it: {said}")
    return remarks


def _list_gaps(rows: Sequence[Mapping[str, Any]], need: Need) -> list[str]:
    measured = {str(row["method"]) for row in rows}
    missing = [id for id in TRAINER_BY_ID if id not in measured]
    if not rows:
        return [f"no method was measured on a {need.subject}"]
    return [f"not measured: {', '.join(missing)}"] if missing else []
