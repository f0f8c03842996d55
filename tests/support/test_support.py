"""What can be done to diffusers' transformers, with halfframe on: each line of the table in docs/hosts.md.

Every test does to the experts what the feature does, checks that it is there, and compares halfframe with a loop of the
test's own on these very experts. `make test-support` brings the packages; on a machine without a GPU.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import halfframe
from halfframe.testing import WanSizes, tiny_diffusers_t2v

from ..helpers_diffusers import PROMPT, run, state
from ..hosts.plain_loop import diffusers_parts, plain_loop

SIZES = WanSizes(dim=64, ffn_dim=128)  # quantization has blocks of 32
EXPERTS = ("transformer", "transformer_2")
Change = Callable[[Any, Path], None]


def lora(pipe: Any, folder: Path) -> None:
    """By ``load_lora_weights``, as a user does: one for each expert."""
    pytest.importorskip("peft")
    safetensors = importlib.import_module("safetensors.torch")
    for name, into in zip(EXPERTS, (False, True), strict=True):
        weights = {}
        for block in range(SIZES.num_layers):
            for layer in ("attn1.to_q", "attn2.to_v", "ffn.net.0.proj"):
                linear = getattr(pipe, name).get_submodule(f"blocks.{block}.{layer}")
                key = f"transformer.blocks.{block}.{layer}"
                weights[f"{key}.lora_A.weight"] = torch.randn(4, linear.in_features) * 0.2
                weights[f"{key}.lora_B.weight"] = torch.randn(linear.out_features, 4) * 0.2
        safetensors.save_file(weights, folder / f"{name}.safetensors")
        pipe.load_lora_weights(
            str(folder), weight_name=f"{name}.safetensors", adapter_name=name, load_into_transformer_2=into
        )
    assert {name for name in EXPERTS if getattr(pipe, name).peft_config} == set(EXPERTS)


def lora_fused(pipe: Any, folder: Path) -> None:
    """The same, fused into the weights."""
    lora(pipe, folder)
    pipe.fuse_lora(components=list(EXPERTS))
    pipe.unload_lora_weights()


def layerwise_casting(pipe: Any, folder: Path) -> None:
    """Weights lie in fp8 and are cast for each layer's call."""
    for name in EXPERTS:
        expert = getattr(pipe, name)
        expert.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
        assert expert.blocks[0].attn1.to_q.weight.dtype is torch.float8_e4m3fn


def torchao(pipe: Any, folder: Path) -> None:
    """int8 weights by ``quantize_``."""
    quantization = pytest.importorskip("torchao.quantization")
    for name in EXPERTS:
        quantization.quantize_(getattr(pipe, name), quantization.Int8WeightOnlyConfig())
        assert type(getattr(pipe, name).blocks[0].attn1.to_q.weight.data).__module__.startswith("torchao")


def quanto(pipe: Any, folder: Path) -> None:
    """int8 weights by ``quantize`` and ``freeze``."""
    package = pytest.importorskip("optimum.quanto")
    for name in EXPERTS:
        package.quantize(getattr(pipe, name), weights=package.qint8)
        package.freeze(getattr(pipe, name))
        assert type(getattr(pipe, name).blocks[0].attn1.to_q).__name__ == "QLinear"


def bitsandbytes(pipe: Any, folder: Path) -> None:
    """4-bit weights; diffusers' loader wants a GPU for that, so its layers are put in by hand here."""
    package = pytest.importorskip("bitsandbytes").nn
    for name in EXPERTS:
        for block in getattr(pipe, name).blocks:
            for path, linear in list(block.named_modules()):
                if type(linear) is not torch.nn.Linear:
                    continue
                made = package.Linear4bit(
                    linear.in_features, linear.out_features, compute_dtype=torch.float32, quant_type="nf4"
                )
                made.load_state_dict(linear.state_dict())
                parent, _, attribute = path.rpartition(".")
                setattr(block.get_submodule(parent), attribute, made.to("cpu"))
        weight = getattr(pipe, name).blocks[0].attn1.to_q.weight
        assert weight.dtype is torch.uint8, "quantized"


def gguf(pipe: Any, folder: Path) -> None:
    """Q8_0 weights from a file, by ``from_single_file``."""
    package = pytest.importorskip("gguf")
    config = importlib.import_module("diffusers").GGUFQuantizationConfig(compute_dtype=torch.float32)
    for name in EXPERTS:
        expert = getattr(pipe, name)
        expert.save_config(folder / name)
        writer = package.GGUFWriter(folder / f"{name}.gguf", "wan")
        kind = package.GGMLQuantizationType.Q8_0
        for key, value in expert.state_dict().items():
            data = value.float().numpy()
            if value.ndim == 2 and key.startswith("blocks.") and key.endswith("weight"):
                writer.add_tensor(key, package.quants.quantize(data, kind), raw_dtype=kind)
            else:
                writer.add_tensor(key, data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        loaded = type(expert).from_single_file(
            str(folder / f"{name}.gguf"),
            config=str(folder / name),
            quantization_config=config,
            torch_dtype=torch.float32,
        )
        setattr(pipe, name, loaded.eval())
        assert type(getattr(pipe, name).blocks[0].attn1.to_q).__name__ == "GGUFLinear"


def compiled_blocks(pipe: Any, folder: Path) -> None:
    """Repeated blocks compiled, without a code generator: the graphs are what matters here."""
    torch._dynamo.reset()
    for name in EXPERTS:
        getattr(pipe, name).compile_repeated_blocks(backend="eager", fullgraph=True)


def group_offloading(pipe: Any, folder: Path) -> None:
    """Layers brought in and out around their calls, here from CPU to CPU."""
    hooks = importlib.import_module("diffusers.hooks")
    with pytest.MonkeyPatch.context() as patch:
        if torch.accelerator.current_accelerator() is None:  # diffusers insists that there is one
            patch.setattr("torch.accelerator.current_accelerator", lambda: torch.device("cpu"))
        for name in EXPERTS:
            hooks.apply_group_offloading(
                getattr(pipe, name), onload_device=torch.device("cpu"), offload_type="leaf_level"
            )


def sequential_offloading(pipe: Any, folder: Path) -> None:
    """Accelerate's hooks on every layer."""
    accelerate = importlib.import_module("accelerate")
    for name in EXPERTS:
        accelerate.cpu_offload(getattr(pipe, name), execution_device=torch.device("cpu"))


CHANGES: list[Change] = [
    lora,
    lora_fused,
    layerwise_casting,
    torchao,
    quanto,
    bitsandbytes,
    gguf,
    compiled_blocks,
    group_offloading,
    sequential_offloading,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("strategy", ["self-duplicate", "merge"])
def test_halfframe_beside(change: Change, strategy: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    pipe = tiny_diffusers_t2v(sizes=SIZES)
    untouched = run(pipe)
    change(pipe, tmp_path)
    plain = run(pipe)
    exact = change in (compiled_blocks, group_offloading, sequential_offloading)
    assert torch.allclose(plain, untouched, rtol=0, atol=2e-5) == exact, "the feature changes weights, or it does not"
    expected: Tensor = plain_loop(diffusers_parts(pipe, [PROMPT], num_frames=17, steps=8), strategy)
    before = state(pipe).keys()
    with halfframe.enabled(pipe, strategy) as enabled:
        latents = run(pipe)
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-4)
    assert not torch.allclose(latents, plain, rtol=0, atol=1e-2)
    assert enabled.report is not None
    assert enabled.report.saved
    assert state(pipe).keys() == before
    assert torch.equal(run(pipe), plain)


def test_ulysses() -> None:
    """diffusers' own sequence parallelism, in two processes of gloo."""
    if not hasattr(importlib.import_module("diffusers"), "ContextParallelConfig"):
        pytest.skip("this diffusers has no context parallelism")
    root = Path(__file__).parents[2]
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
            str(Path(__file__).with_name("ulysses.py")),
        ],
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    assert "equal to one process" in finished.stdout
