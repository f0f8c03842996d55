"""Plugins as they are found on a machine: real distribution metadata on the path, good ones and broken ones."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import halfframe
from halfframe import Expansion, OptionError, PluginError, Strategy, StrategyError
from halfframe.plugins.manager import HOOK_GROUP, hook_manager
from halfframe.plugins.strategies import STRATEGY_GROUP, parse_strategy, resolve_strategy
from halfframe.strategies.expansion import self_duplicate

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put a distribution on the path: metadata with entry points, and one module of its own."""

    def add(distribution: str, entry_points: dict[str, dict[str, str]], **modules: str) -> None:
        root = tmp_path / distribution
        info = root / f"{distribution.replace('-', '_')}-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
        lines = [
            f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
            for group, entries in entry_points.items()
        ]
        (info / "entry_points.txt").write_text("\n".join(lines))
        for name, source in modules.items():
            (root / f"{name}.py").write_text(textwrap.dedent(source))
        monkeypatch.syspath_prepend(root)

    yield add
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


HOLD = """
    def hold(latents, num_frames, *, times=2):
        return latents.repeat_interleave(times, dim=-3)[..., :num_frames, :, :]
"""


# What is installed.


def test_the_built_in_strategies_are_entry_points_of_halfframe() -> None:
    listed = {info.name: info for info in halfframe.strategies()}
    for name in ("previous-odd", "self-duplicate"):
        assert listed[name].distribution == "halfframe"
        assert listed[name].version == halfframe.__version__
        cls = {"previous-odd": "PreviousOdd", "self-duplicate": "SelfDuplicate"}[name]
        assert listed[name].value == f"halfframe.strategies.expansion:{cls}"


def test_third_parties_are_listed_beside_them_by_name_without_being_imported(install: Install) -> None:
    install("acme-frames", {STRATEGY_GROUP: {"acme": "acme_frames_that_does_not_exist:hold"}})
    listed = halfframe.strategies()
    assert [info.name for info in listed] == sorted(info.name for info in listed)
    acme = next(info for info in listed if info.name == "acme")
    assert (acme.distribution, acme.version) == ("acme-frames", "1.2")
    assert acme.value == "acme_frames_that_does_not_exist:hold"


def test_an_installed_function_serves_by_its_entry_points_name(install: Install) -> None:
    install("acme-frames", {STRATEGY_GROUP: {"acme": "acme_hold:hold"}}, acme_hold=HOLD)
    strategy = resolve_strategy("acme", {})
    assert strategy.name == "acme"
    clip = torch.randn(4, 13, 2, 2)
    assert torch.equal(strategy.at_switch(clip), self_duplicate(clip[:, ::2], 13))


@pytest.mark.parametrize("name", ["self-duplicate", "previous-odd"])
def test_the_built_ins_resolve_through_the_same_door(name: str) -> None:
    strategy = resolve_strategy(name, {})
    assert isinstance(strategy, Expansion)
    assert strategy.name == name
    clip = torch.randn(4, 13, 2, 2)
    assert torch.equal(strategy.at_switch(clip), self_duplicate(clip[:, ::2], 13))


# Names.


def test_an_unknown_name_is_answered_with_those_installed(install: Install) -> None:
    install("acme-frames", {STRATEGY_GROUP: {"acme": "acme_hold:hold"}})
    with pytest.raises(StrategyError, match=r"no strategy is called 'selfduplicate'\. Installed: ") as caught:
        resolve_strategy("selfduplicate", {})
    for name in ("acme", "previous-odd", "self-duplicate"):
        assert name in str(caught.value)


def test_a_name_provided_twice_names_both_distributions(install: Install) -> None:
    install("acme-frames", {STRATEGY_GROUP: {"hold": "acme_hold:hold"}}, acme_hold=HOLD)
    install("other-frames", {STRATEGY_GROUP: {"hold": "other_hold:hold"}}, other_hold=HOLD)
    with pytest.raises(StrategyError, match="strategy 'hold' is provided 2 times") as caught:
        resolve_strategy("hold", {})
    assert "acme_hold:hold of acme-frames 1.2" in str(caught.value)
    assert "other_hold:hold of other-frames 1.2" in str(caught.value)
    assert "Uninstall all but one" in str(caught.value)


def test_a_built_in_name_cannot_be_taken_over_silently(install: Install) -> None:
    install("acme-frames", {STRATEGY_GROUP: {"self-duplicate": "acme_hold:hold"}}, acme_hold=HOLD)
    with pytest.raises(StrategyError, match="strategy 'self-duplicate' is provided 2 times") as caught:
        resolve_strategy("self-duplicate", {})
    assert "of acme-frames 1.2" in str(caught.value)
    assert "of halfframe " in str(caught.value)


# Broken plugins.


@pytest.mark.parametrize(
    ("value", "source", "reason"),
    [
        (
            "acme_broken:hold",
            "import a_module_that_is_not_there\n",
            "ModuleNotFoundError: .*a_module_that_is_not_there",
        ),
        ("acme_broken:hold", "1 / 0\n", "ZeroDivisionError"),
        ("acme_broken:hold", "def hold(:\n", "SyntaxError"),
        ("acme_broken:missing", "", "AttributeError: .*missing"),
        ("acme_absent:hold", "", "ModuleNotFoundError: .*acme_absent"),
    ],
)
def test_a_strategy_that_cannot_be_imported_is_named(install: Install, value: str, source: str, reason: str) -> None:
    install("acme-frames", {STRATEGY_GROUP: {"acme": value}}, acme_broken=source)
    message = rf"plugin 'acme' \({value} of acme-frames 1\.2\) cannot be imported: {reason}.*uninstall acme-frames"
    with pytest.raises(PluginError, match=message) as caught:
        resolve_strategy("acme", {})
    assert caught.value.__cause__ is not None


def test_a_broken_strategy_does_not_stand_in_the_way_of_another(install: Install) -> None:
    install("acme-frames", {STRATEGY_GROUP: {"acme": "acme_broken:hold"}}, acme_broken="1 / 0\n")
    assert resolve_strategy("self-duplicate", {}).name == "self-duplicate"


@pytest.mark.parametrize("value", ["acme_odd:NUMBER", "acme_odd:NotAStrategy", "acme_odd"])
def test_an_entry_point_that_is_no_strategy_is_refused(install: Install, value: str) -> None:
    source = """
        NUMBER = 7
        class NotAStrategy: ...
    """
    install("acme-frames", {STRATEGY_GROUP: {"acme": value}}, acme_odd=source)
    with pytest.raises(StrategyError, match=r"strategy 'acme' is .*; needed: a function \(latents, num_frames\)"):
        resolve_strategy("acme", {})


@pytest.mark.parametrize("thing", [7, object(), dict])
def test_so_is_such_an_object_given_directly(thing: Any) -> None:
    with pytest.raises(StrategyError, match=r"needed: a function \(latents, num_frames\) -> latents, or a subclass or"):
        resolve_strategy(thing, {})


# Options.


class Weighted(Strategy):
    def __init__(self, weight: float = 0.5, *, mode: str = "linear") -> None:
        self.weight, self.mode = weight, mode


class Named(Strategy):
    name = "named"


def test_options_reach_a_function(install: Install) -> None:
    install("acme-frames", {STRATEGY_GROUP: {"acme": "acme_hold:hold"}}, acme_hold=HOLD)
    clip = torch.randn(4, 13, 2, 2)
    assert torch.equal(
        resolve_strategy("acme", {"times": 3}).at_switch(clip), clip[:, ::2].repeat_interleave(3, dim=1)[:, :13]
    )


def test_options_reach_a_strategy_class() -> None:
    strategy = resolve_strategy(Weighted, {"weight": 0.25, "mode": "cubic"})  # type: ignore[arg-type]
    assert isinstance(strategy, Weighted)
    assert (strategy.weight, strategy.mode) == (0.25, "cubic")


def test_a_class_without_a_name_of_its_own_gets_its_entry_points(install: Install) -> None:
    source = """
        import halfframe
        class Anonymous(halfframe.Strategy): ...
        class Named(halfframe.Strategy):
            name = "its own"
    """
    install("acme-frames", {STRATEGY_GROUP: {"acme": "acme_c:Anonymous", "acme-2": "acme_c:Named"}}, acme_c=source)
    assert resolve_strategy("acme", {}).name == "acme"
    assert resolve_strategy("acme-2", {}).name == "its own"
    assert Strategy.name == "full"


@pytest.mark.parametrize(
    ("strategy", "takes"),
    [
        ("self-duplicate", "Its options: noise='full'"),
        (lambda latents, num_frames, *, times=2: latents, "Its options: times=2"),
        (Weighted, "Its options: weight=0.5, mode='linear'"),
    ],
    ids=["built-in", "function", "class"],
)
def test_an_unknown_option_is_answered_with_those_there_are(strategy: Any, takes: str) -> None:
    with pytest.raises(OptionError, match=rf"does not fit wieght=0\.5: .*wieght.*{takes}"):
        resolve_strategy(strategy, {"wieght": 0.5})


def test_an_unknown_option_of_an_installed_strategy_names_the_strategy(install: Install) -> None:
    install("acme-frames", {STRATEGY_GROUP: {"acme": "acme_hold:hold"}}, acme_hold=HOLD)
    with pytest.raises(OptionError, match="strategy 'acme' does not fit weight=1"):
        resolve_strategy("acme", {"weight": 1})


def test_a_function_that_takes_anything_else_than_latents_and_a_count_is_refused() -> None:
    def one(latents: Tensor) -> Tensor:
        return latents

    with pytest.raises(StrategyError, match=r"'one' cannot be called: too many .* accepts \(latents, num_frames\)"):
        resolve_strategy(one, {})  # type: ignore[arg-type]


def test_a_required_option_left_out_is_named() -> None:
    def needs(latents: Tensor, num_frames: int, *, weight: float) -> Tensor:
        return latents * weight

    with pytest.raises(OptionError, match=r"strategy 'needs' does not fit .*'weight'"):
        resolve_strategy(needs, {})


def test_an_instance_is_used_as_it_is_and_takes_no_options() -> None:
    instance = Named()
    assert resolve_strategy(instance, {}) is instance
    with pytest.raises(OptionError, match=r"strategy 'named' was given as an instance, so weight=0\.5 cannot be"):
        resolve_strategy(instance, {"weight": 0.5})


def test_a_plain_function_serves_under_its_own_name() -> None:
    strategy = resolve_strategy(self_duplicate, {})
    assert strategy.name == "self_duplicate"
    clip = torch.randn(4, 13, 2, 2)
    assert torch.equal(strategy.at_switch(clip), self_duplicate(clip[:, ::2], 13))


# Hooks.


class Recorder:
    def __init__(self) -> None:
        self.reports: list[Any] = []

    @halfframe.hookimpl
    def halfframe_report(self, report: Any) -> None:
        self.reports.append(report)


HOOKS = """
    import halfframe
    seen = []
    @halfframe.hookimpl
    def halfframe_report(report):
        seen.append(report)
"""


def test_an_installed_module_of_hooks_is_called(install: Install) -> None:
    install("acme-hooks", {HOOK_GROUP: {"acme": "acme_hooks"}}, acme_hooks=HOOKS)
    hook_manager().hook.halfframe_report(report="a report")
    assert sys.modules["acme_hooks"].seen == ["a report"]


def test_a_plugin_for_one_block_is_called_beside_the_installed_ones(install: Install) -> None:
    install("acme-hooks", {HOOK_GROUP: {"acme": "acme_hooks"}}, acme_hooks=HOOKS)
    recorder = Recorder()
    hook_manager([recorder]).hook.halfframe_report(report="a report")
    assert recorder.reports == sys.modules["acme_hooks"].seen == ["a report"]
    hook_manager().hook.halfframe_report(report="another")
    assert recorder.reports == ["a report"]


def test_a_hook_plugin_that_cannot_be_imported_is_named(install: Install) -> None:
    install("acme-hooks", {HOOK_GROUP: {"acme": "acme_hooks"}}, acme_hooks="1 / 0\n")
    with pytest.raises(
        PluginError, match=r"plugin 'acme' \(acme_hooks of acme-hooks 1\.2\) cannot be imported: ZeroDivisionError"
    ):
        hook_manager()


def test_a_misspelt_hook_of_an_installed_plugin_names_it_and_lists_the_hooks(install: Install) -> None:
    install("acme-hooks", {HOOK_GROUP: {"acme": "acme_hooks"}}, acme_hooks=HOOKS.replace("_report(", "_reports("))
    with pytest.raises(PluginError, match=r"plugin acme \(acme-hooks\) cannot be registered: .*halfframe_reports") as e:
        hook_manager()
    for hook in ("hosts", "allocate", "expert_call", "boundary", "report"):
        assert f"halfframe_{hook}" in str(e.value)


def test_a_hook_with_a_misspelt_argument_is_refused() -> None:
    class Misspelt:
        @halfframe.hookimpl
        def halfframe_report(self, reprot: Any) -> None: ...

    with pytest.raises(PluginError, match=r"(?s)Misspelt.*cannot be registered: .*reprot"):
        hook_manager([Misspelt()])


def test_a_plugin_without_hooks_is_refused(install: Install) -> None:
    with pytest.raises(PluginError, match=r"plugin SimpleNamespace \(plugins\[0\]\) implements no hook; mark its"):
        hook_manager([SimpleNamespace()])
    install("acme-hooks", {HOOK_GROUP: {"acme": "acme_hooks"}}, acme_hooks="def halfframe_report(report): ...\n")
    with pytest.raises(PluginError, match=r"plugin acme \(acme-hooks\) implements no hook; mark its functions"):
        hook_manager()


def test_a_strategy_given_as_a_plugin_is_told_where_it_belongs() -> None:
    with pytest.raises(PluginError, match="a strategy goes to `strategy=`, not to `plugins=`"):
        hook_manager([self_duplicate])


def test_a_plugin_given_twice_is_refused() -> None:
    recorder = Recorder()
    with pytest.raises(
        PluginError, match=r"Recorder \(plugins\[1\]\) is registered already, as Recorder \(plugins\[0\]\)"
    ):
        hook_manager([recorder, recorder])


def test_an_installed_plugin_given_again_is_refused(install: Install) -> None:
    install("acme-hooks", {HOOK_GROUP: {"acme": "acme_hooks"}}, acme_hooks=HOOKS)
    hook_manager()
    with pytest.raises(PluginError, match=r"acme_hooks \(plugins\[0\]\) is registered already, as acme \(acme-hooks\)"):
        hook_manager([sys.modules["acme_hooks"]])


def test_two_distributions_may_use_one_name_for_their_hooks(install: Install) -> None:
    install("acme-hooks", {HOOK_GROUP: {"log": "acme_hooks"}}, acme_hooks=HOOKS)
    install("other-hooks", {HOOK_GROUP: {"log": "other_hooks"}}, other_hooks=HOOKS)
    hook_manager().hook.halfframe_report(report="a report")
    assert sys.modules["acme_hooks"].seen == sys.modules["other_hooks"].seen == ["a report"]


def test_a_class_as_a_plugin_is_refused() -> None:
    with pytest.raises(PluginError, match=r"plugin Recorder \(plugins\[0\]\) is a class; give an instance"):
        hook_manager([Recorder])


def test_a_function_without_a_signature_is_refused() -> None:
    with pytest.raises(StrategyError, match=r"strategy 'repeat_interleave' has no signature .* wrap it in a function"):
        resolve_strategy(torch.repeat_interleave, {})  # type: ignore[arg-type]


class Nameless(Strategy):
    """A strategy that takes an option and was given no name."""

    def __init__(self, rate: float = 1.0) -> None:
        if rate <= 0:
            raise ValueError(f"rate {rate} is not positive")


def test_a_strategy_without_a_name_goes_by_its_class() -> None:
    assert resolve_strategy(Nameless, {}).name == "Nameless"
    assert resolve_strategy(Nameless(), {}).name == "Nameless"
    assert resolve_strategy(Strategy(), {}).name == "full"


def test_an_option_that_the_strategy_rejects_is_an_option_error() -> None:
    with pytest.raises(OptionError, match=r"strategy 'Nameless' does not accept rate=0: rate 0 is not positive"):
        resolve_strategy(Nameless, {"rate": 0})


# Strategies on command lines.


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("interleave", "interleave", {}),
        ("interleave:", "interleave", {}),
        ("none", None, {}),
        ("interleave:stride=3,until=end", "interleave", {"stride": 3, "until": "end"}),
        ("a: weight=0.5 , sharp=True,mode='x'", "a", {"weight": 0.5, "sharp": True, "mode": "x"}),
    ],
)
def test_strategies_on_command_lines(text: str, name: str | None, options: dict[str, Any]) -> None:
    assert parse_strategy(text) == (name, options)


@pytest.mark.parametrize("text", ["a:stride", "a:3=4", "a:x=1,,y=2", "a:x=1,x=2"])
def test_what_is_no_option_on_a_command_line(text: str) -> None:
    with pytest.raises(OptionError, match=r"is not an option; write NAME:option=value,option=value"):
        parse_strategy(text)


def test_arguments_of_enabled_are_no_strategys_options() -> None:
    with pytest.raises(OptionError, match="measure in 'a:measure=True' is not an option of a strategy"):
        parse_strategy("a:measure=True")
