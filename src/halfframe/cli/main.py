"""Which commands there are, and how they are reached; errors become one line and an exit code.

A command's module is imported when the command is given, so ``halfframe --help`` imports no torch.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import halfframe
from halfframe.cli.parser import Parser
from halfframe.errors import HalfframeError, did_you_mean

__all__ = ["COMMANDS", "command_parser", "main"]


@dataclass(frozen=True, slots=True)
class Command:
    """A command.

    Attributes:
        help: its line in ``halfframe --help``.
        module: it has ``add_arguments`` and ``main``.
        install: what to install where the module, or one that it imports, is missing.
    """

    help: str
    module: str
    install: str = "pip install halfframe"


COMMANDS = {
    "run": Command("run upstream's own generate.py with halfframe on", "halfframe.cli.run"),
    "plan": Command("predict what a run would cost, without loading a model", "halfframe.cli.plan"),
    "demo": Command(
        "a small trained Wan2.2 on this machine: prompt in, videos out",
        "halfframe_tinywan.demo",
        "in a checkout of halfframe: pip install ./examples/halfframe-tinywan",
    ),
    "compare": Command(
        "plain and faster runs of the same prompts and seeds, or finished videos",
        "halfframe.cli.compare",
        "pip install 'halfframe[compare]'",
    ),
    "tune": Command("measure what each step can do without, and write recipes", "halfframe.cli.tune"),
    "strategies": Command("the installed strategies, what they do and their options", "halfframe.cli.strategies"),
    "doctor": Command("which hosts are here, which versions, and what would be refused", "halfframe.cli.doctor"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 after an error of ours, 2 for wrong arguments (by argparse)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # The source's command lines with nothing but a prefix: python -m halfframe generate.py --task ...
    if arguments and arguments[0].endswith(".py"):
        arguments = ["run", *arguments]
    name, *rest = arguments or [""]
    if name not in COMMANDS:
        _overview(name, arguments)
    try:
        module = _module(name)
        if name == "run" and rest[:1] not in ([], ["-h"], ["--help"]):
            return int(module.run(rest))  # argparse must not see the script's own arguments
        code = int(module.main(_with_arguments(name, module).parse_args(rest)))
        sys.stdout.flush()
        return code
    except HalfframeError as error:
        print(f"halfframe {name}: error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # what reads the output has read enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def command_parser(name: str) -> Parser:
    """The parser of a command.

    Raises:
        HalfframeError: the package that brings the command is not installed.
    """
    return _with_arguments(name, _module(name))


def _overview(name: str, arguments: Sequence[str]) -> None:
    """``--help`` and ``--version``, or what is wrong; does not return."""
    width = max(map(len, COMMANDS)) + 2
    parser = Parser(
        prog="halfframe",
        usage="halfframe [--version] COMMAND [OPTIONS]; halfframe COMMAND --help",
        description="Faster Wan2.2: part of the latent frames for the high-noise expert, on an unmodified install.",
        epilog="commands:\n" + "\n".join(f"  {name:<{width}}{command.help}" for name, command in COMMANDS.items()),
        verbatim=True,
    )
    parser.add_argument("--version", action="version", version=f"halfframe {halfframe.__version__}")
    if name.startswith("-"):
        parser.parse_args(arguments)
    if not name or name.startswith("-"):
        parser.error(f"a command is needed: {', '.join(COMMANDS)}, or the path of a script, generate.py.")
    parser.error(f"no command is called {name!r}; there are {', '.join(COMMANDS)}.{did_you_mean(name, COMMANDS)}")


def _with_arguments(name: str, module: Any) -> Parser:
    parser = Parser(prog=f"halfframe {name}")
    module.add_arguments(parser)
    return parser


def _module(name: str) -> Any:
    command = COMMANDS[name]
    package = command.module.partition(".")[0]
    if not importlib.util.find_spec(package):
        distribution = package.replace("_", "-")
        raise HalfframeError(f"this command comes with {distribution}, which is not installed; {command.install}")
    try:
        return importlib.import_module(command.module)
    except ModuleNotFoundError as error:
        raise HalfframeError(
            f"{error.name} is needed for this command, but is not installed; {command.install}"
        ) from error
