"""Recipes with fitted weights against a sampling loop that fits its own, by numpy, to plain runs of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from halfframe.compare.progress import Progress
from halfframe.testing import WanSizes, tiny_diffusers_t2v
from halfframe.tuning.log import Log
from halfframe.tuning.replay import final_latents
from halfframe.tuning.table import Bench
from tests.helpers_diffusers import PROMPT, run, seeded
from tests.hosts.plain_loop import diffusers_parts

STEPS = 6  # four of them are the high-noise expert's
SCALE = 4.0
MOVES = ("full", "reuse", "full", "full+delta", "reuse", "full")


class Loop:
    """Sampling of one clip on the pipeline's parts, a step at a time."""

    def __init__(self, pipe: Any, seed: int) -> None:
        self.parts = diffusers_parts(pipe, (PROMPT,), num_frames=17, steps=STEPS, scales=(SCALE, SCALE), seed=seed)

    @torch.no_grad()
    def run(self, reuses: dict[int, dict[int, float]], differences: dict[int, dict[int, float]]) -> list[list[Tensor]]:
        """What each step shows in each pass, the guided x0, and in the end the latents; by weights of earlier steps."""
        parts = self.parts
        parts.scheduler.set_timesteps(STEPS, device="cpu")
        latents, steps = parts.noise(parts.frames), list[list[Tensor]]()
        for index, t in enumerate(parts.scheduler.timesteps):
            high, sigma = bool(t >= parts.boundary), float(parts.scheduler.sigmas[index])
            if index in reuses:
                c, u = (sum(w * steps[i][part] for i, w in reuses[index].items()) for part in (0, 1))
            else:
                velocity = parts.predict(high, latents, None, t, None, True)
                other = (
                    velocity - sum(w * steps[i][3] for i, w in differences[index].items())
                    if index in differences
                    else parts.predict(high, latents, None, t, None, False)
                )
                c, u = latents - sigma * velocity, latents - sigma * other
            guided = u + SCALE * (c - u)
            steps.append([c, u, guided, -(c - u) / sigma])
            velocity = (latents - guided) / sigma
            latents = parts.scheduler.step(velocity, t, latents, return_dict=False)[0]
        return [*steps, [latents]]


def weights(columns: list[np.ndarray], wanted: np.ndarray) -> list[float]:
    found, *_ = np.linalg.lstsq(np.stack(columns, 1), wanted, rcond=None)
    return list(map(float, found))


@pytest.mark.parametrize("cases", [1, 3])
def test_a_recipe_runs_with_the_weights_of_least_squares(cases: int) -> None:
    pipe = tiny_diffusers_t2v(sizes=WanSizes(num_layers=1))
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, flow_shift=12.0)

    def call(case: int, steps: int) -> Tensor:
        return run(pipe, num_inference_steps=steps, guidance_scale=SCALE, generator=seeded(case))

    loops = [Loop(pipe, case) for case in range(cases)]
    assert loops[0].parts.high_steps == 4
    plain = [loop.run({}, {}) for loop in loops]

    def column(index: int, part: int) -> np.ndarray:
        return np.concatenate([steps[index][part].double().flatten().numpy() for steps in plain])

    def fitted(index: int, known: list[int], part: int) -> dict[int, float]:
        return dict(zip(known, weights([column(i, part) for i in known], column(index, part)), strict=True))

    reuses = {1: fitted(1, [0], 2), 4: fitted(4, [0, 2, 3], 2)}
    differences = {3: fitted(3, [0, 2], 3)}

    bench = Bench(pipe, call, cases, STEPS, Log(None, {}), Progress(lambda _: None, 0))
    moves = bench.fits(STEPS).resolved(MOVES)
    assert [move.count(",") for move in moves] == [0, 0, 0, 1, 2, 0]
    for case, loop in enumerate(loops):
        expected = loop.run(reuses, differences)[-1][0]
        latents, _ = final_latents(pipe, lambda case=case: call(case, STEPS), moves)
        torch.testing.assert_close(bench.plain(case, STEPS), plain[case][-1][0], rtol=0, atol=1e-4)
        torch.testing.assert_close(latents, expected, rtol=0, atol=2e-3 * float(expected.std()))
        unfitted = loop.run({1: {0: 1.0}, 4: {3: 1.0}}, {3: {2: 1.0}})[-1][0]
        assert float((unfitted - expected).std()) > 0.02 * float(expected.std())  # the weights matter
