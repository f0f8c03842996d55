"""Temporal positions of the computed frames in ComfyUI's rotary embedding."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from halfframe.errors import HalfframeError
from halfframe.hosts.calls import intercept
from halfframe.hosts.patching import Patches

__all__ = ["placed_at"]


@contextlib.contextmanager
def placed_at(model: Any, positions: Sequence[float] | None, options: Mapping[str, Any]) -> Iterator[None]:
    """Have a ``WanModel`` place the frames it is called with at `positions`, in this thread; None: at 0, 1, 2, ...

    The model makes a table of token positions ``(1, F H W, 3)``, time first, and its ``rope_embedder`` turns it into
    rotations. Only that call is taken over.

    Args:
        model: the diffusion model, compiled or not.
        positions: one per frame.
        options: ComfyUI's ``rope_options``: a node may stretch and shift the time axis.
    """
    if positions is None:
        yield
        return
    embedder = getattr(model, "rope_embedder", None)
    if not isinstance(embedder, torch.nn.Module):
        raise HalfframeError(
            f"{type(model).__name__} has no rope_embedder, so frames cannot have their true positions. Use a supported "
            "version of ComfyUI (see the README), or the strategy 'self-duplicate', which needs none."
        )
    stretch, shift = float(options.get("scale_t", 1.0)), float(options.get("shift_t", 0.0))
    times = [shift + stretch * position for position in positions]

    def around(original: Callable[..., Any], kwargs: dict[str, Any], args: tuple[Any, ...]) -> Any:
        (ids,) = (*args, *kwargs.values())
        tokens, rest = divmod(ids.shape[-2], len(times))
        if rest:
            raise HalfframeError(
                f"the model was given {len(times)} frames and placed {ids.shape[-2]} tokens, which is not the same "
                "number for each; another node adds tokens of its own: remove it, or Halfframe."
            )
        ids = ids.float().clone()  # half precision has no place between two frames
        ids[..., 0] = torch.tensor(times, device=ids.device).repeat_interleave(tokens)
        return original(ids)

    with Patches() as patches:
        intercept(embedder, torch.compiler.disable(around), patches)  # type: ignore[no-untyped-call]  # torch's own
        yield
