"""Strategies by name: the installed ones, and the one that a name, a text, a class or a function asks for."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any, TypeAlias, cast

from halfframe.errors import HalfframeError, OptionError, StrategyError, did_you_mean
from halfframe.plugins import DEFAULT_STRATEGY
from halfframe.plugins.manager import distribution_of, entries, load
from halfframe.sampling.strategy import Strategy
from halfframe.strategies.expansion import ExpandFunction, Expansion
from halfframe.strategies.recipe import Recipe

__all__ = [
    "DEFAULT_STRATEGY",
    "STRATEGY_GROUP",
    "StrategyInfo",
    "StrategyLike",
    "parse_strategy",
    "resolve_strategy",
    "strategies",
]

STRATEGY_GROUP = "halfframe.strategies"

StrategyLike: TypeAlias = str | Strategy | type[Strategy] | ExpandFunction | None
"""What may be given as a strategy: see `halfframe.enabled`."""

RESERVED = ("guidance", "measure", "plugins", "wait")
"""Keywords of `halfframe.enabled`, which no strategy's option can be called."""


@dataclass(frozen=True, slots=True)
class StrategyInfo:
    """An installed strategy.

    Attributes:
        name: the entry point's name, as given to `halfframe.enabled`.
        distribution: the package that installed it.
        version: that package's version.
        value: where it is, ``module:object``.
    """

    name: str
    distribution: str
    version: str
    value: str


def strategies() -> tuple[StrategyInfo, ...]:
    """The installed strategies, by name; none of them is imported."""
    return tuple(sorted(map(_info, entries(STRATEGY_GROUP)), key=lambda info: info.name))


def resolve_strategy(strategy: StrategyLike, options: Mapping[str, Any]) -> Strategy:
    """The strategy to use, from what a user gives: see `halfframe.enabled`.

    Raises:
        StrategyError: the name is unknown or provided twice, or names something else than a strategy.
        PluginError: the plugin that provides it cannot be imported.
        OptionError: the strategy does not take one of `options`, or a recipe cannot be read.
    """
    if strategy is None:
        if options:
            raise OptionError(f"there is no strategy to take {', '.join(options)}; name one, or leave the option out.")
        return Strategy()
    if isinstance(strategy, str):
        if strategy.endswith(".json"):
            return _build(strategy, Recipe.load(strategy), options)
        name, given = parse_strategy(strategy)
        twice = ", ".join(given.keys() & options.keys())
        if twice and strategy != DEFAULT_STRATEGY:  # nobody wrote the default's options
            raise OptionError(f"{twice} is given twice, in {strategy!r} and as a keyword; give it once.")
        options = {**given, **options}
        return resolve_strategy(None, options) if name is None else _build(name, load(_find(name)), options)
    if isinstance(strategy, type) and issubclass(strategy, Strategy):
        return _build(_own_name(strategy) or strategy.__name__, strategy, options)
    name = _own_name(strategy) or str(getattr(strategy, "__name__", type(strategy).__name__))
    return _build(name, strategy, options)


def parse_strategy(text: str) -> tuple[str | None, dict[str, Any]]:
    """A strategy as text, ``NAME`` or ``NAME:option=value,option=value``: its name and options.

    ``none`` stands for None, all frames. Values are Python literals where they look like one (``3``, ``0.5``,
    ``True``), else text.

    Raises:
        OptionError: what follows the colon is not of that form.
    """
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for part in rest.split(",") if rest else ():
        key, separator, value = (piece.strip() for piece in part.partition("="))
        if not separator or not key.isidentifier() or key in options:
            raise OptionError(f"{part!r} in {text!r} is not an option; write NAME:option=value,option=value.")
        if key in RESERVED:
            raise OptionError(f"{key} in {text!r} is not an option of a strategy; pass it to enabled instead.")
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = value
    return (None if name.strip() == "none" else name.strip()), options


def _info(entry: metadata.EntryPoint) -> StrategyInfo:
    return StrategyInfo(entry.name, *distribution_of(entry), entry.value)


def _find(name: str) -> metadata.EntryPoint:
    found = [entry for entry in entries(STRATEGY_GROUP) if entry.name == name]
    if not found:
        names = [info.name for info in strategies()]
        raise StrategyError(
            f"no strategy is called {name!r}. Installed: {', '.join(names) or 'none (is halfframe pip-installed?)'}."
            f"{_guidance_hint(name) or did_you_mean(name, names) or ' Install the package that provides it.'}"
        )
    if len(found) > 1:
        places = ", ".join(f"{i.value} of {i.distribution} {i.version}" for i in map(_info, found))
        raise StrategyError(f"strategy {name!r} is provided {len(found)} times: {places}. Uninstall all but one.")
    return found[0]


def _build(name: str, target: object, options: Mapping[str, Any]) -> Strategy:
    if isinstance(target, Strategy):
        if options:
            raise OptionError(
                f"strategy {name!r} was given as an instance, so {_names(options)} cannot be applied; "
                "set its options where it is built."
            )
        return _named(target, name)
    if isinstance(target, type) and issubclass(target, Strategy):
        _check_options(name, target, options, skip=0)
        return _named(_construct(name, target, options), name)
    if callable(target) and not isinstance(target, type):
        # `noise` is an option of every expansion; the function's own are bound to it.
        noise = {} if _takes(target, "noise") else {key: options[key] for key in options if key == "noise"}
        own = {key: value for key, value in options.items() if key not in noise}
        _check_options(name, target, own, skip=2)
        function = cast(Callable[..., Any], target)
        return Expansion(_WithOptions(function, own) if own else function, name, **noise)
    raise StrategyError(
        f"strategy {name!r} is {target!r}; needed: a function (latents, num_frames) -> latents, or a subclass or "
        "instance of halfframe.Strategy."
    )


def _takes(target: Callable[..., Any], option: str) -> bool:
    try:
        return option in inspect.signature(target).parameters
    except ValueError:
        return False


def _construct(name: str, target: type[Strategy], options: Mapping[str, Any]) -> Strategy:
    try:
        return target(**options)
    except HalfframeError as error:
        raise type(error)(f"strategy {name!r}: {error}") from error
    except (TypeError, ValueError) as error:
        raise OptionError(f"strategy {name!r} does not accept {_names(options)}: {error}.") from error


def _own_name(strategy: object) -> str | None:
    """The name that a strategy was given by whoever wrote it; the base class's own does not count."""
    name = getattr(strategy, "name", None)
    bare = strategy is Strategy or type(strategy) is Strategy
    return name if isinstance(name, str) and (bare or name != Strategy.name) else None


def _named(strategy: Strategy, name: str) -> Strategy:
    if _own_name(strategy) is None:
        strategy.name = name
    return strategy


@dataclass(frozen=True, slots=True)
class _WithOptions:
    function: Callable[..., Any]
    options: dict[str, Any]

    def __call__(self, latents: Any, num_frames: int, /) -> Any:
        return self.function(latents, num_frames, **self.options)


def _check_options(name: str, target: Callable[..., Any], options: Mapping[str, Any], skip: int) -> None:
    """Refuse options that the strategy does not take, and a function that does not take (latents, num_frames)."""
    try:
        signature = inspect.signature(target)
    except ValueError as error:
        raise StrategyError(
            f"strategy {name!r} has no signature that says how to call it; wrap it in a function (latents, num_frames)."
        ) from error
    parameters = list(signature.parameters.values())[skip:]
    shadowed = [parameter.name for parameter in parameters if parameter.name in RESERVED]
    if shadowed:
        raise StrategyError(
            f"strategy {name!r} has an option called {' and '.join(shadowed)}, which is an argument of enabled's own "
            "and would never reach it; give the option another name."
        )
    try:
        signature.bind_partial(*(None,) * skip)
    except TypeError as error:
        raise StrategyError(
            f"strategy {name!r} cannot be called: {error}; needed: a function that accepts (latents, num_frames)."
        ) from error
    try:
        signature.bind(*(None,) * skip, **options)
    except TypeError as error:
        kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.VAR_KEYWORD)
        own = {p.name: str(p.replace(annotation=p.empty)) for p in parameters if p.kind in kinds}
        raise OptionError(
            f"strategy {name!r} does not fit {_names(options) or 'a call without options'}: {error}. "
            f"Its options: {', '.join(own.values()) or 'none'}.{_hint(options, own)}"
        ) from error


def _hint(options: Iterable[str], own: Iterable[str]) -> str:
    known = (*own, *RESERVED)
    unknown = next((option for option in options if option not in known), "")
    return _guidance_hint(unknown) or (did_you_mean(unknown, known) if unknown else "")


def _guidance_hint(name: str) -> str:
    """What to do instead, where `name` looks like truncated guidance."""
    if not name.startswith(("cfg", "skip")):
        return ""
    return " Guidance is truncated with guidance=halfframe.Guidance(skip_last=N), or the flag --cfg_truncate_steps N."


def _names(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in options.items())
