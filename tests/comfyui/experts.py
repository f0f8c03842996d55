"""Two tiny random experts, once in the official package's pipeline and once as ComfyUI loads a checkpoint of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from halfframe.testing import WanSizes, import_wan, tiny_wan_i2v, tiny_wan_t2v

from .install import load

# What ComfyUI takes for granted of a Wan checkpoint: heads of 128, text embeddings of 4096, timesteps of 256.
SIZES = WanSizes(dim=128, ffn_dim=128, num_heads=1, num_layers=2, text_dim=4096, freq_dim=256)
PROMPT, NEGATIVE = "a red ball rolls over stripes", "blurry"
WIDTH, HEIGHT, FRAMES = 48, 32, 33
LATENT_FRAMES = (FRAMES - 1) // 4 + 1
IMAGE = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@dataclass(frozen=True)
class Experts:
    """The same weights in both hosts.

    Attributes:
        pipe: an official pipeline.
        high: ComfyUI's model of the high-noise expert.
        low: the other one.
        positive: ComfyUI's conditioning of `PROMPT`.
        negative: of `NEGATIVE`.
    """

    pipe: Any
    high: Any
    low: Any
    positive: list[Any]
    negative: list[Any]

    def conditions(self, **values: Any) -> tuple[list[Any], list[Any]]:
        """Both conditionings with further values, as conditioning nodes add them."""
        positive, negative = ([[text, {**more, **values}] for text, more in c] for c in (self.positive, self.negative))
        return positive, negative


def experts(kind: str) -> Experts:
    """New experts, ``"t2v"`` or ``"i2v"``."""
    pipe = (tiny_wan_t2v if kind == "t2v" else tiny_wan_i2v)(sizes=SIZES)
    text = [[pipe.text_encoder([words], pipe.device)[0][None], {}] for words in (PROMPT, NEGATIVE)]
    return Experts(pipe, comfy_model(pipe.high_noise_model), comfy_model(pipe.low_noise_model), [text[0]], [text[1]])


def comfy_model(expert: torch.nn.Module, dtype: torch.dtype | None = None) -> Any:
    """What ComfyUI makes of a checkpoint with the weights of `expert`: it finds out by itself what they are.

    Args:
        expert: the official one.
        dtype: what the loader node is told to keep the weights in; None leaves it to ComfyUI.
    """
    state = {name: value.detach().clone() for name, value in expert.state_dict().items()}
    options = {} if dtype is None else {"dtype": dtype}
    model = load().sd.load_diffusion_model_state_dict(state, model_options=options)
    assert model is not None, "ComfyUI does not know these weights"
    return model


@contextlib.contextmanager
def fresh(expert: Any) -> Iterator[Any]:
    """A model for one test, forgotten by ComfyUI afterwards."""
    model = comfy_model(expert)
    try:
        yield model
    finally:
        load().model_management.unload_all_models()


class EulerSolver:
    """Euler's method over a given table of sigmas, as the official loop and its solvers are made to meet."""

    table: Tensor

    def __init__(self, **_: Any) -> None:
        self.sigmas = self.table
        self.timesteps = self.table[:-1] * 1000
        self._index = 0

    def set_timesteps(self, *_: Any, **__: Any) -> None:
        pass

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **_: Any) -> tuple[Tensor]:
        sigma, following = self.sigmas[self._index], self.sigmas[self._index + 1]
        self._index += 1
        return (sample + (following - sigma) * model_output,)


def official_latents(
    pipe: Any, sigmas: Tensor, high_steps: int, *, cfg: float, seed: int, frames: int = FRAMES, **more: Any
) -> Tensor:
    """Final latents ``(16, F, h, w)`` of the official loop over `sigmas`, the first `high_steps` on the one expert."""
    solver = type("Solver", (EulerSolver,), {"table": sigmas.float()})
    boundary = pipe.boundary
    if not sigmas[high_steps - 1] >= boundary > sigmas[high_steps]:
        boundary = float(sigmas[high_steps - 1] + sigmas[high_steps]) / 2
    seen: list[Tensor] = []

    def decode(latents: list[Tensor]) -> list[Tensor]:
        seen.extend(latents)
        return latents

    i2v = type(pipe).__name__ == "WanI2V"
    module = import_wan("image2video" if i2v else "text2video")
    arguments: dict[str, Any] = {
        "frame_num": frames,
        "sampling_steps": len(sigmas) - 1,
        "guide_scale": cfg,
        "n_prompt": NEGATIVE,
        "seed": seed,
        "offload_model": False,
        **more,
    }
    if i2v:
        arguments |= {"img": IMAGE, "max_area": WIDTH * HEIGHT}
    else:
        arguments["size"] = (WIDTH, HEIGHT)
    with (
        mock.patch.object(module, "FlowUniPCMultistepScheduler", solver),
        mock.patch.object(pipe, "boundary", boundary),
        mock.patch.object(pipe.vae, "decode", decode),
    ):
        pipe.generate(PROMPT, **arguments)
    (latents,) = seen
    return latents


def image_conditions(pipe: Any, frames: int = FRAMES, last: bool = False) -> dict[str, Tensor]:
    """What ComfyUI's image-to-video nodes put into a conditioning, with the official VAE as theirs.

    Args:
        pipe: whose VAE encodes.
        frames: video frames.
        last: whether the last frame is given too, as *WanFirstLastFrameToVideo* does.
    """
    image = torch.from_numpy(IMAGE).permute(2, 0, 1).float() / 255 * 2 - 1
    clip = torch.zeros(3, frames, HEIGHT, WIDTH)
    clip[:, 0] = image
    total = (frames - 1) // 4 + 1
    mask = torch.ones(1, 4, total, HEIGHT // 8, WIDTH // 8)
    mask[:, :, 0] = 0
    if last:
        clip[:, -1] = image.flip(-1)
        mask[:, -1, -1] = 0
    with torch.no_grad():
        latent = pipe.vae.encode([clip])[0][None]
    # ComfyUI's VAE leaves the channels as they are, its models normalise them.
    return {"concat_latent_image": _format().process_out(latent), "concat_mask": mask}


def normalised(samples: Tensor) -> Tensor:
    """Latents of a ComfyUI node as the official package has them."""
    return _format().process_in(samples)


def _format() -> Any:
    return load().sd.comfy.latent_formats.Wan21()


def assert_same(latents: Tensor, expected: Tensor) -> None:
    """Equal to 1e-5 of the largest value: between stages ComfyUI divides by ``1 - sigma``, which costs digits."""
    assert latents.shape == expected.shape
    error = float((latents - expected).abs().max() / expected.abs().max())
    assert error <= 1e-5, f"differs by {error:.1e} of the largest value"
