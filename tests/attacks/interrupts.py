"""Real timer signals at random moments of entering, calling and leaving: what hangs, what stays.

    python -m tests.attacks.interrupts diffusers 10000 [SECONDS]

prints how often each thing went wrong, and where it hung. Half of the interrupts fall anywhere in the block, half
around its two ends. It takes a process of its own: an interrupt in Python's or another library's code can leave a lock
of theirs held, such as the import lock, for which every other thread would wait then.
"""

from __future__ import annotations

import gc
import json
import random
import signal
import sys
import time
import traceback
from collections import Counter
from typing import Any

import torch

import halfframe
from halfframe.testing import TINY, tiny_diffusers_t2v, tiny_wan_t2v

LIMIT = 20.0
PLACES = ("transformer", "transformer_2", "high_noise_model", "low_noise_model", "scheduler")


class Interrupted(BaseException):
    """What the timer raises."""


class Hung(BaseException):
    """What the second timer raises."""


def small(host: str) -> tuple[Any, Any]:
    """A pipeline, and a call of it that is over in a moment."""
    if host == "diffusers":
        pipe = tiny_diffusers_t2v()
        pipe.set_progress_bar_config(disable=True)
        arguments: dict[str, Any] = {"height": 16, "width": 16, "num_frames": 5, "num_inference_steps": 2}
        arguments |= {"output_type": "latent", "guidance_scale": 1.0, "max_sequence_length": TINY.text_len}
        return pipe, lambda: pipe("a ball", **arguments)
    pipe = tiny_wan_t2v()
    keywords: dict[str, Any] = {"size": (16, 16), "frame_num": 5, "sampling_steps": 2, "offload_model": False}
    return pipe, lambda: pipe.generate("a ball", **keywords)


def left_behind(pipe: Any) -> list[str]:
    """What of halfframe's is still there."""
    found = []
    classes = [("pipe", pipe), *((name, getattr(pipe, name)) for name in PLACES if hasattr(pipe, name))]
    for name, obj in classes:
        if "halfframe" in str(getattr(type(obj).__dict__.get("__reduce_ex__"), "__module__", "")):
            found.append("class left patched")
        modules = obj.named_modules() if isinstance(obj, torch.nn.Module) else [("", obj)]
        for _, module in modules:
            for value in vars(module).values():
                owner = value if isinstance(value, type) else type(value)
                where = f"{owner.__module__} {getattr(value, '__wrapped__', '') and value.__code__.co_filename}"
                where += str(getattr(value, "__module__", ""))
                if "halfframe" in where and "testing" not in owner.__module__:
                    found.append(f"attribute left on {name}")
    return found


def attack(pipe: Any, call: Any, count: int, seed: int = 0, seconds: float = 1e9) -> Counter[str]:
    """Interrupt `count` times, or for so many seconds at most; how often what went wrong."""
    draw = random.Random(seed)
    outcome: Counter[str] = Counter()

    def fire(*_: Any) -> None:
        signal.signal(signal.SIGALRM, too_late)
        signal.setitimer(signal.ITIMER_REAL, LIMIT)
        raise Interrupted

    def too_late(_: Any, frame: Any) -> None:
        traceback.print_stack(frame)
        raise Hung

    def block(body: Any) -> None:
        with halfframe.enabled(pipe):
            body()

    def timed(body: Any) -> float:
        started = time.perf_counter()
        block(body)
        return time.perf_counter() - started

    nothing: Any = int
    before = signal.getsignal(signal.SIGALRM)
    began = time.perf_counter()
    for body in (nothing, call):
        timed(body)
    spans = [max(timed(body) for _ in range(3)) for body in (call, nothing)]
    try:
        for number in range(count):
            if time.perf_counter() - began > seconds:
                break
            body = nothing if number % 2 else call
            signal.signal(signal.SIGALRM, fire)
            try:
                signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-6, spans[number % 2] * 1.02))
                block(body)
                signal.setitimer(signal.ITIMER_REAL, 0)
                outcome["not hit"] += 1
            except Interrupted:
                outcome["interrupted"] += 1
            except Hung:
                outcome["HUNG"] += 1
            except Exception as error:
                outcome[f"WRONG {type(error).__name__}: {str(error)[:60]}"] += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            found = left_behind(pipe)
            for name in sorted(set(found)):
                outcome[f"WRONG {name}"] += 1
            try:
                signal.signal(signal.SIGALRM, too_late)
                signal.setitimer(signal.ITIMER_REAL, LIMIT)
                block(nothing)
                signal.setitimer(signal.ITIMER_REAL, 0)
                refused = False
            except Hung:
                outcome["HUNG afterwards"] += 1
                refused = True
            except Exception as error:
                outcome[f"WRONG afterwards {type(error).__name__}: {str(error)[:40]}"] += 1
                refused = True
            signal.setitimer(signal.ITIMER_REAL, 0)
            if found or refused:
                pipe, call = small("diffusers" if hasattr(pipe, "transformer") else "wan")
                gc.collect()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return outcome


if __name__ == "__main__":
    import logging
    import warnings

    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    chosen, number = sys.argv[1], int(sys.argv[2])
    limit = float(sys.argv[3]) if len(sys.argv) > 3 else 1e9
    print(json.dumps(attack(*small(chosen), number, seed=1, seconds=limit)))
