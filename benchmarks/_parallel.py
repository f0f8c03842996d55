"""The processes of one benchmark, and upstream's own sequence parallelism (Ulysses) and sharding (FSDP) in them."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from halfframe.errors import HalfframeError
from halfframe.testing import sdpa_attention

__all__ = ["Group", "check_heads", "end_process", "parallelise", "process_group"]


@dataclass(frozen=True)
class Group:
    """The processes that make one clip together: this one's rank, their number, and what this one computes on."""

    rank: int
    size: int
    device: torch.device

    def say(self, text: str) -> None:
        """Print, once."""
        if self.rank == 0:
            print(text, flush=True)

    def gather(self, value: Any) -> list[Any]:
        """Every process's `value`, by rank."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values


@contextlib.contextmanager
def process_group() -> Iterator[Group]:
    """The processes that torchrun started, or this one alone: NCCL on GPUs, gloo on a CPU."""
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if size > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Group(rank, size, device)
    finally:
        if size > 1:
            dist.destroy_process_group()


def end_process(status: int) -> NoReturn:
    """End this process with `status`; one of several at once, without taking the interpreter down first.

    A thread of gloo's that is still there then aborts the process every now and then (PyTorch 2.13, 1 of 56 runs on two
    busy cores), after all that there was to do was done.
    """
    if "WORLD_SIZE" not in os.environ:
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def check_heads(heads: int, size: int) -> None:
    """Refuse a group that attention cannot be divided among.

    Raises:
        HalfframeError: the number of heads is no multiple of the group's size.
    """
    if heads % size:
        fitting = ", ".join(str(n) for n in range(2, heads + 1) if heads % n == 0)
        raise HalfframeError(
            f"{size} processes cannot share {heads} attention heads: Ulysses gives each process whole heads, as many "
            f"as the others. Use {fitting} processes."
        )


def parallelise(pipe: Any, group: Group, fsdp: bool) -> None:
    """Do to `pipe` what upstream's ``WanT2V._configure_model`` does for sequence parallelism, and for FSDP if asked.

    Raises:
        HalfframeError: the processes have different weights.
    """
    parallel = importlib.import_module("wan.distributed.sequence_parallel")
    if group.device.type == "cpu":
        # Its attention casts to bfloat16 and leaves casting back to CUDA's autocast, which a CPU has not.
        ulysses: Any = importlib.import_module("wan.distributed.ulysses")
        ulysses.flash_attention = lambda *args, **kwargs: sdpa_attention(*args, **kwargs).float()
    for name in ("low_noise_model", "high_noise_model"):  # in upstream's order
        model = getattr(pipe, name)
        first, *_, last = model.parameters()
        sums = group.gather([float(parameter.double().sum()) for parameter in (first, last)])
        if sums.count(sums[0]) < group.size:
            raise HalfframeError(f"the processes have different weights in {name}; build them from one seed: {sums}")
        for block in model.blocks:
            block.self_attn.forward = types.MethodType(parallel.sp_attn_forward, block.self_attn)
        model.forward = types.MethodType(parallel.sp_dit_forward, model)
        dist.barrier()
        if fsdp:
            shard = importlib.import_module("wan.distributed.fsdp").shard_model
            setattr(pipe, name, shard(model, **_sharding(group.device)))
    pipe.sp_size = group.size
    pipe.rank = group.rank


def _sharding(device: torch.device) -> dict[str, Any]:
    """As upstream on a GPU. A CPU has no autocast to undo a cast to bfloat16, and FSDP syncs no weights there."""
    if device.type == "cuda":
        return {"device_id": device.index}
    return {"device_id": device, "param_dtype": torch.float32, "sync_module_states": False}
