"""The official, unmodified ``WanT2V.generate`` with halfframe on, against a plain reference loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import halfframe
from halfframe.testing import import_wan

from .reference import duplicate, half_frame_latents

PROMPT = "a red ball rolls over stripes"
ARGS: dict[str, Any] = {"size": (48, 32), "frame_num": 17, "sampling_steps": 8, "shift": 12.0, "seed": 7}


def generate(pipe: Any, **changes: Any) -> Tensor:
    return pipe.generate(PROMPT, offload_model=False, **{**ARGS, **changes})


def reference(pipe: Any, **changes: Any) -> Tensor:
    with torch.no_grad():
        latents = half_frame_latents(pipe, import_wan("text2video"), PROMPT, **{**ARGS, **changes})
        return pipe.vae.decode([latents])[0]


class Calls:
    """A hook plugin that keeps what it is shown."""

    def __init__(self) -> None:
        self.calls: list[halfframe.ExpertCall] = []
        self.boundaries: list[halfframe.Boundary] = []
        self.reports: list[halfframe.Report] = []

    @halfframe.hookimpl
    def halfframe_expert_call(self, call: halfframe.ExpertCall) -> None:
        self.calls.append(call)

    @halfframe.hookimpl
    def halfframe_boundary(self, boundary: halfframe.Boundary) -> None:
        self.boundaries.append(boundary)

    @halfframe.hookimpl
    def halfframe_report(self, report: halfframe.Report) -> None:
        self.reports.append(report)


def spy(model: Any, seen: list[tuple[tuple[int, ...], int]]) -> Any:
    """Record what really reaches a model's forward; returns the handle that takes the spy off."""
    return model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((tuple(args[0][0].shape), kwargs["seq_len"])), with_kwargs=True
    )


@pytest.mark.parametrize("frame_num", [17, 21, 13, 5])
@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
@pytest.mark.parametrize("noise", ["full", "short"])
@pytest.mark.parametrize("strategy", ["self-duplicate", "previous-odd"])
def test_video_is_that_of_the_reference_loop(t2v: Any, frame_num: int, solver: str, noise: str, strategy: str) -> None:
    changes = {"frame_num": frame_num, "sample_solver": solver, "guide_scale": (3.0, 4.0)}
    expected = reference(t2v, short_noise=noise == "short", **changes)
    with halfframe.enabled(t2v, strategy, noise=noise):  # type: ignore[arg-type]
        video = generate(t2v, **changes)
    assert video.shape == (3, frame_num, 32, 48)
    torch.testing.assert_close(video, expected, rtol=0, atol=1e-6)


def test_plain_run_is_the_reference_loop_without_halving(t2v: Any) -> None:
    """The reference loop is upstream's own where nothing is halved; otherwise it would prove nothing."""
    assert torch.equal(generate(t2v), reference(t2v, half=False))


def test_halving_changes_the_video_and_full_noise_stays_closer(t2v: Any) -> None:
    plain = generate(t2v)
    with halfframe.enabled(t2v) as run:
        full = generate(t2v)
    assert run.report is not None
    assert run.report.saved
    assert not torch.equal(plain, full)


@pytest.mark.parametrize(("frame_num", "total", "kept"), [(17, 5, 3), (21, 6, 3), (5, 2, 1), (9, 3, 2)])
@pytest.mark.parametrize("sp_size", [1, 4])
def test_what_reaches_each_expert(t2v: Any, frame_num: int, total: int, kept: int, sp_size: int) -> None:
    t2v.sp_size = sp_size
    high: list[Any] = []
    low: list[Any] = []
    spy(t2v.high_noise_model, high)
    spy(t2v.low_noise_model, low)
    with halfframe.enabled(t2v, "self-duplicate") as run:
        generate(t2v, frame_num=frame_num)
    report = run.report
    assert report is not None
    tokens = 2 * 3
    padded = [-(-count * tokens // sp_size) * sp_size for count in (kept, total)]
    assert set(high) == {((16, kept, 4, 6), padded[0])}
    assert set(low) == {((16, total, 4, 6), padded[1])}
    assert len(high) == report.high.passes == 2 * report.high.steps
    assert len(low) == report.low.passes == 2 * report.low.steps
    assert report.steps == 8
    assert (report.high.latent_frames, report.high.sequence_lengths) == ((kept,), (padded[0],))
    assert (report.low.latent_frames, report.low.sequence_lengths) == ((total,), (padded[1],))


def test_report_has_the_table_of_the_source(t2v: Any) -> None:
    with halfframe.enabled(t2v, "merge") as run:
        generate(t2v, frame_num=49, sampling_steps=20, size=(16, 16))
    report = run.report
    assert report is not None
    assert (report.high.steps, report.low.steps) == (13, 7)
    assert (report.high.frame_steps_full, report.high.frame_steps) == (637, 325)
    assert (report.frame_steps_full, report.frame_steps) == (980, 668)
    assert f"{report.frame_steps_saved:.1%}" == "31.8%"


def test_many_different_runs_in_one_block(t2v: Any) -> None:
    runs: list[dict[str, Any]] = [
        {},
        {"size": (32, 32), "frame_num": 9},
        {"sample_solver": "dpm++", "sampling_steps": 5},
        {"shift": 5.0, "guide_scale": 3.0},
        {"sampling_steps": 12, "seed": 1},
    ]
    with halfframe.enabled(t2v, "self-duplicate") as run:
        videos = [generate(t2v, **changes) for changes in runs]
    assert len(run.reports) == len(runs)
    for changes, video in zip(runs, videos, strict=True):
        changes = {**changes}
        if "guide_scale" in changes:
            changes["guide_scale"] = (changes["guide_scale"],) * 2
        torch.testing.assert_close(video, reference(t2v, **changes), rtol=0, atol=1e-6)


def test_positional_arguments_and_defaults_are_generates_own(t2v: Any) -> None:
    with halfframe.enabled(t2v):
        by_position = t2v.generate(PROMPT, (48, 32), 17, 12.0, "unipc", 8, 5.0, "", 7, False)
        by_name = generate(t2v)
        assert t2v.generate.__doc__ == type(t2v).generate.__doc__
        with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
            generate(t2v, colour="red")
    assert torch.equal(by_position, by_name)


def test_schedule_that_never_reaches_the_low_noise_expert(t2v: Any) -> None:
    t2v.boundary = 0.0
    plugin = Calls()
    with halfframe.enabled(t2v, "self-duplicate", plugins=[plugin]) as run:
        video = generate(t2v)
    torch.testing.assert_close(video, reference(t2v), rtol=0, atol=1e-6)
    assert run.report is not None
    assert run.report.low.steps == 0
    assert run.report.switch_step is None
    [boundary] = plugin.boundaries
    assert (boundary.step, boundary.sigma) == (None, 0.0)


@pytest.mark.parametrize("noise", ["full", "short"])
def test_schedule_without_high_noise_step_is_a_plain_run(t2v: Any, noise: Any) -> None:
    t2v.boundary = 1.0
    plain = generate(t2v)
    with (
        halfframe.enabled(t2v, "self-duplicate", noise=noise) as run,
        pytest.warns(halfframe.HalfframeWarning, match="nothing was skipped: no timestep of the schedule reaches"),
    ):
        video = generate(t2v)
    assert torch.equal(video, plain)
    assert run.report is not None
    assert not run.report.saved


@pytest.mark.parametrize("noise", ["full", "short"])
def test_a_single_frame_is_a_plain_run(t2v: Any, noise: Any) -> None:
    plain = generate(t2v, frame_num=1)
    with (
        halfframe.enabled(t2v, "self-duplicate", noise=noise) as run,
        pytest.warns(halfframe.HalfframeWarning, match="the clip has 1 latent frame"),
    ):
        video = generate(t2v, frame_num=1)
    assert torch.equal(video, plain)
    assert run.report is not None
    assert "nothing was skipped" in str(run.report)


def test_boundary_is_seen_once_between_the_experts(t2v: Any) -> None:
    order: list[str] = []
    original = t2v._prepare_model_for_timestep

    def prepare(t: Any, boundary: float, offload_model: bool) -> Any:
        order.append("prepare high" if t.item() >= boundary else "prepare low")
        return original(t, boundary, offload_model)

    t2v._prepare_model_for_timestep = prepare

    class Order(Calls):
        @halfframe.hookimpl
        def halfframe_boundary(self, boundary: halfframe.Boundary) -> None:
            order.append("boundary")
            self.boundaries.append(boundary)

    plugin = Order()
    t2v.low_noise_model.register_forward_pre_hook(lambda *_: order.append("low runs"))
    with halfframe.enabled(t2v, "self-duplicate", plugins=[plugin]):
        generate(t2v)
    at = order.index("boundary")
    assert order.count("boundary") == 1
    assert order[at - 1 : at + 2] == ["prepare low", "boundary", "low runs"]
    [boundary] = plugin.boundaries
    assert boundary.frame_map.kept == (0, 2, 4)
    assert (boundary.sequence_length_before, boundary.sequence_length_after) == (18, 30)
    assert torch.equal(boundary.latents, duplicate(boundary.before[:, ::2], 5))
    assert boundary.step is not None
    high_steps = order.count("prepare high")
    assert boundary.step.index == high_steps
    sigmas = 12.0 * (s := torch.linspace(1, 0, 9)[:-1]) / (1 + 11 * s)  # the solver's own start is 0.999
    assert boundary.sigma == pytest.approx(float(sigmas[high_steps]), abs=2e-3)
    calls = [
        (call.step.expert, call.number, None if call.frame_map is None else call.frame_map.kept)
        for call in plugin.calls
    ]
    assert calls[:2] == [("high", 0, (0, 2, 4)), ("high", 1, (0, 2, 4))]
    assert calls[-1] == ("low", 1, None)
    assert len(plugin.reports) == 1


@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
def test_latents_rewritten_at_the_boundary_survive_the_solver(t2v: Any, solver: str) -> None:
    """UniPC's corrector rebuilds the sample from the one before; a rewrite must not be undone by it."""

    class Brighten:
        @halfframe.hookimpl
        def halfframe_boundary(self, boundary: halfframe.Boundary) -> None:
            boundary.latents = boundary.latents + 0.5

    expected = reference(t2v, sample_solver=solver, expand=lambda x, n: duplicate(x, n) + 0.5, restart=True)
    with halfframe.enabled(t2v, "self-duplicate", plugins=[Brighten()]):
        video = generate(t2v, sample_solver=solver)
    torch.testing.assert_close(video, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
def test_linear_function_takes_the_history_along(t2v: Any, solver: str) -> None:
    def blend(latents: Tensor, num_frames: int) -> Tensor:
        clip = duplicate(latents, num_frames).clone()
        for k in range(1, num_frames - 1, 2):
            clip[..., k, :, :] = (clip[..., k - 1, :, :] + clip[..., k + 1, :, :]) / 2
        return clip

    expected = reference(t2v, sample_solver=solver, expand=blend)
    with halfframe.enabled(t2v, blend) as run:
        video = generate(t2v, sample_solver=solver)
    assert run.strategy.name == "blend"
    torch.testing.assert_close(video, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
def test_function_that_is_not_linear_starts_the_solver_afresh(t2v: Any, solver: str) -> None:
    def offset(latents: Tensor, num_frames: int) -> Tensor:
        return duplicate(latents, num_frames) + 0.25

    expected = reference(t2v, sample_solver=solver, expand=offset, restart=True)
    with halfframe.enabled(t2v, offset):
        video = generate(t2v, sample_solver=solver)
    torch.testing.assert_close(video, expected, rtol=0, atol=1e-6)


def test_allocation_by_a_hook(t2v: Any) -> None:
    class Zeros:
        @halfframe.hookimpl
        def halfframe_allocate(self, allocation: halfframe.Allocation) -> Tensor:
            assert (allocation.shape, allocation.num_frames) == ((16, 5, 4, 6), 5)
            return torch.zeros(allocation.shape, dtype=allocation.dtype, device=allocation.device)

    with halfframe.enabled(t2v, plugins=[Zeros()]):
        once, again = generate(t2v, seed=1), generate(t2v, seed=2)
    assert torch.equal(once, again)


def test_strategy_that_carries_and_chooses_for_itself(t2v: Any) -> None:
    """Full-length latents, another frame map at every step, with its own way back: what comes after duplication."""
    steps: list[halfframe.Step] = []

    class Alternate(halfframe.Strategy):
        name = "alternate"

        def move(self, step: halfframe.Step) -> halfframe.FrameMap | None:
            steps.append(step)
            if step.expert == "low":
                return None
            kept = [0, 2, 4] if step.expert_index % 2 == 0 else [0, 1, 3]
            up = [[float(frame == other) for other in kept] for frame in range(5)]
            for weights in up:  # a frame that is not computed shows the mean of those that are
                weights[:] = weights if sum(weights) else [1 / 3] * 3
            down = tuple(tuple(float(frame == other) for frame in range(5)) for other in kept)
            return halfframe.FrameMap(down, tuple(map(tuple, up)), tuple(map(float, kept)), "mine")

    seen: list[Any] = []
    spy(t2v.high_noise_model, seen)
    with halfframe.enabled(t2v, Alternate()) as run:
        video = generate(t2v)
    assert video.shape == (3, 17, 32, 48)
    assert {shape for shape, _ in seen} == {(16, 3, 4, 6)}
    assert [step.index for step in steps] == list(range(8))
    assert steps[0].sigma == pytest.approx(0.9999, abs=1e-3)
    assert run.report is not None
    assert run.report.saved


def test_measured_seconds_on_request(t2v: Any) -> None:
    with halfframe.enabled(t2v) as run:
        generate(t2v)
    assert run.report is not None
    assert run.report.high.seconds is None
    with halfframe.enabled(t2v, measure=True) as run:
        generate(t2v)
    report = run.report
    assert report is not None
    assert report.high.seconds is not None
    assert 0 < report.high.seconds < report.total_seconds


def test_one_log_line_per_run(t2v: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="halfframe"), halfframe.enabled(t2v, "merge"):
        generate(t2v)
    infos = [record for record in caplog.records if record.levelname == "INFO"]
    assert len(infos) == 1
    assert "merge on wan: 6 high-noise steps on 3 of 5 latent frames" in infos[0].getMessage()


def test_a_fork_that_makes_one_pass_per_step(t2v: Any) -> None:
    """wan22 2.2.11 skips the unconditional forward pass when its switch `lightning` is set."""
    if "lightning" not in type(t2v).generate.__code__.co_names:
        pytest.skip("this version of wan always makes two forward passes per step")
    t2v.lightning = True
    seen: list[Any] = []
    spy(t2v.high_noise_model, seen)
    spy(t2v.low_noise_model, seen)
    with halfframe.enabled(t2v, "merge") as run:
        video = generate(t2v)
    assert video.shape == (3, 17, 32, 48)
    assert [shape[1] for shape, _ in seen] == [3] * 6 + [5] * 2
    assert run.report is not None
    assert (run.report.high.passes, run.report.low.passes) == (6, 2)
