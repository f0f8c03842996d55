"""How hard the trained world is, on prompts that no training saw; a first look. The study measures more.

    python calibrate.py --folder run --clips 64

Same-seed PSNR of fewer steps to 20, decoded, and how many things are right; the same of the LoRA pair beside the
teacher's own few steps, and of image-to-video.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from common import (
    Encoder,
    arguments,
    decoded,
    load_expert,
    load_training_vae,
    predictor,
    psnr,
    sample,
    text_table,
    with_condition,
)
from halfframe_tinywan.language import held_out_prompts, parse_prompt
from halfframe_tinywan.models import I2V_BOUNDARY, I2V_GUIDANCE, I2V_SHIFT, LORA_SHIFT, LORA_STEPS
from halfframe_tinywan.truth import measure
from halfframe_tinywan.world import draw_world, render
from lora import load_pair, merged
from torch import Tensor

TRIED = (20, 19, 17, 15, 13, 12, 10, 8, 6, 5, 4, 3, 2)


def first_noise(count: int, frames: int = 21) -> Tensor:
    """Noise of seeds from 1,000,000, drawn on the CPU as the hosts do."""
    return torch.stack(
        [torch.randn(16, frames, 12, 12, generator=torch.Generator().manual_seed(1_000_000 + n)) for n in range(count)]
    )


def right(clips: Tensor, prompts: list[str]) -> float:
    """Share of things that are what the prompt says, seen in every fourth frame."""
    seen = [
        one.right
        for clip, said in zip(clips, prompts, strict=True)
        for one in measure(clip[:, ::4], parse_prompt(said))
    ]
    return sum(seen) / len(seen)


def main() -> None:
    found = arguments(
        __doc__,
        clips={"type": int, "default": 64},
        steps_tried={"type": int, "nargs": "*", "default": list(TRIED)},
        parts={"nargs": "*", "default": ["t2v", "lora", "i2v"]},
    )
    device, rows = found.device, {}
    vae, mean, deviation = load_training_vae(found.folder, device)
    prompts = held_out_prompts(found.clips)
    text = text_table([*prompts, ""], device)
    noise = first_noise(found.clips).to(device)
    worlds = [draw_world(parse_prompt(prompt), 1_000_000 + n) for n, prompt in enumerate(prompts)]
    real = torch.cat([render([world], device=device) for world in worlds]).cpu() / 2 + 0.5
    encoder = Encoder(found.folder, device)
    latents = torch.cat([encoder(clips.to(device) * 2 - 1) for clips in real.split(16)])
    through = decoded(vae, latents.float(), mean, deviation)

    def note(name: str, clip: Tensor, reference: Tensor | None = None) -> None:
        values = {"right": right(clip, prompts)}
        if reference is not None:
            near = psnr(clip, reference)
            values |= {"psnr": near.mean().item(), "deviation": near.std().item()}
        rows[name] = values
        print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in values.items()), flush=True)

    def clips_of(experts: Any, steps: int, **settings: Any) -> Tensor:
        return decoded(vae, sample(experts, noise, text, steps, **settings), mean, deviation)

    note("real clips", real)
    note("real clips through the VAE", through, real)
    loaded = [load_expert(found.folder / f"t2v-{side}.pt", device) for side in ("high", "low")]
    experts = [predictor(*one) for one in loaded]
    full = clips_of(experts, found.steps_tried[0])
    if "t2v" in found.parts:
        note(f"{found.steps_tried[0]} steps", full)
        for steps in found.steps_tried[1:]:
            note(f"{steps} steps", clips_of(experts, steps), full)
    unguided: dict[str, Any] = {"guidance": (1.0, 1.0)}
    if "lora" in found.parts:
        pair = load_pair(found.folder, device)
        students = [predictor(model, merged(base, lora)) for (model, base), lora in zip(loaded, pair, strict=True)]
        unguided["shift"] = LORA_SHIFT
        note("LoRA, 4 steps", clips_of(students, LORA_STEPS, **unguided), full)
        for shift in (LORA_SHIFT, 12.0):
            note(f"teacher, 4 guided steps, shift {shift:g}", clips_of(experts, LORA_STEPS, shift=shift), full)
    if "i2v" in found.parts:
        condition = torch.cat([encoder.first_frames(clips.to(device) * 2 - 1) for clips in real.split(16)])
        wide = [predictor(*load_expert(found.folder / f"i2v-{side}.pt", device, 36)) for side in ("high", "low")]
        shown = [lambda x, t, said, one=one: one(with_condition(x, condition), t, said) for one in wide]
        settings = {"shift": I2V_SHIFT, "boundary": I2V_BOUNDARY, "guidance": I2V_GUIDANCE}
        full = clips_of(shown, found.steps_tried[0], **settings)
        first = psnr(full[:, :, :1], real[:, :, :1]).mean().item()
        soft = psnr(through[:, :, :1], real[:, :, :1]).mean().item()
        print(f"image-to-video: first frame {first:.2f} dB to the image, {soft:.2f} dB through the VAE alone")
        rows["i2v first frame"] = {"psnr": first, "through the VAE": soft}
        note(f"i2v, {found.steps_tried[0]} steps", full)
        for steps in found.steps_tried[1:]:
            note(f"i2v, {steps} steps", clips_of(shown, steps, **settings), full)
    path = found.folder / f"calibration-{'-'.join(found.parts)}.json"
    path.write_text(json.dumps({"clips": found.clips, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
