"""Train one LoRA of the 4-step pair on what `trajectories.py` made, by regression.

python lora.py --folder run --side high --minutes 4     # and --side low
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fast
import torch
from common import Clock, Weights, arguments, host_scheduler, load_expert, text_table, write
from fast import block, rotary, velocity
from halfframe_tinywan.models import LORA_SHIFT, LORA_STEPS
from torch import Tensor, nn
from torch.nn import functional

RANK = 32
RATE = 4e-4


def main() -> None:
    found = arguments(
        __doc__,
        side={"choices": ("high", "low"), "required": True},
        batch={"type": int, "default": 96},
    )
    device = found.device
    parts = load_parts(found.folder, found.side)
    inputs, targets = (torch.cat([part[name].to(device) for part in parts]) for name in ("inputs", "targets"))
    text = text_table([prompt for part in parts for prompt in part["prompts"]], device)
    timesteps = host_scheduler(LORA_STEPS, LORA_SHIFT, device).timesteps.float()
    timesteps = timesteps[:2] if found.side == "high" else timesteps[2:]
    model, base = load_expert(found.folder / f"t2v-{found.side}.pt", device)
    torch.manual_seed(0)
    lora = new_lora(base, device)
    path, step, total = found.folder / f"lora-{found.side}.pt", 0, None
    optimizer = torch.optim.AdamW(lora.values(), lr=RATE, weight_decay=0.0, fused=device != "cpu")
    if path.exists():
        state = torch.load(path, weights_only=True, map_location=device)
        step, total = state["step"], state["total"]
        optimizer.load_state_dict(state["optimizer"])
        for name, weight in lora.items():
            weight.data.copy_(state["lora"][name])
    if device != "cpu":
        fast.block = torch.compile(block, dynamic=False)
    tables = rotary(model, inputs[:1, 0])
    clock = Clock(found, path.stem, step, total)
    generator = torch.Generator(device)
    while clock.running():
        generator.manual_seed(clock.step)
        picked = torch.randint(len(inputs), (found.batch,), generator=generator, device=device)
        level = torch.arange(found.batch, device=device) % 2
        x, target = inputs[picked, level].float(), targets[picked, level].float()
        seen = velocity(model, merged(base, lora), x, timesteps[level], text[picked], tables)
        loss = functional.mse_loss(seen, target)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(list(lora.values()), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = RATE * clock.factor()
        optimizer.step()
        clock.made(loss)
    state = {"lora": {name: weight.detach() for name, weight in lora.items()}, "optimizer": optimizer.state_dict()}
    write(path, {**state, "step": clock.step, "total": clock.total})


def load_parts(folder: Path, side: str) -> list[dict[str, Any]]:
    """What `trajectories.py` made for one LoRA, a part from each of its processes."""
    paths = sorted(folder.glob(f"student-{side}-*.pt"))
    if not paths:
        raise SystemExit(f"{folder} has no student-{side}-*.pt; run trajectories.py first.")
    return [torch.load(path, mmap=True, weights_only=True) for path in paths]


def new_lora(base: Weights, device: str) -> dict[str, nn.Parameter]:
    """Two factors for every matrix of the blocks, by diffusers' names; the second is zero."""
    lora = {}
    for name, weight in base.items():
        if name.startswith("blocks.") and name.endswith(".weight") and weight.ndim == 2:
            stem = name.removesuffix(".weight")
            first = torch.randn(RANK, weight.shape[1], device=device) / weight.shape[1] ** 0.5
            lora[f"{stem}.lora_A.weight"] = nn.Parameter(first)
            lora[f"{stem}.lora_B.weight"] = nn.Parameter(torch.zeros(weight.shape[0], RANK, device=device))
    return lora


def load_pair(folder: Path, device: str) -> list[dict[str, Tensor]]:
    """The LoRAs of both experts, high noise first: what `chain.py` made of them, if it was run."""
    path = folder / "chain.pt"
    if path.exists():
        state = torch.load(path, weights_only=True, map_location=device)
        return [state[side] for side in ("high", "low")]
    paths = [folder / f"lora-{side}.pt" for side in ("high", "low")]
    return [torch.load(path, weights_only=True, map_location=device)["lora"] for path in paths]


def merged(base: Weights, lora: dict[str, Tensor] | dict[str, nn.Parameter]) -> Weights:
    """The expert's weights with the LoRA added."""
    added = {}
    for name in lora:
        if name.endswith(".lora_A.weight"):
            stem = name.removesuffix(".lora_A.weight")
            added[f"{stem}.weight"] = base[f"{stem}.weight"] + lora[f"{stem}.lora_B.weight"] @ lora[name]
    return {**base, **added}


if __name__ == "__main__":
    main()
