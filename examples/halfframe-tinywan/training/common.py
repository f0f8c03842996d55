"""What the training scripts share: optimisers, checkpoints, data drawn from the world, and sampling for a look."""

from __future__ import annotations

import argparse
import math
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fast import decode, encode, rotary, velocity
from halfframe_tinywan.language import Scene, TextEncoder, Tokenizer, random_scene
from halfframe_tinywan.models import BOUNDARY, GUIDANCE, SHIFT, build_expert, build_vae
from halfframe_tinywan.world import World, draw_world, render
from torch import Tensor, nn

Optimizers = dict[str, torch.optim.Optimizer]
Weights = dict[str, Tensor]


def arguments(description: str | None, **options: dict[str, Any]) -> argparse.Namespace:
    """The options that all scripts have, and `options`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="checkpoints and data")
    parser.add_argument("--minutes", type=float, default=9.0, help="stop then; the next run goes on")
    parser.add_argument("--steps", type=int, help="of training; without it, as many as --minutes have room for")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for name, settings in options.items():
        parser.add_argument(f"--{name}", **settings)
    found = parser.parse_args()
    found.folder.mkdir(parents=True, exist_ok=True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.set_flush_denormal(True)
    return found


# Data.


def training_worlds(first: int, count: int) -> list[World]:
    """Worlds number `first` and on; seeds below 1,000,000 are the training's."""
    if first + count > 1_000_000:
        raise SystemExit(f"worlds up to {first + count} were asked for; seeds from 1,000,000 are held out.")
    return [draw_world(training_scene(n), n) for n in range(first, first + count)]


def training_scene(number: int) -> Scene:
    """What the prompt of a training world says."""
    return random_scene(random.Random(f"scene {number}"))


def training_clips(first: int, count: int, device: str, num_frames: int = 81, batch: int = 32) -> Tensor:
    """``(count, 3, num_frames, 96, 96)`` in bfloat16."""
    worlds = training_worlds(first, count)
    parts = [render(worlds[n : n + batch], num_frames, device).bfloat16() for n in range(0, count, batch)]
    return torch.cat(parts)


def load_training_vae(folder: Path, device: str) -> tuple[Any, Tensor, Tensor]:
    """The VAE that ``vae.py`` trained, and mean and deviation of its latents, ``(1, 16, 1, 1, 1)`` each."""
    state = torch.load(folder / "vae.pt", weights_only=True, map_location="cpu")
    vae = build_vae().requires_grad_(False).eval()
    vae.load_state_dict(state["model"])
    mean, deviation = (state[name].to(device).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    return vae.to(device), mean, deviation


class Encoder:
    """Clips to latents of unit scale."""

    def __init__(self, folder: Path, device: str) -> None:
        self.vae, self.mean, self.deviation = load_training_vae(folder, device)
        self.device = device

    @torch.no_grad()
    def __call__(self, clips: Tensor) -> Tensor:
        """``(B, 16, f, 12, 12)`` in bfloat16 of ``(B, 3, F, 96, 96)``, values -1..1."""
        with torch.autocast(self.device.split(":")[0], torch.bfloat16):
            found = encode(self.vae, clips.contiguous(memory_format=torch.channels_last_3d))
        return ((found.float() - self.mean) / self.deviation).bfloat16()

    def first_frames(self, clips: Tensor) -> Tensor:
        """The same of each clip's first frame and grey after it: what image-to-video is given."""
        return self(torch.cat([clips[:, :, :1], torch.zeros_like(clips[:, :, 1:])], dim=2))


def with_condition(noisy: Tensor, condition: Tensor) -> Tensor:
    """Latents ``(B, 16, f, h, w)`` as experts of image-to-video take them, 36 channels: mask and condition follow."""
    mask = torch.zeros_like(noisy[:, :4])
    mask[:, :, 0] = 1
    return torch.cat([noisy, mask, condition.to(noisy)], dim=1)


def load_expert(path: Path, device: str, in_channels: int = 16) -> tuple[Any, Weights]:
    """A frozen expert and the averaged weights of its training."""
    model = build_expert(in_channels).requires_grad_(False)
    state = torch.load(path, weights_only=True, map_location="cpu")["average"]
    model.load_state_dict({name: value.float() for name, value in state.items()})
    model.to(device)
    return model, dict(model.named_parameters())


def predictor(model: Any, weights: Weights) -> Any:
    """A function of (x, timestep, text)."""

    def call(x: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        return velocity(model, weights, x, timestep, text, rotary(model, x))

    return call


def text_table(prompts: Sequence[str], device: str) -> Tensor:
    """Embeddings ``(len(prompts), TEXT_LEN, TEXT_DIM)``."""
    tokens = Tokenizer()(list(prompts))
    with torch.no_grad():
        hidden: Tensor = TextEncoder()(tokens.input_ids, tokens.attention_mask).last_hidden_state
    return hidden.to(device)


def draw_sigma(count: int, shift: float, boundary: float, side: str, generator: torch.Generator) -> Tensor:
    """Noise levels as `shift` spreads them on one side of the boundary, stratified, ``(count,)``."""
    split = boundary / (shift - (shift - 1) * boundary)  # before the shift
    even = torch.arange(count, device=generator.device)
    even = (even + torch.rand(count, generator=generator, device=generator.device)) / count
    t = split + (1 - split) * even if side == "high" else split * even
    return shift * t / (1 + (shift - 1) * t)


# Sampling, as the hosts do it.


def host_scheduler(steps: int, shift: float, device: str) -> Any:
    """UniPC as both hosts use it."""
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    scheduler.set_timesteps(steps, device=device)
    return scheduler


@torch.no_grad()
def sample(
    experts: Sequence[Any],
    noise: Tensor,
    text: Tensor,
    steps: int,
    *,
    shift: float = SHIFT,
    boundary: float = BOUNDARY,
    guidance: tuple[float, float] = GUIDANCE,
) -> Tensor:
    """Latents from `noise` ``(B, 16, f, h, w)``; `experts` are functions of (x, timestep, text), high noise first.

    Args:
        experts: the two of them.
        noise: to begin with.
        text: embeddings of the prompts, and of the empty one last, ``(B + 1, L, D)``.
        steps: of the scheduler.
        shift: of the schedule.
        boundary: between the experts.
        guidance: of the low-noise and of the high-noise expert.
    """
    scheduler = host_scheduler(steps, shift, noise.device)
    x, empty = noise, text[-1:].expand(len(noise), -1, -1)
    for t in scheduler.timesteps:
        high = bool(t >= 1000 * boundary)
        scale = guidance[1] if high else guidance[0]
        time = t.expand(len(x)).float()
        v = experts[not high](x, time, text[:-1])
        if scale != 1:
            base = experts[not high](x, time, empty)
            v = base + scale * (v - base)
        x = scheduler.step(v, t, x, return_dict=False)[0]
    return x


@torch.no_grad()
def decoded(vae: Any, latents: Tensor, mean: Tensor, deviation: Tensor, batch: int = 16) -> Tensor:
    """Clips 0..1 on the CPU of latents of unit scale."""
    parts = []
    for part in latents.split(batch):
        with torch.autocast(latents.device.type, torch.bfloat16):
            video = decode(vae, (part * deviation + mean).contiguous(memory_format=torch.channels_last_3d))
        parts.append((video.float() / 2 + 0.5).clamp(0, 1).cpu())
    return torch.cat(parts)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Of each clip, dB, at a range of 1."""
    return -10 * (a - b).square().flatten(1).mean(dim=1).clamp(min=1e-10).log10()


# Optimisers.


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum, on weights of any shape: a matrix with one row per output channel.

    PyTorch's own takes one matrix at a time; here matrices of one shape go together. The rate is scaled to match the
    size of AdamW's updates.
    """

    def __init__(self, weights: list[nn.Parameter], momentum: float = 0.95, weight_decay: float = 0.01) -> None:
        shapes = sorted({tuple(weight.view(len(weight), -1).shape) for weight in weights})
        groups = [[w for w in weights if tuple(w.view(len(w), -1).shape) == shape] for shape in shapes]
        super().__init__([{"params": group} for group in groups], {"lr": 0.0})
        self.momentum, self.decay = momentum, weight_decay

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            weights, rate = group["params"], group["lr"]
            gradients = torch.stack([weight.grad.view(len(weight), -1) for weight in weights])
            state = self.state[weights[0]]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(gradients)
            state["momentum"].lerp_(gradients, 1 - self.momentum)
            update = orthogonalised(gradients.lerp(state["momentum"], self.momentum))
            update *= 0.2 * max(update.shape[1:]) ** 0.5
            torch._foreach_mul_(weights, 1 - rate * self.decay)
            torch._foreach_add_(weights, [u.view_as(w) for u, w in zip(update, weights, strict=True)], alpha=-rate)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Roughly the nearest matrices of orthonormal rows or columns: five steps of a quintic Newton-Schulz iteration."""
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
    return (x.mT if tall else x).to(matrices.dtype)


def optimizers_for(parameters: list[nn.Parameter], matrices: set[int]) -> Optimizers:
    """Muon for the weights whose ids are in `matrices`, AdamW for the rest of `parameters`."""
    rest = [p for p in parameters if id(p) not in matrices]
    adamw = torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.01, fused=rest[0].is_cuda)
    return {"muon": Muon([p for p in parameters if id(p) in matrices]), "adamw": adamw}


def update(parameters: list[nn.Parameter], loss: Tensor, optimizers: Optimizers, rates: dict[str, float]) -> None:
    """One step; gradients are averaged over processes, if there are several."""
    for parameter in parameters:
        parameter.grad = None
    loss.backward()
    if torch.distributed.is_initialized():
        flat = nn.utils.parameters_to_vector([p.grad for p in parameters])
        torch.distributed.all_reduce(flat, torch.distributed.ReduceOp.AVG)
        gradients = flat.split([p.numel() for p in parameters])
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.view_as(parameter)
    nn.utils.clip_grad_norm_(parameters, 1.0)
    for name, optimizer in optimizers.items():
        for group in optimizer.param_groups:
            group["lr"] = rates[name]
        optimizer.step()


# The loop.


class Clock:
    """How far a training is: by ``--steps``, or by as many steps as its first ones tell ``--minutes`` have room for.

    Of several processes, the first one's clock counts for all.
    """

    def __init__(
        self, found: argparse.Namespace, name: str, step: int = 0, total: int | None = None, reserve: float = 0.0
    ) -> None:
        self.name, self.step = name, step
        self.total = found.steps or total
        self._fixed = found.steps is not None
        self.end = time.monotonic() + 60 * found.minutes - reserve
        self._began, self._first, self._losses = time.monotonic(), step, []  # type: ignore[var-annotated]

    def running(self) -> bool:
        """Whether another step is to be made."""
        if self.total is not None and self.step >= self.total:
            return False
        return self.step % 50 != 0 or not _first_ones(time.monotonic() >= self.end)

    def factor(self, warm_up: int = 100) -> float:
        """Of the learning rate: linear warm-up, then a cosine to a hundredth."""
        progress = min(1.0, self.step / self.total) if self.total else 0.0
        return min(1.0, (self.step + 1) / warm_up) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))

    def made(self, loss: Tensor) -> None:
        """After each step."""
        self.step += 1
        self._losses.append(loss.detach())
        made = self.step - self._first
        if made in (30, 130) and not self._fixed:  # compiling is over by then
            loss.item()  # waits for the device
            if made == 30:
                self._began = time.monotonic()
            else:
                each = (time.monotonic() - self._began) / 100
                self.total = _first_ones(self.step + int((self.end - time.monotonic()) / each * 0.985))
                print(f"{self.name}: {self.total} steps at {each:.4f} s", flush=True)
        if made % 500 == 0 or self.step == self.total:
            mean = torch.stack(self._losses).mean().item()
            self._losses.clear()
            left = self.end - time.monotonic()
            print(f"{self.name} {self.step}/{self.total} loss {mean:.4f}, {left:.0f} s left", flush=True)


def join_processes(found: argparse.Namespace) -> tuple[int, int]:
    """Number of this process and of all, under torchrun one for each GPU; sets ``found.device``."""
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if ranks > 1:
        cuda = torch.cuda.is_available()
        torch.distributed.init_process_group("nccl" if cuda else "gloo")
        if cuda:
            found.device = f"cuda:{rank}"
            torch.cuda.set_device(rank)
    return rank, ranks


def _first_ones(value: Any) -> Any:
    """What the first process has."""
    if not torch.distributed.is_initialized():
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values)
    return values[0]


def write(path: Path, data: dict[str, Any]) -> None:
    """Save so that nobody sees half a file."""
    temporary = path.with_suffix(".part")
    torch.save(data, temporary)
    temporary.replace(path)
