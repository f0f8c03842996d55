"""What Ray's actor pool costs: per clip beside one process, and how many actors one driver feeds.

    python benchmarks/actor_pool.py                      # clips of a tiny pipeline: a loop, then pools of 1 and 2
    python benchmarks/actor_pool.py --sleep 0.42 --actors 8 16 32 64    # actors that only sleep

Actors are those of examples/ray_batch.py. Sleeping ones stand in for GPUs: they write the same small file per row, and
hold no model, so the driver can be given as many as memory allows.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[1] / "examples" / "ray_batch.py"
CLIP = {"frame_num": 17, "size": [48, 32], "sampling_steps": 8, "shift": 12.0, "offload_model": False}


class Sleeping:
    """An actor that sleeps for as long as its settings say, and writes what it did."""

    def __init__(self, settings: Any) -> None:
        self._seconds = float(settings.pipeline[1])
        self._output = Path(settings.output)

    def __call__(self, task: dict[str, Any]) -> dict[str, Any]:
        """A row."""
        row = json.loads(task["row"])
        time.sleep(self._seconds)
        now = time.time()
        (self._output / f"{row['id']}.json").write_text(json.dumps({"request": row, "ended": now, "pid": os.getpid()}))
        return {"id": row["id"], "error": ""}


def _rows(count: int) -> list[dict[str, Any]]:
    return [{"id": f"{n:06}", "prompt": f"clip {n}", "seed": n, **CLIP} for n in range(count)]


def _sleeping(module: Any, actors: int, seconds: float, per_actor: int) -> None:
    """Rows a second while all actors are at work, beside what the sleeps alone take."""
    with tempfile.TemporaryDirectory() as folder:
        settings = module.Settings(("function", str(seconds)), None, folder, "npy")
        rows = _rows(actors * per_actor)
        list(module.run(rows, settings, actors=actors, gpus=0, cpus=0.001, actor=Sleeping))
        found = [json.loads(path.read_text()) for path in Path(folder).glob("*.json")]
    ends: dict[int, list[float]] = {}
    for row in found:
        ends.setdefault(row["pid"], []).append(row["ended"])
    # From when the last actor to start has ended a row, up to where the first one has none left.
    first, last = max(map(min, ends.values())), min(map(max, ends.values()))
    inside = sum(first < row["ended"] <= last for row in found)
    if len(ends) < actors or inside < 2 * actors:
        print(f"{actors:4} actors: the rows were used up before all had started; give --per-actor more", flush=True)
        return
    rate = inside / (last - first)
    print(f"{actors:4} actors, {seconds} s a row: {rate:6.1f} rows/s, {rate * seconds / actors:.1%} busy", flush=True)


def _clips(module: Any, count: int) -> None:
    """Seconds a clip in a loop and in pools; loading is left out."""
    pipe = module.load("function", "halfframe.testing:tiny_wan_t2v")
    import halfframe

    with tempfile.TemporaryDirectory() as folder, halfframe.enabled(pipe):
        ends = []
        for row in _rows(count):
            module.write(module.generate(pipe, row), Path(folder) / f"{row['id']}.npy")
            ends.append(time.time())
    print(f"one process: {(ends[-1] - ends[0]) / (count - 1):.3f} s a clip", flush=True)
    for actors in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            settings = module.Settings(("function", "halfframe.testing:tiny_wan_t2v"), "merge", folder, "npy")
            list(module.run(_rows(count), settings, actors=actors, gpus=0))
            found = [json.loads(path.read_text()) for path in Path(folder).glob("*.json")]
        idle = []
        for process in {row["process"] for row in found}:
            own = sorted((row for row in found if row["process"] == process), key=lambda row: row["started"])
            idle += [after["started"] - before["ended"] for before, after in itertools.pairwise(own)]
        made = sum(row["ended"] - row["started"] for row in found) / count
        print(
            f"{actors} actors: {made:.3f} s a clip within the actor, {sum(idle) / len(idle):.3f} s between two clips, "
            f"{found[0]['loading_seconds']:.1f} s loading",
            flush=True,
        )


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sleep", type=float, metavar="S", help="actors sleep S seconds a row and make nothing")
    parser.add_argument("--actors", type=int, nargs="+", default=[8], metavar="N", help="pools of sleeping actors")
    parser.add_argument("--per-actor", type=int, default=100, metavar="N", help="rows an actor (%(default)s)")
    parser.add_argument("--clips", type=int, default=12, metavar="N", help="of the tiny pipeline (%(default)s)")
    arguments = parser.parse_args()
    spec = importlib.util.spec_from_file_location("ray_batch", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["ray_batch"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    import ray

    paths = [str(SCRIPT.parent), os.environ.get("PYTHONPATH", "")]
    variables = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    ray.init(include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": variables})
    if arguments.sleep is None:
        _clips(module, arguments.clips)
    for actors in arguments.actors if arguments.sleep is not None else ():
        _sleeping(module, actors, arguments.sleep, arguments.per_actor)
    ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
