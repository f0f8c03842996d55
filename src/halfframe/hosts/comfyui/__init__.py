"""ComfyUI: a model with halfframe on, as a node between loader and sampler gives it.

Nothing of ComfyUI is changed. A model is cloned and gets wrappers of ComfyUI's own kind (``comfy.patcher_extension``)
around a sampler's run, its predictions, its model calls and its memory estimate. ComfyUI is imported by no module here
until `patch_model` is called.
"""

from halfframe.hosts.comfyui.patch import patch_model

__all__ = ["patch_model"]
