"""diffusers' Ulysses in two processes with halfframe on; `test_ulysses` starts it under torchrun."""

from __future__ import annotations

import importlib
import os

import torch
import torch.distributed as dist

import halfframe
from halfframe.testing import tiny_diffusers_t2v
from tests.helpers_diffusers import run
from tests.support.test_support import SIZES


def main() -> None:
    """Every rank makes the clip alone, then the group makes it together."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    pipe = tiny_diffusers_t2v(sizes=SIZES)
    with halfframe.enabled(pipe, "merge"):
        alone = run(pipe, num_frames=25)  # 7 latent frames, 4 of them computed: 24 tokens
    calls: list[int] = []
    if not torch.accelerator.device_count():
        torch.accelerator.device_count = lambda: 1  # diffusers deals out the ranks over it, and gloo is on a CPU
    for name in ("transformer", "transformer_2"):
        config = importlib.import_module("diffusers").ContextParallelConfig(ulysses_degree=2)
        getattr(pipe, name).enable_parallelism(config=config)
        block = getattr(pipe, name).blocks[0].norm1
        block.register_forward_pre_hook(lambda _, args: calls.append(args[0].shape[1]))
    with halfframe.enabled(pipe, "merge") as enabled:
        together = run(pipe, num_frames=25)
    assert set(calls) == {12, 21}, f"each rank has half of the tokens, got {set(calls)}"
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)
    assert enabled.report is not None
    assert enabled.report.saved
    if dist.get_rank() == 0:
        print(f"equal to one process: {(together - alone).abs().max().item():.1e}", flush=True)
    dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    main()
