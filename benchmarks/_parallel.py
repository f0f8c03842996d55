"""The processes of one benchmark, and upstream's own sequence parallelism (Ulysses) and sharding (FSDP) in them."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import types
from collections.abc import Iterator
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist

from halfframe.errors import HalfframeError
from halfframe.testing import sdpa_attention

__all__ = ["Group", "check_heads", "end_process", "parallelise", "process_group"]

_T = TypeVar("_T")
_EXPERTS = ("low_noise_model", "high_noise_model")  # in upstream's order


class Group:
    """The processes that make one clip together; one process is a group too.

    Attributes:
        rank: of this process, from 0.
        size: number of processes.
        device: what this process computes on.
    """

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        self.rank = rank
        self.size = size
        self.device = device

    @property
    def first(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """Print, once."""
        if self.first:
            print(text, flush=True)

    def agree(self, value: _T) -> _T:
        """The first process's `value`, in all of them: clocks differ, and what they decide must not."""
        if self.size == 1:
            return value
        values: list[Any] = [value]
        dist.broadcast_object_list(values, src=0, device=self.device)
        agreed: _T = values[0]
        return agreed

    def meet(self) -> None:
        """Wait for all of them: a process that ends while another still talks to it can take that one down."""
        if self.size > 1:
            dist.barrier()

    def gather(self, value: _T) -> list[_T]:
        """Every process's `value`, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def require_same(self, what: str, value: Any) -> None:
        """Fail in every process unless all of them have the same `value`."""
        values = self.gather(value)
        if any(other != values[0] for other in values):
            listed = "; ".join(f"rank {rank}: {other}" for rank, other in enumerate(values))
            raise HalfframeError(f"the processes differ in {what}: {listed}")


@contextlib.contextmanager
def process_group() -> Iterator[Group]:
    """The processes that torchrun started, or this one alone: NCCL on GPUs, gloo on a CPU."""
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if size == 1:
        yield Group(0, 1, device)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Group(rank, size, device)
    finally:
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
    for name in _EXPERTS:
        model = getattr(pipe, name)
        group.require_same(f"the weights of {name}", _fingerprint(model))
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


def _fingerprint(model: torch.nn.Module) -> list[float]:
    """Enough of the weights to tell that they come from the same seed."""
    first, *_, last = model.parameters()
    return [float(parameter.double().sum()) for parameter in (first, last)]
