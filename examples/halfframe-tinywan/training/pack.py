"""Write the weights as the package ships them: safetensors, experts in bfloat16, the VAE in half precision.

python pack.py --folder run --weights ../src/halfframe_tinywan/weights
"""

from __future__ import annotations

from pathlib import Path

import torch
from common import arguments
from safetensors.torch import save_file


def main() -> None:
    found = arguments(__doc__, weights={"type": Path, "required": True})
    found.weights.mkdir(parents=True, exist_ok=True)
    vae = torch.load(found.folder / "vae.pt", weights_only=True, map_location="cpu")
    statistics = {name: vae[name] for name in ("latents_mean", "latents_std")}
    half = {name: value.half().contiguous() for name, value in {**vae["model"], **statistics}.items()}
    save_file(half, found.weights / "vae.safetensors")
    for side in ("high", "low"):
        state = torch.load(found.folder / f"t2v-{side}.pt", weights_only=True, map_location="cpu")["average"]
        packed = {name: value.bfloat16().contiguous() for name, value in state.items()}
        save_file(packed, found.weights / f"{side}_noise.safetensors")


if __name__ == "__main__":
    main()
