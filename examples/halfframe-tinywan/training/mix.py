"""Mix LoRA pairs that `pack.py` wrote: each LoRA becomes a weighted sum of them, of the first pair's rank.

    python mix.py --pairs old new --high 0.5 0.5 --low 0.25 0.75 --weights mixed

Products are summed, not factors; a singular value decomposition makes the nearest two factors of the sum. --high and
--low give the weights of the pairs, in their order, for either expert. Prints the share of the energy (the square of
the Frobenius norm) that is lost.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, nargs="+", required=True, help="folders of lora_*_noise.safetensors")
    for side in ("high", "low"):
        parser.add_argument(f"--{side}", type=float, nargs="+", required=True, help="a weight for each pair")
    parser.add_argument("--weights", type=Path, required=True, help="folder that the mixed pair is written to")
    found = parser.parse_args()
    found.weights.mkdir(parents=True, exist_ok=True)
    for side in ("high", "low"):
        shares = getattr(found, side)
        if len(shares) != len(found.pairs):
            parser.error(f"--{side} has {len(shares)} weights, --pairs has {len(found.pairs)}; give as many of each.")
        name = f"lora_{side}_noise.safetensors"
        lora, lost = mixed([load_file(folder / name) for folder in found.pairs], shares)
        save_file(lora, found.weights / name)
        print(f"{name}: {lost:.3%} of the energy lost")


def mixed(loras: Sequence[dict[str, Tensor]], shares: Sequence[float]) -> tuple[dict[str, Tensor], float]:
    """The weighted sum of LoRAs, with the first one's names, rank and dtype, and the share of its energy lost."""
    if any(lora.keys() != loras[0].keys() for lora in loras):
        raise SystemExit("The LoRAs have different names; mix LoRAs of one model.")
    found, lost, total = {}, 0.0, 0.0
    for first, like in loras[0].items():
        if not first.endswith(".lora_A.weight"):
            continue
        second, rank = first.replace(".lora_A.", ".lora_B."), len(like)
        parts = [share * lora[second].float() @ lora[first].float() for lora, share in zip(loras, shares, strict=True)]
        u, s, vh = torch.linalg.svd(torch.stack(parts).sum(dim=0), full_matrices=False)
        root = s[:rank].sqrt()
        found[first] = (root[:, None] * vh[:rank]).to(like.dtype).contiguous()
        found[second] = (u[:, :rank] * root).to(like.dtype).contiguous()
        lost += float(s[rank:].square().sum())
        total += float(s.square().sum())
    return found, lost / total if total else 0.0


if __name__ == "__main__":
    main()
