"""Finding plugins: strategies by name, hooks by entry point, everything that can go wrong named by its plugin."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any, cast

import pluggy

from halfframe.errors import HalfframeError, OptionError, PluginError, StrategyError
from halfframe.hookspecs import PROJECT_NAME, HookSpecs
from halfframe.strategies.base import ExpandFunction, Expansion, Strategy

__all__ = [
    "HOOK_GROUP",
    "STRATEGY_GROUP",
    "StrategyInfo",
    "hook_manager",
    "parse_strategy",
    "requested_strategy",
    "resolve_strategy",
    "strategies",
]

STRATEGY_GROUP = "halfframe.strategies"
HOOK_GROUP = "halfframe"
RESERVED = frozenset(
    {"pipe", "strategy", "noise", "measure", "tflops", "preload", "preset", "plugins"}
    | {"cfg_truncate_steps", "cfg_truncate_high_noise_steps", "cfg_mode", "cfg_every"}
)
"""Arguments of `halfframe.enabled`, which no strategy's option can be called."""


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
    return tuple(sorted((_info(entry) for entry in _entries(STRATEGY_GROUP)), key=lambda info: info.name))


def resolve_strategy(
    strategy: str | Strategy | type[Strategy] | ExpandFunction, options: Mapping[str, Any]
) -> Strategy:
    """The strategy to use, from a name, a `Strategy`, or a plain function ``(latents, num_frames) -> latents``.

    Raises:
        StrategyError: the name is unknown or provided twice, or what it names is no strategy.
        PluginError: the plugin that provides it cannot be imported.
        OptionError: the strategy does not take one of `options`.
    """
    if isinstance(strategy, str):
        return _build(strategy, _load(_find(strategy)), options)
    name = _own_name(strategy) or str(getattr(strategy, "__name__", type(strategy).__name__))
    return _build(name, strategy, options)


def requested_strategy(
    strategy: str | Strategy | type[Strategy] | ExpandFunction | None, options: Mapping[str, Any]
) -> Strategy:
    """As `resolve_strategy`, where a user may also ask for none: the base class, which computes every frame."""
    if strategy is not None:
        return resolve_strategy(strategy, options)
    if options:
        raise OptionError(f"there is no strategy to take {', '.join(options)}; name one, or leave the option out.")
    return Strategy()


def parse_strategy(text: str) -> tuple[str | None, dict[str, Any]]:
    """A strategy as command lines name it, ``NAME`` or ``NAME:option=value,option=value``: its name and options.

    ``none`` is no strategy, None. Values are Python literals where they look like one (``3``, ``0.5``, ``True``), else
    text.

    Raises:
        OptionError: what follows the colon is not of that form.
    """
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for part in rest.split(",") if rest else ():
        key, separator, value = (piece.strip() for piece in part.partition("="))
        if not separator or not key.isidentifier() or key in options:
            raise OptionError(f"{part!r} in {text!r} is no option of its own; write NAME:option=value,option=value.")
        if key in RESERVED:
            raise OptionError(f"{key} in {text!r} is no strategy's option; give it outside the strategy, if at all.")
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = value
    return (None if name.strip() == "none" else name.strip()), options


def hook_manager(plugins: Iterable[object] = (), *, installed: bool = True) -> pluggy.PluginManager:
    """A plugin manager with our hook set, every `installed` hook plugin, and `plugins` for this block.

    Raises:
        PluginError: a plugin cannot be imported, is given twice, or implements a hook that does not exist.
    """
    manager = pluggy.PluginManager(PROJECT_NAME)
    manager.add_hookspecs(HookSpecs)
    for entry in _entries(HOOK_GROUP) if installed else ():
        _register(manager, _load(entry), f"{entry.name} ({_info(entry).distribution})")
    for number, plugin in enumerate(plugins):
        _register(manager, plugin, f"{getattr(plugin, '__name__', type(plugin).__name__)} (plugins[{number}])")
    return manager


def _register(manager: pluggy.PluginManager, plugin: object, name: str) -> None:
    if isinstance(plugin, type):
        raise PluginError(f"plugin {name} is a class; give an instance, or a module with hook functions.")
    if manager.is_registered(plugin):
        raise PluginError(f"plugin {name} is registered already, as {manager.get_name(plugin)}; give it once.")
    try:
        manager.register(plugin, name=name)
        manager.check_pending()
    except (ValueError, pluggy.PluginValidationError) as error:
        hooks = ", ".join(key for key in vars(HookSpecs) if key.startswith("halfframe_"))
        raise PluginError(f"plugin {name} cannot be registered: {error}. The hooks are {hooks}.") from error
    if not manager.get_hookcallers(plugin):
        raise PluginError(
            f"plugin {name} implements no hook; mark its functions with @halfframe.hookimpl "
            "(a strategy goes to `strategy=`, not to `plugins=`)."
        )


def _entries(group: str) -> tuple[metadata.EntryPoint, ...]:
    return tuple(metadata.entry_points(group=group))


def _info(entry: metadata.EntryPoint) -> StrategyInfo:
    distribution = entry.dist
    if distribution is None:
        return StrategyInfo(entry.name, "unknown", "unknown", entry.value)
    return StrategyInfo(entry.name, distribution.name, distribution.version, entry.value)


def _find(name: str) -> metadata.EntryPoint:
    found = [entry for entry in _entries(STRATEGY_GROUP) if entry.name == name]
    if not found:
        names = ", ".join(info.name for info in strategies()) or "none (is halfframe itself pip-installed?)"
        raise StrategyError(
            f"no strategy is called {name!r}. Installed: {names}. Install the package that provides it."
        )
    if len(found) > 1:
        places = ", ".join(f"{info.value} of {info.distribution} {info.version}" for info in map(_info, found))
        raise StrategyError(f"strategy {name!r} is provided {len(found)} times: {places}. Uninstall all but one.")
    return found[0]


def _load(entry: metadata.EntryPoint) -> object:
    try:
        return cast(object, entry.load())
    except Exception as error:
        info = _info(entry)
        raise PluginError(
            f"plugin {entry.name!r} ({entry.value} of {info.distribution} {info.version}) cannot be imported: "
            f"{type(error).__name__}: {error}. Mend or uninstall {info.distribution}."
        ) from error


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
        _check_options(name, target, options, skip=2)
        function = cast(Callable[..., Any], target)
        return Expansion(name, function if not options else _WithOptions(function, dict(options)))
    raise StrategyError(
        f"strategy {name!r} is {target!r}; needed: a function (latents, num_frames) -> latents, or a subclass or "
        "instance of halfframe.Strategy."
    )


def _construct(name: str, target: type[Strategy], options: Mapping[str, Any]) -> Strategy:
    try:
        return target(**options)
    except HalfframeError:
        raise
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
        takes = ", ".join(
            str(p.replace(annotation=p.empty))
            for p in parameters
            if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_KEYWORD)
        )
        raise OptionError(
            f"strategy {name!r} does not fit {_names(options) or 'a call without options'}: {error}. "
            f"Its options: {takes or 'none'}."
        ) from error


def _names(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in options.items())
