"""``halfframe run``: upstream's own script, unmodified, with halfframe on."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from halfframe.cli.flags import FLAGS_HELP, split_flags

__all__ = ["add_arguments", "main", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """For ``--help``; the script's own arguments are not argparse's business, see `run`."""
    parser.description = "Run a script that builds an official Wan2.2 pipeline, unmodified, with halfframe on."
    parser.usage = "halfframe run SCRIPT.py [--] [SCRIPT ARGUMENTS] [FLAGS]"
    parser.epilog = FLAGS_HELP
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("script", help="upstream's generate.py")


def main(arguments: argparse.Namespace) -> int:
    """Run the script without arguments."""
    return run([arguments.script])


def run(arguments: Sequence[str]) -> int:
    """Run ``SCRIPT [ARGUMENTS]``, our flags among them."""
    from halfframe.cli.script import require_script, run_script

    script, *rest = arguments
    require_script(Path(script))
    options, script_arguments = split_flags(rest)
    run_script(Path(script), script_arguments, **options)
    return 0
