"""Puts concepts into a diffusers pipeline and takes them out again exactly.

with attach(Composition(imp, ukiyo * 0.7), pipeline) as report:
    image = pipeline("<blue-imp> in the style of <ukiyo>").images[0]
"""

from conceptry.composer.attach import Attachment, attach, detach, fuse
from conceptry.composer.compositions import Composition
from conceptry.composer.expansions import open_composition
from conceptry.composer.exports import Destination, export
from conceptry.composer.fingerprints import identify_pipeline
from conceptry.composer.loading import load_pipeline
from conceptry.composer.plan import Plan, make_plan
from conceptry.composer.report import Report

__all__ = [
    "Attachment",
    "Composition",
    "Destination",
    "Plan",
    "Report",
    "attach",
    "detach",
    "export",
    "fuse",
    "identify_pipeline",
    "load_pipeline",
    "make_plan",
    "open_composition",
]
