"""Encode the worlds that the experts are trained on, once for both of them.

python latents.py --folder run --part 1/2                  # and --part 2/2 on another GPU
"""

from __future__ import annotations

import time

from common import arguments, encode_worlds, write


def main() -> None:
    found = arguments(
        __doc__,
        worlds={"type": int, "default": 24_000},
        part={"default": "1/1"},
    )
    part, parts = map(int, found.part.split("/"))
    each = found.worlds // parts
    began = time.monotonic()
    first = (part - 1) * each
    end = began + 60 * found.minutes
    latents = encode_worlds(found.folder, first, each, found.device, batch=min(32, each), end=end)
    write(found.folder / f"latents-t2v-{part:02}.pt", {"first": first, "latents": latents.cpu()})
    print(f"latents {found.part}: {tuple(latents.shape)} in {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
