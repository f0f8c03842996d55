"""The command line: ``halfframe COMMAND`` and ``python -m halfframe SCRIPT.py ...``. Each command is a function too."""

from halfframe.cli.main import main

__all__ = ["main"]
