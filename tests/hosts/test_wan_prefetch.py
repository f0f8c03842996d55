"""``enabled(pipe, prefetch=True)`` on upstream's own loop and its own moves of the experts, on a simulated GPU."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import halfframe
from halfframe.hosts import placement
from halfframe.offload import prefetch
from halfframe.offload.staging import Copying
from halfframe.testing import tiny_wan_t2v

from ..offload.test_residency import FullyShardedDataParallel, state
from ..simulated import SimulatedAccelerator, copying_threads, device, put_on
from .test_wan_nothing_leaks import FailAt
from .test_wan_t2v import ARGS, PROMPT

__all__ = ["device"]  # a fixture

EXPERTS = ("high_noise_model", "low_noise_model")
STEPS = {"sampling_steps": 5}  # 4 of the high-noise expert, 1 of the low-noise one
RESERVE = 1000


@pytest.fixture
def pipe(device: SimulatedAccelerator, t2v: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A real ``WanT2V`` whose experts wait on the host, with some memory to take in a forward."""
    monkeypatch.setattr(prefetch, "GPU_RESERVE", RESERVE)
    put_on(t2v, device)
    device.activations = 1000
    before = [set(vars(getattr(t2v, name))) for name in EXPERTS]
    yield t2v
    assert [set(vars(getattr(t2v, name))) for name in EXPERTS] == before  # no `to` or `cpu` is left behind


def generate(pipe: Any, **changes: Any) -> Tensor:
    return pipe.generate(PROMPT, **{**ARGS, **STEPS, "offload_model": True, **changes})


def states(pipe: Any) -> list[dict[str, Any]]:
    return [state(getattr(pipe, name)) for name in EXPERTS]


def nbytes(pipe: Any, name: str = "low_noise_model") -> int:
    return sum(p.numel() * p.element_size() for _, p in getattr(pipe, name).named_parameters())


def plain(pipe: Any, strategy: Any = None, **changes: Any) -> Tensor:
    """The video of a run without prefetch, on experts that do not share memory with the pipeline's."""
    other = tiny_wan_t2v(boundary=pipe.boundary)
    if strategy is None:
        return other.generate(PROMPT, **{**ARGS, **STEPS, "offload_model": False, **changes})
    with halfframe.enabled(other, strategy):
        return other.generate(PROMPT, **{**ARGS, **STEPS, "offload_model": False, **changes})


def test_upstreams_own_run_copies_back(pipe: Any, device: SimulatedAccelerator) -> None:
    """The simulation is of what prefetch is for; otherwise it would prove nothing."""
    before = states(pipe)
    assert torch.equal(generate(pipe), plain(pipe))
    moves = [entry for entry in device.log if "own copy" in entry]
    assert moves == ["high: own copy in", "high: own copy out", "low: own copy in", "low: own copy out"]
    assert states(pipe) != before


@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
@pytest.mark.parametrize("strategy", [None, "self-duplicate", "interleave"])
def test_same_videos_and_nothing_copied_back(
    pipe: Any, device: SimulatedAccelerator, solver: str, strategy: str | None
) -> None:
    before = states(pipe)
    runs: list[dict[str, Any]] = [
        {"sample_solver": solver},
        {"sample_solver": solver, "seed": 1, "frame_num": 9},
        {"sample_solver": solver, "sampling_steps": 8},
    ]
    with halfframe.enabled(pipe, strategy, prefetch=True) as run:
        videos = []
        for changes in runs:
            videos.append(generate(pipe, **changes))
            assert states(pipe) == before
            assert device.in_use == 0
    for changes, video in zip(runs, videos, strict=True):
        assert torch.equal(video, plain(pipe, strategy, **changes))
    assert not [entry for entry in device.log if "own copy" in entry]
    assert [report.prefetch for report in run.reports] == ["overlapped"] * 3
    assert device.log.count("join") == 3
    assert states(pipe) == before


def test_when_the_low_noise_expert_comes_in(pipe: Any, device: SimulatedAccelerator) -> None:
    """As soon as one forward has shown what memory it takes; joined when the high-noise expert has left."""
    with halfframe.enabled(pipe, None, prefetch=True):
        generate(pipe)
    high, low = ["high forward"], ["low forward"]
    assert device.log == ["copy", *high, "copy aside", *high * 7, "give back", "join", *low * 2, "give back"]


def test_image_to_video(device: SimulatedAccelerator, i2v: Any) -> None:
    image = np.zeros((32, 48, 3), dtype=np.uint8)
    arguments: dict[str, Any] = {"max_area": 32 * 48, "frame_num": 81, "sampling_steps": 4, "shift": 5.0, "seed": 3}
    expected = i2v.generate(PROMPT, image, offload_model=False, **arguments)
    put_on(i2v, device)
    with halfframe.enabled(i2v, None, prefetch=True) as run:
        assert torch.equal(i2v.generate(PROMPT, image, offload_model=True, **arguments), expected)
    assert run.report is not None
    assert run.report.prefetch == "overlapped"
    assert not [entry for entry in device.log if "own copy" in entry]


def test_never_both_experts_without_room(pipe: Any, device: SimulatedAccelerator) -> None:
    """For any size of the device: within it, the same video, and overlapped exactly by the rule."""
    expert, activations = nbytes(pipe), 5 * device.activations
    expected, upstreams_peak = plain(pipe), expert + activations
    for capacity in (upstreams_peak, upstreams_peak + expert + RESERVE - 1, upstreams_peak + expert + RESERVE):
        device.capacity, device.peak = capacity, 0
        with halfframe.enabled(pipe, None, prefetch=True) as run:
            assert torch.equal(generate(pipe), expected)
        assert run.report is not None
        if capacity < upstreams_peak + expert + RESERVE:
            assert device.peak == upstreams_peak
            assert run.report.prefetch == "at the switch: 0.0 GiB of device memory are free, 0.0 are needed"
        else:
            assert device.peak == upstreams_peak + expert
            assert run.report.prefetch == "overlapped"
    assert not [entry for entry in device.log if "own copy" in entry]


def test_a_later_step_that_needs_more_memory_is_waited_for(pipe: Any, device: SimulatedAccelerator) -> None:
    class LastInFull(halfframe.Strategy):
        name = "last in full"

        def move(self, step: halfframe.Step) -> halfframe.FrameMap | None:
            if step.expert == "high" and step.expert_index < step.expert_steps - 1:
                return halfframe.FrameMap.select((0, 2, 4), 5)
            return None

    expected = plain(pipe, LastInFull())
    with halfframe.enabled(pipe, LastInFull(), prefetch=True) as run:
        assert torch.equal(generate(pipe), expected)
        at = device.log.index("copy aside")
        assert device.log[:at].count("high forward") == 7  # the first forward of the last of four steps
        device.capacity = 2 * nbytes(pipe) + 3 * device.activations + RESERVE  # both, but not both and a full forward
        assert torch.equal(generate(pipe), expected)
    assert [report.prefetch for report in run.reports] == [
        "overlapped",
        "at the switch: 0.0 GiB of device memory are free, 0.0 are needed",
    ]


@pytest.mark.parametrize("trouble", ["memory", "buffers", "copying"])
def test_copies_aside_that_fail_cost_nothing_but_the_overlap(
    pipe: Any, device: SimulatedAccelerator, trouble: str
) -> None:
    """Still nothing is copied back, the expert comes in at the switch, and a warning says why."""
    expected, before = plain(pipe), states(pipe)
    if trouble == "memory":
        device.stage_fails, reason = True, "OutOfMemoryError: simulated"
    elif trouble == "buffers":
        device.nothing_page_locked = reason = "3 MiB of host memory are available, 256 are needed"
    else:
        device.sends_left, reason = 20, "simulated: copying failed"
    with (
        halfframe.enabled(pipe, None, prefetch=True) as run,
        pytest.warns(halfframe.HalfframeWarning, match=f"prefetch at the switch: {reason}"),
    ):
        assert torch.equal(generate(pipe), expected)
    assert device.log.count("copy aside") == 1  # not tried again with every forward
    assert not [entry for entry in device.log if "own copy" in entry]
    assert states(pipe) == before
    assert run.report is not None
    assert run.report.prefetch == f"at the switch: {reason}"


def test_copies_aside_are_tried_again_in_the_next_run(pipe: Any, device: SimulatedAccelerator) -> None:
    device.nothing_page_locked = "not yet"
    with halfframe.enabled(pipe, None, prefetch=True) as run:
        with pytest.warns(halfframe.HalfframeWarning, match="prefetch at the switch: not yet"):
            generate(pipe)
        device.nothing_page_locked = ""
        generate(pipe)
    assert [report.prefetch for report in run.reports] == ["at the switch: not yet", "overlapped"]


def test_a_single_high_noise_step_is_enough(pipe: Any) -> None:
    pipe.boundary = 0.9
    changes: dict[str, Any] = {"sampling_steps": 2, "shift": 2.0}
    expected = plain(pipe, **changes)
    with halfframe.enabled(pipe, None, prefetch=True) as run:
        assert torch.equal(generate(pipe, **changes), expected)
    assert run.report is not None
    assert (run.report.high.steps, run.report.low.steps, run.report.prefetch) == (1, 1, "overlapped")


def test_fsdp_is_off_with_a_warning(pipe: Any, device: SimulatedAccelerator) -> None:
    wrapped = pipe.low_noise_model
    expected = plain(pipe, halfframe.DEFAULT_STRATEGY)

    class Wrapper(FullyShardedDataParallel):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.module(*args, **kwargs)

        def parameters(self, recurse: bool = True) -> Any:
            return self.module.parameters()

        def to(self, *args: Any, **kwargs: Any) -> Any:
            return self.module.to(*args, **kwargs)

        def cpu(self) -> Any:
            return self.module.cpu()

    Wrapper.__name__ = "FullyShardedDataParallel"
    pipe.low_noise_model = Wrapper(wrapped)
    with (
        halfframe.enabled(pipe, prefetch=True) as run,
        pytest.warns(
            halfframe.HalfframeWarning,
            match="prefetch off: the low-noise expert's FullyShardedDataParallel is sharded by FSDP",
        ),
    ):
        assert torch.equal(generate(pipe), expected)
    pipe.low_noise_model = wrapped
    assert [entry for entry in device.log if "own copy out" in entry] == ["high: own copy out", "low: own copy out"]
    assert run.report is not None
    assert str(run.report.prefetch).startswith("off: ")


def test_a_pipeline_without_gpu_is_off_with_a_warning(t2v: Any) -> None:
    expected = plain(t2v)
    with (
        halfframe.enabled(t2v, None, prefetch=True) as run,
        pytest.warns(halfframe.HalfframeWarning, match="prefetch off: the pipeline is on cpu"),
    ):
        assert torch.equal(generate(t2v, offload_model=False), expected)
    assert run.report is not None
    assert run.report.prefetch == "off: the pipeline is on cpu, so there is no device memory to bring experts into"


@pytest.mark.parametrize("boundary", [0.0, 1.0])
def test_a_schedule_without_switch(pipe: Any, device: SimulatedAccelerator, boundary: float) -> None:
    pipe.boundary = boundary
    before, expected = states(pipe), plain(pipe)
    with (
        halfframe.enabled(pipe, None, prefetch=True),
        pytest.warns(halfframe.HalfframeWarning, match="prefetch off: the run had no expert switch"),
    ):
        assert torch.equal(generate(pipe), expected)
    assert "copy aside" not in device.log
    assert states(pipe) == before


def test_experts_that_the_pipeline_does_not_move(pipe: Any, device: SimulatedAccelerator) -> None:
    expected = plain(pipe)
    pipe.init_on_cpu = False
    for name in EXPERTS:
        getattr(pipe, name).to(pipe.device)
    before = states(pipe)
    device.log.clear()
    with (
        halfframe.enabled(pipe, None, prefetch=True),
        pytest.warns(halfframe.HalfframeWarning, match="off: the pipeline did not bring the low-noise expert in"),
    ):
        assert torch.equal(generate(pipe, offload_model=False), expected)
    assert states(pipe) == before
    assert set(device.log) == {"high forward", "low forward"}


def test_experts_on_the_device_get_their_host_copies_once(pipe: Any, device: SimulatedAccelerator) -> None:
    """Built without ``init_on_cpu`` and run with ``offload_model``: upstream takes them out, we keep what it made."""
    expected = plain(pipe)
    pipe.init_on_cpu = False
    for name in EXPERTS:
        getattr(pipe, name).to(pipe.device)
    device.log.clear()
    with halfframe.enabled(pipe, None, prefetch=True) as run:
        for _ in range(3):
            assert torch.equal(generate(pipe), expected)
    assert [entry for entry in device.log if "own copy" in entry] == ["low: own copy out", "high: own copy out"]
    assert [report.prefetch for report in run.reports] == ["overlapped"] * 3
    assert device.in_use == 0


def test_the_low_noise_expert_stays_on_the_device_where_upstream_leaves_it(
    pipe: Any, device: SimulatedAccelerator
) -> None:
    """``init_on_cpu`` without ``offload_model``: it leaves when the next run begins, for nothing if it is unchanged."""
    expected, before = plain(pipe), states(pipe)
    with halfframe.enabled(pipe, None, prefetch=True) as run:
        for _ in range(3):
            assert torch.equal(generate(pipe, offload_model=False), expected)
            assert states(pipe)[0] == before[0]
            assert device.in_use == nbytes(pipe)
        assert not [entry for entry in device.log if "own copy" in entry]
        pipe.low_noise_model.head.head.bias.data.add_(1)  # as when an adapter is merged
        changed = generate(pipe, offload_model=False)
        assert device.log.count("low: own copy out") == 1
    assert len(run.reports) == 4
    assert not torch.equal(changed, expected)
    assert all(device.holds(parameter.data) for _, parameter in pipe.low_noise_model.named_parameters())
    assert torch.equal(generate(pipe, offload_model=False), changed)


def test_a_run_that_fails_leaves_what_was_on_the_device_before_it(pipe: Any, device: SimulatedAccelerator) -> None:
    with halfframe.enabled(pipe, None, prefetch=True):
        generate(pipe, offload_model=False)
        pipe.low_noise_model.head.head.bias.data.add_(1)
        before, encoder = states(pipe), pipe.text_encoder
        pipe.text_encoder = None
        with pytest.raises(TypeError):
            generate(pipe, offload_model=False)
        pipe.text_encoder = encoder
        assert states(pipe) == before
        changed = generate(pipe, offload_model=False)
    assert torch.equal(generate(pipe), changed)


@pytest.mark.parametrize("room", ["overlapped", "at the switch"])
@pytest.mark.parametrize("n", range(10))
def test_exception_at_any_expert_call(pipe: Any, device: SimulatedAccelerator, n: int, room: str) -> None:
    if room == "at the switch":
        device.capacity = nbytes(pipe) + 5 * device.activations
    expected, before = plain(pipe), states(pipe)
    failure = FailAt(n)
    handles = [getattr(pipe, name).register_forward_pre_hook(failure, prepend=True) for name in EXPERTS]
    with halfframe.enabled(pipe, None, prefetch=True) as run:
        with pytest.raises(RuntimeError, match="injected"):
            generate(pipe)
        assert states(pipe) == before
        assert all("to" not in vars(getattr(pipe, name)) for name in EXPERTS)
        assert torch.equal(generate(pipe), expected)
    for handle in handles:
        handle.remove()
    assert run.report is not None
    assert str(run.report.prefetch).startswith(room)
    assert states(pipe) == before
    assert device.in_use == 0
    assert torch.equal(generate(pipe), expected)


@pytest.mark.parametrize(
    "part", ["text_encoder", "decode", "boundary", "call", "copy", "copy_aside", "begin", "join", "room"]
)
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_exception_anywhere_else(
    pipe: Any, device: SimulatedAccelerator, monkeypatch: pytest.MonkeyPatch, part: str, error: type[BaseException]
) -> None:
    expected, before = plain(pipe), states(pipe)

    def fail(*_: Any, **__: Any) -> Any:
        raise error("injected")

    class Plugin:
        @halfframe.hookimpl
        def halfframe_boundary(self, boundary: Any) -> None:
            if part == "boundary":
                fail()

        @halfframe.hookimpl
        def halfframe_expert_call(self, call: Any) -> None:
            if part == "call":
                fail()

    with monkeypatch.context() as patch:
        if part == "text_encoder":
            patch.setattr(pipe, "text_encoder", fail)
        elif part == "decode":
            patch.setattr(pipe.vae, "decode", fail)
        elif hasattr(device, part):
            patch.setattr(device, part, fail)
        elif hasattr(Copying, part):
            patch.setattr(Copying, part, fail)
        with pytest.raises(error, match="injected"), halfframe.enabled(pipe, None, prefetch=True, plugins=[Plugin()]):
            generate(pipe)
    assert states(pipe) == before
    assert device.in_use == 0
    assert torch.equal(generate(pipe), expected)


def test_leaving_the_block_from_within_a_run(pipe: Any, device: SimulatedAccelerator) -> None:
    """The run goes on as it began; what it took is let go when it ends."""
    before, expected, rings = states(pipe), plain(pipe), []

    class Leave:
        @halfframe.hookimpl
        def halfframe_boundary(self, boundary: Any) -> None:
            block.close()
            rings.append(device.ring)

    with ExitStack() as block:
        run = block.enter_context(halfframe.enabled(pipe, None, prefetch=True, plugins=[Leave()]))
        assert torch.equal(generate(pipe), expected)
    assert rings[0] is not None
    assert device.ring is None
    assert states(pipe) == before
    assert run.report is not None
    assert run.report.prefetch == "overlapped"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_while_copies_are_made(
    pipe: Any, device: SimulatedAccelerator, error: type[BaseException]
) -> None:
    """They stop: the run does not end, and the block is not left, before they have."""
    before, expected = states(pipe), plain(pipe)

    class Hook:
        calls = 0

        @halfframe.hookimpl
        def halfframe_expert_call(self, call: Any) -> None:
            self.calls += 1
            if self.calls == 3:
                assert device.at_gate.wait(10)
                threading.Timer(0.1, device.gate.set).start()
                raise error("injected")

    device.gate.clear()
    with halfframe.enabled(pipe, None, prefetch=True, plugins=[Hook()]) as run:
        with pytest.raises(error, match="injected"):
            generate(pipe)
        sent = device.sends_left
        assert not copying_threads()
        assert device.sends_left == sent > (1 << 30) - 50
        assert states(pipe) == before
        assert device.in_use == 0
        assert torch.equal(generate(pipe), expected)
    assert run.report is not None
    assert run.report.prefetch == "overlapped"


def test_two_pipelines_at_once_have_a_ring_each(
    pipe: Any, device: SimulatedAccelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, another = tiny_wan_t2v(boundary=pipe.boundary), SimulatedAccelerator()
    monkeypatch.setattr(placement, "_accelerator_of", lambda _: another)
    put_on(other, another)
    expected = plain(pipe)
    with halfframe.enabled(other, None, prefetch=True):
        assert torch.equal(generate(other), expected)
        monkeypatch.setattr(placement, "_accelerator_of", lambda _: device)
        with halfframe.enabled(pipe, None, prefetch=True):
            assert torch.equal(generate(pipe), expected)
            assert torch.equal(generate(other), expected)
            assert device.ring is not another.ring
        assert another.ring is not None


def test_other_uses_of_to_are_the_modules_own(pipe: Any, device: SimulatedAccelerator) -> None:
    before, expected = states(pipe), plain(pipe)
    seen: list[Any] = []

    class Hook:
        @halfframe.hookimpl
        def halfframe_boundary(self, boundary: Any) -> None:
            model = pipe.high_noise_model
            assert model.to(torch.float32) is model
            assert model.to(device="cpu") is model
            twin = copy.deepcopy(model)
            seen.extend([twin.to("cpu") is twin, twin.cpu() is twin, twin.to(pipe.device) is twin])
            seen.append(all(device.holds(parameter.data) for _, parameter in twin.named_parameters()))
            assert states(pipe)[0] == before[0]

    with halfframe.enabled(pipe, None, prefetch=True, plugins=[Hook()]):
        assert torch.equal(generate(pipe), expected)
    assert seen == [True] * 4
    assert states(pipe) == before


def test_a_move_with_a_dtype_is_the_modules_own(pipe: Any, device: SimulatedAccelerator) -> None:
    expected = plain(pipe)

    class Hook:
        @halfframe.hookimpl
        def halfframe_boundary(self, boundary: Any) -> None:
            pipe.high_noise_model.to(pipe.device, torch.float32)

    with halfframe.enabled(pipe, None, prefetch=True, plugins=[Hook()]):
        assert torch.equal(generate(pipe), expected)
    assert [entry for entry in device.log if "own copy" in entry] == ["high: own copy in", "high: own copy out"]
    assert device.in_use == 0


def test_a_patch_that_outlives_its_run_is_the_modules_own(pipe: Any, device: SimulatedAccelerator) -> None:
    kept: list[Any] = []

    class Hook:
        @halfframe.hookimpl
        def halfframe_boundary(self, boundary: Any) -> None:
            kept.extend([pipe.low_noise_model.to, pipe.low_noise_model.cpu])

    with halfframe.enabled(pipe, None, prefetch=True, plugins=[Hook()]):
        generate(pipe, offload_model=False)  # leaves the low-noise expert on the device
        device.log.clear()
        for move in (kept[1], lambda: kept[0](pipe.device), lambda: kept[0]("cpu")):
            move()
    assert device.log == ["low: own copy out", "low: own copy in", "low: own copy out"]


def test_an_expert_exchanged_within_the_block(pipe: Any, device: SimulatedAccelerator) -> None:
    other = tiny_wan_t2v(5)
    put_on(other, device)
    with halfframe.enabled(pipe, None, prefetch=True) as run:
        first = generate(pipe)
        mine, pipe.low_noise_model = pipe.low_noise_model, other.low_noise_model
        changed = generate(pipe)
        pipe.low_noise_model = mine
        assert torch.equal(generate(pipe), first)
    assert not torch.equal(changed, first)
    assert [report.prefetch for report in run.reports] == ["overlapped"] * 3
    assert not [entry for entry in device.log if "own copy" in entry]


def test_with_truncated_guidance(pipe: Any, device: SimulatedAccelerator) -> None:
    with halfframe.enabled(pipe, None, guidance=halfframe.Guidance(skip_last=1, skip_last_high=4)) as run:
        expected = generate(pipe)
    device.log.clear()
    with halfframe.enabled(
        pipe, None, prefetch=True, guidance=halfframe.Guidance(skip_last=1, skip_last_high=4)
    ) as run:
        assert torch.equal(generate(pipe), expected)
    assert run.report is not None
    assert (run.report.high.passes, run.report.prefetch) == (4, "overlapped")


@pytest.mark.usefixtures("device")
def test_the_report_speaks_of_prefetch_if_it_was_asked_for(pipe: Any) -> None:
    with halfframe.enabled(pipe, prefetch=True) as run:
        generate(pipe)
    report = run.report
    assert report is not None
    assert report.to_dict()["prefetch"] == "overlapped"
    assert str(report).endswith("\nprefetch overlapped")
    with halfframe.enabled(pipe) as run:
        generate(pipe)
    report = run.report
    assert report is not None
    assert report.prefetch is None
    assert "prefetch" not in report.to_dict()
    assert "prefetch" not in str(report)


def test_prefetch_is_yes_or_no(t2v: Any) -> None:
    message = "prefetch must be True or False, got 'soon'"
    with pytest.raises(halfframe.OptionError, match=message), halfframe.enabled(t2v, prefetch="soon"):  # type: ignore[arg-type]
        pass


def test_a_host_that_does_not_know_prefetch_refuses_it(t2v: Any) -> None:
    class Host:
        name, serves = "mine", "anything"

        def recognises(self, pipe: object) -> bool:
            return True

        def refusal(self, pipe: Any) -> str | None:
            return None

        def attach(self, pipe: Any, patches: Any, start: Any) -> None:
            raise AssertionError

    class Hosts:
        @halfframe.hookimpl
        def halfframe_hosts(self) -> list[Host]:
            return [Host()]

    message = "prefetch=True does not fit a WanT2V: the adapter 'mine' does not know how; leave prefetch out"
    with (
        pytest.raises(halfframe.OptionError, match=message),
        halfframe.enabled(t2v, prefetch=True, plugins=[Hosts()]),
    ):
        pass
