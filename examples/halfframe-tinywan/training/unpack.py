"""Turn the package's weights into checkpoints, to train on from them: what `pack.py` wrote, read back.

python unpack.py --folder run --weights ../src/halfframe_tinywan/weights
"""

from __future__ import annotations

from pathlib import Path

from common import arguments, write
from safetensors.torch import load_file


def main() -> None:
    found = arguments(__doc__, weights={"type": Path, "required": True})
    unpack(found.weights, found.folder)


def unpack(weights: Path, folder: Path) -> None:
    """The checkpoints of the VAE, the experts and the LoRA pair, without their optimisers."""
    vae = {name: value.float() for name, value in load_file(weights / "vae.safetensors").items()}
    statistics = {name: vae.pop(name) for name in ("latents_mean", "latents_std")}
    write(folder / "vae.pt", {"model": vae, **statistics})
    for kind in ("t2v", "i2v", "lora"):
        for side in ("high", "low"):
            state = {
                key: value.float() for key, value in load_file(weights / f"{kind}_{side}_noise.safetensors").items()
            }
            if kind == "lora":
                state = {name.removeprefix("transformer."): value for name, value in state.items()}
            write(folder / f"{kind}-{side}.pt", {"lora" if kind == "lora" else "average": state})


if __name__ == "__main__":
    main()
