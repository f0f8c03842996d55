"""What is measured on real clips of the world, and on ones that the prompt does not describe."""

from __future__ import annotations

import random

from halfframe_tinywan import measure, random_scene
from halfframe_tinywan.world import draw_world, render


def test_real_clips_are_right_and_others_are_not() -> None:
    rng = random.Random("truth")
    scenes = [random_scene(rng) for _ in range(24)]
    clips = [(render([draw_world(scene, 2_000_000 + n)], 17)[0] + 1) / 2 for n, scene in enumerate(scenes)]
    right = [seen.right for clip, scene in zip(clips, scenes, strict=True) for seen in measure(clip, scene)]
    wrong = [seen.right for clip, scene in zip(clips, scenes[1:], strict=False) for seen in measure(clip, scene)]
    assert sum(right) / len(right) > 0.85, sum(right) / len(right)
    assert sum(wrong) / len(wrong) < 0.2, sum(wrong) / len(wrong)
