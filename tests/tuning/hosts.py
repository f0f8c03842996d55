"""Tiny pipelines of the real hosts, with their forward passes counted."""

from __future__ import annotations

from typing import Any

import torch

from halfframe.testing import tiny_diffusers_t2v, tiny_wan_t2v

__all__ = ["Host", "diffusers", "official"]


class Host:
    """A pipeline and how it is called, with its forward passes counted; the one of number `stops_at` is interrupted."""

    def __init__(self, pipe: Any, call: Any) -> None:
        self.pipe = pipe
        self.passes = 0
        self.stops_at = -1
        self._call = call
        for name in ("transformer", "transformer_2", "high_noise_model", "low_noise_model"):
            if hasattr(pipe, name):
                getattr(pipe, name).blocks[0].register_forward_hook(self._count)  # reached by computed passes only

    def _count(self, *_: Any) -> None:
        self.passes += 1
        if self.passes == self.stops_at:
            raise KeyboardInterrupt

    def __call__(self, case: int, steps: int) -> Any:
        return self._call(case, steps)


def diffusers(**more: Any) -> Host:
    pipe = tiny_diffusers_t2v()

    def call(case: int, steps: int) -> Any:
        return pipe(
            f"prompt {case}",
            height=32,
            width=32,
            num_frames=17,
            num_inference_steps=steps,
            max_sequence_length=8,
            generator=torch.Generator().manual_seed(case),
            **more,
        )

    return Host(pipe, call)


def official() -> Host:
    pipe = tiny_wan_t2v()

    def call(case: int, steps: int) -> Any:
        arguments = {"size": (32, 32), "frame_num": 17, "sampling_steps": steps, "shift": 12.0}
        return pipe.generate(f"prompt {case}", seed=case, offload_model=False, **arguments)

    return Host(pipe, call)
