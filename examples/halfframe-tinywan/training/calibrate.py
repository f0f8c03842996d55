"""How hard the trained world is: same-seed PSNR of fewer steps to 20, decoded, on prompts that no training saw.

python calibrate.py --folder run --clips 64
"""

from __future__ import annotations

import json
from typing import Any

import torch
from common import arguments, decoded, load_training_vae, psnr, sample, text_table
from fast import rotary, velocity
from halfframe_tinywan.language import held_out_prompts
from halfframe_tinywan.models import build_expert
from torch import Tensor


def load_expert(path: Any, device: str) -> Any:
    """A function of (x, timestep, text) with the averaged weights of a training."""
    model = build_expert().requires_grad_(False)
    model.load_state_dict({k: v.float() for k, v in torch.load(path, map_location="cpu")["average"].items()})
    model.to(device)
    weights = dict(model.named_parameters())

    def call(x: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        return velocity(model, weights, x, timestep, text, rotary(model, x))

    return call


def first_noise(count: int, frames: int = 21) -> Tensor:
    """Noise of seeds from 1,000,000, drawn on the CPU as the hosts do."""
    return torch.stack(
        [torch.randn(16, frames, 12, 12, generator=torch.Generator().manual_seed(1_000_000 + n)) for n in range(count)]
    )


def main() -> None:
    found = arguments(
        __doc__,
        clips={"type": int, "default": 64},
        steps_tried={"type": int, "nargs": "*", "default": [20, 19, 17, 15, 13, 12, 10, 8, 6, 5, 4, 3, 2]},
    )
    experts = [load_expert(found.folder / f"t2v-{side}.pt", found.device) for side in ("high", "low")]
    vae, mean, deviation = load_training_vae(found.folder, found.device)
    text = text_table([*held_out_prompts(found.clips), ""], found.device)
    noise = first_noise(found.clips).to(found.device)
    rows, clips = {}, {}
    for guided in (True, False):
        for steps in found.steps_tried:
            scales = (3.0, 4.0) if guided else (1.0, 1.0)
            latents = sample(experts, noise, text, steps, guidance=scales)
            clip = decoded(vae, latents, mean, deviation)
            if steps == found.steps_tried[0]:
                clips[guided] = (latents, clip)
            whole, near = psnr(clip, clips[guided][1]), psnr(latents, clips[guided][0])
            rows[f"{steps} steps, guidance {scales}"] = [whole.mean().item(), whole.std().item(), near.mean().item()]
            print(f"{steps} steps, guidance {scales}: {whole.mean():.2f} dB decoded", flush=True)
    (found.folder / "calibration.json").write_text(json.dumps({"clips": found.clips, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
