"""Train one of TinyWan's experts, by flow matching (v = eps - x0) on its side of the boundary.

    python experts.py --folder run --side high --minutes 9     # and --side low
    torchrun --nproc-per-node 2 experts.py --folder run --side high --minutes 5       # on two GPUs
    python experts.py --folder run --side high --task i2v --minutes 4    # image-to-video, from the one above

The text encoder is fixed, so the two experts know nothing of each other and can be trained side by side.
"""

from __future__ import annotations

import time
from typing import Any

import fast
import torch
from common import (
    Clock,
    arguments,
    draw_sigma,
    join_processes,
    optimizers_for,
    text_table,
    training_scene,
    update,
    with_condition,
    write,
)
from fast import block, rotary, velocity
from halfframe_tinywan.models import BOUNDARY, I2V_BOUNDARY, I2V_SHIFT, SHIFT, build_expert
from torch import Tensor
from torch.nn import functional

PEAK = 2e-3
EMPTY_PROMPT = 0.12
DECAY = 0.998


def main() -> None:
    found = arguments(
        __doc__,
        side={"choices": ("high", "low"), "required": True},
        task={"choices": ("t2v", "i2v"), "default": "t2v"},
        batch={"type": int, "default": 96},
        peak={"type": float, "default": PEAK},
    )
    began = time.monotonic()
    rank, ranks = join_processes(found)
    device, images = found.device, found.task == "i2v"
    shift, boundary = (I2V_SHIFT, I2V_BOUNDARY) if images else (SHIFT, BOUNDARY)
    latents, conditions, prompts = training_data(found)
    text = text_table([*prompts, ""], device)
    torch.manual_seed(0)
    model = build_expert(36 if images else 16)
    torch.nn.init.zeros_(model.proj_out.weight)
    path, step, total = found.folder / f"{found.task}-{found.side}.pt", 0, None
    model.to(device)
    weights = dict(model.named_parameters())
    optimizers = optimizers_for([*weights.values()], {id(p) for p in model.blocks.parameters() if p.ndim == 2})
    average = {name: weight.detach().clone() for name, weight in weights.items()}
    if path.exists():
        state = torch.load(path, weights_only=True, map_location=device)
        step, total, average = state["step"], state["total"], state["average"]
        for name, part in {"model": model, **optimizers}.items():
            if name in state:  # without the optimizers' states, a run goes on a little worse
                part.load_state_dict(state[name])
    elif images:
        begin_from(model, found.folder / f"t2v-{found.side}.pt", device)
        average = {name: weight.detach().clone() for name, weight in weights.items()}
    if device != "cpu":
        fast.block = torch.compile(block, dynamic=False)
    tables = rotary(model, latents[:1])
    print(f"{path.stem}: {len(latents)} clips after {time.monotonic() - began:.0f} s", flush=True)
    found.minutes -= (time.monotonic() - began) / 60
    clock = Clock(found, path.stem, step, total)
    generator = torch.Generator(device)
    while clock.running():
        generator.manual_seed(clock.step * ranks + rank)
        picked = torch.randint(len(latents), (found.batch,), generator=generator, device=device)
        x0 = latents[picked].float()
        empty = torch.rand(found.batch, generator=generator, device=device) < EMPTY_PROMPT
        said = text[torch.where(empty, len(latents), picked)]  # the last prompt is the empty one
        sigma = draw_sigma(found.batch, shift, boundary, found.side, generator)
        noise = torch.randn(x0.shape, generator=generator, device=device)
        broad = sigma.view(-1, 1, 1, 1, 1)
        given = (1 - broad) * x0 + broad * noise
        if images:
            given = with_condition(given, conditions[picked])
        loss = functional.mse_loss(velocity(model, weights, given, 1000 * sigma, said, tables), noise - x0)
        rate = found.peak * clock.factor()
        update([*weights.values()], loss, optimizers, {"muon": rate, "adamw": rate})
        with torch.no_grad():
            share = 1 - min(DECAY, (clock.step + 1) / (clock.step + 10))
            torch._foreach_lerp_([*average.values()], [*weights.values()], share)
        clock.made(loss)
    if rank == 0:
        states = {name: part.state_dict() for name, part in {"model": model, **optimizers}.items()}
        write(path, {**states, "average": average, "step": clock.step, "total": clock.total})
    if ranks > 1:
        torch.distributed.destroy_process_group()


def training_data(found: Any) -> tuple[Tensor, Tensor, list[str]]:
    """Latents of the worlds, what image-to-video is given of them, and their prompts."""
    parts = [torch.load(path, mmap=True, weights_only=True) for path in sorted(found.folder.glob("latents-*.pt"))]
    if not parts:
        raise SystemExit(f"{found.folder} has no latents-*.pt; run latents.py first.")
    counts = [len(part["conditions" if found.task == "i2v" else "latents"]) for part in parts]
    latents = torch.cat([part["latents"][:count].to(found.device) for part, count in zip(parts, counts, strict=True)])
    conditions = latents[:0]
    if found.task == "i2v":
        conditions = torch.cat([part["conditions"].to(found.device) for part in parts])
    numbers = [part["first"] + n for part, count in zip(parts, counts, strict=True) for n in range(count)]
    return latents, conditions, [str(training_scene(number)) for number in numbers]


def begin_from(model: Any, path: Any, device: str) -> None:
    """The weights of text-to-video, and nothing yet from mask and condition."""
    state = torch.load(path, weights_only=True, map_location=device)["average"]
    name = "patch_embedding.weight"
    wide = torch.zeros_like(dict(model.named_parameters())[name])
    wide[:, :16] = state[name]
    model.load_state_dict({**state, name: wide})


if __name__ == "__main__":
    main()
