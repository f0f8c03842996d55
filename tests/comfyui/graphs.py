"""Workflow files run by ComfyUI's own executor; what loads and saves files is stood in for."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .experts import Experts
from .install import folder, load

_EXTRAS = ("nodes_custom_sampler", "nodes_hunyuan", "nodes_model_advanced", "nodes_wan")
_WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
_NOTES = ("Note", "MarkdownNote")


class _StandIn:
    """A node with the inputs and outputs of one of ComfyUI's, whose work a test does."""

    OUTPUT_NODE = False
    FUNCTION = "run"

    def run(self, **inputs: Any) -> tuple[Any, ...]:
        raise NotImplementedError


def _node(
    required: Mapping[str, Any],
    outputs: Sequence[str],
    run: Any,
    *,
    optional: Mapping[str, Any] = {},
    last: bool = False,
) -> type:
    inputs = {"required": {name: _input(kind) for name, kind in required.items()}}
    inputs["optional"] = {name: _input(kind) for name, kind in optional.items()}

    def execute(self: Any, **given: Any) -> tuple[Any, ...]:
        result = run(**given)
        return result if isinstance(result, tuple) else (result,)

    return type(
        "StandIn",
        (_StandIn,),
        {
            "INPUT_TYPES": classmethod(lambda cls: inputs),
            "RETURN_TYPES": tuple(outputs),
            "OUTPUT_NODE": last,
            "CATEGORY": "",
            "run": execute,
        },
    )


def _input(kind: Any) -> tuple[Any, ...]:
    return kind if isinstance(kind, tuple) else (kind,)


class _TextEncoder:
    """A CLIP as *CLIPTextEncode* sees it: two prompts, told apart by whether they are the negative one."""

    def __init__(self, experts: Experts) -> None:
        self._experts = experts

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, text: str) -> list[Any]:
        positive, negative = self._experts.conditions()
        return negative if text.startswith("色调艳丽") else positive


class _Vae:
    """A VAE that leaves a clip in its latents and makes latents of an image's mean colours."""

    latent_channels = 16

    def decode(self, latents: Tensor) -> Tensor:
        return latents[:, :3].movedim(1, -1)

    def encode(self, pixels: Tensor) -> Tensor:
        frames, height, width, _ = pixels.shape
        small = pixels[::4].mean(-1).reshape(1, 1, -1, height // 8, 8, width // 8, 8).mean((-1, -3))
        assert small.shape[2] == (frames - 1) // 4 + 1
        return small.repeat(1, 16, 1, 1, 1)

    def spacial_compression_encode(self) -> int:
        return 8


class Graphs:
    """ComfyUI's executor, with stand-ins for what loads and saves.

    Args:
        experts: what *UNETLoader* finds, by ``high_noise`` or ``low_noise`` in the file's name.
        node_folders: folders of custom nodes, loaded as ComfyUI does.
    """

    def __init__(self, experts: Experts, node_folders: Sequence[Path] = ()) -> None:
        comfy = load()
        self._nodes = comfy.nodes
        self.saved: list[Tensor] = []
        self.loras: list[str] = []
        for name in _EXTRAS:
            assert asyncio.run(self._nodes.load_custom_node(str(folder() / "comfy_extras" / f"{name}.py")))
        for path in node_folders:
            assert asyncio.run(self._nodes.load_custom_node(str(path))), f"ComfyUI cannot load {path}"
        self._mappings: dict[str, Any] = {**self._nodes.NODE_CLASS_MAPPINGS, **self._stand_ins(experts)}
        self._executor = _executor(comfy.execution)
        self.events: list[tuple[str, Any]] = self._executor.server.events

    def run(self, prompt: Mapping[str, Any]) -> list[Tensor]:
        """Run an API-format prompt; what its last nodes were given. Raises what a node raised, as text."""
        before = len(self.saved)
        real, self._nodes.NODE_CLASS_MAPPINGS = self._nodes.NODE_CLASS_MAPPINGS, self._mappings
        try:
            valid, error, outputs, problems = asyncio.run(_validate(prompt))
            assert valid, (error, problems)
            self._executor.execute(dict(prompt), "prompt", execute_outputs=outputs)
        finally:
            self._nodes.NODE_CLASS_MAPPINGS = real
        for event, data in self._executor.status_messages:
            if event == "execution_error":
                raise RuntimeError(f"{data['node_type']}: {data['exception_type']}: {data['exception_message']}")
        return self.saved[before:]

    def node(self, name: str) -> Any:
        """The class of a type of node."""
        return self._mappings[name]

    def prompt(self, path: Path, **changes: Mapping[str, Any]) -> dict[str, Any]:
        """The API-format prompt of a workflow file as ComfyUI's front end saves it.

        Args:
            path: the file.
            **changes: further values of inputs, by the type of their node.
        """
        workflow = json.loads(path.read_text(encoding="utf-8"))
        sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
        prompt = {}
        for node in workflow["nodes"]:
            if node["type"] in _NOTES:
                continue
            inputs = self._values(node)
            for slot in node.get("inputs", ()):
                if slot.get("link") is not None:
                    inputs[slot["name"]] = sources[slot["link"]]
            inputs |= changes.get(node["type"], {})
            prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
        return prompt

    def _values(self, node: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a node's widgets by the names of its inputs, in whose order the front end saves them."""
        values = list(node.get("widgets_values", ()))
        inputs: dict[str, Any] = {}
        types = self._mappings[node["type"]].INPUT_TYPES()
        for name, (kind, *options) in {**types.get("required", {}), **types.get("optional", {})}.items():
            if not (isinstance(kind, list) or kind in _WIDGETS) or (options and options[0].get("forceInput")):
                continue
            assert values, f"{node['type']} has too few values for {name}"
            inputs[name] = values.pop(0)
            if options and options[0].get("control_after_generate") and values:
                assert values.pop(0) in ("fixed", "randomize", "increment", "decrement")
        assert not values, f"{node['type']} has more values than inputs: {values}"
        return inputs

    def _stand_ins(self, experts: Experts) -> dict[str, type]:
        def unet(unet_name: str, weight_dtype: str) -> Any:
            return experts.high if "high_noise" in unet_name else experts.low

        def lora(model: Any, lora_name: str, strength_model: float) -> Any:
            self.loras.append(lora_name)
            return with_lora(model, strength_model)

        def save(video: Tensor, **_: Any) -> tuple[Any, ...]:
            self.saved.append(video)
            return ()

        return {
            "UNETLoader": _node({"unet_name": "STRING", "weight_dtype": "STRING"}, ["MODEL"], unet),
            "LoraLoaderModelOnly": _node(
                {"model": "MODEL", "lora_name": "STRING", "strength_model": "FLOAT"}, ["MODEL"], lora
            ),
            "CLIPLoader": _node(
                {"clip_name": "STRING", "type": "STRING"},
                ["CLIP"],
                lambda **_: _TextEncoder(experts),
                optional={"device": "STRING"},
            ),
            "VAELoader": _node({"vae_name": "STRING"}, ["VAE"], lambda **_: _Vae()),
            "LoadImage": _node(
                {"image": "STRING", "upload": "STRING"},
                ["IMAGE", "MASK"],
                lambda **_: (torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0)), None),
            ),
            "CreateVideo": _node(
                {"images": "IMAGE", "fps": "FLOAT"}, ["VIDEO"], lambda images, **_: images, optional={"audio": "AUDIO"}
            ),
            "SaveVideo": _node(
                {"video": "VIDEO", "filename_prefix": "STRING", "format": "STRING", "codec": "STRING"},
                [],
                save,
                last=True,
            ),
        }


def with_lora(model: Any, strength: float) -> Any:
    """A model with a random LoRA of rank 2 on its first block, as *LoraLoaderModelOnly* applies one."""
    generator = torch.Generator().manual_seed(1)
    weight = model.model.diffusion_model.blocks[0].self_attn.q.weight
    rows, columns = weight.shape
    name = "diffusion_model.blocks.0.self_attn.q"
    lora = {
        f"{name}.lora_up.weight": torch.randn(rows, 2, generator=generator) / 4,
        f"{name}.lora_down.weight": torch.randn(2, columns, generator=generator) / 4,
    }
    patched, _ = load().sd.load_lora_for_models(model, None, lora, strength, 0)
    return patched


async def _validate(prompt: Mapping[str, Any]) -> Any:
    return await load().execution.validate_prompt("prompt", dict(prompt), None)


class _Server:
    """A server with nobody connected."""

    client_id = None
    last_node_id = None
    last_prompt_id = None

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.sockets_metadata: dict[str, Any] = {}

    def send_sync(self, event: str, data: Any, sid: Any = None) -> None:
        self.events.append((event, data))


def _executor(execution: Any) -> Any:
    caches = {"cache_size": 0} if "cache_size" in inspect.signature(execution.PromptExecutor).parameters else {}
    caches = caches or {"cache_args": {"lru": 0, "ram": 0, "ram_inactive": 0}}
    return execution.PromptExecutor(_Server(), cache_type=execution.CacheType.CLASSIC, **caches)
