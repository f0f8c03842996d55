"""One parser for all commands: no abbreviations, and "did you mean" for an unknown flag."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from halfframe.errors import did_you_mean

__all__ = ["Parser"]


class Parser(argparse.ArgumentParser):
    """As argparse has it, but an unknown flag is refused under the command's own usage, with the closest known one.

    Args:
        verbatim: keep the line breaks of description and epilog.
        **settings: of `argparse.ArgumentParser`.
    """

    def __init__(self, *, verbatim: bool = False, **settings: Any) -> None:
        if verbatim:
            settings["formatter_class"] = argparse.RawDescriptionHelpFormatter
        super().__init__(allow_abbrev=False, **settings)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """The arguments; leaves with exit code 2 where they do not fit."""
        found, rest = self.parse_known_args(args, namespace)
        if rest:
            flag = next((word for word in rest if word.startswith("-")), rest[0])
            known = [name for name in self._option_string_actions if name.startswith("--")]
            self.error(f"unknown argument {flag!r}.{did_you_mean(flag.partition('=')[0], known)}")
        return found
