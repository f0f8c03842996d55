"""Train TinyWan from nothing: its VAE, then its text encoder and two experts.

    python examples/tinywan/train.py vae --folder tinywan --minutes 10
    python examples/tinywan/train.py latents --folder tinywan
    python examples/tinywan/train.py experts --folder tinywan --minutes 10
    python examples/tinywan/train.py pack --folder tinywan

Every stage goes on from what it finds in ``--folder``, so that a long training can be done in short runs; what is drawn
at a step depends on the step's number only. Stages stop after ``--minutes``, or when they are done. ``shipped-vae``
takes the VAE that comes with halfframe in place of the first stage, and ``shipped-experts`` the text encoder and the
experts, for ``experts --phases high low`` to go on from. ``--fit`` lets a phase of the experts make as many steps as
there is time for, as its first steps tell, in place of a number of steps known beforehand.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from halfframe.tinywan.clips import Scene, random_scene, render
from halfframe.tinywan.model import BOUNDARY, SHIFT, SIDE, build_expert, build_vae, load_diffusers, load_vae
from halfframe.tinywan.text import TextEncoder, Tokenizer

SHARD = 250
BATCH = 64
WEIGHTS = {"common": 2, "high": 1, "low": 1}  # of the phases in the time that there is, with --fit
Optimizers = dict[str, torch.optim.Optimizer]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("shipped-vae", "vae", "latents", "shipped-experts", "experts", "pack"))
    parser.add_argument("--folder", type=Path, required=True, help="checkpoints and latents")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--steps", type=int, help="over all runs: of the VAE, or of the experts in common; or shards")
    parser.add_argument(
        "--phases", nargs="+", default=["common", "high", "low"], choices=("common", "high", "low"), help="of experts"
    )
    parser.add_argument("--part", default="1/1", help="latents: K/N, every N-th shard from the K-th on")
    parser.add_argument("--fit", action="store_true", help="experts: as many steps as --minutes have room for")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    stages = {
        "shipped-vae": take_shipped_vae,
        "vae": train_vae,
        "latents": encode_latents,
        "shipped-experts": take_shipped_experts,
        "experts": train_experts,
        "pack": pack,
    }
    stages[arguments.stage](arguments)


def batched(items: list[Any], count: int) -> Iterator[list[Any]]:
    """`items` in lists of `count`."""
    return (items[start : start + count] for start in range(0, len(items), count))


def scenes(seed: str) -> Iterator[tuple[str, Scene, list[tuple[float, float]], int]]:
    """Endless prompts, scenes, starting points and seeds of all else."""
    rng = random.Random(seed)
    while True:
        scene = random_scene(rng)
        yield str(scene), scene, [(rng.random(), rng.random()) for _ in scene.things], rng.getrandbits(31)


def crops(step: int, count: int, num_frames: int, side: int = 32) -> Tensor:
    """Pieces of random clips, ``(count, 3, num_frames, side, side)``, that show something more often than not."""
    rng = random.Random(f"crops {step}")
    clips = []
    for _ in range(count):
        scene = random_scene(rng)
        starts = [(rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.8)) for _ in scene.things]
        clip = render(scene, starts, num_frames, SIDE, rng.getrandbits(31))
        top, left = (rng.randint(0, clip.shape[-1] - side) for _ in range(2))
        clips.append(clip[..., top : top + side, left : left + side])
    return torch.stack(clips)


def take_shipped_vae(arguments: argparse.Namespace) -> None:
    """Make a checkpoint out of the shipped weights, for the next stages, or for ``vae`` to go on from."""
    write(arguments.folder / "vae.pt", {"vae": load_vae().state_dict(), "step": 0})


def train_vae(arguments: argparse.Namespace) -> None:
    """Squared error and edges, with a light pull of the posterior towards a unit normal.

    Single frames first, which teach the spatial layers at a fifth of the cost; then short clips; then longer ones,
    since what the causal layers hand on must not drift.
    """
    torch.manual_seed(0)
    total = arguments.steps or 3000
    vae = build_vae().to(arguments.device)
    nn.init.constant_(vae.quant_conv.bias[16:], -6.0)  # little noise in the latents to begin with
    kernels = {id(p) for p in vae.parameters() if p.ndim >= 4 and p[0].numel() > 1}
    optimizers = optimizers_for(list(vae.parameters()), kernels, betas=(0.9, 0.95))
    path = arguments.folder / "vae.pt"
    step = resume(path, {"vae": vae, **optimizers})
    end = time.monotonic() + 60 * arguments.minutes
    losses: list[float] = []
    while step < total and time.monotonic() < end:
        stage = sum(step >= total * share for share in (0.2, 0.6))
        count, num_frames = ((32, 1), (8, 5), (3, 29))[stage]
        with torch.device(arguments.device):
            clip = crops(step, count, num_frames)
        set_rates(optimizers, schedule(step, total, 20), muon=1e-2, adamw=2e-3)
        with torch.autocast(arguments.device.split(":")[0], torch.bfloat16):
            posterior = vae.encode(clip).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(step)).to(clip.device)
            decoded = unclamped_decode(vae, posterior.mean + posterior.std * noise)
        decoded = decoded.float()
        squared = functional.mse_loss(decoded, clip)
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        loss = squared + 0.1 * edges(decoded, clip) * min(1.0, step / total) + 1e-5 * kl.float()
        update(vae, loss, optimizers)
        step += 1
        losses.append(squared.item())
        if step % 50 == 0:
            psnr = 10 * math.log10(4 * 50 / sum(losses[-50:]))
            print(f"vae {step}/{total} kl {kl.item():.3f} psnr {psnr:.2f}", flush=True)
        if step % 500 == 0:
            save(path, {"vae": vae, **optimizers}, step)
    save(path, {"vae": vae, **optimizers}, step)


def encode_latents(arguments: argparse.Namespace) -> None:
    """Clips for the experts, encoded once, with their prompts; 48 shards or ``--steps`` of them."""
    vae = build_vae().to(arguments.device).eval().requires_grad_(False)
    resume(arguments.folder / "vae.pt", {"vae": vae})
    shards = arguments.folder / "latents"
    shards.mkdir(exist_ok=True)
    end = time.monotonic() + 60 * arguments.minutes
    part, parts = map(int, arguments.part.split("/"))
    for number in range(part - 1, arguments.steps or 48, parts):
        path = shards / f"{number:03}.pt"
        if path.exists():
            continue
        if time.monotonic() > end:
            return
        drawn = list(itertools.islice(scenes(f"train {number}"), SHARD))
        encoded = []
        for batch in batched(drawn, 50 if arguments.device.startswith("cuda") else 10):
            with torch.device(arguments.device):
                clip = torch.stack([render(scene, starts, 81, SIDE, look) for _, scene, starts, look in batch])
            with torch.autocast(arguments.device.split(":")[0], torch.bfloat16):
                encoded.append(vae.encode(clip).latent_dist.mean.bfloat16().cpu())
        write(path, {"latents": torch.cat(encoded), "prompts": [prompt for prompt, *_ in drawn]})
        print(f"latents: shard {number}", flush=True)


def take_shipped_experts(arguments: argparse.Namespace) -> None:
    """Make checkpoints out of the shipped experts, each with the text encoder, for their own phases to go on from.

    Their latents must be those of the shipped VAE.
    """
    pipe = load_diffusers()
    for phase, expert in (("high", pipe.transformer), ("low", pipe.transformer_2)):
        parts = nn.ModuleDict({"expert": expert, "text": pipe.text_encoder})
        write(arguments.folder / f"{phase}.pt", {"model": parts.state_dict(), "step": 0})


def shard_paths(folder: Path) -> list[Path]:
    return sorted((folder / "latents").glob("*.pt"))


def latent_statistics(folder: Path) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the latents per channel, ``(16,)`` each, of the first shard."""
    latents = torch.load(shard_paths(folder)[0], weights_only=True)["latents"].float()
    return latents.mean(dim=(0, 2, 3, 4)), latents.std(dim=(0, 2, 3, 4))


def load_latents(folder: Path) -> tuple[Tensor, list[str]]:
    """Latents ``(N, 16, F, h, w)`` of unit scale, and their prompts."""
    shards = [torch.load(path, weights_only=True) for path in shard_paths(folder)]
    mean, deviation = (statistic.view(1, -1, 1, 1, 1) for statistic in latent_statistics(folder))
    scaled = (torch.cat([shard["latents"] for shard in shards]).float() - mean) / deviation
    return scaled.bfloat16(), [prompt for shard in shards for prompt in shard["prompts"]]


def train_experts(arguments: argparse.Namespace) -> None:
    """Flow matching, v = eps - x0, at shift 12: one model for all noise first, then each expert on its own side.

    The common steps are worth twice their cost, since both experts learn from them; each expert makes half as many
    more. The text encoder learns with the common model and stays as it is then, because both experts read it.
    """
    latents, prompts = load_latents(arguments.folder)
    latents = latents.to(arguments.device)
    if arguments.device == "cpu":
        functional.scaled_dot_product_attention = plain_attention  # type: ignore[assignment]
    common = arguments.steps or 20_000
    end = time.monotonic() + 60 * arguments.minutes
    tokens = Tokenizer()([*prompts, ""])
    for number, phase in enumerate(arguments.phases):
        steps = common if phase == "common" else common // 2
        torch.manual_seed(0)
        model, text = build_expert(), TextEncoder()
        nn.init.zeros_(model.proj_out.weight)
        parts = nn.ModuleDict({"expert": model, "text": text})
        if phase != "common":
            if not (arguments.folder / f"{phase}.pt").exists():
                before = torch.load(arguments.folder / "common.pt", weights_only=True)
                parts.load_state_dict(before["average"])
            text.requires_grad_(False)
        now = time.monotonic()
        share = WEIGHTS[phase] / sum(WEIGHTS[name] for name in arguments.phases[number:])
        until = now + share * (end - now) if arguments.fit else end
        train_phase(arguments, phase, parts, latents, tokens, steps, until)
        if time.monotonic() > end:
            return


def train_phase(
    arguments: argparse.Namespace,
    phase: str,
    parts: nn.ModuleDict,
    latents: Tensor,
    tokens: Any,
    total: int,
    end: float,
) -> None:
    """One model, from where its last run stopped."""
    device = torch.device(arguments.device)
    parts.to(device)
    model, text = parts["expert"], parts["text"]
    called = torch.compile(model) if device.type == "cuda" else model
    average = torch.optim.swa_utils.AveragedModel(parts, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998))
    matrices = {id(p) for p in model.blocks.parameters() if p.ndim == 2}
    optimizers = optimizers_for([p for p in parts.parameters() if p.requires_grad], matrices, betas=(0.9, 0.98))
    path = arguments.folder / f"{phase}.pt"
    step = resume(path, {"model": parts, "ema": average, **optimizers})
    peak = 2e-3 if phase == "common" else 1.5e-3
    ids, masks = tokens.input_ids.to(device), tokens.attention_mask.to(device)
    generator = torch.Generator(device)
    losses: list[Tensor] = []
    started, first = time.monotonic(), step

    def keep() -> None:
        save(path, {"model": parts, "ema": average, **optimizers}, step, average=average.module.state_dict())

    while step < total and (arguments.fit or time.monotonic() < end):
        generator.manual_seed(step)
        picked = torch.randint(len(latents), (BATCH,), generator=generator, device=device)
        x0 = latents[picked].float()
        unconditional = torch.rand(BATCH, generator=generator, device=device) < 0.12
        rows = torch.where(unconditional, len(latents), picked)  # the last prompt is the empty one
        sigma = draw_sigma(phase, generator)
        noise = torch.randn(x0.shape, generator=generator, device=device)
        broad = sigma.view(-1, 1, 1, 1, 1)
        set_rates(optimizers, schedule(step, total), muon=peak, adamw=peak)
        with torch.autocast(device.type, torch.bfloat16):
            embeddings = text(ids[rows], masks[rows]).last_hidden_state
            noisy = (1 - broad) * x0 + broad * noise
            velocity = called(noisy, 1000 * sigma, embeddings, return_dict=False)[0]
        loss = functional.mse_loss(velocity.float(), noise - x0)
        update(parts, loss, optimizers)
        average.update_parameters(parts)
        step += 1
        losses.append(loss.detach())
        if arguments.fit and step in (first + 50, first + 250):  # compiling is over by then
            losses[-1].item()  # waits for the device
            now = time.monotonic()
            if step == first + 50:
                started = now
            else:
                total = step + max(0, int((end - now) * 200 / (now - started)))
                print(f"{phase}: {total} steps at {(now - started) / 200:.4f} s", flush=True)
        if step % 500 == 0 or step == total:
            mean = torch.stack(losses).mean().item()
            losses.clear()
            print(f"{phase} {step}/{total} loss {mean:.4f} ({time.monotonic() - started:.0f} s)", flush=True)
        if step % 5000 == 0:
            keep()
    keep()


def draw_sigma(phase: str, generator: torch.Generator) -> Tensor:
    """Noise levels as shift 12 spreads them, on the phase's side of the boundary; on both for the common one."""
    boundary = BOUNDARY / (SHIFT - (SHIFT - 1) * BOUNDARY)  # before the shift
    count = torch.arange(BATCH, device=generator.device)
    even = (count + torch.rand(BATCH, generator=generator, device=generator.device)) / BATCH
    high = boundary + (1 - boundary) * even
    low = boundary * even
    chosen = {"high": high, "low": low, "common": torch.where(count % 2 == 0, high, low)}[phase]
    return SHIFT * chosen / (1 + (SHIFT - 1) * chosen)


def plain_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, *_: Any, **__: Any) -> Tensor:
    """Attention as its formula says, which on a CPU is twice as fast, backwards, as PyTorch's own at these sizes."""
    query, key, value = (tensor.bfloat16() for tensor in (query, key, value))
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(dim=-1) @ value


def pack(arguments: argparse.Namespace) -> None:
    """Write the weights as `halfframe.tinywan` ships them: half precision, safetensors."""
    mean, deviation = latent_statistics(arguments.folder)
    vae = torch.load(arguments.folder / "vae.pt", weights_only=True)["vae"]
    high, low = (torch.load(arguments.folder / f"{name}.pt", weights_only=True)["average"] for name in ("high", "low"))
    target = arguments.folder / "weights"
    target.mkdir(exist_ok=True)
    statistics = {"latents_mean": mean, "latents_std": deviation}
    files = {
        "vae": {**vae, **statistics},
        "text_encoder": part_of(high, "text."),
        "high_noise": part_of(high, "expert."),
        "low_noise": part_of(low, "expert."),
    }
    for name, tensors in files.items():
        half = {key: tensor.half().contiguous() for key, tensor in tensors.items()}
        save_file(half, target / f"{name}.safetensors")


def part_of(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def unclamped_decode(vae: Any, latents: Tensor) -> Tensor:
    """What ``vae.decode`` gives before it clamps to -1..1, which would stop gradients."""
    clamp = torch.clamp
    try:
        torch.clamp = lambda value, **_: value  # type: ignore[assignment]
        decoded: Tensor = vae.decode(latents).sample
    finally:
        torch.clamp = clamp
    return decoded


def edges(decoded: Tensor, clip: Tensor) -> Tensor:
    """L1 between the differences of neighbouring pixels, across, down and in time."""
    return sum(  # type: ignore[return-value]
        functional.l1_loss(decoded.diff(dim=dim), clip.diff(dim=dim)) for dim in (-1, -2, -3) if clip.shape[dim] > 1
    )


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum, on weights of any shape: a matrix with one row per output channel.

    PyTorch's own takes one matrix at a time, which on a GPU takes longer than the forward and backward pass of this
    model; here matrices of one shape go together. The rate is scaled to match the size of AdamW's updates.
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
            # Single frames leave kernels in time without a gradient.
            given = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
            gradients = torch.stack([gradient.view(len(gradient), -1) for gradient in given])
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


def optimizers_for(parameters: list[nn.Parameter], matrices: set[int], betas: tuple[float, float]) -> Optimizers:
    """Muon for the weights whose ids are in `matrices`, AdamW for the rest of `parameters`."""
    return {
        "muon": Muon([p for p in parameters if id(p) in matrices]),
        "adamw": torch.optim.AdamW([p for p in parameters if id(p) not in matrices], betas=betas, weight_decay=0.01),
    }


def set_rates(optimizers: Optimizers, factor: float, **peaks: float) -> None:
    for name, optimizer in optimizers.items():
        for group in optimizer.param_groups:
            group["lr"] = factor * peaks[name]


def update(module: nn.Module, loss: Tensor, optimizers: Optimizers) -> None:
    module.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    for optimizer in optimizers.values():
        optimizer.step()


def schedule(step: int, total: int, warm_up: int = 100) -> float:
    """Linear warm-up, then a cosine to a hundredth."""
    progress = min(1.0, step / total)
    return min(1.0, (step + 1) / warm_up) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def resume(path: Path, parts: dict[str, Any]) -> int:
    """Load what `save` wrote, if anything; returns the number of steps made."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    for name, part in parts.items():
        if name in state:  # shipped weights come without optimizers
            part.load_state_dict(state[name])
    return int(state["step"])


def save(path: Path, parts: dict[str, Any], step: int, **more: Any) -> None:
    """Write states of `parts` and the number of steps made."""
    write(path, {**{name: part.state_dict() for name, part in parts.items()}, "step": step, **more})


def write(path: Path, data: dict[str, Any]) -> None:
    """Save so that nobody sees half a file."""
    temporary = path.with_suffix(".part")
    torch.save(data, temporary)
    temporary.replace(path)


if __name__ == "__main__":
    main()
