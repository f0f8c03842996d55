"""Make what the 4-step LoRA pair is trained on: the guided teacher's clips, as they are at the four noise levels.

    python trajectories.py --folder run --part 1/2        # and --part 2/2 on another GPU

The teacher goes through its 20 steps and the student's four levels in one schedule. From its latents at those levels
follows what the student must predict there, so that the host's own scheduler (UniPC) leads it the same way.
"""

from __future__ import annotations

import copy
import random
import time
from typing import Any

import fast
import torch
from common import arguments, host_scheduler, load_expert, predictor, text_table, write
from fast import block
from halfframe_tinywan.language import random_scene
from halfframe_tinywan.models import BOUNDARY, GUIDANCE, LORA_SHIFT, LORA_STEPS, SHIFT
from torch import Tensor


def main() -> None:
    found = arguments(
        __doc__,
        clips={"type": int, "default": 12_000},
        part={"default": "1/1"},
        batch={"type": int, "default": 125},
    )
    part, parts = map(int, found.part.split("/"))
    each, began = found.clips // parts, time.monotonic()
    if found.device != "cpu":
        fast.block = torch.compile(block, dynamic=False)
    experts = [predictor(*load_expert(found.folder / f"t2v-{side}.pt", found.device)) for side in ("high", "low")]
    prompts = [str(random_scene(random.Random(f"student {n}"))) for n in range((part - 1) * each, part * each)]
    generator = torch.Generator(found.device).manual_seed(part)
    inputs, targets, ends = [], [], []
    for start in range(0, each, found.batch):
        text = text_table([*prompts[start : start + found.batch], ""], found.device)
        noise = torch.randn(len(text) - 1, 16, 21, 12, 12, generator=generator, device=found.device)
        states = teacher(experts, noise, text)
        inputs.append(torch.stack(states[:-1], dim=1).half().cpu())
        targets.append(torch.stack(student_targets(states), dim=1).half().cpu())
        ends.append(states[-1].half().cpu())
    for number, side in enumerate(("high", "low")):
        half = slice(2 * number, 2 * number + 2)
        data = {"inputs": torch.cat(inputs)[:, half].clone(), "targets": torch.cat(targets)[:, half].clone()}
        data |= {"end": torch.cat(ends)} if side == "low" else {}
        write(found.folder / f"student-{side}-{part:02}.pt", {**data, "prompts": prompts[: len(data["inputs"])]})
    print(f"trajectories {found.part}: {each} in {time.monotonic() - began:.0f} s", flush=True)


def joint_schedule(device: str) -> tuple[Any, list[int]]:
    """The teacher's scheduler with the student's noise levels among its own, and which steps begin at those."""
    own, levels = host_scheduler(20, SHIFT, device), host_scheduler(LORA_STEPS, LORA_SHIFT, device).sigmas[:-1].tolist()
    between = [s for s in own.sigmas[:-1].tolist() if min(abs(s - level) for level in levels) > 0.008]
    sigmas = sorted([*between, *levels], reverse=True)
    own.sigmas = torch.tensor([*sigmas, 0.0])
    own.timesteps = (own.sigmas[:-1] * 1000).long().to(device)
    own.num_inference_steps = len(sigmas)
    return own, [sigmas.index(level) for level in levels]


@torch.no_grad()
def teacher(experts: list[Any], noise: Tensor, text: Tensor) -> list[Tensor]:
    """Latents at the four levels and at the end, from `noise`; both guidance passes in one batch."""
    scheduler, marks = joint_schedule(noise.device)
    x, states = noise, []
    both = torch.cat([text[:-1], text[-1:].expand(len(noise), -1, -1)])
    for number, t in enumerate(scheduler.timesteps):
        if number in marks:
            states.append(x)
        high = bool(t >= 1000 * BOUNDARY)
        scale = GUIDANCE[1] if high else GUIDANCE[0]
        said, base = experts[not high](torch.cat([x, x]), t.expand(2 * len(x)).float(), both).chunk(2)
        x = scheduler.step(base + scale * (said - base), t, x, return_dict=False)[0]
    return [*states, x]


def student_targets(states: list[Tensor]) -> list[Tensor]:
    """Predictions with which the student's scheduler goes through `states`; each step is linear in its prediction."""
    scheduler = host_scheduler(LORA_STEPS, LORA_SHIFT, states[0].device)
    targets = []
    for t, x, following in zip(scheduler.timesteps, states[:-1], states[1:], strict=True):
        at = [
            copy.deepcopy(scheduler).step(torch.full_like(x, value), t, x, return_dict=False)[0] for value in (0.0, 1.0)
        ]
        target = (following - at[0]) / (at[1] - at[0])
        scheduler.step(target, t, x, return_dict=False)
        targets.append(target)
    return targets


if __name__ == "__main__":
    main()
