"""The official pipeline and diffusers' one, given the same weights, noise and prompts, agree; halved or not."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor

import halfframe
from halfframe.testing import diffusers_from_wan_state, import_wan, tiny_diffusers_t2v, tiny_wan_t2v

from ..helpers_diffusers import ARGS, PROMPT, run, seeded


def halved(pipe: Any, noise: Any) -> Any:
    return halfframe.enabled(pipe, "self-duplicate", noise=noise) if noise else contextlib.nullcontext()


def official_latents(pipe: Any, noise: str | None, num_frames: int) -> Tensor:
    """What the official pipeline hands to its VAE, ``(16, F, h, w)``."""
    latents: list[Tensor] = []
    pipe.vae.decode = lambda clips: latents.extend(clips) or [torch.zeros(3, num_frames, 32, 48)]
    with halved(pipe, noise):
        pipe.generate(
            PROMPT,
            size=(48, 32),
            frame_num=num_frames,
            sampling_steps=ARGS["num_inference_steps"],
            shift=12.0,
            seed=7,
            offload_model=False,
        )
    return latents[0]


def official_solver() -> Any:
    """The official UniPC where diffusers' stands: the latter's sigmas are not the same in every version."""

    class Shifted(import_wan("text2video").FlowUniPCMultistepScheduler):  # type: ignore[misc]
        def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
            super().set_timesteps(num_inference_steps, device=device, shift=12.0)

    return Shifted(num_train_timesteps=1000, shift=1, use_dynamic_shifting=False)


@pytest.mark.parametrize("noise", [None, "full", "short"])
@pytest.mark.parametrize("num_frames", [17, 21])
def test_hosts_agree(noise: str | None, num_frames: int) -> None:
    official, pipe = tiny_wan_t2v(), tiny_diffusers_t2v(seed=1)
    for ours, theirs in (("transformer", "high_noise_model"), ("transformer_2", "low_noise_model")):
        getattr(pipe, ours).load_state_dict(diffusers_from_wan_state(getattr(official, theirs).state_dict()))
    expected = official_latents(official, noise, num_frames)
    pipe.scheduler = official_solver()

    with halved(pipe, noise):
        latents = run(pipe, num_frames=num_frames, generator=seeded(7))[0]
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-4)

    if noise == "full":  # and with the noise handed in rather than drawn
        shape = (1, 16, *expected.shape[1:])
        with halved(pipe, noise):
            given = run(pipe, num_frames=num_frames, generator=None, latents=torch.randn(shape, generator=seeded(7)))
        assert torch.equal(given[0], latents)
