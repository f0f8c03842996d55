"""Write the weights as the package ships them: safetensors, experts and LoRAs in bfloat16, the VAE in half precision.

python pack.py --folder run --weights ../src/halfframe_tinywan/weights
"""

from __future__ import annotations

from pathlib import Path

import torch
from common import arguments
from lora import load_pair
from safetensors.torch import save_file


def main() -> None:
    found = arguments(__doc__, weights={"type": Path, "required": True})
    found.weights.mkdir(parents=True, exist_ok=True)
    vae = torch.load(found.folder / "vae.pt", weights_only=True, map_location="cpu")
    statistics = {name: vae[name] for name in ("latents_mean", "latents_std")}
    half = {name: value.half().contiguous() for name, value in {**vae["model"], **statistics}.items()}
    save_file(half, found.weights / "vae.safetensors")
    for kind in ("t2v", "i2v", "lora"):
        for side in ("high", "low"):
            path = found.folder / f"{kind}-{side}.pt"
            if not path.exists():
                print(f"{path} is not there; left out")
                continue
            if kind == "lora":
                lora = load_pair(found.folder, "cpu")[side == "low"]
                weights = {f"transformer.{name}": value for name, value in lora.items()}
            else:
                weights = torch.load(path, weights_only=True, map_location="cpu")["average"]
            packed = {name: value.bfloat16().contiguous() for name, value in weights.items()}
            save_file(packed, found.weights / f"{kind}_{side}_noise.safetensors")


if __name__ == "__main__":
    main()
