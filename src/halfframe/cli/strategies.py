"""``halfframe strategies``: what is installed, what it does, and its options."""

from __future__ import annotations

import argparse
import json

__all__ = ["add_arguments", "main"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add everything that `main` reads to `parser`, description included."""
    parser.description = "List the installed strategies: what each does, its options with defaults, who brings it."
    parser.add_argument("--json", action="store_true", help="plain data instead of the text")


def main(arguments: argparse.Namespace) -> int:
    """Print the strategies."""
    from halfframe.plugins.descriptions import descriptions

    found = descriptions()
    if arguments.json:
        print(json.dumps([description.to_dict() for description in found], indent=2, default=str))
        return 0
    print("\n".join(map(str, found)) or "no strategy is installed; pip install halfframe")
    print(
        "\nUse one as --strategy NAME or --strategy NAME:option=value,option=value. Also: --strategy recipe.json,\n"
        "a move for every step (`halfframe.Recipe`), and --strategy none, all frames at every step."
    )
    return 0
