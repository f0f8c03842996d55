"""The pipelines that ``halfframe compare`` can load: a tiny one, TinyWan, diffusers' and the official one."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from halfframe.compare.generators import Generate, diffusers_generate, official_generate
from halfframe.errors import HalfframeError, OptionError
from halfframe.testing import import_wan, tiny_wan_t2v, use_sdpa

__all__ = ["PROMPT", "Loaded", "load"]

PROMPT = "A woman walking in a park"

_TASK = "t2v-A14B"
_GUIDANCE = {"guidance_scale": 4.0, "guidance_scale_2": 3.0}  # high- and low-noise expert, as the official config


@dataclass(frozen=True, slots=True)
class Loaded:
    """A pipeline that is ready.

    Attributes:
        generate: makes a clip.
        steps: of its baseline.
        weights: where they are from; empty if they are random.
        prompt: of a clip, where none is given.
    """

    generate: Generate
    steps: int
    weights: str = ""
    prompt: str = PROMPT


def load(arguments: argparse.Namespace, progress: Callable[[str], None]) -> Loaded:
    """The pipeline that the command line asks for.

    Raises:
        OptionError: an option that it cannot take.
        HalfframeError: a package or the weights are missing, or they cannot be loaded.
    """
    if arguments.tiny:
        progress("building a tiny pipeline; its weights are random: it shows plumbing and formats, nothing of quality")
        return _tiny(arguments)
    if arguments.tinywan:
        progress(f"loading TinyWan {arguments.tinywan}, a toy")
        return _tinywan(arguments)
    if arguments.task != _TASK:
        raise OptionError(f"--task {arguments.task} cannot be compared here; needed: {_TASK}. See halfframe.compare.")
    size = _size(arguments.size or "1280x720")
    source = arguments.diffusers or arguments.ckpt_dir
    is_path = source.startswith((".", "/", "~")) or arguments.ckpt_dir
    if is_path and not Path(source).expanduser().is_dir():
        raise OptionError(f"{source} is not there; give a folder of weights, or with --diffusers an id.")
    progress(f"loading {source}")
    loader = _diffusers if arguments.diffusers else _official
    try:
        return replace(loader(arguments, size), weights=f"as loaded from {source}")
    except HalfframeError:
        raise
    except Exception as error:
        raise HalfframeError(f"{source!r} cannot be loaded: {type(error).__name__}: {error}") from error


def _tiny(arguments: argparse.Namespace) -> Loaded:
    shift = 12.0 if arguments.sample_shift is None else arguments.sample_shift
    generate = official_generate(
        tiny_wan_t2v(),
        size=_size(arguments.size or "64x48"),
        frame_num=_given(arguments.frame_num, 17),
        shift=shift,
        guide_scale=(3.0, 4.0),
        offload_model=False,
    )
    return Loaded(generate, _given(arguments.sample_steps, 8))


def _tinywan(arguments: argparse.Namespace) -> Loaded:
    if importlib.util.find_spec("halfframe_tinywan") is None:
        raise HalfframeError(
            "--tinywan needs halfframe-tinywan, which is not installed; in a checkout of halfframe: "
            "pip install ./examples/halfframe-tinywan"
        )
    if arguments.size is not None:
        raise OptionError("TinyWan makes clips of 96x96 pixels only; leave out --size.")
    tinywan = importlib.import_module("halfframe_tinywan")
    kind, frame_num = arguments.tinywan, _given(arguments.frame_num, 81)
    generate = tinywan.tinywan_generate(kind, video_frames=frame_num, shift=arguments.sample_shift)
    steps = _given(arguments.sample_steps, tinywan.settings(kind)["steps"])
    prompt = importlib.import_module("halfframe_tinywan.demo").PROMPT
    return Loaded(generate, steps, generate.facts["weights"], prompt)


def _diffusers(arguments: argparse.Namespace, size: tuple[int, int]) -> Loaded:
    try:
        diffusers = importlib.import_module("diffusers")
    except ImportError as error:
        raise HalfframeError(f"--diffusers needs the package diffusers ({error}); pip install diffusers.") from error
    cuda = torch.cuda.is_available()
    dtypes = {"default": torch.bfloat16, "vae": torch.float32} if cuda else torch.float32
    pipe: Any = diffusers.DiffusionPipeline.from_pretrained(arguments.diffusers, torch_dtype=dtypes)
    if "image" in inspect.signature(type(pipe).__call__).parameters:
        raise OptionError(
            f"{type(pipe).__name__} needs an image, and this command has no option for one; call "
            "halfframe.compare.compare with diffusers_generate(pipe, image=...)."
        )
    if arguments.sample_shift is not None:
        if "flow_shift" not in pipe.scheduler.config:
            raise OptionError(f"{type(pipe.scheduler).__name__} has no flow_shift; leave out --sample_shift.")
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, flow_shift=arguments.sample_shift)
    if cuda and arguments.no_offload:
        pipe.to("cuda")
    elif cuda:
        pipe.enable_model_cpu_offload()
    generate = diffusers_generate(pipe, size=size, num_frames=_given(arguments.frame_num, 81), **_GUIDANCE)
    return Loaded(generate, _given(arguments.sample_steps, 40))


def _official(arguments: argparse.Namespace, size: tuple[int, int]) -> Loaded:
    if not Path(arguments.ckpt_dir).is_dir():
        raise HalfframeError(
            f"--ckpt_dir {arguments.ckpt_dir!r} is not a folder; give the one with the weights of {_TASK}."
        )
    module = import_wan("text2video")
    if not torch.cuda.is_available():
        raise HalfframeError("the official pipeline of A14B needs a CUDA GPU; --tiny runs on this machine.")
    config = importlib.import_module("wan.configs").WAN_CONFIGS[_TASK]
    if arguments.sdpa:
        use_sdpa()
    pipe = module.WanT2V(
        config=config,
        checkpoint_dir=arguments.ckpt_dir,
        init_on_cpu=not arguments.no_offload,  # otherwise upstream moves the experts whatever offload_model says
        convert_model_dtype=True,
    )
    generate = official_generate(
        pipe,
        size=size,
        frame_num=_given(arguments.frame_num, config.frame_num),
        shift=_given(arguments.sample_shift, config.sample_shift),
        guide_scale=config.sample_guide_scale,
        offload_model=not arguments.no_offload,
    )
    facts = {**generate.facts, "attention": "SDPA" if arguments.sdpa else "flash-attention"}
    return Loaded(replace(generate, facts=facts), _given(arguments.sample_steps, config.sample_steps))


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)[xX*](\d+)", text)
    if match is None:
        raise OptionError(f"--size must be WIDTHxHEIGHT in pixels, such as 832x480, got {text!r}.")
    return int(match[1]), int(match[2])
