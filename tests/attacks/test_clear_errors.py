"""What a plugin, a scheduler or a command line does wrong is said as that."""

from __future__ import annotations

import functools
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import halfframe
from halfframe.cli import main
from halfframe.plugins.manager import hook_manager, load

from . import interrupts

ARGS: dict[str, Any] = {"size": (16, 16), "frame_num": 5, "sampling_steps": 2, "offload_model": False}


def hosts_plugin(answer: Any) -> Any:
    class Hosts:
        @halfframe.hookimpl
        def halfframe_hosts(self) -> Any:
            return answer()

    return Hosts()


@pytest.mark.parametrize("answer", [lambda: 3, lambda: [3], lambda: 1 / 0, lambda: sys.exit(3)])
def test_a_hosts_hook_that_fails_is_named(t2v: Any, answer: Any) -> None:
    with pytest.raises(halfframe.PluginError, match=r"Hosts \(plugins\[0\]\)"):
        halfframe.enabled(t2v, plugins=[hosts_plugin(answer)])


def test_a_plugin_that_exits_on_import_is_named() -> None:
    entry: Any = types.SimpleNamespace(name="quitter", value="quitter:plugin", dist=None, load=lambda: sys.exit(1))
    with pytest.raises(halfframe.PluginError, match=r"'quitter'.*SystemExit"):
        load(entry)


class Report:
    @halfframe.hookimpl
    def halfframe_report(self, report: Any) -> None:
        sys.exit(1)


def test_a_report_hook_that_exits_keeps_the_video(t2v: Any) -> None:
    with halfframe.enabled(t2v, plugins=[Report()]) as run, pytest.warns(halfframe.HalfframeWarning, match="Report"):
        video = t2v.generate("a ball", **ARGS)
    assert video is not None
    assert run.report is not None


@pytest.mark.logs_warnings
def test_warnings_as_errors_keep_the_video(t2v: Any, caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", halfframe.HalfframeWarning)
        with halfframe.enabled(t2v, plugins=[Report()]):
            assert t2v.generate("a ball", **ARGS) is not None
    assert "a halfframe_report hook failed: SystemExit" in caplog.text


@pytest.mark.logs_warnings  # those of the tests in it
def test_the_suite_sees_warnings_that_are_logged(pytester: pytest.Pytester) -> None:
    pytester.makeconftest((Path(__file__).parents[1] / "conftest.py").read_text())
    pytester.makepyprojecttoml((Path(__file__).parents[2] / "pyproject.toml").read_text())
    pytester.makepyfile(
        """
        import pytest
        import halfframe

        def run(t2v):
            with halfframe.enabled(t2v):
                t2v.generate("a ball", size=(16, 16), frame_num=1, sampling_steps=2, offload_model=False)

        def test_unexpected(t2v):
            run(t2v)

        def test_expected(t2v):
            with pytest.warns(halfframe.HalfframeWarning, match="nothing was skipped"):
                run(t2v)

        @pytest.mark.logs_warnings
        def test_logged(t2v):
            run(t2v)
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*unexpected warnings: *nothing was skipped*"])


class CallEditor:
    @halfframe.hookimpl
    def halfframe_expert_call(self, call: Any) -> None:
        call.prediction.mul_(2)


class StepEditor:
    def __init__(self, name: str) -> None:
        self.name = name

    @halfframe.hookimpl
    def halfframe_step(self, step: Any, latents: Any, velocity: Any) -> None:
        {"latents": latents, "velocity": velocity}[self.name].mul_(2)


@pytest.mark.parametrize("plugin", [CallEditor(), StepEditor("latents"), StepEditor("velocity")])
def test_a_hook_that_edits_in_place_is_refused_by_name(t2v: Any, plugin: Any) -> None:
    name = type(plugin).__name__
    with halfframe.enabled(t2v, plugins=[plugin]), pytest.raises(halfframe.PluginError, match=f"in place, in {name}"):
        t2v.generate("a ball", **ARGS)


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda: diffusers.UniPCMultistepScheduler(),
        lambda: diffusers.DPMSolverMultistepScheduler(),
        lambda: diffusers.EulerAncestralDiscreteScheduler(),
    ],
)
def test_a_scheduler_that_is_not_for_flow_matching_is_refused_as_that(scheduler: Any) -> None:
    pipe, call = interrupts.small("diffusers")
    pipe.scheduler = scheduler()
    with halfframe.enabled(pipe), pytest.raises(halfframe.HalfframeError, match="not a flow-matching scheduler"):
        call()


def test_predictions_that_are_nan_are_not_taken_for_a_strategys_doing() -> None:
    pipe, _ = interrupts.small("diffusers")
    pipe.scheduler = diffusers.FlowMatchHeunDiscreteScheduler(shift=12.0)
    with torch.no_grad():
        pipe.transformer.proj_out.weight.fill_(float("nan"))
    with halfframe.enabled(pipe, "self-duplicate"):
        arguments: dict[str, Any] = {"height": 16, "width": 16, "num_frames": 9, "num_inference_steps": 6}
        video = pipe("a ball", output_type="latent", **arguments).frames
    assert video.isnan().any()


def elsewhere(model: Any, twin: Any, how: str) -> Any:
    """`model`, whose calls are computed by `twin`, as where another process does."""

    def forward(self: Any, *args: Any, **given: Any) -> Any:
        return twin(*args, **given)

    model.forward = types.MethodType(forward, model) if how == "method" else functools.partial(forward, model)
    return model


@pytest.mark.parametrize("how", ["method", "function"])
def test_an_embedding_that_is_never_called_is_said(how: str) -> None:
    pipe, _ = interrupts.small("diffusers")
    elsewhere(pipe.transformer, interrupts.small("diffusers")[0].transformer, how)
    with halfframe.enabled(pipe), pytest.raises(halfframe.HalfframeError, match="rotary embedding was not"):
        pipe("a ball", height=16, width=16, num_frames=17, num_inference_steps=4, output_type="latent")


@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_a_compiled_expert_that_may_run_elsewhere_is_refused(how: str) -> None:
    pipe, _ = interrupts.small("diffusers")
    arguments: dict[str, Any] = {"height": 16, "width": 16, "num_frames": 17, "num_inference_steps": 4}
    elsewhere(pipe.transformer, interrupts.small("diffusers")[0].transformer, "function")
    if how == "in place":
        pipe.transformer.compile(backend="eager")
    else:
        pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    plain = pipe("a ball", output_type="latent", **arguments).frames
    assert plain.isfinite().all()
    with halfframe.enabled(pipe), pytest.raises(halfframe.HalfframeError, match="compiled it does not show"):
        pipe("a ball", output_type="latent", **arguments)
    with halfframe.enabled(pipe, positions="contiguous") as run:
        pipe("a ball", output_type="latent", **arguments)
    assert run.report is not None


@pytest.mark.parametrize("how", ["method", "function", "compiled"])
def test_an_official_expert_that_runs_elsewhere_is_refused(t2v: Any, how: str) -> None:
    arguments = {**ARGS, "frame_num": 17, "sampling_steps": 4}
    elsewhere(t2v.high_noise_model, interrupts.small("wan")[0].high_noise_model, how)
    if how == "compiled":
        t2v.high_noise_model.compile(backend="eager")
    message = "compiled it does not show" if how == "compiled" else "its blocks were not"
    with halfframe.enabled(t2v), pytest.raises(halfframe.HalfframeError, match=message):
        t2v.generate("a ball", **arguments)
    assert not t2v.high_noise_model.blocks[0]._forward_pre_hooks
    with halfframe.enabled(t2v, positions="contiguous") as run:
        t2v.generate("a ball", **arguments)
    assert run.report is not None


def test_an_official_expert_whose_forward_was_wrapped_is_served(t2v: Any) -> None:
    arguments = {**ARGS, "frame_num": 17, "sampling_steps": 4, "seed": 1}
    with halfframe.enabled(t2v):
        expected = t2v.generate("a ball", **arguments)
    for model in (t2v.high_noise_model, t2v.low_noise_model):
        model.forward = functools.partial(lambda forward, *args, **given: forward(*args, **given), model.forward)
    with halfframe.enabled(t2v):
        assert torch.equal(t2v.generate("a ball", **arguments), expected)


def test_tokens_that_context_parallelism_cannot_deal_out_are_refused_with_the_reason() -> None:
    pipe, _ = interrupts.small("diffusers")
    config = types.SimpleNamespace(ulysses_degree=3, ring_degree=None)
    pipe.transformer._parallel_config = types.SimpleNamespace(context_parallel_config=config)
    with halfframe.enabled(pipe, "interleave"), pytest.raises(halfframe.HalfframeError, match="evenly to 3 devices"):
        pipe("a ball", height=32, width=32, num_frames=9, num_inference_steps=4, output_type="latent")


def test_a_script_that_is_not_there_is_said_before_its_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "nope.py"]) == 1
    assert "nope.py is not there" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--diffusers", "/nope"]) == 1
    assert "/nope is not there" in capsys.readouterr().err


def test_a_script_has_the_path_that_python_gives_it(tmp_path: Path) -> None:
    from halfframe.cli.script import _as_main

    script = tmp_path / "script.py"
    script.write_text("")
    with _as_main(script, []):
        seen = list(sys.path)
    assert seen == [str(tmp_path.resolve()), *sys.path[1:]]


def test_hook_managers_still_take_plugins() -> None:
    assert hook_manager([Report()], installed=False).get_plugins()
