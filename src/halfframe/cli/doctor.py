"""``halfframe doctor``: what is here, and what would be refused."""

from __future__ import annotations

import argparse
import json

__all__ = ["add_arguments", "main"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add everything that `main` reads to `parser`, description included."""
    parser.description = (
        "Look around: which hosts are installed, which versions, whether halfframe finds in them what it needs, and "
        "which plugins are broken. Nothing of a host is imported."
    )
    parser.add_argument("--json", action="store_true", help="plain data instead of the text")


def main(arguments: argparse.Namespace) -> int:
    """Print the findings; 1 if an installed plugin is broken."""
    from halfframe.hosts.doctor import doctor

    diagnosis = doctor()
    print(json.dumps(diagnosis.to_dict(), indent=2) if arguments.json else diagnosis)
    return 0 if diagnosis.sound else 1
