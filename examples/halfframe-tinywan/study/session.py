"""One process's pipelines: makes clips in batches, and judges them against the plain run and against the truth."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from halfframe_tinywan import language, models
from halfframe_tinywan.language import Scene, held_out_prompts, parse_prompt
from halfframe_tinywan.world import SIDE, VIDEO_FRAMES, draw_world, render
from settings import CLIPS, FIRST_SEED, TUNING_CLIPS, Setting
from torch import Tensor
from truths import judge_truth

import halfframe

__all__ = ["Scale", "Session"]


@dataclass(frozen=True)
class Scale:
    """How much is run.

    Attributes:
        clips: that judge.
        tuning: that recipes are tuned on, and caches calibrated.
        single: that judge methods which decide once for a whole batch, and are so run clip by clip.
        video_frames: of each clip.
        batch: clips in one call of a pipeline.
        random_weights: for a rehearsal; the figures then mean nothing.
    """

    clips: int = CLIPS
    tuning: int = TUNING_CLIPS
    single: int = 32
    video_frames: int = VIDEO_FRAMES
    batch: int = 48
    random_weights: bool = False


class Session:
    """Pipelines and plain runs of one process.

    Args:
        device: where it works.
        scale: how much is run.
        scratch: folder that the processes share, for the plain runs' latents.
        folder: of the results.
    """

    def __init__(self, device: str, scale: Scale, scratch: Path, folder: Path) -> None:
        self.device = torch.device(device)
        self.scale = scale
        self.scratch = scratch
        self.folder = folder
        self.prompts = held_out_prompts(scale.clips + scale.tuning)
        self._references: dict[str, tuple[Tensor, Tensor]] = {}

    # Making clips.

    @functools.cache  # noqa: B019 - a session lives as long as its process
    def pipe(self, model: str) -> Any:
        """The pipeline of a model, on the device."""
        pipe = _random_pipe(model) if self.scale.random_weights else models.load_diffusers(model)
        pipe.to(self.device)
        pipe.set_progress_bar_config(disable=True)
        if model == "i2v":
            _encode_once(pipe)
        return pipe

    def call(self, setting: Setting, first: int, count: int, steps: int) -> Tensor:
        """Latents ``(count, 16, F, 12, 12)`` of clips `first` and on; halfframe and caches are the caller's."""
        pipe = self.pipe(setting.model)
        numbers = range(first, first + count)
        extra: dict[str, Any] = {}
        if setting.model == "i2v":
            extra["image"] = self.first_frames(numbers)
        latents: Tensor = pipe(
            prompt=[self.prompts[number] for number in numbers],
            height=SIDE,
            width=SIDE,
            num_frames=self.scale.video_frames,
            num_inference_steps=steps,
            guidance_scale=setting.guidance[1],
            guidance_scale_2=setting.guidance[0],
            generator=[torch.Generator().manual_seed(FIRST_SEED + number) for number in numbers],
            max_sequence_length=language.TEXT_LEN,
            output_type="latent",
            **extra,
        ).frames
        return latents.float()

    def make(
        self,
        setting: Setting,
        steps: int | None = None,
        strategy: Any = None,
        guidance: halfframe.Guidance | None = None,
        clips: int | None = None,
        batch: int | None = None,
    ) -> Tensor:
        """Latents of the clips that judge, made with a strategy or recipe of halfframe's if one is given."""
        count, size = clips or self.scale.clips, batch or self.scale.batch
        pipe = self.pipe(setting.model)
        parts = []
        for first in range(0, count, size):
            with contextlib.ExitStack() as stack:
                if strategy is not None or guidance is not None:
                    stack.enter_context(halfframe.enabled(pipe, strategy, guidance=guidance))
                parts.append(self.call(setting, first, min(size, count - first), steps or setting.steps))
        return torch.cat(parts)

    def decode(self, model: str, latents: Tensor) -> Tensor:
        """Clips ``(N, 3, frames, 96, 96)``, 0..1, on the device, in half precision."""
        vae = self.pipe(model).vae
        mean, deviation = (
            torch.tensor(value, device=self.device).view(1, -1, 1, 1, 1)
            for value in (vae.config.latents_mean, vae.config.latents_std)
        )
        parts = []
        with torch.no_grad():
            for first in range(0, len(latents), self.scale.batch):
                part = latents[first : first + self.scale.batch]
                video = vae.decode(part * deviation + mean, return_dict=False)[0]
                parts.append((video / 2 + 0.5).clamp(0, 1).half())
        return torch.cat(parts)

    def judge_real(self, setting: Setting) -> dict[str, Any]:
        """What the measures say of clips of the world itself, as the VAE gives them back."""
        numbers, vae = range(self.scale.clips), self.pipe(setting.model).vae
        parts = []
        for first in numbers[:: self.scale.batch]:
            some = numbers[first : first + self.scale.batch]
            worlds = [draw_world(self.scene(number), FIRST_SEED + 500_000 + number) for number in some]
            clips = render(worlds, self.scale.video_frames, self.device)
            video = vae.decode(vae.encode(clips).latent_dist.mode(), return_dict=False)[0]
            parts.append((video / 2 + 0.5).clamp(0, 1).half())
        return judge_truth(torch.cat(parts), [self.scene(number) for number in numbers])

    def first_frames(self, numbers: Sequence[int]) -> Tensor:
        """What image-to-video begins with: first frames of held-out worlds, ``(N, 3, 96, 96)``, 0..1."""
        worlds = [draw_world(self.scene(number), FIRST_SEED + number) for number in numbers]
        return render(worlds, 1, self.device)[:, :, 0] / 2 + 0.5

    def scene(self, number: int) -> Scene:
        """What a clip should show."""
        return parse_prompt(self.prompts[number])

    def results(self, part: str, setting: Setting) -> list[dict[str, Any]]:
        """What was found so far of a part of a setting, the newest last."""
        begin = f'{{"id": "{part} / {setting.name} / '
        with (self.folder / "results.jsonl").open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines if line.startswith(begin)]
        return [row for row in rows if "error" not in row]

    # Judging them.

    def reference_path(self, setting: Setting) -> Path:
        """Where a plain run's latents are."""
        return self.scratch / f"{setting.name}.pt"

    def reference(self, setting: Setting) -> tuple[Tensor, Tensor]:
        """Latents and clips of the plain run."""
        if setting.name not in self._references:
            latents = torch.load(self.reference_path(setting), weights_only=True).to(self.device)
            self._references[setting.name] = (latents, self.decode(setting.model, latents))
        return self._references[setting.name]

    def judge(self, setting: Setting, latents: Tensor, cost: float, truth: bool = True) -> dict[str, Any]:
        """One result: errors of each clip to the plain run, and what is measured against the truth.

        Args:
            setting: whose plain run.
            latents: of the first clips.
            cost: in full steps.
            truth: whether to measure right, valid and the Frechet distance.
        """
        plain, seen = (part[: len(latents)] for part in self.reference(setting))
        clips = self.decode(setting.model, latents)
        row: dict[str, Any] = {
            "cost": round(cost, 4),
            "decoded": _errors(clips, seen),
            "latents": _errors(latents, plain),
            "peak": float(plain.max() - plain.min()) ** 2,
        }
        if setting.model == "i2v":
            row["first_frame"] = _errors(clips[:, :, 0], self.first_frames(range(len(clips))))
        if truth:
            began = time.monotonic()
            row |= judge_truth(clips, [self.scene(number) for number in range(len(clips))])
            row["truth_seconds"] = round(time.monotonic() - began, 2)
        return row


def _errors(a: Tensor, b: Tensor) -> list[float]:
    """Mean square of the difference, of each clip."""
    errors = [float((x.float() - y.float()).square().mean()) for x, y in zip(a, b, strict=True)]
    return [float(f"{error:.5g}") for error in errors]


def write_reference(path: Path, latents: Tensor) -> None:
    """Keep a plain run for the other processes."""
    part = path.with_suffix(f".{os.getpid()}")
    torch.save(latents.cpu(), part)
    part.replace(path)


def _random_pipe(model: str) -> Any:
    from halfframe.testing import tiny_diffusers_i2v, tiny_diffusers_t2v

    parts: dict[str, Any] = {"text_encoder": language.TextEncoder(), "tokenizer": language.Tokenizer()}
    make = tiny_diffusers_i2v if model == "i2v" else tiny_diffusers_t2v
    sizes = dataclasses.replace(models.WAN_SIZES, dim=64, ffn_dim=64, num_layers=3, vae_dim=4)
    pipe = make(sizes=sizes, **parts)
    if model != "t2v":
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, flow_shift=5.0)
    return pipe


def _encode_once(pipe: Any) -> None:
    """Have diffusers encode a batch of images once: it does so for each generator, and then takes all of each.

    What was encoded is kept, because the same clips are made again and again.
    """
    encode = pipe.vae.encode
    known: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
    state: dict[str, Any] = {"video": None, "modes": iter(())}

    def encode_one(video: Tensor) -> Any:
        if state["video"] is not video:
            first = video[:, :, 0]
            key = (*video.shape, int(first.double().sum() * 1000))
            if key not in known or not torch.equal(known[key][0], first):
                known[key] = (first.clone(), encode(video).latent_dist.mode())
            state.update(video=video, modes=iter(known[key][1]))
        return _Latents(next(state["modes"])[None])

    pipe.vae.encode = encode_one


class _Latents:
    """What a VAE of diffusers returns, as far as the pipeline looks at it."""

    def __init__(self, mode: Tensor) -> None:
        self.latent_dist = self
        self._mode = mode

    def mode(self) -> Tensor:
        return self._mode
