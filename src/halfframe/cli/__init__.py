"""The command line: ``halfframe COMMAND`` and ``python -m halfframe SCRIPT.py ...``.

Each command is a module with ``add_arguments(parser)`` and ``main(arguments) -> exit code``, listed in `cli.main`.
"""

from halfframe.cli.main import main

__all__ = ["main"]
