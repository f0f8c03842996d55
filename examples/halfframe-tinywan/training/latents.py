"""Encode the worlds that the experts are trained on, once for all of them.

    python latents.py --folder run --part 1/2                  # and --part 2/2 on another GPU

With ``--images`` also what image-to-video is given of as many of them.
"""

from __future__ import annotations

import time

import torch
from common import Encoder, arguments, training_worlds, write
from halfframe_tinywan.world import render


def main() -> None:
    found = arguments(
        __doc__,
        worlds={"type": int, "default": 40_000},
        images={"type": int, "default": 24_000},
        part={"default": "1/1"},
        batch={"type": int, "default": 32},
    )
    part, parts = map(int, found.part.split("/"))
    each = found.worlds // parts
    began = time.monotonic()
    first = (part - 1) * each
    encoder = Encoder(found.folder, found.device)
    latents, conditions = [], []
    for start in range(0, each, found.batch):
        clips = render(training_worlds(first + start, min(found.batch, each - start)), device=found.device)
        latents.append(encoder(clips))
        if start < found.images // parts:
            conditions.append(encoder.first_frames(clips))
        if time.monotonic() - began > 60 * found.minutes:
            break
    data = {"latents": torch.cat(latents).cpu(), "conditions": torch.cat(conditions).cpu()}
    write(found.folder / f"latents-{part:02}.pt", {"first": first, **data})
    shapes = {name: tuple(value.shape) for name, value in data.items()}
    print(f"latents {found.part}: {shapes} in {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
