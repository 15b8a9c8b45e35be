"""``concepts``: assembles the commands, nothing else."""

from __future__ import annotations

import click

from conceptry import __version__
from conceptry.cli.groups import ConceptsRoot, make_common_options

concepts = ConceptsRoot(
    name="concepts",
    help="Learned visual concepts, as packages: teach them, keep them, share them, put several into one picture.",
    params=make_common_options(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
click.version_option(__version__, "-V", "--version", prog_name="concepts", message="%(prog)s %(version)s")(
    concepts
)


def main() -> None:
    """Runs the command line on the arguments of this process, and ends it."""
    concepts.main(prog_name="concepts")
