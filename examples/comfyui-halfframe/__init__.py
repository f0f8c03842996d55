"""ComfyUI nodes for Wan2.2 A14B: its high-noise model computes part of the latent frames."""

from __future__ import annotations

import os

import folder_paths
from comfy_api.latest import ComfyExtension, io

try:
    import halfframe
    from halfframe.hosts.comfyui import patch_model
except ImportError as error:
    raise ImportError(
        f"comfyui-halfframe cannot import halfframe ({error}). Run `python -m pip install --upgrade halfframe` with "
        "the Python that runs ComfyUI, and start ComfyUI again."
    ) from error

CATEGORY = "advanced/model"
ALL_STEPS = "all steps"


class Halfframe(io.ComfyNode):
    """The high-noise model in, the same model out, faster."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs, with a tooltip on each."""
        return io.Schema(
            node_id="Halfframe",
            display_name="Halfframe",
            category=CATEGORY,
            description=(
                "Makes Wan2.2 A14B (text-to-video and image-to-video) faster: its high-noise model computes part of "
                "the latent frames at a step, and what it says of those is carried over to the others. This is lossy. "
                "Put it last before the sampler of the high-noise model, after LoRA and ModelSamplingSD3."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The high-noise model, after LoRA and ModelSamplingSD3."),
                io.Combo.Input(
                    "strategy",
                    options=[info.name for info in halfframe.strategies()],
                    default="interleave",
                    tooltip=(
                        "merge: the model sees means of neighbouring frames. interleave: other frames at each step. "
                        "interpolate: the same frames at each step. self-duplicate: frames are repeated when the "
                        "low-noise model takes over. In image-to-video, merge is interleave."
                    ),
                ),
                io.Int.Input(
                    "stride",
                    default=2,
                    min=2,
                    max=8,
                    tooltip="Computes one of N latent frames. 2 is half of them; more is faster and further off.",
                ),
                io.Int.Input(
                    "first_steps",
                    default=1,
                    min=0,
                    max=1000,
                    tooltip=(
                        "Acts on the sampler's first N high-noise steps only, 0 for all of them. A small number keeps "
                        "nearly the same video for a seed; all steps are faster and give another video, with less "
                        "motion. self-duplicate and previous-odd need all of them."
                    ),
                ),
                io.Int.Input(
                    "skip_guidance",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip=(
                        "Skips the negative prompt on the last N high-noise steps, which saves half of each. At CFG 1 "
                        "there is nothing to skip."
                    ),
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Where in the whole schedule it begins: 0 is the first step.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Where in the whole schedule it ends: 1 is after the last step.",
                ),
                io.Combo.Input(
                    "where",
                    options=["high-noise steps", ALL_STEPS],
                    default="high-noise steps",
                    tooltip=(
                        "Low-noise steps (sigma below 0.85) compute all frames unless you choose all steps, which "
                        "costs detail: for one model over the whole schedule."
                    ),
                ),
                io.String.Input(
                    "options",
                    default="",
                    optional=True,
                    tooltip="Further options of the strategy, as name=value, name=value: positions=contiguous.",
                ),
            ],
            outputs=[
                io.Model.Output("patched", display_name="model", tooltip="For the sampler of the high-noise steps.")
            ],
        )

    @classmethod
    def execute(
        cls,
        model: object,
        strategy: str,
        stride: int,
        first_steps: int,
        skip_guidance: int,
        start_percent: float,
        end_percent: float,
        where: str,
        options: str = "",
    ) -> io.NodeOutput:
        """A patched clone of `model`."""
        given: dict[str, object] = {}
        if stride != 2:
            given["stride"] = stride  # 2 is every strategy's own
        if where == ALL_STEPS:
            given["until"] = "end"
        elif first_steps:
            given["until"] = first_steps
        return io.NodeOutput(
            patch_model(
                model,
                f"{strategy}:{options}" if options.strip() else strategy,
                guidance=halfframe.Guidance(skip_last_high=skip_guidance),
                start_percent=start_percent,
                end_percent=end_percent,
                **given,
            )
        )


class HalfframeRecipe(io.ComfyNode):
    """Both models in, both models out, with a move for every step."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs, with a tooltip on each."""
        return io.Schema(
            node_id="HalfframeRecipe",
            display_name="Halfframe Recipe",
            category=CATEGORY,
            description=(
                "Makes Wan2.2 A14B faster by a recipe: a file that says for every step what is computed, as "
                "halfframe.tuning finds it. Both samplers must have the recipe's number of steps and split."
            ),
            inputs=[
                io.Model.Input("high_noise_model", tooltip="The high-noise model, after LoRA and ModelSamplingSD3."),
                io.Model.Input("low_noise_model", tooltip="The low-noise model, after LoRA and ModelSamplingSD3."),
                io.String.Input(
                    "recipe",
                    default="recipe.json",
                    tooltip="The recipe's file: in ComfyUI's input folder, or a whole path.",
                ),
            ],
            outputs=[
                io.Model.Output("high_noise", display_name="high_noise_model", tooltip="For the first sampler."),
                io.Model.Output("low_noise", display_name="low_noise_model", tooltip="For the second sampler."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, recipe: str, **_: object) -> float:
        """Changes where the file does, so that ComfyUI reads it again."""
        try:
            return os.path.getmtime(_path(recipe))
        except OSError:
            return -1.0

    @classmethod
    def execute(cls, high_noise_model: object, low_noise_model: object, recipe: str) -> io.NodeOutput:
        """Patched clones of both models."""
        moves = halfframe.Recipe.load(_path(recipe))
        return io.NodeOutput(patch_model(high_noise_model, moves), patch_model(low_noise_model, moves, expert="low"))


def _path(recipe: str) -> str:
    return os.path.join(folder_paths.get_input_directory(), os.path.expanduser(recipe.strip()))


class HalfframeExtension(ComfyExtension):
    """What ComfyUI asks for nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The nodes."""
        return [Halfframe, HalfframeRecipe]


async def comfy_entrypoint() -> HalfframeExtension:
    """Called by ComfyUI."""
    return HalfframeExtension()
