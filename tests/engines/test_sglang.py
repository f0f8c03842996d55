"""examples/halfframe-sglang on sglang's own plugin registry and diffusers stage, with a real pipeline.

Their modules are the wheel's; what else of sglang they import needs GPUs or packages without a CPU build, and is stood
in for by modules whose names are empty classes.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import logging
import sys
import types
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch

import halfframe
from halfframe.testing import TINY, tiny_diffusers_t2v

if importlib.util.find_spec("sglang") is None:
    pytest.skip("make test-engines brings sglang", allow_module_level=True)
tomllib = pytest.importorskip("tomllib")

EXAMPLE = Path(__file__).parents[2] / "examples" / "halfframe-sglang"
PLUGINS = "sglang.multimodal_gen.runtime.platforms.plugins"
PIPELINE = "sglang.multimodal_gen.runtime.pipelines.diffusers_pipeline"
REAL = {"sglang.srt.plugins.hook_registry", "sglang.srt.environ", PLUGINS, PIPELINE}


class PipelineStage:
    """Calls `forward`, as sglang's does between its checks."""

    def __call__(self, batch: Any, server_args: Any) -> Any:
        return self.forward(batch, server_args)  # type: ignore[attr-defined]


GIVEN: dict[str, dict[str, Any]] = {
    "sglang.multimodal_gen.runtime.platforms": {
        "PLATFORM_PLUGINS_GROUP": "sglang.multimodal_gen.platform_plugins",
        "get_selected_platform_dist": lambda: None,
        "current_platform": types.SimpleNamespace(device_type="cpu"),
    },
    "sglang.multimodal_gen.runtime.pipelines_core.stages": {"PipelineStage": PipelineStage},
    "sglang.multimodal_gen.runtime.utils.logging_utils": {"init_logger": logging.getLogger},
}


class StandIn(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = GIVEN.get(self.__name__, {}).get(name) or type(name, (), {})
        setattr(self, name, value)
        return value


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """The wheel's modules in `REAL`; a stand-in for its others, and for torchvision."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name.split(".")[0] not in ("sglang", "torchvision"):
            return None
        found = importlib.machinery.PathFinder.find_spec(name, path)
        if name in REAL:
            return found
        spec = importlib.machinery.ModuleSpec(name, self, is_package=True)
        if found is not None:
            spec.submodule_search_locations = list(found.submodule_search_locations or [])
        return spec

    def create_module(self, spec: Any) -> types.ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


@pytest.fixture
def sglang(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of the stage, with the example's plugin found by its entry point, registered and applied."""
    monkeypatch.syspath_prepend(str(EXAMPLE / "src"))
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    known = set(sys.modules)
    try:
        plugins = importlib.import_module(PLUGINS)
        project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        groups = project["entry-points"]
        monkeypatch.setattr(
            plugins,
            "entry_points",
            lambda group: [EntryPoint(name, value, group) for name, value in groups.get(group, {}).items()],
        )
        plugins.apply_plugin_hooks()
        module = importlib.import_module(PIPELINE)
        assert all(Path(str(sys.modules[name].__file__)).is_file() for name in REAL)
        yield module
    finally:
        for name in set(sys.modules) - known:
            if name.split(".")[0] in ("sglang", "torchvision", "halfframe_sglang"):
                del sys.modules[name]


class Batch(types.SimpleNamespace):
    """A request as the stage reads it."""

    def __init__(self, **extra: Any) -> None:
        kwargs = {"max_sequence_length": TINY.text_len, "output_type": "pt", **extra}
        super().__init__(
            prompt="a red ball", negative_prompt="blurry", num_inference_steps=8, guidance_scale=4.0, height=32,
            width=48, num_frames=17, seed=7, generator=None, generator_device="cpu", true_cfg_scale=None,
            condition_image=None, pixel_values=None, image_path=None, num_outputs_per_prompt=1,
            extra={"diffusers_kwargs": kwargs},
        )  # fmt: skip


ARGS = types.SimpleNamespace(sp_degree=1)


def video(pipe: Any, strategy: Any) -> torch.Tensor:
    """What the stage makes of the same request without sglang, ``(B, C, F, H, W)``."""

    def call() -> Any:
        return pipe(
            "a red ball", "blurry", 32, 48, 17, 8, 4.0, generator=torch.Generator("cpu").manual_seed(7),
            output_type="pt", max_sequence_length=TINY.text_len,
        )  # fmt: skip

    if strategy is None:
        output = call()
    else:
        with halfframe.enabled(pipe, strategy):
            output = call()
    return output.frames.permute(0, 2, 1, 3, 4).clamp(0, 1)  # type: ignore[no-any-return]


def test_without_a_strategy_the_server_is_as_it_was(sglang: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HALFFRAME_STRATEGY", raising=False)
    stage = sglang.DiffusersExecutionStage(tiny_diffusers_t2v())
    assert torch.equal(stage(Batch(), ARGS).output, video(stage.diffusers_pipe, None))


def test_strategy_from_the_environment_and_from_the_request(
    sglang: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HALFFRAME_STRATEGY", "merge")
    pipe = tiny_diffusers_t2v()
    stage = sglang.DiffusersExecutionStage(pipe)
    plain, merged = video(pipe, None), video(pipe, "merge")
    assert not torch.equal(plain, merged)
    with caplog.at_level("INFO", "halfframe_sglang"):
        assert torch.equal(stage(Batch(), ARGS).output, merged)
    assert "merge" in caplog.text
    assert torch.equal(stage(Batch(), ARGS).output, merged), "request after request"
    assert torch.equal(stage(Batch(halfframe="none"), ARGS).output, plain)
    other = video(pipe, "interleave:stride=3")
    assert torch.equal(stage(Batch(halfframe="interleave:stride=3"), ARGS).output, other)
    path = tmp_path / "recipe.json"
    halfframe.Recipe(("merge:2", "full", "reuse", "full", "merge:2+cond", "full", "full", "full")).save(path)
    assert torch.equal(stage(Batch(halfframe=str(path)), ARGS).output, video(pipe, str(path)))


def test_nothing_is_left_on_the_pipeline(sglang: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALFFRAME_STRATEGY", "merge")
    pipe = tiny_diffusers_t2v()
    cls, before = type(pipe), set(vars(pipe))
    sglang.DiffusersExecutionStage(pipe)(Batch(), ARGS)
    assert type(pipe) is cls
    assert set(vars(pipe)) - before <= {"_guidance_scale", "_guidance_scale_2", "_attention_kwargs", "_num_timesteps",
                                        "_current_timestep", "_interrupt"}  # fmt: skip


def test_a_run_that_skips_nothing_says_so(
    sglang: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HALFFRAME_STRATEGY", "merge")
    batch = Batch()
    batch.num_frames = None
    batch.extra["diffusers_kwargs"]["num_frames"] = 1
    with caplog.at_level("INFO", "halfframe_sglang"):
        sglang.DiffusersExecutionStage(tiny_diffusers_t2v())(batch, ARGS)
    assert [record.levelname for record in caplog.records if record.name == "halfframe_sglang"] == ["WARNING"]
    assert "the clip has 1 latent frame" in caplog.text


def test_refusals(sglang: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALFFRAME_STRATEGY", "merge")
    stage = sglang.DiffusersExecutionStage(tiny_diffusers_t2v())
    with pytest.raises(halfframe.UnsupportedPipelineError, match=r"sharded over 2 GPUs \(sp_degree\).*--sp-degree 1"):
        stage(Batch(), types.SimpleNamespace(sp_degree=2))
    with pytest.raises(halfframe.StrategyError, match="Did you mean 'merge'"):
        stage(Batch(halfframe="merg"), ARGS)
    one = tiny_diffusers_t2v(transformer_2=None, boundary_ratio=None)
    with pytest.raises(halfframe.UnsupportedPipelineError, match="has no transformer_2"):
        sglang.DiffusersExecutionStage(one)(Batch(), ARGS)
