"""The strategies that make up skipped frames' x0, on the real hosts, against a plain loop and against each other."""

from __future__ import annotations

import dataclasses
import functools
import types
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import halfframe
from halfframe import Interpolate, Merge
from halfframe.hosts.rope import OfficialPositions
from halfframe.testing import (
    diffusers_from_wan_state,
    import_wan,
    tiny_diffusers_i2v,
    tiny_diffusers_t2v,
    tiny_wan_i2v,
    tiny_wan_t2v,
)

from ..helpers_diffusers import ARGS, PROMPT, run, seeded
from .reference import merged_frames_latents, skipped_frames_latents
from .test_cross_host import official_solver

CLIP: dict[str, Any] = {"size": (48, 32), "sampling_steps": 8, "shift": 12.0, "seed": 5}


def held(x0: Tensor, kept: list[int], total: int) -> Tensor:
    return torch.stack([x0[:, max(i for i, k in enumerate(kept) if k <= p)] for p in range(total)], dim=1)


def straight(x0: Tensor, kept: list[int], total: int) -> Tensor:
    lines = x0.movedim(1, -1).reshape(-1, len(kept)).numpy()
    full = np.stack([np.interp(range(total), kept, line) for line in lines])
    return torch.from_numpy(full).float().reshape(*x0.movedim(1, -1).shape[:-1], total).movedim(-1, 1)


def in_turn(total: int, stride: int, count: int) -> list[int]:
    """Frame 0 and every stride-th frame from the one whose turn it is."""
    return [p for p in range(total) if p == 0 or p % stride == count % stride]


def generate(pipe: Any, strategy: Any, frame_num: int, **options: Any) -> Tensor:
    """The official pipeline's final latents."""
    latents: list[Tensor] = []
    pipe.vae.decode = lambda clips: latents.extend(clips) or [torch.zeros(3, frame_num, 32, 48)]
    arguments = {**CLIP, "frame_num": frame_num, "offload_model": False}
    for name in ("sample_solver", "guide_scale", "sampling_steps"):
        if name in options:
            arguments[name] = options.pop(name)
    with halfframe.enabled(pipe, strategy, **options):
        pipe.generate("a kite", **arguments)
    return latents[0]


@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
@pytest.mark.parametrize("frame_num", [21, 45])  # 6 and 12 latent frames
@pytest.mark.parametrize("positions", ["true", "contiguous"])
@pytest.mark.parametrize("strategy", ["own-noise", "interpolate", "interleave"])
def test_the_library_is_the_plain_loop(t2v: Any, strategy: str, positions: str, frame_num: int, solver: str) -> None:
    total = (frame_num - 1) // 4 + 1

    def kept_at(step: int, high: bool) -> list[int]:
        return in_turn(total, 2, step if strategy == "interleave" else 0) if high else list(range(total))

    expected = skipped_frames_latents(
        t2v,
        import_wan("text2video"),
        "a kite",
        **CLIP,
        frame_num=frame_num,
        kept_at=kept_at,
        between=held if strategy == "own-noise" else straight,
        true_positions=positions == "true",
        sample_solver=solver,
    )
    latents = generate(t2v, strategy, frame_num, positions=positions, sample_solver=solver, guide_scale=(5.0, 5.0))
    torch.testing.assert_close(latents, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
@pytest.mark.parametrize("frame_num", [21, 45, 49])  # 6, 12 and 13 latent frames
def test_merge_is_the_plain_loop(t2v: Any, frame_num: int, solver: str) -> None:
    total = (frame_num - 1) // 4 + 1

    def pairs_at(step: int) -> list[tuple[int, int]]:
        pairs = [(a, a + 1) for a in range(step % 2, total - 1, 2)]
        return sorted({(0, 1), *pairs, (total - 2, total - 1)})

    clip = {**CLIP, "sampling_steps": 12, "frame_num": frame_num}  # steps near the boundary, and far from it
    expected = merged_frames_latents(
        t2v, import_wan("text2video"), "a kite", **clip, pairs_at=pairs_at, sample_solver=solver
    )
    latents = generate(t2v, "merge", frame_num, sampling_steps=12, sample_solver=solver, guide_scale=(5.0, 5.0))
    torch.testing.assert_close(latents, expected, rtol=0, atol=5e-4)


@pytest.mark.parametrize("stride", [2, 3, 4, 9])
@pytest.mark.parametrize(
    ("options", "halved"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"full_start": 1, "full_end": 2}, [1, 2, 3]),
        ({"until": "end", "full_end": 1}, [0, 1, 2, 3, 4, 5, 6]),
        ({"until": 1}, [0]),
    ],
)
def test_strides_and_windows_are_the_plain_loop(
    t2v: Any, stride: int, options: dict[str, Any], halved: list[int]
) -> None:
    def kept_at(step: int, high: bool) -> list[int]:
        return in_turn(8, stride, halved.index(step)) if step in halved else list(range(8))

    expected = skipped_frames_latents(
        t2v,
        import_wan("text2video"),
        "a kite",
        **CLIP,
        frame_num=29,
        kept_at=kept_at,
        between=straight,
        truncate=3,
    )
    latents = generate(
        t2v,
        "interleave",
        29,
        stride=stride,
        **options,
        guidance=halfframe.Guidance(skip_last=3),
        guide_scale=(5.0, 5.0),
    )
    torch.testing.assert_close(latents, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("every", [2, 3])
@pytest.mark.parametrize("truncate", [0, 1])
@pytest.mark.parametrize("stride", [2, 3])
def test_a_guidance_difference_serves_steps_that_keep_other_frames(
    t2v: Any, stride: int, truncate: int, every: int
) -> None:
    def kept_at(step: int, high: bool) -> list[int]:
        return in_turn(8, stride, step) if high else list(range(8))

    expected = skipped_frames_latents(
        t2v,
        import_wan("text2video"),
        "a kite",
        **CLIP,
        frame_num=29,
        kept_at=kept_at,
        between=straight,
        truncate=truncate,
        every=every,
    )
    options = {"stride": stride, "guidance": halfframe.Guidance(skip_last=truncate, every=every)}
    latents = generate(t2v, "interleave", 29, **options, guide_scale=(5.0, 5.0))
    torch.testing.assert_close(latents, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("strategy", ["own-noise", "interpolate", "interleave", "merge"])
def test_stride_1_is_a_plain_run_to_the_bit(t2v: Any, strategy: str) -> None:
    plain = generate(t2v, None, 29, guidance=halfframe.Guidance(skip_last=1))
    with pytest.warns(halfframe.HalfframeWarning, match=f"nothing was skipped: strategy '{strategy}' skipped no frame"):
        latents = generate(t2v, strategy, 29, stride=1)
    assert not torch.equal(latents, plain)  # guidance was truncated there, so equality below says something
    with pytest.warns(halfframe.HalfframeWarning):
        again = generate(t2v, strategy, 29, stride=1, guidance=halfframe.Guidance(skip_last=1))
    assert torch.equal(again, plain)


@pytest.mark.parametrize("forward", ["own", "bound", "foreign"])
@pytest.mark.parametrize("strategy", ["interleave", "merge"])
def test_true_positions_leave_the_experts_as_they_were(t2v: Any, strategy: str, forward: str) -> None:
    models = (t2v.high_noise_model, t2v.low_noise_model)
    expected = generate(t2v, strategy, 29)
    for model in models:
        if forward == "bound":  # as Ulysses has it
            model.forward = types.MethodType(type(model).forward, model)
        elif forward == "foreign":  # reads the model's own table, so the table must be exchanged
            model.forward = functools.partial(type(model).forward, model)
    tables = [model.freqs for model in models]
    values = [table.clone() for table in tables]
    assert torch.equal(generate(t2v, strategy, 29), expected)
    for model, table, value in zip(models, tables, values, strict=True):
        assert model.freqs is table
        assert torch.equal(table, value)

    untouched = []

    def failing(*_: Any, **__: Any) -> Any:
        untouched.append(t2v.high_noise_model.freqs is tables[0])
        raise RuntimeError("out of memory")

    t2v.high_noise_model.head.forward = failing
    with pytest.raises(RuntimeError, match="out of memory"):
        generate(t2v, strategy, 29)
    assert untouched == [forward != "foreign"]
    assert t2v.high_noise_model.freqs is tables[0]


def test_a_shared_expert_in_two_threads(t2v: Any) -> None:
    """Calls that overlap in any order leave the table alone and see their own."""
    model = t2v.high_noise_model
    table = model.freqs
    first, second = OfficialPositions(model).at((0, 2, 4)), OfficialPositions(model).at((0, 3))
    ours, theirs = first.__enter__(), second.__enter__()
    assert torch.equal(ours.freqs[2, :3], table[4, :3])
    assert torch.equal(theirs.freqs[1, :3], table[3, :3])
    assert ours.blocks is model.blocks
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert model.freqs is table


def test_passes_of_a_step_share_a_table(t2v: Any) -> None:
    """And passes that place other frames, or whose model has another table meanwhile, do not."""
    model, seen = t2v.high_noise_model, []
    placed = OfficialPositions(model)
    for positions in ((0, 2, 4), (0, 2, 4), (0, 3)):
        with placed.at(positions) as called:
            seen.append(called.freqs)
    assert seen[0] is seen[1]
    assert torch.equal(seen[2][1, :3], model.freqs[3, :3])
    model.freqs = model.freqs.conj()
    with placed.at((0, 3)) as called:
        assert torch.equal(called.freqs[1, :3], model.freqs[3, :3])


def test_diffusers_makes_its_table_once_a_step() -> None:
    pipe, made = tiny_diffusers_t2v(), []
    forward = pipe.transformer.rope.forward
    pipe.transformer.rope.forward = lambda hidden_states: made.append(1) or forward(hidden_states)
    with halfframe.enabled(pipe, "interleave:until=1") as enabled:
        run(pipe, num_frames=29)
    assert enabled.report is not None
    assert len(made) == enabled.report.high.passes - 1


def test_diffusers_embedding_that_changes_between_steps_is_asked_again() -> None:
    """As extrapolation of RoPE by noise level needs it; the strategy places the same frames at each step."""

    def latents(edited: bool) -> Tensor:
        pipe = tiny_diffusers_t2v(seed=0)

        def edit(pipe: Any, index: int, *_: Any) -> dict[str, Any]:
            if edited and index == 2:
                pipe.transformer.rope.freqs_cos.mul_(0.5)
            return {}

        with halfframe.enabled(pipe, "interpolate:until=switch") as enabled:
            result = run(pipe, num_frames=29, callback_on_step_end=edit)
        assert enabled.report is not None
        assert enabled.report.high.steps > 4
        return result

    assert torch.equal(latents(False), latents(False))
    assert not torch.equal(latents(True), latents(False))


def test_a_pinned_last_frame_is_a_neighbour_like_any_other() -> None:
    """Frames 5 and 6 of 8 lie between the kept frame 4 and the pinned frame 7."""
    from PIL import Image

    pipe = tiny_diffusers_i2v()
    seen: list[Any] = []

    class Spy(Interpolate):
        name = "spy"

        def frame_map(self, step: Any) -> halfframe.FrameMap:
            seen.append((step.expert, super().frame_map(step)))
            return seen[-1][1]

    image = Image.new("RGB", (48, 32), (200, 40, 40))
    with halfframe.enabled(pipe, Spy(stride=4)):
        run(pipe, num_frames=29, generator=seeded(7), image=image, last_image=image)
    assert {(expert, frame_map.kept) for expert, frame_map in seen} == {("high", (0, 4, 7))}
    for frame, weights in ((5, (0, 2 / 3, 1 / 3)), (6, (0, 1 / 3, 2 / 3)), (7, (0, 0, 1))):
        assert seen[0][1].up[frame] == pytest.approx(weights)


MERGE_OPTIONS = pytest.mark.parametrize(
    "options", [{}, {"stride": 3, "full_start": 1, "positions": "contiguous"}], ids=["merge", "merge-options"]
)


@MERGE_OPTIONS
@pytest.mark.parametrize("make", [tiny_diffusers_i2v, tiny_wan_i2v])
def test_no_means_of_conditions(make: Any, options: dict[str, Any]) -> None:
    pipe = make()
    clips = []
    for strategy in ("merge", "interleave", "own-noise"):
        with halfframe.enabled(pipe, strategy, **options):
            clips.append(short_clip(pipe))
    assert torch.equal(clips[0], clips[1])
    assert not torch.equal(clips[0], clips[2])


@MERGE_OPTIONS
def test_merge_and_a_last_image_in_tiny_diffusers_i2v(options: dict[str, Any]) -> None:
    from PIL import Image

    image = Image.new("RGB", (48, 32), (200, 40, 40))
    pipe = tiny_diffusers_i2v()

    def clip(strategy: Any, last_image: Any = None, **options: Any) -> Tensor:
        with halfframe.enabled(pipe, strategy, **options):
            return run(pipe, num_frames=29, generator=seeded(7), image=image, last_image=last_image)

    for last in (image, None):
        assert torch.equal(clip("merge", last, **options), clip("interleave", last, **options))
        assert not torch.equal(clip("merge", last, **options), clip("interpolate", last, **options))

    class Stubborn(Merge):
        name = "stubborn"

        def frame_map(self, step: Any) -> halfframe.FrameMap:
            return super().frame_map(dataclasses.replace(step, conditioned=False, conditioning_frames=()))

    with pytest.raises(halfframe.StrategyError, match=r"frames \[7\] have a condition of their own .*'interleave'"):
        clip(Stubborn(), image)
    assert not torch.equal(clip(Stubborn()), clip("merge"))  # who wants means of conditions can have them

    class Wrapped(type(pipe)):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs)

    wrapped = Wrapped(**pipe.components, boundary_ratio=pipe.config.boundary_ratio)
    with halfframe.enabled(wrapped, "merge", **options):
        video = run(wrapped, num_frames=29, generator=seeded(7), image=image)
    assert torch.equal(video, clip("interleave", **options))


def test_a_frame_map_that_does_not_fit_is_refused(t2v: Any) -> None:
    class Wrong(Merge):
        name = "wrong"

        def frame_map(self, step: Any) -> halfframe.FrameMap:
            return super().frame_map(dataclasses.replace(step, num_frames=7))

    with pytest.raises(
        halfframe.StrategyError,
        match=r"strategy 'wrong', at step 1 of 8: the frame map is for a clip of 7 latent frames; needed: 8",
    ):
        generate(t2v, Wrong(), 29)


def test_an_expert_without_a_known_table_is_told_from_one_with() -> None:
    pipe = tiny_wan_t2v()
    del pipe.high_noise_model.freqs
    with pytest.raises(halfframe.HalfframeError, match=r"WanModel has no table of rotary embeddings .*='contiguous'"):
        generate(pipe, "interpolate", 29)


@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 3, "full_start": 1}, {"until": "end", "full_end": 1, "guidance": halfframe.Guidance(every=3)}],
)
@pytest.mark.parametrize("strategy", ["own-noise", "interleave", "merge"])
def test_hosts_agree(strategy: str, options: dict[str, Any]) -> None:
    official, pipe = tiny_wan_t2v(), tiny_diffusers_t2v(seed=1)
    for ours, theirs in (("transformer", "high_noise_model"), ("transformer_2", "low_noise_model")):
        getattr(pipe, ours).load_state_dict(diffusers_from_wan_state(getattr(official, theirs).state_dict()))
    clip = {"sampling_steps": ARGS["num_inference_steps"]}
    latents: list[Tensor] = []
    official.vae.decode = lambda clips: latents.extend(clips) or [torch.zeros(3, 21, 32, 48)]
    with halfframe.enabled(official, strategy, **options):
        official.generate(PROMPT, size=(48, 32), frame_num=21, **clip, shift=12.0, seed=7, offload_model=False)
    pipe.scheduler = official_solver()
    with halfframe.enabled(pipe, strategy, **options):
        ours = run(pipe, num_frames=21, generator=seeded(7))[0]
    torch.testing.assert_close(ours, latents[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("strategy", ["interpolate", "merge"])
@pytest.mark.parametrize("make", [tiny_diffusers_t2v, tiny_diffusers_i2v, tiny_wan_t2v, tiny_wan_i2v])
def test_positions_matter_to_every_host(make: Any, strategy: str) -> None:
    """What a strategy says of positions reaches the expert, image-to-video included."""
    pipe = make()
    clips = {}
    for positions in ("true", "contiguous"):
        with halfframe.enabled(pipe, strategy, positions=positions) as block:
            clips[positions] = short_clip(pipe)
        assert block.report is not None
        assert block.report.high.latent_frames == (3,)
    assert clips["true"].shape == clips["contiguous"].shape
    assert not torch.equal(clips["true"], clips["contiguous"])


def short_clip(pipe: Any) -> Tensor:
    from PIL import Image

    image = Image.new("RGB", (48, 32), (200, 40, 40))
    name = type(pipe).__name__
    if name == "WanT2V":
        return pipe.generate(
            "a kite", size=(48, 32), frame_num=17, sampling_steps=3, shift=12.0, seed=1, offload_model=False
        )
    if name == "WanI2V":
        return pipe.generate(
            "a kite", image, max_area=48 * 32, frame_num=17, sampling_steps=3, shift=12.0, seed=1, offload_model=False
        )
    extra = {"image": image} if "Image" in name else {}
    return run(pipe, num_frames=17, generator=seeded(7), **extra)


def test_guidance_is_missed_where_there_is_none() -> None:
    """Each of two things that were asked for and did not happen is said once."""
    pipe = tiny_diffusers_t2v()

    def ours(seen: Any) -> list[str]:
        return [str(w.message)[:30] for w in seen if w.category is halfframe.HalfframeWarning]

    guidance = halfframe.Guidance(skip_last=1)
    with halfframe.enabled(pipe, guidance=guidance), pytest.warns(halfframe.HalfframeWarning) as seen:
        run(pipe, guidance_scale=1.0, num_frames=1)
    assert sorted(ours(seen)) == ["halfframe: no unconditional pa", "halfframe: nothing was skipped"]
    one_frame = "nothing was skipped: the clip has 1 latent frame"
    with halfframe.enabled(pipe), pytest.warns(halfframe.HalfframeWarning, match=one_frame) as seen:
        run(pipe, guidance_scale=1.0, num_frames=1)
    assert len(ours(seen)) == 1
