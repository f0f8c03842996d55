"""Train the LoRA pair of `lora.py` further, both together, on the clip that their four steps end with.

    python chain.py --folder run --minutes 4

Regression leaves each step right on the teacher's latents, but a run is on its own: each step begins where the one
before it ended. Here the loss is the distance of the clip from the teacher's, and its gradient goes back through all
four steps. The host's scheduler (UniPC) adds up predictions with fixed weights, which are read from it once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fast
import torch
from common import Clock, arguments, host_scheduler, load_expert, text_table, write
from fast import block, rotary, velocity
from halfframe_tinywan.models import LORA_SHIFT, LORA_STEPS
from lora import load_pair, load_parts, merged
from torch import Tensor, nn
from torch.nn import functional

RATE = 2e-4
SIDES = ("high", "low")
STATES = 0.1
"""Weight of the distances on the way, beside the last one's."""


def main() -> None:
    found = arguments(__doc__, batch={"type": int, "default": 64})
    device, path = found.device, found.folder / "chain.pt"
    states, prompts = load_states(found.folder, device)
    text = text_table(prompts, device)
    experts = [load_expert(found.folder / f"t2v-{side}.pt", device) for side in SIDES]
    pair = [{name: nn.Parameter(value) for name, value in lora.items()} for lora in load_pair(found.folder, device)]
    parameters = [weight for lora in pair for weight in lora.values()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, fused=device != "cpu")
    step, total = 0, None
    if path.exists():
        state = torch.load(path, weights_only=True, map_location=device)
        step, total = state["step"], state["total"]
        optimizer.load_state_dict(state["optimizer"])
    if device != "cpu":
        fast.block = torch.compile(block, dynamic=False)
    steps = ladder(device)
    clock = Clock(found, "chain", step, total)
    generator = torch.Generator(device)

    def keep() -> None:
        loras = {side: {n: w.detach() for n, w in lora.items()} for side, lora in zip(SIDES, pair, strict=True)}
        write(path, {**loras, "optimizer": optimizer.state_dict(), "step": clock.step, "total": clock.total})

    while clock.running():
        generator.manual_seed(clock.step)
        picked = torch.randint(len(text), (found.batch,), generator=generator, device=device)
        wanted = states[picked].float().unbind(1)
        seen = run(experts, pair, wanted[0], text[picked], steps)
        losses = [functional.mse_loss(mine, theirs) for mine, theirs in zip(seen, wanted[1:], strict=True)]
        loss = losses[-1] + STATES * torch.stack(losses[:-1]).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = RATE * clock.factor()
        optimizer.step()
        clock.made(losses[-1])
        if clock.step % 500 == 0:
            keep()
    keep()


def load_states(folder: Path, device: str) -> tuple[Tensor, list[str]]:
    """What `trajectories.py` made: latents at the four levels and at the end ``(N, 5, 16, f, h, w)``, and prompts."""
    parts = {side: load_parts(folder, side) for side in SIDES}
    states = [
        torch.cat([high["inputs"].to(device), low["inputs"].to(device), low["end"][:, None].to(device)], dim=1)
        for high, low in zip(parts["high"], parts["low"], strict=True)
    ]
    return torch.cat(states), [prompt for part in parts["low"] for prompt in part["prompts"]]


def ladder(device: str) -> list[tuple[Tensor, list[float]]]:
    """Of each step its timestep, and the weights of the noise and of all predictions so far in the latents after it."""
    scheduler = host_scheduler(LORA_STEPS, LORA_SHIFT, device)
    sources = torch.eye(1 + LORA_STEPS, dtype=torch.float64, device=device)[:, None, :, None, None, None]
    x, steps = sources[0], []
    for number, t in enumerate(scheduler.timesteps):
        x = scheduler.step(sources[number + 1], t, x, return_dict=False)[0]
        steps.append((t.float(), x.flatten()[: number + 2].tolist()))
    return steps


def run(
    experts: list[Any], pair: list[dict[str, Any]], noise: Tensor, text: Tensor, steps: list[tuple[Tensor, list[float]]]
) -> list[Tensor]:
    """Latents after each of the four steps, two with either expert, as the host makes them; gradients go through."""
    tables = rotary(experts[0][0], noise[:1])
    weights = [merged(base, lora) for (_, base), lora in zip(experts, pair, strict=True)]
    parts, latents = [noise], [noise]
    for number, (timestep, shares) in enumerate(steps):
        side = 2 * number // len(steps)
        given = timestep.expand(len(noise))
        parts.append(velocity(experts[side][0], weights[side], latents[-1], given, text, tables))
        latents.append(sum(share * part for share, part in zip(shares, parts, strict=True)))  # type: ignore[arg-type]
    return latents[1:]


if __name__ == "__main__":
    main()
