"""Commands, their output, and what is said when something is wrong."""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

import halfframe
from halfframe.cli import main
from halfframe.cli.flags import split_flags
from halfframe.cli.main import COMMANDS, command_parser
from halfframe.errors import OptionError
from halfframe.plugins.configuration import configure
from halfframe.report.cost import ExpertShape
from halfframe.testing import import_wan

HALF = ["--strategy", "self-duplicate"]


def test_plan_prints_the_table_of_the_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--size", "832*480", "--frame_num", "49", "--sample_steps", "20", *HALF]) == 0
    text = capsys.readouterr().out
    for figure in ("637 -> 325", "343 -> 343", "980 -> 668", "31.8%", "moves: 13 x self-duplicate, 7 x full"):
        assert figure in text


def test_plan_predicts_seconds_on_one_h200(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "--size", "832*480", "--frame_num", "49", "--sample_steps", "20", *HALF]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    # 40 forward passes of 2.141 s; 26 of them on 7 of 13 frames, 1.008 s: the rates' own figures
    assert "85.6 -> 56.2" in text.splitlines()[4]
    assert "GPU-hours per 1,000 clips on H200s 23.8 -> 15.6" in text
    assert main([*arguments, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["predicted_speedup"] == pytest.approx(40 * 2.141 / (26 * 1.008 + 14 * 2.141), rel=1e-3)
    assert data["seconds"] == pytest.approx([85.6, 56.2], abs=0.1)
    assert data["gpu_hours_per_1000_clips"] == pytest.approx([85.6 / 3.6, 56.2 / 3.6], abs=0.05)


@pytest.mark.parametrize(("asked", "official", "diffusers"), [(48, 45, 49), (80, 77, 81), (50, 49, 49)])
def test_plan_takes_the_video_frames_that_hosts_take(
    asked: int, official: int, diffusers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def planned(frames: int) -> dict[str, Any]:
        assert main(["plan", "--json", "--frame_num", str(frames)]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    found, made = planned(asked), planned(official)
    assert found.pop("frames_note") == (
        f"{asked} video frames are not 4n+1: the official package makes {official}, which is planned here; diffusers "
        f"makes {diffusers}"
    )
    assert made.pop("frames_note") == ""
    assert found == made
    assert main(["plan", "--frame_num", str(asked)]) == 0
    assert f"{official} video frames" in capsys.readouterr().out


def test_plan_takes_a_strategys_options(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "--sample_steps", "20", "--strategy", "interleave:stride=4,full_start=1"]
    assert main(arguments) == 0
    assert "21 -> 6/21" in capsys.readouterr().out
    assert main([*arguments[:-1], "interleave:strides=4"]) == 1
    assert "does not fit strides=4" in capsys.readouterr().err


def test_plan_of_a_recipe(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    halfframe.Recipe(("full", "merge:2", "merge:2+cond", "reuse", "full+cond")).save(path)
    arguments = ["plan", "--json", "--strategy", str(path)]
    assert main([*arguments, "--sample_steps", "5"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["moves"] == ["full", "merge:2", "merge:2+cond", "reuse", "full+cond"]
    assert (data["high"]["passes"], data["low"]["passes"]) == (2 + 2 + 1 + 0, 1)
    assert main([*arguments, "--sample_steps", "6"]) == 1
    assert "the recipe is for 5 steps, but the schedule has 6" in capsys.readouterr().err
    assert main([*arguments, "--sample_steps", "5", "--cfg_every", "2"]) == 1
    assert "says for each step what becomes of guidance" in capsys.readouterr().err


def test_plan_of_all_frames_with_less_guidance(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--sample_steps", "20", "--strategy", "none", "--cfg_truncate_steps", "5", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["frame_steps"], data["high"]["passes"], data["low"]["passes"]) == (20 * 81, 26, 9)
    assert main(["plan", "--sample_steps", "4", "--no-guidance", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["high"]["passes_full"] + data["low"]["passes_full"] == 4


def test_plan_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "--size", "832x480", "--frame_num", "49", "--sample_steps", "20", "--json", *HALF]
    assert main([*arguments, "--cfg_truncate_steps", "5", "--cfg_truncate_high_noise_steps", "3"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["frame_steps_full"], data["frame_steps"]) == (980, 668)
    assert (data["high"]["passes"], data["low"]["passes"]) == (23, 9)
    assert data["high"]["sequence_lengths"] == [7 * 52 * 30]
    assert data["moves"] == ["self-duplicate"] * 10 + ["self-duplicate+cond"] * 3 + ["full"] * 2 + ["full+cond"] * 5


def test_plan_with_guidance_at_every_third_step(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "--frame_num", "49", "--sample_steps", "20", "--json", "--cfg_every", "3"]
    assert main(arguments) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["high"]["passes"], data["high"]["passes_full"]) == (13 + 5, 26)  # steps 0, 3, 6, 9 and 12
    assert (data["low"]["passes"], data["low"]["passes_full"]) == (7 + 3, 14)  # 0, 3 and 6 of its own
    assert main([*arguments, "--cfg_truncate_high_noise_steps", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["high"]["passes"] == 13 + 4


@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
@pytest.mark.parametrize("steps", [1, 4, 8, 20, 40, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 12.0])
def test_plan_splits_as_the_real_schedulers_do(solver: Any, steps: int, shift: float) -> None:
    plan = halfframe.plan(sampling_steps=steps, shift=shift, sample_solver=solver, frame_num=9, size=(32, 32))
    timesteps = _upstream_timesteps(solver, steps, shift)
    high = sum(timestep >= 875 for timestep in timesteps)
    assert (plan.report.high.steps, plan.report.low.steps) == (high, steps - high)


def _upstream_timesteps(solver: str, steps: int, shift: float) -> list[float]:
    """Those of the schedulers that `generate` builds, in its own way."""
    if solver == "unipc":
        cls = import_wan("utils.fm_solvers_unipc").FlowUniPCMultistepScheduler
        unipc = cls(num_train_timesteps=1000, shift=1, use_dynamic_shifting=False)
        unipc.set_timesteps(steps, device="cpu", shift=shift)
        return [float(timestep) for timestep in unipc.timesteps]
    module = import_wan("utils.fm_solvers")
    dpm = module.FlowDPMSolverMultistepScheduler(num_train_timesteps=1000, shift=1, use_dynamic_shifting=False)
    timesteps, _ = module.retrieve_timesteps(dpm, device="cpu", sigmas=module.get_sampling_sigmas(steps, shift))
    return [float(timestep) for timestep in timesteps]


@pytest.mark.parametrize("strategy", ["self-duplicate", "merge:stride=3", "interleave:full_start=1,until=end"])
@pytest.mark.parametrize("every", [1, 2, 5])
def test_plan_counts_what_a_real_run_reports(t2v: Any, every: int, strategy: str) -> None:
    """The planned figures are those of a run: same frame-steps, tokens, forward passes and seconds."""
    guidance = halfframe.Guidance(skip_last=1, skip_last_high=2, every=every)
    with halfframe.enabled(t2v, strategy, guidance=guidance) as run:
        t2v.generate("a", size=(48, 32), frame_num=21, sampling_steps=8, shift=12.0, offload_model=False)
    report = run.report
    assert report is not None
    model = t2v.high_noise_model
    plan = halfframe.plan(
        size=(48, 32),
        frame_num=21,
        sampling_steps=8,
        expert_shape=ExpertShape(model.dim, model.ffn_dim, model.num_layers, model.text_len),
        strategy=strategy,
        guidance=guidance,
    )
    assert (plan.report.high, plan.report.low) == (report.high, report.low)
    assert plan.report.moves == report.moves
    assert plan.predicted_speedup == report.predicted_speedup
    assert plan.seconds[1] == (report.high.predicted_seconds or 0) + (report.low.predicted_seconds or 0)


def test_strategies(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["strategies"]) == 0
    text = capsys.readouterr().out
    assert "interleave: Computes different frames at each step" in text
    assert f"[halfframe {halfframe.__version__}]\n    used by default as interleave:until=0.99\ninterpolate:" in text
    assert text.count("used by default") == 1
    assert f"    options: noise=full  [halfframe {halfframe.__version__}]" in text
    assert all(len(line) <= 130 for line in text.splitlines())
    assert main(["strategies", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {"self-duplicate", "previous-odd", "merge"} <= set(rows)
    assert {name: row["default"] for name, row in rows.items() if row["default"]} == {
        "interleave": halfframe.DEFAULT_STRATEGY
    }
    assert rows["merge"]["options"] == {
        "stride": 2,
        "full_start": 0,
        "full_end": 0,
        "until": "switch",
        "positions": "true",
    }
    for name, row in rows.items():
        assert row["summary"].endswith("."), name


def test_strategies_of_others(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    entries = [EntryPoint(name, f"{__name__}:{name}", "halfframe.strategies") for name in ("_plain", "_absent")]
    monkeypatch.setattr("halfframe.plugins.descriptions.entries", lambda _: entries)
    assert main(["strategies"]) == 0
    text = capsys.readouterr().out
    assert "_plain: Repeats frames.\n    options: noise=full, strength=(required), soft=True" in text
    assert "_absent: plugin '_absent'" in text
    assert "cannot be imported: AttributeError" in text


def _plain(latents: Any, num_frames: int, *, strength: float, soft: bool = True) -> Any:
    """Repeats frames.

    More than one line is not shown.
    """


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
    assert text.startswith(f"halfframe {halfframe.__version__}, torch ")
    assert "wan22 2.2.3: served" in text
    assert "two experts: found" in text
    assert "MISSING" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "--size", "big"], "--size must be width*height in pixels, such as 832*480, got 'big'"),
        (["plan", "--size", "100*100"], "size must be in multiples of 16 pixels, got 100x100"),
        (["plan", "--frame_num", "0"], "video_frames is 0; a clip has at least 1 frame"),
        (["plan", "--sample_steps", "0"], "sampling_steps must be an integer >= 1, got 0"),
        (["plan", "--strategy", "nope"], "no strategy is called 'nope'"),
        (["plan", "--strategy", "merge:plugins=3"], "plugins in 'merge:plugins=3' is not an option of a strategy"),
        (["plan", "--strategy", "nowhere.json"], "recipe nowhere.json cannot be read: No such file"),
        (["plan", "--cfg_truncate_steps", "-1"], "Guidance: skip_last must be an integer >= 0, got -1"),
        (["plan", "--cfg_every", "0"], "Guidance: every must be an integer >= 1, got 0"),
        (["plan", "--boundary", "2"], "boundary must be in 0..1, got 2.0"),
        (["plan", "--sample_shift", "-1"], "shift must be a positive number, got -1.0"),
        (["demo", "--threads", "0"], "--threads must be 1 or more, got 0"),
        (["demo", "--repeat", "0"], "--repeat must be 1 or more, got 0"),
        (["demo", "--sample_steps", "4", "0"], "--sample_steps must be 1 or more each, got 0"),
        (["demo", "--sample_steps", "--no-lora"], "--sample_steps has no number and --no-lora is given"),
        (["demo", "--frame_num", "6"], "6 video frames is not 4n+1; use 5 or 9"),
        (["demo", "--strategy", "interleav"], "no strategy is called 'interleav'"),
        (["demo", "--seed", "-1"], "seeds [-1]; needed: integers from 0 to 2**63 - 1"),
        (["run", __file__, "--strategy", "nope"], "no strategy is called 'nope'"),
        (["run", __file__, "--strategy", "nowhere.json"], "recipe nowhere.json cannot be read"),
        (["run", __file__, "--cfg_truncate_steps", "-2"], "Guidance: skip_last must be an integer >= 0, got -2"),
        (["run", __file__, "--cfg_every", "0"], "Guidance: every must be an integer >= 1, got 0"),
        (["run", "nowhere.py", "--enable_half_frame_generation"], "nowhere.py is not there"),
        (["run", "nowhere.py", "--cfg_truncate_steps", "1"], "nowhere.py is not there"),
        (["run", "nowhere.py"], "nowhere.py is not there"),
        (["run", __file__], "no flag of halfframe's was given"),
    ],
)
def test_errors_are_one_line_and_exit_code_1(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [arguments]
    if arguments[0] == "run":
        lines.append(arguments[1:])  # the script's path is enough
    for line in lines:
        assert main(line) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"halfframe {arguments[0]}: error: {message}")
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["plan", "--strategy", "interleav"], "'interleave'"),
        (["plan", "--strategy", "Merge"], "'merge'"),
        (["plan", "--strategy", "self_duplicate"], "'self-duplicate'"),
        (["plan", "--strategy", "merge:strides=3"], "'stride'"),
        ([__file__, "--strategy", "interleav"], "'interleave'"),
        ([__file__, "--strateg", "merge"], "'--strategy'"),
        ([__file__, "--stratgy=merge"], "'--strategy'"),
        ([__file__, "--cfg_truncate_stebs", "3"], "'--cfg_truncate_steps'"),
        ([__file__, "--enable_improved_frame_completio"], "'--enable_improved_frame_completion'"),
    ],
)
def test_did_you_mean(arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    assert capsys.readouterr().err.endswith(f"Did you mean {hint}?\n")


@pytest.mark.parametrize(
    ("arguments", "usage", "hint"),
    [
        (["plan", "--sample_step", "3"], "usage: halfframe plan", "'--sample_steps'"),
        (["plan", "--frame-num", "3"], "usage: halfframe plan", "'--frame_num'"),
        (["compare", "--strateg", "merge"], "usage: halfframe compare", "'--strategy'"),
        (["demo", "--stratgy=merge"], "usage: halfframe demo", "'--strategy'"),
        (["doctor", "--jsn"], "usage: halfframe doctor", "'--json'"),
        (["plam"], "usage: halfframe", "'plan'"),
        (["strategy"], "usage: halfframe", "'strategies'"),
    ],
)
def test_wrong_arguments_are_told_under_the_commands_usage(
    arguments: list[str], usage: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(usage)
    assert error.endswith(f"Did you mean {hint}?\n")


@pytest.mark.parametrize("strategy", ["merge:cfg_truncate=3", "cfg_truncate"])
def test_cfg_truncate_is_neither_strategy_nor_option(strategy: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--strategy", strategy]) == 1
    error = capsys.readouterr().err
    assert error.endswith("halfframe.Guidance(skip_last=N), or the flag --cfg_truncate_steps N.\n")
    assert "Did you mean" not in error


@pytest.mark.parametrize("arguments", [[], ["--sample_steps", "3"]])
def test_without_a_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: halfframe" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_help(command: str) -> None:
    parser = command_parser(command)
    for action in parser._actions:
        assert action.help, action
        assert action.help is not argparse.SUPPRESS, action
    assert parser.description
    assert parser.prog == f"halfframe {command}"


def test_version_and_help_import_no_torch() -> None:
    code = (
        "import sys\nfrom halfframe.cli import main\n"
        "for line in (['--version'], ['--help'], ['plan', '--help'], ['run', '--help'], ['strategies', '-h'],"
        " ['doctor', '-h'], ['compare', '--help'], ['tune', '--help'], ['demo', '--help'], ['plam']):\n"
        "    try: main(line)\n"
        "    except SystemExit: pass\n"
        "    assert 'torch' not in sys.modules, line\n"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert finished.returncode == 0, finished.stderr
    assert f"halfframe {halfframe.__version__}" in finished.stdout


def test_output_that_is_not_read_to_its_end() -> None:
    command = [sys.executable, "-m", "halfframe", "strategies"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_a_demo_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert main(["demo"]) == 1
    assert capsys.readouterr().err == (
        "halfframe demo: error: this command comes with halfframe-tinywan, which is not installed; in a checkout of "
        "halfframe: pip install ./examples/halfframe-tinywan\n"
    )


def test_a_package_that_a_command_imports_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(_: str) -> Any:
        raise ModuleNotFoundError("No module named 'skimage'", name="skimage")

    monkeypatch.setattr("importlib.import_module", missing)
    assert main(["compare", "--tiny"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("halfframe compare: error: skimage is needed for this command, but is not installed")
    assert error.endswith("pip install 'halfframe[compare]'\n")


def test_the_name_of_a_model_is_to_be_loaded_first() -> None:
    with pytest.raises(halfframe.UnsupportedPipelineError, match=r"'Wan-AI/Wan2\.2-T2V-A14B' is a name; load the pipe"):
        halfframe.enabled("Wan-AI/Wan2.2-T2V-A14B")


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
    options, rest = split_flags(["--", *own, "--strategy", "mine", "--cfg_truncate_steps", "5"])
    assert options == {"strategy": "mine", "guidance": halfframe.Guidance(skip_last=5)}
    assert rest == own
    options, rest = split_flags([*own, "--cfg_truncate_high_noise_steps", "3", "--cfg_every", "2"])
    assert (options["strategy"], rest) == (None, own)
    assert options["guidance"] == halfframe.Guidance(skip_last_high=3, every=2)
    assert configure(**options).guidance == options["guidance"]
    options, _ = split_flags([*own, "--strategy", "interleave:stride=3,until=end"])
    strategy = configure(**options).strategy
    assert isinstance(strategy, halfframe.Interleave)
    assert (strategy.stride, strategy.until) == (3, "end")
    options, _ = split_flags([*own, "--strategy", "recipe.json"])
    assert options["strategy"] == "recipe.json"
    for flags in (["none", half], ["none:stride=3"], ["none", improved]):
        with pytest.raises(OptionError, match="computes every frame: it goes with no option and no other"):
            split_flags(["--cfg_truncate_steps", "2", "--strategy", *flags])
    with pytest.raises(OptionError, match="is the strategy previous-odd, but --strategy mine was given"):
        split_flags([improved, "--strategy", "mine"])
    with pytest.raises(OptionError, match="--task s2v-14B has no expert switch"):
        split_flags([half, "--task=s2v-14B"])
    assert split_flags(["--task", "ti2v-5B", "--cfg_truncate_steps", "2"])[0]["strategy"] is None


def test_a_plan_in_which_nothing_is_skipped_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--frame_num", "1"]) == 0
    assert "nothing is skipped in time: the clip has 1 latent frame" in capsys.readouterr().out


def test_doctor_survives_whatever_a_plugin_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("no GPU here")

    monkeypatch.setattr("halfframe.hosts.doctor.resolve_strategy", fail)
    assert main(["doctor"]) == 1
    assert "RuntimeError: no GPU here" in capsys.readouterr().out


def test_doctor_lists_a_host_that_cannot_be_diagnosed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Toy:
        name, serves = "toy", "a toy.Pipeline"

    monkeypatch.setattr("halfframe.hosts.doctor.installed_hosts", lambda _: (Toy(),))
    [found] = halfframe.doctor().hosts
    assert (found.pipeline, found.verdict) == ("a toy.Pipeline", "served, says its plugin")


def test_doctor_where_nothing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name in ("wan", "diffusers") else find_spec(name)
    )
    monkeypatch.setattr("halfframe.hosts.doctor.strategies", lambda: ())
    diagnosis = halfframe.doctor()
    assert diagnosis.sound
    _, *lines = str(diagnosis).splitlines()
    assert lines[:4] == [
        "hosts",
        "  wan is not installed; pip install 'halfframe[wan]'",
        "  diffusers is not installed; pip install 'halfframe[diffusers]'",
        "  no pipeline is here that could be made faster: install one of the above",
    ]
    assert "MISSING" not in str(diagnosis)
    assert "  none is registered, so none can be used by name" in str(diagnosis)
