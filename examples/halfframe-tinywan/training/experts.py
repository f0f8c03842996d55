"""Train one of TinyWan's experts, by flow matching (v = eps - x0) on its side of the boundary.

    python experts.py --folder run --side high --minutes 9     # and --side low

The text encoder is fixed, so the two experts know nothing of each other and can be trained side by side.
"""

from __future__ import annotations

import time

import fast
import torch
from common import Clock, arguments, draw_sigma, optimizers_for, text_table, training_worlds, update, write
from fast import block, rotary, velocity
from halfframe_tinywan.models import BOUNDARY, SHIFT, build_expert
from torch.nn import functional

PEAK = 2e-3
EMPTY_PROMPT = 0.12
DECAY = 0.998


def main() -> None:
    found = arguments(
        __doc__,
        side={"choices": ("high", "low"), "required": True},
        batch={"type": int, "default": 96},
        peak={"type": float, "default": PEAK},
    )
    began = time.monotonic()
    device = found.device
    parts = [torch.load(path, mmap=True) for path in sorted(found.folder.glob("latents-t2v-*.pt"))]
    if not parts:
        raise SystemExit(f"{found.folder} has no latents-t2v-*.pt; run latents.py first.")
    latents = torch.cat([part["latents"].to(device) for part in parts])
    worlds = [world for part in parts for world in training_worlds(part["first"], len(part["latents"]))]
    text = text_table([*(str(world.scene) for world in worlds), ""], device)
    torch.manual_seed(0)
    model = build_expert()
    torch.nn.init.zeros_(model.proj_out.weight)
    path, step, total = found.folder / f"t2v-{found.side}.pt", 0, None
    model.to(device)
    weights = dict(model.named_parameters())
    optimizers = optimizers_for([*weights.values()], {id(p) for p in model.blocks.parameters() if p.ndim == 2})
    average = {name: weight.detach().clone() for name, weight in weights.items()}
    if path.exists():
        state = torch.load(path, weights_only=True, map_location=device)
        step, total, average = state["step"], state["total"], state["average"]
        for name, part in {"model": model, **optimizers}.items():
            part.load_state_dict(state[name])
    if device != "cpu":
        fast.block = torch.compile(block, dynamic=False)
    tables = rotary(model, latents[:1])
    print(f"t2v {found.side}: {len(latents)} clips after {time.monotonic() - began:.0f} s", flush=True)
    found.minutes -= (time.monotonic() - began) / 60
    clock = Clock(found, f"t2v {found.side}", step, total)
    generator = torch.Generator(device)
    while clock.running():
        generator.manual_seed(clock.step)
        picked = torch.randint(len(latents), (found.batch,), generator=generator, device=device)
        x0 = latents[picked].float()
        empty = torch.rand(found.batch, generator=generator, device=device) < EMPTY_PROMPT
        said = text[torch.where(empty, len(latents), picked)]  # the last prompt is the empty one
        sigma = draw_sigma(found.batch, SHIFT, BOUNDARY, found.side, generator)
        noise = torch.randn(x0.shape, generator=generator, device=device)
        broad = sigma.view(-1, 1, 1, 1, 1)
        noisy = (1 - broad) * x0 + broad * noise
        loss = functional.mse_loss(velocity(model, weights, noisy, 1000 * sigma, said, tables), noise - x0)
        rate = found.peak * clock.factor()
        update([*weights.values()], loss, optimizers, {"muon": rate, "adamw": rate})
        torch._foreach_lerp_(
            [*average.values()], [*weights.values()], 1 - min(DECAY, (clock.step + 1) / (clock.step + 10))
        )
        clock.made(loss)
    states = {name: part.state_dict() for name, part in {"model": model, **optimizers}.items()}
    write(path, {**states, "average": average, "step": clock.step, "total": clock.total})


if __name__ == "__main__":
    main()
