"""Fewer steps: the rival of everything, and how hard the world is."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from session import Session, write_reference
from settings import SETTINGS, Item, Setting, cost_of_moves, run_seconds

__all__ = ["items", "reference_id"]

LORA_SIGMAS = (1.0, 0.9375, 0.8333, 0.625)
"""Of the schedule that the LoRA was trained for."""
_RANKS = {"t2v-20": 1.0, "lora-4": 1.1, "t2v-8": 1.2, "i2v-20": 1.3, "i2v-8": 6.0}
TRUNCATED = (0.25, 0.5)
"""Shares of the steps whose unconditional pass is skipped, the last ones."""


def reference_id(setting: Setting) -> str:
    """The item that makes the plain run."""
    return f"plain / {setting.name} / {setting.steps} steps"


def items() -> list[Item]:
    """The plain runs, fewer steps of each, and fewer steps with truncated guidance."""
    found = [Item("real", SETTINGS["t2v-20"], "through the VAE", 0.9, 8.0, _real)]
    for setting in SETTINGS.values():
        rank, needs = _RANKS[setting.name], (reference_id(setting),)
        seconds = run_seconds(setting, setting.steps)
        found.append(Item("plain", setting, f"{setting.steps} steps", 0.0, seconds, _plain))
        for steps in range(1, setting.steps):
            seconds = run_seconds(setting, steps)
            options: dict[str, Any] = {"moves": ["full"] * steps}
            late = 0.05 if steps < 2 or (setting.steps == 20 and steps % 2) else 0.0
            found.append(Item("fewer steps", setting, f"{steps} steps", rank + late, seconds, _fewer, options, needs))
        numbers = range(1, setting.steps + 1) if setting.steps < 10 else range(2, setting.steps + 1, 2)
        for steps in numbers if setting.guided else ():
            for skipped in dict.fromkeys(round(steps * share) for share in TRUNCATED):
                if skipped:
                    moves = ["full"] * (steps - skipped) + ["full+cond"] * skipped
                    label = f"{steps} steps, {skipped} truncated"
                    late = {"t2v-8": 2.5, "t2v-20": 4.6, "i2v-20": 6.6, "i2v-8": 8.0}[setting.name]
                    seconds = run_seconds(setting, steps)
                    options = {"moves": moves, "truth": False}
                    found.append(Item("truncated", setting, label, late, seconds, _fewer, options, needs))
        if setting.model == "lora":
            for count in (3, 2):
                for rest in itertools.combinations(LORA_SIGMAS[1:], count - 1):
                    sigmas = [LORA_SIGMAS[0], *rest]
                    label = "sigmas " + ", ".join(f"{sigma:.3g}" for sigma in sigmas)
                    options = {"sigmas": sigmas}
                    found.append(Item("dropped", setting, label, rank, 6.0, _dropped, options, needs))
    lora, teacher = SETTINGS["lora-4"], SETTINGS["t2v-20"]
    needs = (reference_id(lora), reference_id(teacher))
    found.append(Item("distilled", lora, "to the teacher's 20 steps", 1.1, 6.0, _distilled, needs=needs))
    return found


def _distilled(session: Session, item: Item) -> dict[str, Any]:
    """How far the LoRA's plain run is from that of the model it was distilled from."""
    latents = session.reference(item.setting)[0]
    return session.judge(SETTINGS["t2v-20"], latents, item.setting.steps, truth=False)


def _plain(session: Session, item: Item) -> dict[str, Any]:
    latents = session.make(item.setting)
    write_reference(session.reference_path(item.setting), latents)
    return session.judge(item.setting, latents, item.setting.steps)


def _real(session: Session, item: Item) -> dict[str, Any]:
    """Clips of the world itself, of the same prompts and other seeds, as the VAE gives them back."""
    return session.judge_real(item.setting)


def _fewer(session: Session, item: Item) -> dict[str, Any]:
    moves = item.options["moves"]
    strategy = None if set(moves) == {"full"} else tuple(moves)
    latents = session.make(item.setting, len(moves), strategy and _recipe(strategy))
    cost = cost_of_moves(item.setting, moves)
    return session.judge(item.setting, latents, cost, item.options.get("truth", True))


def _recipe(moves: Sequence[str]) -> Any:
    import halfframe

    return halfframe.Recipe(tuple(moves))


def _dropped(session: Session, item: Item) -> dict[str, Any]:
    sigmas = item.options["sigmas"]
    with fixed_sigmas(session.pipe(item.setting.model).scheduler, sigmas):
        latents = session.make(item.setting, len(sigmas))
    return session.judge(item.setting, latents, len(sigmas))


@contextlib.contextmanager
def fixed_sigmas(scheduler: Any, sigmas: Sequence[float]) -> Iterator[None]:
    """A scheduler of diffusers whose schedule is `sigmas` and 0, whatever number of steps it is asked for."""
    set_timesteps = scheduler.set_timesteps

    def fixed(num_inference_steps: int, device: Any = None, **_: Any) -> None:
        set_timesteps(len(sigmas), device=device)
        scheduler.sigmas = torch.tensor([*sigmas, 0.0], dtype=torch.float32)
        scheduler.timesteps = (scheduler.sigmas[:-1] * scheduler.config.num_train_timesteps).to(
            device, scheduler.timesteps.dtype
        )

    scheduler.set_timesteps = fixed
    try:
        yield
    finally:
        del scheduler.set_timesteps
