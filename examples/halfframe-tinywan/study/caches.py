"""Caches of others on the same pipelines: those of diffusers, and cache-dit's DBCache.

Each runs as its own documentation says, over its range. Their cost is counted: what of each transformer block was
computed, weighted by its share of a block's time at the sizes of A14B.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from calibration import reference_id
from counting import Counter
from session import Session
from settings import SETTINGS, Item, Setting, run_seconds

__all__ = ["items"]


def items() -> list[Item]:
    """MagCache and TaylorSeer at 20 steps go first: they say whether known methods come in their known order."""
    found = []
    ranks = {"t2v-20": 4.0, "t2v-8": 4.2, "lora-4": 4.3, "i2v-20": 6.2, "i2v-8": 7.5}
    for setting in SETTINGS.values():
        plain = reference_id(setting)
        settings_of_magcache = []
        for method, label, options in _variants(setting):
            rank = ranks[setting.name]
            needs: tuple[str, ...] = (plain,)
            if method in ("MagCache", "TaylorSeer") and setting.name == "t2v-20":
                rank = 1.45
            if method == "MagCache":
                needs = (plain, f"calibration / {setting.name} / MagCache")
                settings_of_magcache.append(rank)
            single = method in _SINGLE
            seconds = run_seconds(setting, setting.steps) * (2.5 if single else 1.0)
            rank += 0.1 if single else 0.0
            given = {"method": method, **options}
            found.append(Item("cache", setting, f"{method} {label}", rank, seconds, _measure, given, needs))
        if settings_of_magcache:
            rank = min(settings_of_magcache) - 0.01
            found.append(Item("calibration", setting, "MagCache", rank, 6.0, _calibrate, needs=(plain,)))
    return found


_SINGLE = ("FirstBlockCache", "SeaCache", "cache-dit")
"""They decide once for a whole batch, and so are run clip by clip."""


# Threshold (9: no bound), most steps skipped in a row, share of each expert's first steps that are computed.
_MAGCACHE_20 = (
    *((threshold, longest, 0.2) for threshold, longest in ((0.03, 2), (0.06, 3), (0.12, 2), (0.12, 4), (0.24, 4))),
    *((9.0, 1, retention) for retention in (0.1, 0.2, 0.3, 0.4, 0.5)),
    *((9.0, 2, retention) for retention in (0.2, 0.3, 0.4)),
    (9.0, 3, 0.2),
)
_MAGCACHE_8 = ((0.06, 2, 0.2), (0.12, 2, 0.2), (9.0, 1, 0.2), (9.0, 1, 0.4), (9.0, 1, 0.5), (9.0, 2, 0.2))
_MAGCACHE_4 = ((9.0, 1, 0.0), (9.0, 2, 0.0))


def _variants(setting: Setting) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Method, label and options."""
    few = setting.steps < 10
    for threshold, longest, retention in _MAGCACHE_4 if setting.steps <= 4 else _MAGCACHE_8 if few else _MAGCACHE_20:
        label = f"threshold {threshold:g}, at most {longest}, retention {retention:g}"
        yield "MagCache", label, {"threshold": threshold, "longest": longest, "retention": retention}
    for before in (1,) if setting.steps <= 4 else (1, 2) if few else (1, 3):
        for interval in (2,) if setting.steps <= 4 else (2, 3) if few else (2, 3, 4):
            for order in (0, 1) if few else (0, 1, 2):
                label = f"every {interval}, order {order}, after {before}"
                options = {"interval": interval, "order": order, "before": before}
                yield "TaylorSeer", f"lite, {label}", {**options, "lite": True}
                if order == 1:
                    yield "TaylorSeer", f"modules, {label}", {**options, "lite": False}
    for threshold in (0.05, 0.1, 0.2, 0.3, 0.5) if few else (0.03, 0.05, 0.08, 0.12, 0.2, 0.3):
        yield "FirstBlockCache", f"threshold {threshold:g}", {"threshold": threshold}
    if setting.model != "i2v":  # diffusers' image-to-video does not tell its caches the step, so SeaCache never skips
        for threshold in (0.1, 0.25, 0.5, 1.0):
            yield "SeaCache", f"threshold {threshold:g}", {"threshold": threshold}
    for skip in (2, 3):
        for low, high in ((100, 800), (-1, 1001)):
            label = f"every {skip}, timesteps {max(low, 0)} - {min(high, 1000)}"
            yield "PyramidAttentionBroadcast", label, {"skip": skip, "low": low, "high": high}
        yield "FasterCache", f"every {skip}, timesteps up to 681", {"skip": skip}
    for threshold in (0.1, 0.2, 0.4) if few else (0.05, 0.1, 0.2, 0.4):
        for separate, order in ((True, 1), (False, 1), (False, 0)) if setting.guided else ((True, 1), (True, 0)):
            label = f"F1B0, threshold {threshold:g}{'' if separate else ', one decision for both passes'}"
            label += ", Taylor" if order else ""
            yield "cache-dit", label, {"threshold": threshold, "separate": separate, "order": order}


# Work.


def _calibrate(session: Session, item: Item) -> dict[str, Any]:
    """MagCache's own calibration, on the clips for tuning; it prints the ratios of each pass of each expert."""
    diffusers = importlib.import_module("diffusers")
    pipe, setting = session.pipe(item.setting.model), item.setting
    counts = expert_steps(pipe, setting)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        configs = [diffusers.MagCacheConfig(calibrate=True, num_inference_steps=count) for count in counts]
        with _enabled(pipe, configs):
            session.call(setting, session.scale.clips, session.scale.tuning, setting.steps)
    lists = [json.loads(found) for found in re.findall(r"^\[[-0-9.e, ]+\]$", printed.getvalue(), re.MULTILINE)]
    if len(lists) != 2 * setting.passes:
        raise RuntimeError(f"MagCache printed {len(lists)} lists of ratios; needed: {2 * setting.passes}")
    ratios = [lists[0], lists[setting.passes]]  # of the conditional passes
    return {"ratios": ratios}


def _measure(session: Session, item: Item) -> dict[str, Any]:
    method, setting = item.options["method"], item.setting
    pipe = session.pipe(setting.model)
    single = method in _SINGLE
    clips = min(session.scale.single, session.scale.clips) if single else session.scale.clips
    calls = -(-clips // (1 if single else session.scale.batch))
    with warnings.catch_warnings(), _METHODS[method](session, pipe, item), Counter(pipe) as counter:
        warnings.simplefilter("ignore")
        latents = session.make(setting, clips=clips, batch=1 if single else None)
    cost, own = counter.cost(calls * setting.passes)
    return session.judge(setting, latents, cost) | {"own_cost": round(own, 4)}


def expert_steps(pipe: Any, setting: Setting) -> tuple[int, int]:
    """How many steps the high-noise and the low-noise expert have."""
    pipe.scheduler.set_timesteps(setting.steps)
    high = int((pipe.scheduler.timesteps >= 1000 * pipe.config.boundary_ratio).sum())
    return high, setting.steps - high


@contextlib.contextmanager
def _enabled(pipe: Any, configs: list[Any]) -> Iterator[None]:
    """A cache of diffusers on both experts."""
    experts = (pipe.transformer, pipe.transformer_2)
    for expert, config in zip(experts, configs, strict=True):
        expert.enable_cache(config)
    try:
        yield
    finally:
        for expert in experts:
            expert.disable_cache()


def _magcache(session: Session, pipe: Any, item: Item) -> contextlib.AbstractContextManager[None]:
    diffusers, options = importlib.import_module("diffusers"), item.options
    known = session.results("calibration", item.setting)[-1]["ratios"]
    configs = [
        diffusers.MagCacheConfig(
            threshold=options["threshold"],
            max_skip_steps=options["longest"],
            retention_ratio=options["retention"],
            num_inference_steps=len(ratios),
            mag_ratios=ratios,
        )
        for ratios in known
    ]
    return _enabled(pipe, configs)


def _taylorseer(session: Session, pipe: Any, item: Item) -> contextlib.AbstractContextManager[None]:
    """Its defaults hook nothing on Wan: lite mode, or the modules by name."""
    diffusers, options = importlib.import_module("diffusers"), item.options
    named = {"use_lite_mode": True} if options["lite"] else {"cache_identifiers": [r"blocks\.\d+\.(attn1|attn2|ffn)"]}
    return _enabled(
        pipe,
        [
            diffusers.TaylorSeerCacheConfig(
                cache_interval=options["interval"],
                disable_cache_before_step=options["before"],
                max_order=options["order"],
                taylor_factors_dtype=torch.float32,
                **named,
            )
            for _ in range(2)
        ],
    )


def _first_block(session: Session, pipe: Any, item: Item) -> contextlib.AbstractContextManager[None]:
    config = importlib.import_module("diffusers").FirstBlockCacheConfig
    return _enabled(pipe, [config(threshold=item.options["threshold"]) for _ in range(2)])


def _sea(session: Session, pipe: Any, item: Item) -> contextlib.AbstractContextManager[None]:
    config = importlib.import_module("diffusers").SeaCacheConfig
    threshold = item.options["threshold"]
    return _enabled(pipe, [config(threshold=threshold, raw_vision_callback=_vision) for _ in range(2)])


def _vision(module: Any, args: Any, kwargs: Any) -> list[torch.Tensor]:
    return list(kwargs["hidden_states"])


def _pyramid(session: Session, pipe: Any, item: Item) -> contextlib.AbstractContextManager[None]:
    config, options = importlib.import_module("diffusers").PyramidAttentionBroadcastConfig, item.options
    span = (options["low"], options["high"])
    return _enabled(
        pipe,
        [
            config(
                spatial_attention_block_skip_range=options["skip"],
                spatial_attention_timestep_skip_range=span,
                cross_attention_block_skip_range=options["skip"],
                cross_attention_timestep_skip_range=span,
                current_timestep_callback=lambda: pipe.current_timestep,
            )
            for _ in range(2)
        ],
    )


def _faster(session: Session, pipe: Any, item: Item) -> contextlib.AbstractContextManager[None]:
    """Without its skipping of unconditional passes, which expects both passes in one batch; Wan makes two calls."""
    config = importlib.import_module("diffusers").FasterCacheConfig
    return _enabled(
        pipe,
        [
            config(
                spatial_attention_block_skip_range=item.options["skip"],
                is_guidance_distilled=True,
                attention_weight_callback=lambda _: 0.5,
                current_timestep_callback=lambda: pipe.current_timestep,
            )
            for _ in range(2)
        ],
    )


@contextlib.contextmanager
def _cache_dit(session: Session, pipe: Any, item: Item) -> Iterator[None]:
    cache_dit, options = importlib.import_module("cache_dit"), item.options
    adapters = importlib.import_module("cache_dit.caching.block_adapters.adapters")
    config, taylor = cache_dit.DBCacheConfig, cache_dit.TaylorSeerCalibratorConfig
    warm_up = 1 if item.setting.steps < 10 else 2
    adapter = adapters.wan_adapter(pipe)
    adapter.params_modifiers = [
        cache_dit.ParamsModifier(cache_config=config().empty(max_warmup_steps=warm_up, max_cached_steps=-1))
        for _ in range(2)
    ]
    cache_dit.enable_cache(
        adapter,
        cache_config=config(
            Fn_compute_blocks=1,
            Bn_compute_blocks=0,
            residual_diff_threshold=options["threshold"],
            max_warmup_steps=warm_up,
            enable_separate_cfg=item.setting.guided,
            cfg_diff_compute_separate=options["separate"],
        ),
        calibrator_config=taylor(taylorseer_order=options["order"]) if options["order"] else None,
    )
    try:
        yield
    finally:
        cache_dit.disable_cache(pipe)


Method = Callable[[Session, Any, Item], contextlib.AbstractContextManager[None]]
_METHODS: dict[str, Method] = {
    "MagCache": _magcache,
    "TaylorSeer": _taylorseer,
    "FirstBlockCache": _first_block,
    "SeaCache": _sea,
    "PyramidAttentionBroadcast": _pyramid,
    "FasterCache": _faster,
    "cache-dit": _cache_dit,
}


def available(method: str) -> bool:
    """Whether the package is there."""
    return method != "cache-dit" or importlib.util.find_spec("cache_dit") is not None
