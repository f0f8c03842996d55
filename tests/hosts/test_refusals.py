"""What cannot be made faster is refused before anything is touched, with the reason and what to do."""

from __future__ import annotations

from typing import Any

import pytest

import halfframe
from halfframe.testing import import_wan


class Dense:
    """Shaped like the official TI2V-5B pipeline: one model, no boundary."""

    num_train_timesteps = 1000
    model = vae = object()

    def generate(self, prompt: str) -> None:
        """Sample."""


def refuse(pipe: Any, match: str, error: type[Exception] = halfframe.UnsupportedPipelineError, **options: Any) -> None:
    before = dict(vars(pipe)) if hasattr(pipe, "__dict__") else None
    with pytest.raises(error, match=match), halfframe.enabled(pipe, **options):
        raise AssertionError("entered")
    if before is not None:
        assert vars(pipe) == before


def test_dense_model_has_no_expert_switch() -> None:
    refuse(
        Dense(),
        "Dense cannot be made faster: it has no high_noise_model and no low_noise_model and no boundary, so there "
        "is no expert switch.*Use T2V-A14B or I2V-A14B",
    )


def test_one_module_as_both_experts(t2v: Any) -> None:
    t2v.low_noise_model = t2v.high_noise_model
    refuse(t2v, "one module serves as both experts, so there is no expert switch")


@pytest.mark.parametrize("pipe", [None, 3, "pipe", object(), [1]])
def test_no_pipeline_at_all(pipe: Any) -> None:
    refuse(
        pipe,
        "'pipe' is a name; load the pipeline first"
        if pipe == "pipe"
        else f"{type(pipe).__name__} is no pipeline that halfframe knows; needed: a wan.text2video.WanT2V",
    )


def test_model_instead_of_pipeline(t2v: Any) -> None:
    with (
        pytest.raises(halfframe.UnsupportedPipelineError, match=r"WanModel is no pipeline .* not a model or a wrapper"),
        halfframe.enabled(t2v.high_noise_model),
    ):
        pass


def test_temporal_patches(t2v: Any) -> None:
    t2v.patch_size = (2, 2, 2)
    refuse(t2v, r"its patch_size \(2, 2, 2\) spans several latent frames")


def test_subclass_whose_generate_is_another_loop(t2v: Any) -> None:
    class Wrapped(type(t2v)):  # type: ignore[misc]
        def generate(self, *args: Any, **kwargs: Any) -> Any:
            return super().generate(*args, **kwargs)

    t2v.__class__ = Wrapped
    refuse(t2v, "generate of .* is not the sampling loop that halfframe knows: it does not use randn")


def test_subclass_that_inherits_generate_is_served(t2v: Any) -> None:
    class Sub(type(t2v)):  # type: ignore[misc]
        pass

    t2v.__class__ = Sub
    with halfframe.enabled(t2v) as run:
        t2v.generate("a", size=(32, 32), frame_num=9, sampling_steps=4, shift=12.0, offload_model=False)
    assert run.report is not None
    assert run.report.saved


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"noise": "long", "strategy": "self-duplicate"}, "noise must be 'full' or 'short', got 'long'"),
        ({"measure": 1}, "measure must be True or False, got 1"),
        ({"guidance": 5}, r"guidance must be a halfframe.Guidance, got 5; give Guidance\(skip_last=5\)"),
        ({"strategy": "interleave:stride=3", "guidance": {"skip_last": 5}}, "guidance must be a halfframe.Guidance"),
        ({"tflops": 1.0}, "strategy 'interleave' does not fit .*tflops=1.0"),
        ({"preset": "fast"}, "strategy 'interleave' does not fit .*preset='fast'"),
        ({"colour": "red"}, "strategy 'interleave' does not fit .*colour='red'.*Its options: stride=2, full_start=0"),
        ({"colour": "red", "strategy": "self-duplicate"}, "does not fit colour='red'.*Its options: noise='full'"),
        ({"noise": "short"}, "strategy 'interleave' does not fit .*noise='short'"),
        ({"noise": "short", "strategy": None}, "there is no strategy to take noise"),
    ],
)
def test_unusable_options(t2v: Any, options: dict[str, Any], match: str) -> None:
    refuse(t2v, match, halfframe.OptionError, **options)


def test_options_beside_a_strategy_object(t2v: Any) -> None:
    """An object has its options already, those of noise included."""
    message = "strategy 'self-duplicate' was given as an instance, so noise='short' cannot be applied; set its options"
    refuse(t2v, message, halfframe.OptionError, strategy=halfframe.SelfDuplicate(), noise="short")


def test_unknown_strategy(t2v: Any) -> None:
    refuse(t2v, "no strategy is called 'nope'.*self-duplicate", halfframe.StrategyError, strategy="nope")


def test_expert_that_is_neither_of_the_two(t2v: Any) -> None:
    stranger = import_wan("modules.model").WanModel(dim=48, num_heads=2, num_layers=1, ffn_dim=48, freq_dim=16)
    t2v._prepare_model_for_timestep = lambda *_: stranger
    with (
        halfframe.enabled(t2v),
        pytest.raises(
            halfframe.HalfframeError, match="returned a WanModel that is neither of the pipeline's two experts"
        ),
    ):
        t2v.generate("a", size=(32, 32), frame_num=9, sampling_steps=2, offload_model=False)


def test_plugins_that_are_no_list(t2v: Any) -> None:
    refuse(t2v, r"plugins must be a list of plugins, got 3; give plugins=\[plugin\]", halfframe.OptionError, plugins=3)


def test_warning_points_at_the_callers_line(t2v: Any) -> None:
    with halfframe.enabled(t2v), pytest.warns(halfframe.HalfframeWarning) as caught:
        t2v.generate("a", size=(32, 32), frame_num=1, sampling_steps=2, offload_model=False)
    [ours] = [warning for warning in caught if warning.category is halfframe.HalfframeWarning]
    assert ours.filename == __file__


def test_truncation_that_had_nothing_to_skip(t2v: Any) -> None:
    if "lightning" not in type(t2v).generate.__code__.co_names:
        pytest.skip("this version of wan always makes two forward passes per step")
    t2v.lightning = True
    with (
        halfframe.enabled(t2v, guidance=halfframe.Guidance(skip_last=2)),
        pytest.warns(halfframe.HalfframeWarning, match="no unconditional pass was skipped: there was none to skip"),
    ):
        t2v.generate("a", size=(32, 32), frame_num=9, sampling_steps=4, offload_model=False)


def test_option_that_would_never_reach_its_strategy(t2v: Any) -> None:
    def mine(latents: Any, num_frames: int, *, measure: bool = False) -> Any:
        return latents

    refuse(t2v, "strategy 'mine' has an option called measure, which is an", halfframe.StrategyError, strategy=mine)
    refuse(t2v, "there is no strategy to take weight", halfframe.OptionError, strategy=None, weight=1)


def test_schedule_without_steps(t2v: Any) -> None:
    with (
        halfframe.enabled(t2v),
        pytest.warns(halfframe.HalfframeWarning, match="the schedule has no steps"),
    ):
        t2v.generate("a", size=(32, 32), frame_num=9, sampling_steps=0, offload_model=False)


@pytest.mark.parametrize(
    ("move", "message"),
    [
        (lambda step: 1 // step.index, "`move` failed: ZeroDivisionError"),
        (lambda step: (0, 2), "`move` returned tuple; needed: a halfframe.FrameMap, a halfframe.Reuse, or None"),
        (
            lambda step: halfframe.FrameMap.select((0, 9), 3),
            r"frame indices \[0, 9\] do not select frames of a clip of 3",
        ),
    ],
)
def test_move_that_fails_or_is_none(t2v: Any, move: Any, message: str) -> None:
    class Broken(halfframe.Strategy):
        name = "broken"

        def move(self, step: halfframe.Step) -> Any:
            return move(step)

    with (
        halfframe.enabled(t2v, Broken()),
        pytest.raises(halfframe.StrategyError, match=f"strategy 'broken', at step 1 of 4: {message}"),
    ):
        t2v.generate("a", size=(32, 32), frame_num=9, sampling_steps=4, offload_model=False)
