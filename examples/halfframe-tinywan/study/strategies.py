"""Every built-in strategy, over the whole high-noise phase and over its first steps, and guidance truncation."""

from __future__ import annotations

from typing import Any

from calibration import reference_id
from session import Session
from settings import SETTINGS, Item, Setting, cost_of, run_seconds

import halfframe

__all__ = ["items"]

FAMILIES = ("merge", "interleave", "interpolate", "own-noise")
_RANKS = {"t2v-20": 3.0, "t2v-8": 3.1, "lora-4": 3.2, "i2v-20": 5.0, "i2v-8": 7.0}


def items() -> list[Item]:
    """For each setting; the strategies that are used most go first."""
    found = []
    for setting in SETTINGS.values():
        for late, options in _variants(setting):
            label = options["strategy"] or "all frames"
            guidance = ",".join(f"{name}={value}" for name, value in options["guidance"].items())
            label += f" guidance:{guidance}" if guidance else ""
            seconds = run_seconds(setting, setting.steps)
            rank = _RANKS[setting.name] + late
            found.append(Item("strategy", setting, label, rank, seconds, _measure, options, (reference_id(setting),)))
    return found


def _variants(setting: Setting) -> list[tuple[float, dict[str, Any]]]:
    """How late each is, and what it is."""
    plan = halfframe.plan(
        sampling_steps=setting.steps, shift=setting.shift, boundary=setting.boundary, guided=setting.guided
    )
    windows = [until for until in (1, 2, 3) if until < plan.report.high.steps]
    found: list[tuple[float, dict[str, Any]]] = []

    def add(late: float, strategy: str | None, **guidance: int) -> None:
        found.append((late, {"strategy": strategy, "guidance": guidance}))

    # Image-to-video's `merge` is `interleave`: no expert knows a mean of conditions.
    for number, family in enumerate(FAMILIES[setting.model == "i2v" :]):
        for stride in (2, 3, 4):
            late = 0.0 if stride == 2 and number < 2 else 0.4 if number < 2 else 1.45
            add(late, family if stride == 2 else f"{family}:stride={stride}")
            for until in windows:
                options = f"until={until}" if stride == 2 else f"stride={stride},until={until}"
                add(late + (0.0 if number < 2 else 0.01), f"{family}:{options}")
    for name in ("self-duplicate", "previous-odd"):
        add(0.0, name)
    if setting.guided:
        quarter, half = round(setting.steps / 4), round(setting.steps / 2)
        both = {"skip_last": quarter, "skip_last_high": max(1, round(plan.report.high.steps / 4))}
        add(0.0, None, skip_last=quarter)
        add(0.0, None, skip_last=half)
        add(0.0, None, **both)
        add(0.0, None, every=2)
        first = FAMILIES[setting.model == "i2v"]
        add(0.0, first, **both)
        add(0.0, f"{first}:stride=4,until=1", skip_last=quarter)
        if setting.steps == 20:  # how far the take is kept, and what can be left out beside it
            for until in (4, 5, 6):
                if until < plan.report.high.steps:
                    add(0.02, f"interleave:until={until}")
            add(0.02, "interleave:until=3", every=2)
            add(0.02, "interleave:until=3", **both)
            add(0.02, "self-duplicate", every=2)
    return found


def _measure(session: Session, item: Item) -> dict[str, Any]:
    strategy = item.options["strategy"]
    guidance = halfframe.Guidance(**item.options["guidance"]) if item.options["guidance"] else None
    latents = session.make(item.setting, strategy=strategy, guidance=guidance)
    return session.judge(item.setting, latents, cost_of(item.setting, strategy, guidance))
