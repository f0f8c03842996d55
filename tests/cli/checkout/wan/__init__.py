"""The installed `wan` package as a checkout on a CPU has it: the same files, with what cannot be here stood in for.

Stood in for are CUDA (device 0 is the CPU), flash-attention, torchvision, the 5.7B text encoder, the VAE's width, and
all of speech and animation. The sampling loop, experts, solvers, configs and the loading of weights are the package's.
"""

import functools
import sys
from pathlib import Path

import torch

from halfframe.testing import StandInTextEncoder, import_wan, sdpa_attention, use_sdpa

_here = Path(__file__).parent
__path__ = [
    str(folder)
    for folder in (Path(entry, "wan") for entry in sys.path)
    if (folder / "text2video.py").is_file() and folder != _here
][:1]

WanT2V = import_wan("text2video").WanT2V
WanI2V = import_wan("image2video").WanI2V
use_sdpa()


def _float_attention(*args, **kwargs):
    """Parallel attention casts to bfloat16 and leaves casting back to CUDA's autocast, which a CPU has not."""
    return sdpa_attention(*args, **kwargs).float()


import_wan("distributed.ulysses").flash_attention = _float_attention


class _Torch:
    """The module `torch` on a machine whose CUDA devices are its CPU."""

    def __getattr__(self, name):
        return getattr(torch, name)

    def device(self, name):
        return torch.device("cpu" if str(name).startswith("cuda") else name)


class _TextEncoder(StandInTextEncoder):
    def __init__(self, **_):
        super().__init__(text_len=8, text_dim=4096)


_vae = sys.modules["wan.modules.vae2_1"]
_vae._video_vae = functools.partial(_vae._video_vae, dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
for _name in ("text2video", "image2video"):
    _module = sys.modules[f"wan.{_name}"]
    _module.torch = _Torch()
    _module.T5EncoderModel = _TextEncoder
