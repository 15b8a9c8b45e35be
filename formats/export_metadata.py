"""What an exported file says about itself, in the words of ModelSpec and of sd-scripts."""

from __future__ import annotations

from typing import Final

from conceptry.concepts import Concept
from conceptry.formats.modelspec import make_metadata
from conceptry.kinds import KindId
from conceptry.manifest import Build

SOURCE_KEY: Final = "conceptry.exported_from"
# A1111 tells the base by these keys alone; sd-scripts writes them.
_BASE_VERSIONS: Final = {
    "sd1": "sd_v1",
    "sd2": "sd_v2",
    "sdxl": "sdxl_base_v1-0",
    "sd3": "sd3m",
    "flux": "flux1",
}


def describe_export(concept: Concept, build: Build, kind: KindId) -> dict[str, str]:
    """Returns the metadata that all files of an export share: nothing of the clock, the machine or a path."""
    manifest, family = concept.manifest, build.base.family
    described = make_metadata(
        kind,
        family=family,
        title=manifest.title or str(manifest.name),
        triggers=[token.placeholder for token in manifest.tokens],
        license_text=manifest.license.spdx or manifest.license.name,
        author=", ".join(manifest.authors) or None,
        description=manifest.description or None,
    )
    described[SOURCE_KEY] = f"{concept.label}@{concept.digest}"
    version = _BASE_VERSIONS.get(family)
    if version is not None:
        described["ss_base_model_version"] = version
        described["ss_v2"] = str(family == "sd2")
    return described
