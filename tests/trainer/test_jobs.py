from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conceptry.bases import FAMILIES, FamilyId
from conceptry.errors import UsageError
from conceptry.trainer.jobs import TrainJob, make_job, read_job, resolve
from conceptry.trainer.methods import TRAINERS
from conceptry.trainer.settings import load_presets

WRITTEN: dict[str, Any] = {
    "method": "lora",
    "images": "pictures",
    "name": "alice/imp",
    "placeholder": "<imp>",
    "superclass": "creature",
}


@pytest.mark.parametrize("row", TRAINERS, ids=lambda row: row.id)
@pytest.mark.parametrize("family", [row.id for row in FAMILIES if row.denoiser == "unet"])
def test_every_method_has_defaults_for_every_base_it_can_train(row: Any, family: FamilyId) -> None:
    job = make_job({**WRITTEN, "method": row.id})
    settings = resolve(job, family).settings
    assert settings.steps > 0
    assert settings.learning_rates


def test_presets_name_known_methods_and_families_only() -> None:
    presets = load_presets()
    assert presets.keys() == {row.id for row in TRAINERS}
    known = {family.id for family in FAMILIES}
    for rows in presets.values():
        assert rows.get("families", {}).keys() <= known


def test_flags_toml_and_python_give_the_same_job(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(
        'method = "lora"\nimages = "pictures"\nname = "alice/imp"\nplaceholder = "<imp>"\nsuperclass = "creature"\n'
        "[settings]\nrank = 16\n",
        encoding="utf-8",
    )
    from_toml = read_job(tmp_path / "job.toml")
    images = tmp_path / "pictures"
    from_flags = make_job({**WRITTEN, "images": str(images), "settings": {"rank": 16}})
    from_python = TrainJob.model_validate({**WRITTEN, "images": images, "settings": {"rank": 16}})
    assert from_toml == from_flags == from_python
    assert resolve(from_toml, FamilyId("sd1")).recipe == resolve(from_python, FamilyId("sd1")).recipe


def test_the_recipe_changes_with_what_changes_the_result_and_with_nothing_else() -> None:
    def recipe(**changes: Any) -> object:
        return resolve(make_job({**WRITTEN, **changes}), FamilyId("sd1")).recipe

    same = recipe()
    assert recipe(images="elsewhere", name="bob/other", title="A title", seed=5) == same
    assert recipe(steps=7) != same
    assert recipe(settings={"rank": 2}) != same
    assert recipe(superclass="dog") != same


RECIPES_OF_THE_FIRST_SETTINGS = {
    "textual_inversion": "96c329119e3db492",
    "xti": "0b71999482e26a2a",
    "perfusion": "2450aedbaf030ec4",
    "lora": "09ac3cb48c4c25dc",
    "pivotal": "ad2f09aab224d39d",
    "dreambooth": "8808f3a09f0b9924",
}


@pytest.mark.parametrize("method", RECIPES_OF_THE_FIRST_SETTINGS)
def test_a_setting_that_came_later_changes_no_recipe_at_its_default(method: str) -> None:
    def recipe(**settings: Any) -> Any:
        return resolve(make_job({**WRITTEN, "method": method, "settings": settings}), FamilyId("sd1")).recipe

    assert recipe().hex.startswith(RECIPES_OF_THE_FIRST_SETTINGS[method])
    assert recipe(key_lock="local") == recipe()
    assert recipe(key_lock="global") != recipe()


def test_what_follows_from_a_choice_is_a_default_that_can_be_overruled() -> None:
    def gate(**settings: Any) -> float:
        job = make_job({**WRITTEN, "method": "perfusion", "settings": settings})
        return resolve(job, FamilyId("toybox")).settings.gate.bias

    assert gate() == gate(key_lock="local")
    assert gate(key_lock="global") < gate()
    assert gate(key_lock="global", gate={"bias": 0.8, "temperature": 0.1}) == 0.8


@pytest.mark.parametrize(
    ("changes", "where", "hint"),
    [
        ({"methd": "lora"}, "methd", "did you mean 'method'?"),
        ({"method": "dreambot"}, "method", "did you mean 'dreambooth'?"),
        ({"settings": {"rnak": 4}}, "settings.rnak", "did you mean 'rank'?"),
        ({"settings": {"rank": 0}}, "settings.rank", None),
        (
            {"settings": {"learning_rates": {"value": 0.1}}},
            "settings.learning_rates",
            "its groups: lora, text_encoder",
        ),
        ({"steps": 0}, "steps", None),
        ({"seed": -1}, "seed", None),
        ({"name": "Not A Name"}, "name", None),
        ({"placeholder": " "}, "placeholder", None),
    ],
)
def test_a_wrong_key_or_value_is_named_with_the_nearest_right_one(
    changes: dict[str, Any], where: str, hint: str | None
) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(make_job({**WRITTEN, **changes}), FamilyId("sd1"))
    assert caught.value.where == where
    if hint:
        assert caught.value.hint == hint


def test_a_missing_key_is_named_with_its_flag() -> None:
    with pytest.raises(UsageError) as caught:
        make_job({key: value for key, value in WRITTEN.items() if key != "superclass"})
    assert caught.value.hint == "give --superclass"


def test_the_command_line_of_a_job_says_what_was_asked_for_and_no_default() -> None:
    job = make_job(
        {**WRITTEN, "seed": 3, "steps": 40, "settings": {"rank": 2, "learning_rates": {"lora": 0.01}}}
    )
    words = shlex.split(job.to_command())
    assert words[:3] == ["concepts", "train", "lora"]
    assert words[words.index("--placeholder") + 1] == "<imp>"
    assert words[words.index("--steps") + 1] == "40"
    assert [words[at + 1] for at, word in enumerate(words) if word == "--set"] == [
        "rank=2",
        "learning_rates.lora=0.01",
    ]
    assert "--device" not in words
    assert "--version" not in words


def test_reading_a_job_loads_no_torch() -> None:
    code = (
        "import sys; from conceptry.trainer.jobs import make_job, resolve;"
        f"resolve(make_job({WRITTEN!r}), 'sd1'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
