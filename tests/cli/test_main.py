"""Commands, their output, and what is said when something is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest

import halfframe
from halfframe.cli import main
from halfframe.cli.flags import split_flags
from halfframe.context import check_options
from halfframe.cost import H200
from halfframe.errors import OptionError
from halfframe.presets import PRESETS


def test_plan_prints_the_table_of_the_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--size", "832*480", "--frame_num", "49", "--sample_steps", "20"]) == 0
    text = capsys.readouterr().out
    for figure in ("637 -> 325", "343 -> 343", "980 -> 668", "31.8%", "split 13 + 7"):
        assert figure in text


def test_plan_predicts_seconds_on_a_machine(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "--size", "832*480", "--frame_num", "49", "--sample_steps", "20", "--machine", "h200"]
    assert main(arguments) == 0
    # 40 forwards of 2.141 s; 26 of them on 7 of 13 frames, 1.008 s: the rates' own figures
    assert "experts' seconds at the machine's rates 85.6 -> 56.2" in capsys.readouterr().out
    plan = halfframe.plan(size=(832, 480), frame_num=49, sampling_steps=20, rates=H200)
    assert plan.predicted_speedup == pytest.approx(40 * 2.141 / (26 * 1.008 + 14 * 2.141), rel=1e-3)
    assert plan.to_dict()["seconds"] == pytest.approx([85.6, 56.2], abs=0.1)


def test_plan_takes_a_strategys_options(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "--sample_steps", "20", "--half_frame_strategy", "interleave:stride=4,full_start=1"]
    assert main(arguments) == 0
    assert "21 -> 6/21" in capsys.readouterr().out
    assert main([*arguments[:-1], "interleave:strides=4"]) == 1
    assert "does not fit strides=4" in capsys.readouterr().err


def test_plan_of_a_preset(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "--sample_steps", "20", "--json"]

    def planned(*more: str) -> dict[str, Any]:
        assert main([*arguments, *more]) == 0
        found = json.loads(capsys.readouterr().out)
        return {key: found[key] for key in ("strategy", "options", "frame_steps", "high", "low")}

    faithful = planned("--half_frame_preset", "faithful")
    assert faithful == planned("--half_frame_strategy", "merge:stride=3,until=1")
    assert faithful["frame_steps"] == 19 * 81 + 25  # 7 of 21 latent frames at one step
    fast = planned("--half_frame_preset", "fast")
    assert fast == planned("--cfg_truncate_steps", "5", "--cfg_truncate_high_noise_steps", "3")
    assert planned("--half_frame_preset", "fast", "--cfg_every", "2") == planned("--cfg_every", "2")
    assert main([*arguments, "--half_frame_preset", "fast", "--half_frame_strategy", "interleave"]) == 1
    assert "names a strategy, and so does --half_frame_strategy interleave" in capsys.readouterr().err


def test_plan_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "--size", "832x480", "--frame_num", "49", "--sample_steps", "20", "--json"]
    assert main([*arguments, "--cfg_truncate_steps", "5", "--cfg_truncate_high_noise_steps", "3"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["frame_steps_full"], data["frame_steps"]) == (980, 668)
    assert (data["high"]["forwards"], data["low"]["forwards"]) == (23, 9)
    assert data["high"]["sequence_lengths"] == [7 * 52 * 30]
    assert data["schedule"] == "wan"


def test_plan_with_guidance_at_every_third_step(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "--frame_num", "49", "--sample_steps", "20", "--json", "--cfg_every", "3"]
    assert main(arguments) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["high"]["forwards"], data["high"]["forwards_full"]) == (13 + 5, 26)  # steps 0, 3, 6, 9 and 12
    assert (data["low"]["forwards"], data["low"]["forwards_full"]) == (7 + 3, 14)  # 0, 3 and 6 of its own
    assert main([*arguments, "--cfg_truncate_high_noise_steps", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["high"]["forwards"] == 13 + 4


@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
@pytest.mark.parametrize("steps", [1, 4, 8, 20, 40, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 12.0])
def test_formula_splits_as_the_real_solvers_do(
    solver: Any, steps: int, shift: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def split() -> tuple[int, int, str]:
        plan = halfframe.plan(sampling_steps=steps, shift=shift, sample_solver=solver, frame_num=9, size=(32, 32))
        return plan.report.high.steps, plan.report.low.steps, plan.schedule

    real = split()
    monkeypatch.setattr("halfframe.planning._wan_table", _absent)
    assert (*real[:2], "formula") == split()
    assert real[2] == "wan"


def _absent(*_: Any) -> Any:
    raise ImportError("no wan here")


@pytest.mark.parametrize("every", [1, 2, 5])
def test_plan_counts_what_a_real_run_reports(t2v: Any, every: int) -> None:
    """The planned figures are those of a run: same frame-steps, tokens, forwards and TFLOPs."""
    options: dict[str, Any] = {"cfg_truncate_steps": 1, "cfg_truncate_high_noise_steps": 2, "cfg_every": every}
    with halfframe.enabled(t2v, **options) as run:
        t2v.generate("a", size=(48, 32), frame_num=21, sampling_steps=8, shift=12.0, offload_model=False)
    report = run.report
    assert report is not None
    model = t2v.high_noise_model
    plan = halfframe.plan(
        size=(48, 32),
        frame_num=21,
        sampling_steps=8,
        expert_shape=halfframe.cost.ExpertShape(model.dim, model.ffn_dim, model.num_layers, model.text_len),
        **options,
    )
    assert (plan.report.high, plan.report.low) == (report.high, report.low)
    assert plan.predicted_speedup == report.predicted_speedup
    full, run_with = (sum(pair) for pair in zip(plan.linear_tflops, plan.attention_tflops, strict=True))
    assert full == pytest.approx((report.high.tflops_full or 0) + (report.low.tflops_full or 0))
    assert run_with == pytest.approx((report.high.tflops or 0) + (report.low.tflops or 0))


def test_strategies(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["strategies"]) == 0
    assert f"self-duplicate  halfframe {halfframe.__version__}" in capsys.readouterr().out
    assert main(["strategies", "--json"]) == 0
    assert {"self-duplicate", "previous-odd"} <= {row["name"] for row in json.loads(capsys.readouterr().out)}


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    hosts = {host["pipeline"]: host for host in json.loads(capsys.readouterr().out)["hosts"]}
    for name in ("wan.text2video.WanT2V", "wan.image2video.WanI2V"):
        assert hosts[name]["verdict"] == "served"
        assert all(hosts[name]["seams"].values())
    dense = hosts["wan.textimage2video.WanTI2V"]
    assert dense["verdict"] == "refused: one model serves every timestep, so there is no expert switch"
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "wan22 2.2.3: served" in text
    assert "two experts: found" in text
    assert "MISSING" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "--size", "big"], "--size 'big' is no size; give width*height"),
        (["plan", "--size", "100*100"], "size 100x100 is not made of 16x16 pixel tokens"),
        (["plan", "--frame_num", "0"], "0 video frames is not 4n+1; use 1 or 5"),
        (["plan", "--sample_steps", "0"], "0 sampling steps are none"),
        (["plan", "--half_frame_strategy", "nope"], "no strategy is called 'nope'"),
        (["plan", "--half_frame_strategy", "interleave:size=3"], "size in 'interleave:size=3' is plan's own"),
        (["demo", "--threads", "0"], "--threads 0 cannot work; give 1 or more"),
        (["demo", "--seed", "-1"], "seeds [-1]; needed: integers from 0 to 2**63 - 1"),
        (["plan", "--frame_num", "48"], "48 video frames is not 4n+1; use 45 or 49"),
        (["plan", "--cfg_truncate_steps", "-1"], "cfg_truncate_steps=-1 is no number of steps"),
        (["plan", "--cfg_every", "0"], "cfg_every=0 is no number of steps; give an integer of 1 or more"),
        (["plan", "--boundary", "2"], "boundary 2.0 is outside 0..1"),
        (["plan", "--sample_shift", "-1"], "shift -1.0 is no positive number"),
        ([__file__, "--half_frame_strategy", "nope"], "no strategy is called 'nope'"),
        ([__file__, "--cfg_truncate_steps", "-2"], "cfg_truncate_steps=-2 is no number of steps"),
        ([__file__, "--cfg_every", "0"], "cfg_every=0 is no number of steps"),
        (["run", "nowhere.py", "--enable_half_frame_generation"], "nowhere.py is not there"),
        (["nowhere.py", "--cfg_truncate_steps", "1"], "nowhere.py is not there"),
        (["run", "generate.py"], "no flag of halfframe's was given"),
    ],
)
def test_errors_are_one_line_and_exit_code_1(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"halfframe: error: {message}")
    assert error.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "--help"], ["run", "--help"], ["run", "-h"]])
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
    assert "usage: halfframe" in capsys.readouterr().out


def test_flags_of_the_source() -> None:
    half, improved = "--enable_half_frame_generation", "--enable_improved_frame_completion"
    own = ["--task", "t2v-A14B", "--prompt", "x"]
    assert split_flags([half, *own])[0]["strategy"] == "self-duplicate"
    assert split_flags([*own, half, improved])[0]["strategy"] == "previous-odd"
    assert split_flags([*own, improved])[0]["strategy"] == "previous-odd"
    options, rest = split_flags(["--", *own, "--half_frame_strategy", "mine", "--cfg_truncate_steps", "5"])
    assert options == {
        "strategy": "mine",
        "cfg_truncate_steps": 5,
        "cfg_truncate_high_noise_steps": 0,
        "cfg_every": 1,
        "preload": False,
    }
    assert rest == own
    options, rest = split_flags([*own, "--cfg_every", "2"])
    assert (options["strategy"], options["cfg_every"], rest) == (None, 2, own)
    assert check_options(**options)[2].guidance.every == 2
    options, _ = split_flags([*own, "--half_frame_strategy", "interleave:stride=3,until=end"])
    assert (options["strategy"], options["stride"], options["until"]) == ("interleave", 3, "end")
    check_options(**options)
    for flags in (["--half_frame_preset", "fast"], [half, "--half_frame_preset", "fast"]):
        options, rest = split_flags([*own, *flags])
        assert (options["preset"], rest) == ("fast", own)
        strategy, _, settings = check_options(**options)
        assert strategy.name == PRESETS["fast"].strategy
        assert (settings.guidance.steps, settings.guidance.high_noise_steps) == PRESETS["fast"].guidance
    for flags in (["none", half], ["none:stride=3"], ["none", "--half_frame_preset", "fast"]):
        with pytest.raises(OptionError, match="computes every frame: it goes with no option and no other"):
            split_flags(["--cfg_truncate_steps", "2", "--half_frame_strategy", *flags])
    with pytest.raises(OptionError, match="--half_frame_preset fast names a strategy, and so does another flag"):
        split_flags(["--half_frame_preset", "fast", improved])
    with pytest.raises(OptionError, match="preset='slow' is unknown; needed: one of 'faithful', 'balanced', 'fast'"):
        split_flags(["--half_frame_preset", "slow"])
    options, rest = split_flags([*own, "--half_frame_preload"])
    assert (options["strategy"], options["preload"], rest) == (None, True, own)
    check_options(**options)
    with pytest.raises(OptionError, match=r"--task ti2v-5B has no .* nor an expert preloaded"):
        split_flags(["--task", "ti2v-5B", "--half_frame_preload"])
    with pytest.raises(OptionError, match="is the strategy previous-odd, but --half_frame_strategy mine was given"):
        split_flags([improved, "--half_frame_strategy", "mine"])
    with pytest.raises(OptionError, match="--task s2v-14B has no expert switch"):
        split_flags([half, "--task=s2v-14B"])
    assert split_flags(["--task", "ti2v-5B", "--cfg_truncate_steps", "2"])[0]["strategy"] is None


def test_a_plan_in_which_nothing_is_halved_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--frame_num", "1"]) == 0
    assert "nothing is halved: the clip has 1 latent frame" in capsys.readouterr().out


def test_doctor_survives_whatever_a_plugin_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("no GPU here")

    monkeypatch.setattr("halfframe.diagnosis.resolve_strategy", fail)
    assert main(["doctor"]) == 1
    assert "RuntimeError: no GPU here" in capsys.readouterr().out


def test_doctor_lists_a_host_that_cannot_be_diagnosed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Toy:
        name, serves = "toy", "a toy.Pipeline"

    monkeypatch.setattr("halfframe.diagnosis.installed_hosts", lambda _: (Toy(),))
    [found] = halfframe.doctor().hosts
    assert (found.pipeline, found.verdict) == ("a toy.Pipeline", "served, says its plugin")
