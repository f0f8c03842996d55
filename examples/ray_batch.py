"""Thousands of clips on many GPUs: Ray Data and a pool of actors, each with one unmodified pipeline and halfframe on.

    pip install "ray[data]"
    python examples/ray_batch.py prompts.jsonl clips/ --diffusers Wan-AI/Wan2.2-T2V-A14B-Diffusers --actors 8
    python examples/ray_batch.py prompts.parquet clips/ --official ./Wan2.2-T2V-A14B --strategy recipe.json \\
        --actors 64 --address head:6379

Prompts: JSONL or Parquet, a clip a row. A row has ``prompt``; if wanted ``id`` (letters, digits, ``.``, ``_``, ``-``;
by default the row's number in six digits), ``seed`` (by default the row's number) and ``image``, a path. Every other
column that is not empty is an argument of the pipeline's call: ``num_frames`` and ``negative_prompt`` of diffusers'
pipelines, ``frame_num`` and ``size`` of the official ones.

Output, in a folder that every node can write to: for each row ``<id>.mp4`` (or ``<id>.npy``, float32 ``(F, H, W, 3)``
in 0..1) and ``<id>.json`` with what was asked for, the report, seconds, node and process; at the end
``results.jsonl``, all of these in the order of the rows. A row that fails has its error there, and the others go on;
the exit code is then 1.

Resuming: the same command again makes what is missing and what failed. Where a row's prompt, seed, arguments or
settings are not those that its file was made with, the command is refused before anything is loaded.

Pipelines: ``--diffusers MODEL``, ``--official CHECKPOINTS``, or ``--pipeline module:function``, a function of yours
without arguments that every node can import; it returns a pipeline that `halfframe.enabled` takes, on its GPU. Ray
shows each actor its own GPU only. With ``--gpus 0`` actors run on CPUs.

Several nodes: start Ray on each (``ray start --head``, ``ray start --address=head:6379``), with the same packages and
the weights on local disks, then give ``--address`` on one of them. The prompts are read where the command runs.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

OWN = ("id", "prompt", "seed", "image")
"""Columns that are no arguments of the pipeline's call."""


class RefusedError(Exception):
    """What was asked for cannot be done; the message says why."""


@dataclass(frozen=True)
class Settings:
    """What an actor needs to know.

    Attributes:
        pipeline: ``(kind, source)``: ``"diffusers"``, ``"official"`` or ``"function"``, and the model, folder or name.
        strategy: as `halfframe.enabled` takes it; None for a plain run.
        output: folder; a recipe is in there.
        format: ``"mp4"`` or ``"npy"``.
    """

    pipeline: tuple[str, str]
    strategy: str | None
    output: str
    format: str

    @property
    def chosen(self) -> str | None:
        """The strategy, with the recipe's path."""
        is_file = self.strategy is not None and self.strategy.endswith(".json")
        return str(Path(self.output, str(self.strategy))) if is_file else self.strategy


# In the actors.


def load(kind: str, source: str) -> Any:
    """The pipeline, on this process's GPU."""
    if kind == "function":
        module, _, name = source.partition(":")
        return getattr(importlib.import_module(module), name)()
    import torch

    if kind == "diffusers":
        from diffusers import DiffusionPipeline

        return DiffusionPipeline.from_pretrained(source, torch_dtype=torch.bfloat16).to("cuda")
    from wan.configs import WAN_CONFIGS

    task = "i2v" if "i2v" in Path(source).name.lower() else "t2v"
    classes = {"i2v": ("wan.image2video", "WanI2V"), "t2v": ("wan.text2video", "WanT2V")}
    module, name = classes[task]
    return getattr(importlib.import_module(module), name)(WAN_CONFIGS[f"{task}-A14B"], source)


def generate(pipe: Any, row: dict[str, Any]) -> Any:
    """One clip, float32 ``(F, H, W, 3)`` in 0..1, from a row of the prompts."""
    import torch
    from PIL import Image

    from halfframe.compare.videos import as_video

    arguments = {name: value for name, value in row.items() if name not in OWN and value is not None}
    official = hasattr(pipe, "generate")
    if row.get("image") is not None:
        arguments["img" if official else "image"] = Image.open(row["image"]).convert("RGB")
    if official:
        arguments = {name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()}
        return as_video(pipe.generate(row["prompt"], seed=row["seed"], **arguments))
    generator = torch.Generator("cpu").manual_seed(row["seed"])
    return as_video(pipe(prompt=row["prompt"], generator=generator, **arguments))


def write(video: Any, path: Path) -> None:
    """Write `video` under its name only once it is whole."""
    from halfframe.compare.videos import write_video

    partial = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    write_video(partial, video)
    os.replace(partial, path)


class Generator:
    """An actor: loads its pipeline once, switches halfframe on, then makes a clip a row."""

    def __init__(self, settings: Settings) -> None:
        import halfframe

        self._settings = settings
        started = time.time()
        self._pipe = load(*settings.pipeline)
        self._handle = None if settings.chosen is None else halfframe.enable(self._pipe, settings.chosen)
        self._loading = time.time() - started

    def __call__(self, task: dict[str, Any]) -> dict[str, Any]:
        """Make a row's clip, or note its error; returns what its file says."""
        row = json.loads(task["row"])
        output = Path(self._settings.output)
        result: dict[str, Any] = {"request": row, "settings": asdict(self._settings), "error": None}
        started = time.time()
        try:
            video = generate(self._pipe, row)
            result["seconds"] = time.time() - started
            name = f"{row['id']}.{self._settings.format}"
            write(video, output / name)
            report = self._handle.report if self._handle else None
            result |= {"video": name, "frames": len(video), "report": report.to_dict() if report else None}
        except Exception as error:  # of this row; the next one may be well
            result |= {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        result |= {
            "node": socket.gethostname(),
            "process": os.getpid(),
            "loading_seconds": self._loading,
            "started": started,
            "ended": time.time(),
        }
        partial = output / f".{row['id']}.{os.getpid()}.json"
        partial.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, output / f"{row['id']}.json")
        return {"id": row["id"], "error": result["error"] or ""}


# Where the command runs.


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL or Parquet file, each with an id and a seed."""
    if not path.is_file():
        raise RefusedError(f"{path} is not there; give a file of prompts, .jsonl or .parquet.")
    if path.suffix == ".parquet":
        import pyarrow.parquet

        rows = pyarrow.parquet.read_table(path).to_pylist()
    else:
        lines = path.read_text(encoding="utf-8").splitlines()
        try:
            rows = [json.loads(line) for line in lines if line.strip()]
        except json.JSONDecodeError as error:
            raise RefusedError(f"{path} is no JSONL: {error}; needed: a JSON object on every line.") from error
    return list(_checked(rows, path))


def _checked(rows: list[Any], path: Path) -> Iterator[dict[str, Any]]:
    seen: dict[str, int] = {}
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
            raise RefusedError(f"row {number} of {path} has no text under 'prompt': {row!r}.")
        identity = str(f"{number:06}" if row.get("id") is None else row["id"])
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", identity):
            raise RefusedError(
                f"row {number} of {path} has the id {identity!r}; needed: letters, digits, '.', '_', '-'."
            )
        if identity in seen:
            raise RefusedError(f"rows {seen[identity]} and {number} of {path} have one id, {identity!r}.")
        seen[identity] = number
        seed = number if row.get("seed") is None else row["seed"]
        kept = {name: value for name, value in row.items() if value is not None}
        yield {**kept, "id": identity, "seed": int(seed)}


def missing(rows: list[dict[str, Any]], settings: Settings) -> list[dict[str, Any]]:
    """The rows that are still to be made."""
    left = []
    output = Path(settings.output)
    asked = json.loads(json.dumps(asdict(settings)))
    for row in rows:
        path = output / f"{row['id']}.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        if known is None or known["error"]:
            left.append(row)
        elif known["request"] != row or known["settings"] != asked:
            raise RefusedError(
                f"{path} was made of {known['request']} with {known['settings']}; asked for is {row} with {asked}. "
                "Take another output folder, or delete the file."
            )
        elif not (output / known["video"]).is_file():
            left.append(row)
    return left


def kept_recipe(path: Path, output: Path) -> str:
    """A copy of a recipe in the output folder, where every node can read it, and a second command compares it."""
    if not path.is_file():
        raise RefusedError(f"the recipe {path} is not there.")
    copy, text = output / "recipe.json", path.read_text(encoding="utf-8")
    if copy.is_file() and copy.read_text(encoding="utf-8") != text:
        raise RefusedError(f"{copy} is another recipe than {path}; take another output folder.")
    copy.write_text(text, encoding="utf-8")
    return copy.name


def run(
    rows: list[dict[str, Any]],
    settings: Settings,
    *,
    actors: int,
    gpus: float = 1,
    cpus: float = 1,
    actor: type = Generator,
) -> Iterator[Any]:
    """Make `rows` with a pool of actors; gives ``{"id", "error"}`` as they are done. Ray is started already."""
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    # A block is a row, and a row is one task: whoever is free takes the next one, and a lost node costs a clip a GPU.
    tasks = ray.data.from_items([{"row": json.dumps(row)} for row in rows], override_num_blocks=len(rows))
    pool = ray.data.ActorPoolStrategy(size=min(actors, len(rows)), max_tasks_in_flight_per_actor=1)
    done = tasks.map(actor, fn_constructor_kwargs={"settings": settings}, compute=pool, num_gpus=gpus, num_cpus=cpus)
    yield from done.iter_rows()


def main(argv: list[str] | None = None, tell: Callable[[str], None] = print) -> int:
    """The command; see the module's text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("prompts", type=Path, help="a .jsonl or .parquet file")
    parser.add_argument("output", type=Path, help="folder for the clips, on storage that all nodes share")
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--diffusers", metavar="MODEL", help="id or folder of a diffusers pipeline")
    group.add_argument("--official", metavar="CHECKPOINTS", help="folder of official weights")
    group.add_argument("--pipeline", metavar="MODULE:FUNCTION", help="a function that returns a pipeline")
    parser.add_argument("--strategy", default="merge", help="strategy or recipe file; 'none' runs plain (%(default)s)")
    parser.add_argument("--actors", type=int, default=1, help="actors in all (%(default)s)")
    parser.add_argument("--gpus", type=float, default=1, help="GPUs of an actor; 0 runs on CPUs (%(default)s)")
    parser.add_argument("--cpus", type=float, default=1, help="CPUs of an actor (%(default)s)")
    parser.add_argument("--format", choices=("mp4", "npy"), default="mp4", help="of the clips (%(default)s)")
    parser.add_argument("--address", help="of a running Ray cluster; by default Ray is started here")
    arguments = parser.parse_args(argv)
    kind = next(kind for kind in ("diffusers", "official", "pipeline") if getattr(arguments, kind))
    strategy = None if arguments.strategy == "none" else arguments.strategy
    try:
        rows = read(arguments.prompts)
        arguments.output.mkdir(parents=True, exist_ok=True)
        if strategy and strategy.endswith(".json"):
            strategy = kept_recipe(Path(strategy), arguments.output)
        source = ("function" if kind == "pipeline" else kind, getattr(arguments, kind))
        settings = Settings(source, strategy, str(arguments.output.resolve()), arguments.format)
        left = missing(rows, settings)
    except RefusedError as error:
        print(f"ray_batch: {error}", file=sys.stderr)
        return 2
    tell(f"{len(rows)} rows, {len(rows) - len(left)} done before, {len(left)} to make")
    if left:
        import ray

        ray.init(address=arguments.address, include_dashboard=False, log_to_driver=False, logging_level="warning")
        pool = {name: getattr(arguments, name) for name in ("actors", "gpus", "cpus")}
        for number, result in enumerate(run(left, settings, **pool), 1):
            tell(f"[{number}/{len(left)}] {result['id']}: {result['error'] or 'done'}")
        ray.shutdown()
    results = [json.loads((arguments.output / f"{row['id']}.json").read_text(encoding="utf-8")) for row in rows]
    text = "".join(json.dumps(result) + "\n" for result in results)
    (arguments.output / "results.jsonl").write_text(text, encoding="utf-8")
    failed = [result["request"]["id"] for result in results if result["error"]]
    tell(f"{len(rows) - len(failed)} clips, {len(failed)} failed{': ' if failed else ''}{', '.join(failed[:10])}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
