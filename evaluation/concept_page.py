"""The page of one concept: what it is, what was measured, how it was trained, and the pictures behind the numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from conceptry.concepts import Concept
from conceptry.evaluation.charts import Curve, draw_curves
from conceptry.evaluation.pages import (
    Figure,
    make_facts,
    make_heading,
    make_note,
    make_page,
    make_pictures,
    make_table,
)
from conceptry.evaluation.references import Pictures, as_images

if TYPE_CHECKING:
    from conceptry.evaluation.examination import Drawn, Examination

_SHOWN_REFERENCES: Final = 6
_ROLES: Final = (
    ("concept", "Pictures of the concept", "its word in the prompts of the protocol"),
    ("base", "The base alone", "the superclass word in the same prompts, from the same noise"),
    (
        "plain",
        "Pictures without a background in the prompt",
        "how they differ, and which background comes by itself",
    ),
    ("superclass", "The superclass word while the concept is attached", "it should draw what the base draws"),
)
_MEANINGS: Final = {
    "identity": "likeness of its pictures with held-out pictures of the thing itself",
    "prompt": "what its pictures show of what their prompts ask for",
    "preservation": "how far the superclass word stays what it was",
    "diversity": "how far pictures of one prompt differ",
    "leakage": "how seldom a background of the training pictures comes by itself",
    "identity_second": "likeness as a scorer without learned weights sees it",
    "clip_i": "likeness of CLIP's image features",
}
_LEFT_OUT: Final = frozenset({"schema"})


def make_concept_page(
    concept: Concept,
    *,
    examination: Examination | None = None,
    references: Pictures | None = None,
    record: Mapping[str, Any] | None = None,
) -> str:
    """Returns the page of a concept.

    Args:
        concept: whose manifest is shown.
        examination: what was measured and drawn now; None shows what the manifest carries alone.
        references: pictures of the true thing.
        record: what training left beside the version.
    """
    manifest = concept.manifest
    return make_page(
        concept.label,
        [
            *([make_note(manifest.title)] if manifest.title else []),
            *([f"<p>{_escape(manifest.description)}</p>"] if manifest.description else []),
            make_heading("What it is"),
            make_facts(_list_facts(concept)),
            *_show_scores(examination),
            *_show_metrics(concept),
            *_show_training(record),
            *_show_pictures(examination, references),
        ],
    )


def _escape(text: str) -> str:
    from html import escape

    return escape(text)


def _list_facts(concept: Concept) -> Iterator[tuple[str, str]]:
    manifest = concept.manifest
    yield "digest", str(concept.digest)
    yield "kinds", ", ".join(manifest.kinds)
    yield "size", f"{manifest.size_bytes:,} bytes"
    yield "license", manifest.license.spdx or manifest.license.name or "not said"
    yield "strength", f"{manifest.usage.strength} ({manifest.usage.min} to {manifest.usage.max})"
    for token in manifest.tokens:
        kind = f", a kind of {token.superclass}" if token.superclass else ""
        yield "word", f"{token.placeholder} ({token.role}){kind}"
    for prompt in manifest.usage.prompts:
        yield "prompt", prompt
    for build in manifest.builds:
        training = build.provenance.training
        yield "build", f"{build.id} for {build.base.repo or build.base.family}"
        if training is not None:
            yield "taught by", f"{training.trainer}, {training.steps} steps, seed {training.seed}"


def _show_scores(examination: Examination | None) -> list[str]:
    if examination is None:
        return []
    scores = examination.scores
    rows = []
    for name, measure in scores.list_measures().items():
        document = measure.to_json()
        values = (document[key] for key in ("floor", "ceiling", "normalised"))
        said = _MEANINGS.get(name, "")
        rows.append((name, document["score"], list(document["interval"]), *values, said))
    head = make_heading(
        "What it does",
        f"protocol {scores.protocol}, {scores.pictures} pictures; normalised: 0 is the floor, 1 the ceiling",
    )
    columns = ("measure", "score", "95 %", "floor", "ceiling", "normalised", "what it says")
    return [head, make_table(columns, rows)]


def _show_metrics(concept: Concept) -> list[str]:
    rows = [
        (
            build.id,
            metric.name,
            metric.value,
            list(metric.interval) if metric.interval else None,
            metric.protocol,
        )
        for build in concept.manifest.builds
        for metric in build.metrics
    ]
    if not rows:
        return []
    columns = ("build", "metric", "value", "95 %", "protocol")
    return [make_heading("What its manifest carries"), make_table(columns, rows)]


def _show_training(record: Mapping[str, Any] | None) -> list[str]:
    if not record:
        return []
    curves = [Curve(name=name, values=tuple(values)) for name, values in find_curves(record).items()]
    facts = [
        (key.replace("_", " "), value)
        for key, value in record.items()
        if isinstance(value, int | float | str) and key not in _LEFT_OUT
    ]
    parts = [make_heading("How it was trained")]
    if curves:
        parts.append(
            draw_curves(
                curves, title=", ".join(curve.name for curve in curves), x_label="step", y_label="loss"
            )
        )
    return [*parts, make_facts(facts)]


def find_curves(record: Mapping[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """Returns the lists of (step, value) that a training record holds, by name, else its two fixed losses."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for name, value in record.items():
        pairs = [_read_pair(row) for row in value] if isinstance(value, list) else []
        found = [pair for pair in pairs if pair is not None]
        if len(found) > 1 and len(found) == len(pairs):
            curves[name.replace("_", " ")] = found
    before, after = record.get("fixed_loss_before"), record.get("fixed_loss_after")
    settings = record.get("settings")
    steps = settings.get("steps") if isinstance(settings, Mapping) else None
    if not curves and all(isinstance(value, int | float) for value in (before, after, steps)):
        curves["loss on fixed samples"] = [(0.0, _as_float(before)), (_as_float(steps), _as_float(after))]
    return curves


def _as_float(value: Any) -> float:
    return float(value)


def _read_pair(row: Any) -> tuple[float, float] | None:
    if isinstance(row, Mapping):
        row = [row.get("step"), row.get("loss", row.get("value"))]
    if not isinstance(row, list | tuple) or len(row) != 2:
        return None
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in row):
        return None
    return float(row[0]), float(row[1])


def _show_pictures(examination: Examination | None, references: Pictures | None) -> list[str]:
    parts: list[str] = []
    if references is not None and len(references):
        shown = as_images(references[:_SHOWN_REFERENCES])
        parts += [
            make_heading("The thing itself", "held-out pictures that it was not taught from"),
            make_pictures(Figure(picture=picture, caption="reference") for picture in shown),
        ]
    if examination is None:
        return parts
    rows: dict[str, list[Drawn]] = {
        role: list(found)
        for role, found in groupby(sorted(examination.drawn, key=lambda one: one.role), lambda one: one.role)
    }
    for role, title, note in _ROLES:
        if rows.get(role):
            parts += [make_heading(title, note), make_pictures(map(_caption, _thin(rows[role])))]
    return parts


def _thin(drawn: Sequence[Drawn]) -> Sequence[Drawn]:
    """One picture of each prompt, but all where there is one prompt."""
    first = list({one.prompt: one for one in reversed(drawn)}.values())[::-1]
    return drawn if len(first) == 1 else first


def _caption(one: Drawn) -> Figure:
    said = [one.prompt]
    if one.identity is not None and one.agreement is not None:
        said.append(f"identity {one.identity:.2f}, prompt {one.agreement:.2f}")
    return Figure(picture=one.picture, caption=": ".join(said))
