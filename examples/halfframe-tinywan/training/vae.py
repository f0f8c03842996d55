"""Train TinyWan's VAE.

    python vae.py --folder run --minutes 9
    torchrun --nproc-per-node 2 vae.py --folder run --minutes 3       # on two GPUs

Squared error and edges; noise of a tenth of the latents' deviation is added before decoding, so that the latents are
spread evenly over the channels and the decoder bears what the experts get wrong.
"""

from __future__ import annotations

import torch
from common import (
    Clock,
    arguments,
    decoded,
    join_processes,
    load_training_vae,
    optimizers_for,
    psnr,
    training_clips,
    update,
    write,
)
from fast import decode, encode
from halfframe_tinywan.models import build_vae
from torch import Tensor
from torch.nn import functional

NOISE = 0.1
FIRST_CLIP, CLIPS = 900_000, 2000


def main() -> None:
    found = arguments(__doc__, clips={"type": int, "default": CLIPS}, batch={"type": int, "default": 8})
    rank, ranks = join_processes(found)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    vae = build_vae().to(found.device)
    parameters = list(vae.parameters())
    kernels = {id(p) for p in parameters if p.ndim >= 4 and p[0].numel() > 1 and len(p) > 3}
    optimizers = optimizers_for(parameters, kernels)
    path, step, total = found.folder / "vae.pt", 0, None
    if path.exists():
        state = torch.load(path, weights_only=True, map_location=found.device)
        step, total = state["step"], state["total"]
        for name, part in {"model": vae, **optimizers}.items():
            part.load_state_dict(state[name])
    pool = training_clips(FIRST_CLIP + rank * found.clips, found.clips, found.device)
    clock = Clock(found, "vae", step, total, reserve=10 if found.minutes > 1 else 0)
    while clock.running():
        generator = torch.Generator(found.device).manual_seed(clock.step * ranks + rank)
        late = clock.total is not None and clock.step > 0.5 * clock.total
        count, num_frames = (found.batch, 33) if late else (2 * found.batch, 17)
        clip = batch(pool, count, num_frames, generator)
        with torch.autocast(found.device.split(":")[0], torch.bfloat16):
            latents = encode(vae, clip)
            deviation = latents.float().std(dim=(0, 2, 3, 4), keepdim=True).detach()
            noise = torch.randn(latents.shape, generator=generator, device=found.device) * deviation * NOISE
            seen = decode(vae, latents + noise).float()
        squared = functional.mse_loss(seen, clip)
        progress = clock.step / clock.total if clock.total else 0.0
        loss = squared + 0.1 * progress * edges(seen, clip)
        factor = clock.factor(50)
        update(parameters, loss, optimizers, {"muon": 1e-2 * factor, "adamw": 2e-3 * factor})
        clock.made(squared)
    if rank == 0:
        with torch.no_grad(), torch.autocast(found.device.split(":")[0], torch.bfloat16):
            latents = torch.cat([encode(vae, pool[n : n + 16]) for n in range(0, min(512, len(pool)), 16)])
        states = {name: part.state_dict() for name, part in {"model": vae, **optimizers}.items()}
        mean, deviation = latents.float().mean(dim=(0, 2, 3, 4)), latents.float().std(dim=(0, 2, 3, 4))
        counts = {"step": clock.step, "total": clock.total}
        write(path, {**states, **counts, "latents_mean": mean, "latents_std": deviation})
        report(found.folder, found.device, min(32, found.clips))
    if ranks > 1:
        torch.distributed.destroy_process_group()


def batch(pool: Tensor, count: int, num_frames: int, generator: torch.Generator) -> Tensor:
    """Random pieces of random clips; each begins with what the VAE takes for a first frame."""
    picked = torch.randint(len(pool), (count,), generator=generator, device=pool.device).tolist()
    starts = torch.randint(81 - num_frames + 1, (count,), generator=generator, device=pool.device).tolist()
    clips = torch.stack([pool[n, :, s : s + num_frames] for n, s in zip(picked, starts, strict=True)])
    return clips.float().contiguous(memory_format=torch.channels_last_3d)


def edges(seen: Tensor, clip: Tensor) -> Tensor:
    """L1 between the differences of neighbouring pixels, across, down and in time."""
    parts = [functional.l1_loss(seen.diff(dim=dim), clip.diff(dim=dim)) for dim in (-1, -2, -3)]
    return torch.stack(parts).sum()


def report(folder: object, device: str, count: int = 32) -> None:
    """PSNR on whole clips that were not trained on."""
    vae, mean, deviation = load_training_vae(folder, device)  # type: ignore[arg-type]
    clips = training_clips(999_000, count, device)
    with torch.no_grad(), torch.autocast(device.split(":")[0], torch.bfloat16):
        latents = torch.cat([encode(vae, part.float()) for part in clips.split(8)]).float()
    latents = (latents - mean) / deviation
    real = (clips.float().cpu() + 1) / 2
    for noise in (0.0, 0.1, 0.2):
        seen = decoded(vae, latents + noise * torch.randn_like(latents), mean, deviation)
        print(f"vae: {psnr(seen, real).mean():.2f} dB on {count} clips, latents with noise of {noise}", flush=True)


if __name__ == "__main__":
    main()
