"""The pipelines that are timed: random weights, real host classes, and where in them the clock is read."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from _parallel import Group, parallelise
from _variants import Clip
from halfframe.compare.generators import diffusers_generate, official_generate
from halfframe.sampling import frames
from halfframe.testing import A14B, TINY, WanSizes, tiny_diffusers_t2v, tiny_wan_t2v

__all__ = ["HOSTS", "Host", "Settings", "Spot", "host_facts"]

_PROMPT = "a red ball rolls over stripes"


@dataclass(frozen=True)
class Settings:
    """What every pipeline of one benchmark has in common.

    Attributes:
        sizes: of experts and VAE.
        dtype: of the experts' weights.
        shift: of the schedule.
        solver: ``"unipc"`` or ``"dpm++"``.
        offload: whether upstream moves its experts between host and device.
        fsdp: whether upstream shards them among the processes.
    """

    sizes: WanSizes
    dtype: torch.dtype
    shift: float = 12.0
    solver: Any = "unipc"
    offload: bool = False
    fsdp: bool = False

    @classmethod
    def on(cls, device: torch.device, tiny: bool, **others: Any) -> Settings:
        """True sizes in bfloat16 on a GPU; small ones for trying things out."""
        return cls(TINY if tiny else A14B, torch.bfloat16 if device.type == "cuda" else torch.float32, **others)


@dataclass(frozen=True)
class Spot:
    """A callable of a pipeline to be timed.

    Attributes:
        owner: object or class that has it.
        attribute: its name there.
        part: what its time counts as: an expert, ``"solver"``, ``"vae"`` or ``"text"``.
        subject: what is of interest in its arguments: an expert's latents, the VAE's.
    """

    owner: Any
    attribute: str
    part: str
    subject: Callable[..., Tensor] | None = None


class OfficialHost:
    """``wan.text2video.WanT2V``.

    Attributes:
        name: on the command line and in the tables.
        pipe: what `halfframe.enabled` is given.
    """

    name = "wan"

    def __init__(self, settings: Settings, group: Group) -> None:
        self._settings = settings
        self._group = group
        self.pipe = tiny_wan_t2v(sizes=settings.sizes, device=group.device, param_dtype=settings.dtype)
        if group.size > 1:
            parallelise(self.pipe, group, settings.fsdp)

    def generate(self, clip: Clip, steps: int, offload: bool) -> None:
        """Make a clip."""
        make = official_generate(
            self.pipe,
            size=clip.size,
            frame_num=clip.video_frames,
            shift=self._settings.shift,
            sample_solver=self._settings.solver,
            guide_scale=(3.0, 4.0),
            offload_model=offload,
        )
        if not offload:
            self._return_experts()
        with self._without_cuda() if self._group.device.type == "cpu" else contextlib.nullcontext():
            make(_PROMPT, 0, steps)

    def forward(self, clip: Clip, latent_frames: int) -> None:
        """One forward of the high-noise expert over so many frames of `clip`, as the loop calls it."""
        self._return_experts()
        device = self._group.device
        latents = [torch.randn(16, latent_frames, clip.height // 8, clip.width // 8, device=device)]
        context = self.pipe.text_encoder([_PROMPT], device)
        tokens = frames.sequence_length(latent_frames, clip.tokens_per_frame, self._group.size)
        with self._as_in_the_loop():
            self.pipe.high_noise_model(latents, t=torch.tensor([900], device=device), context=context, seq_len=tokens)

    def decode(self, clip: Clip) -> None:
        """Decode a clip; upstream does so in the first process only."""
        if self._group.first:
            shape = (16, clip.latent_frames, clip.height // 8, clip.width // 8)
            with self._as_in_the_loop():
                self.pipe.vae.decode([torch.randn(shape, device=self._group.device)])

    def spots(self) -> list[Spot]:
        """Where the clock is read."""
        loop: Any = importlib.import_module("wan.text2video")
        solver = {"unipc": "FlowUniPCMultistepScheduler", "dpm++": "FlowDPMSolverMultistepScheduler"}
        return [
            Spot(self.pipe.high_noise_model, "forward", "high", lambda x, *_, **__: x[0]),
            Spot(self.pipe.low_noise_model, "forward", "low", lambda x, *_, **__: x[0]),
            Spot(getattr(loop, solver[self._settings.solver]), "step", "solver"),
            Spot(self.pipe.vae, "decode", "vae", lambda x, *_, **__: x[0]),
            Spot(type(self.pipe.text_encoder), "__call__", "text"),
        ]

    def _return_experts(self) -> None:
        """Bring back what earlier clips left on the host; only upstream's offloading moves experts there."""
        if self._settings.offload:
            self.pipe.high_noise_model.to(self._group.device)
            self.pipe.low_noise_model.to(self._group.device)

    @contextlib.contextmanager
    def _as_in_the_loop(self) -> Iterator[None]:
        with torch.no_grad(), torch.amp.autocast("cuda", dtype=self._settings.dtype):
            yield

    @contextlib.contextmanager
    def _without_cuda(self) -> Iterator[None]:
        """Upstream's offloading synchronises CUDA, whether it is there or not."""
        with mock.patch("torch.cuda.synchronize"):
            yield


class DiffusersHost:
    """``diffusers.WanPipeline``, with the same methods."""

    name = "diffusers"

    def __init__(self, settings: Settings, group: Group) -> None:
        self._settings = settings
        self._device = group.device
        self.pipe = tiny_diffusers_t2v(sizes=settings.sizes, device=group.device, dtype=settings.dtype)
        solver = self.pipe.scheduler
        self.pipe.scheduler = type(solver).from_config(solver.config, flow_shift=settings.shift)

    def generate(self, clip: Clip, steps: int, offload: bool) -> None:
        """See `OfficialHost`; there is no offloading here."""
        make = diffusers_generate(
            self.pipe,
            size=clip.size,
            num_frames=clip.video_frames,
            guidance_scale=4.0,
            guidance_scale_2=3.0,
            max_sequence_length=self._settings.sizes.text_len,
        )
        make(_PROMPT, 0, steps)

    def forward(self, clip: Clip, latent_frames: int) -> None:
        """See `OfficialHost`."""
        sizes, dtype, device = self._settings.sizes, self._settings.dtype, self._device
        latents = torch.randn(1, 16, latent_frames, clip.height // 8, clip.width // 8, device=device)
        text = torch.randn(1, sizes.text_len, sizes.text_dim, device=device)
        with torch.no_grad():
            self.pipe.transformer(
                hidden_states=latents.to(dtype),
                timestep=torch.tensor([900], device=device),
                encoder_hidden_states=text.to(dtype),
                return_dict=False,
            )

    def decode(self, clip: Clip) -> None:
        """See `OfficialHost`."""
        shape = (1, 16, clip.latent_frames, clip.height // 8, clip.width // 8)
        with torch.no_grad():
            self.pipe.vae.decode(torch.randn(shape, device=self._device, dtype=self.pipe.vae.dtype), return_dict=False)

    def spots(self) -> list[Spot]:
        """See `OfficialHost`."""
        return [
            Spot(self.pipe.transformer, "forward", "high", lambda hidden_states, **_: hidden_states),
            Spot(self.pipe.transformer_2, "forward", "low", lambda hidden_states, **_: hidden_states),
            Spot(type(self.pipe.scheduler), "step", "solver"),
            Spot(self.pipe.vae, "decode", "vae", lambda x, *_, **__: x),
            Spot(self.pipe, "encode_prompt", "text"),
        ]


Host = OfficialHost | DiffusersHost
HOSTS: dict[str, Callable[[Settings, Group], Host]] = {"wan": OfficialHost, "diffusers": DiffusersHost}


def host_facts(name: str) -> dict[str, Any]:
    """What results of this host depend on beside the machine."""
    attention = {"wan": "SDPA standing in for flash-attention", "diffusers": "its own choice"}
    package = {"wan": "wan22", "diffusers": "diffusers"}[name]
    return {f"{name} version": _version(package), f"{name} attention": attention[name]}


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "a checkout"
