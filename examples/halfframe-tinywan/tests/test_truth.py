"""What is measured on real clips, sharp and as soft as a VAE makes them, and on clips spoilt in known ways."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable

import pytest
import torch
from halfframe_tinywan import measure, random_scene
from halfframe_tinywan.language import GROUNDS, SIZES
from halfframe_tinywan.truth import LIMITS, Truth, features, frechet_distance, measure_all
from halfframe_tinywan.world import SIDE, TILE, draw_world, render
from torch import Tensor

from halfframe.errors import OptionError

FRAMES = 33
CLIPS = 24
RNG = random.Random("truth")
SCENES = [random_scene(RNG) for _ in range(CLIPS)]


@functools.cache
def drawn(first_seed: int) -> Tensor:
    worlds = [draw_world(scene, first_seed + n) for n, scene in enumerate(SCENES)]
    return torch.cat([(render([world], FRAMES) + 1) / 2 for world in worlds])


def real() -> Tensor:
    return drawn(2_000_000)


def other() -> Tensor:
    return drawn(3_000_000)


def blurred(clips: Tensor, deviation: float) -> Tensor:
    """By a Gaussian of so many pixels; what lies outside is as the border."""
    side = clips.shape[-1]
    places = torch.arange(side, dtype=torch.float32)
    reach = math.ceil(3 * deviation)
    kernel = torch.exp(-torch.arange(-reach, reach + 1.0).square() / (2 * deviation**2))
    matrix = torch.zeros(side, side)
    for offset, weight in zip(range(-reach, reach + 1), kernel / kernel.sum(), strict=True):
        matrix[(places + offset).clamp(0, side - 1).long(), places.long()] += weight
    return matrix.mT @ (clips @ matrix)


def soft() -> Tensor:
    """At 28 dB."""
    return blurred(real(), 0.7)


def judder(clips: Tensor) -> Tensor:
    return clips[:, :, torch.arange(FRAMES) // 2 * 2]


def faded(share: Tensor) -> Tensor:
    share = share.clamp(0, 1)[:, None, None]
    return real() * (1 - share) + other() * share


def wavering(clips: Tensor) -> Tensor:
    """Time runs forth and back: forwards by 3, backwards by 1."""
    order = [n for start in range(0, FRAMES, 2) for n in (start + 2, start + 1)]
    return clips[:, :, torch.tensor(order).clamp(max=FRAMES - 1)[:FRAMES]]


def of_other_tiles() -> Tensor:
    """The ground is noise in two tones, as coarse as the tiles are, moved evenly; the things are left out."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(CLIPS, 1, 1, 160, 160, generator=generator)
    light = (blurred(noise, TILE / 6) > 0).float()
    light = torch.cat([light[..., n : n + SIDE, n : n + SIDE] for n in range(FRAMES)], dim=2)
    tones = torch.tensor([GROUNDS[scene.ground] for scene in SCENES])[..., None, None, None]
    return tones[:, 0] + (tones[:, 1] - tones[:, 0]) * light


def jumping() -> Tensor:
    """The things, and nothing else, are somewhere else in the second half."""
    worlds = [draw_world(scene, 2_000_000 + n) for n, scene in enumerate(SCENES)]
    for world in worlds:
        world.starts.add_(SIDE / 3)
    moved = torch.cat([(render([world], FRAMES) + 1) / 2 for world in worlds])
    return torch.cat([real()[:, :, : FRAMES // 2], moved[:, :, FRAMES // 2 :]], dim=2)


TIME = torch.linspace(0, 1, FRAMES)
GOOD: dict[str, Callable[[], Tensor]] = {"real": real, "soft": soft, "other": other}
SPOILT: dict[str, tuple[Callable[[], Tensor], set[str]]] = {
    "blurred": (lambda: blurred(real(), 2.5), {"sharpness"}),
    "judder": (lambda: judder(real()), {"duplicates", "jerk"}),
    "soft judder": (lambda: judder(soft()), {"duplicates", "jerk"}),
    "cross-faded": (lambda: faded(TIME), {"same_scene"}),
    "cut": (lambda: faded((TIME - 0.5) * 1e3), {"same_scene"}),
    "frozen": (lambda: real()[:, :, :1].expand(-1, -1, FRAMES, -1, -1), {"speed", "duplicates"}),
    "half frozen": (lambda: real()[:, :, torch.arange(FRAMES).clamp(max=FRAMES // 2)], {"path_error", "duplicates"}),
    "wavering": (lambda: wavering(real()), {"jerk"}),
    "too fast": (lambda: real()[:, :, (torch.arange(FRAMES) * 3) % FRAMES], {"speed", "same_scene", "path_error"}),
    "of other tiles": (of_other_tiles, {"tile_error"}),
    "jumping": (jumping, {"thing_path_error"}),
}


@functools.cache
def measured(name: str) -> tuple[list[Truth], Tensor]:
    """Truths and features."""
    clips = GOOD[name]() if name in GOOD else SPOILT[name][0]()
    found = measure_all(clips, SCENES)
    return found, features(clips, found)


def truths(name: str) -> list[Truth]:
    return measured(name)[0]


def share(values: list[bool]) -> float:
    return sum(values) / len(values)


def told(found: list[Truth]) -> str:
    return ", ".join(f"{name} {share([name in one.faults for one in found]):.2f}" for name in LIMITS)


@pytest.mark.parametrize(("name", "least"), [("real", 0.95), ("soft", 0.9)])
def test_real_clips_are_right_and_valid(name: str, least: float) -> None:
    found = truths(name)
    assert share([seen.right for one in found for seen in one.sightings]) >= least
    assert share([one.ground_right for one in found]) >= least
    assert share([one.valid for one in found]) >= 0.9, told(found)


def test_real_clips_of_other_prompts_are_wrong() -> None:
    found = measure_all(real(), [*SCENES[1:], SCENES[0]])
    assert share([one.right for one in found]) <= 0.1
    assert share([one.valid for one in found]) >= 0.9, told(found)  # valid is about what the prompt leaves open


def test_a_thing_that_vanishes_is_not_found() -> None:
    """Its pixels have the ground's dark tone in the last third."""
    number = next(n for n, scene in enumerate(SCENES) if len(scene.things) == 1)
    clip, late = real()[number].clone(), 2 * FRAMES // 3
    dark = torch.tensor(GROUNDS[SCENES[number].ground][0])
    clip[:, late:] = dark[:, None, None, None]
    assert measure(real()[number], SCENES[number])[0].found
    assert not measure(clip, SCENES[number])[0].found


@pytest.mark.parametrize("name", SPOILT)
def test_spoilt_clips_are_not_valid(name: str) -> None:
    found = truths(name)
    assert share([not one.valid for one in found]) >= 0.9, told(found)
    assert share([bool(SPOILT[name][1] & set(one.faults)) for one in found]) >= 0.9, told(found)


def test_speed_is_the_drift_of_the_world() -> None:
    for number, (scene, found) in enumerate(zip(SCENES, truths("real"), strict=True)):
        drift = draw_world(scene, 2_000_000 + number).drift
        assert found.speed == pytest.approx(float(drift.norm()), abs=0.02)


def test_frechet_distance_is_least_between_real_clips() -> None:
    right = measured("real")[1]
    assert frechet_distance(right, right) == pytest.approx(0, abs=1e-6)
    again = frechet_distance(right, measured("other")[1])
    for name in SPOILT:
        if name != "jumping":  # no feature is about where things are
            assert frechet_distance(right, measured(name)[1]) > 1.5 * again, name


@pytest.mark.parametrize("frames", [9, 17])
def test_short_clips_are_measured(frames: int) -> None:
    found = measure_all(soft()[:6, :, :frames], SCENES[:6])
    assert share([one.valid for one in found]) >= 0.8, told(found)
    assert found[0].sightings == measure(soft()[0, :, :frames], SCENES[0])


def test_an_empty_clip_is_neither_right_nor_valid() -> None:
    for level in (0.0, 0.5, 1.0, math.nan):
        (found,) = measure_all(torch.full((1, 3, 9, SIDE, SIDE), level), SCENES[:1])
        assert not found.right
        assert not found.valid
        assert all(seen.shape is None and seen.size is None for seen in found.sightings)


def test_batches_do_not_matter() -> None:
    whole, parts = (measure_all(real()[:5, :, :9], SCENES[:5], batch=batch) for batch in (5, 2))
    for one, two in zip(whole, parts, strict=True):
        assert one.speed == pytest.approx(two.speed, abs=1e-4)
        assert one.tile_error == pytest.approx(two.tile_error, abs=1e-4)
        assert [seen.shape for seen in one.sightings] == [seen.shape for seen in two.sightings]


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(OptionError, match="9 video frames or more"):
        measure_all(torch.zeros(1, 3, 5, SIDE, SIDE), SCENES[:1])
    with pytest.raises(OptionError, match="one scene per clip"):
        measure_all(torch.zeros(2, 3, 9, SIDE, SIDE), SCENES[:1])
    with pytest.raises(OptionError, match="one truth per clip"):
        features(torch.zeros(2, 3, 9, SIDE, SIDE), [])


def test_sizes_are_told_apart() -> None:
    assert {seen.size for one in truths("real") for seen in one.sightings} == set(SIZES)
