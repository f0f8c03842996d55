"""Run the study: items of work spread over processes, several a GPU; each result is one line of ``results.jsonl``.

    python run.py --folder study --gpus 4 --minutes 4.1
    python run.py --folder rehearsal --rehearse --only t2v-8 lora-4      # random weights: figures mean nothing
    python run.py --folder study --list

The same command goes on where the last one stopped. ``tables.py`` makes tables and plots of what is there.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import logging
import multiprocessing
import os
import tempfile
import time
import traceback
import warnings
from dataclasses import asdict
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import caches
import calibration
import frontier
import torch
from session import Scale, Session
from settings import SETTINGS, Item

import strategies

_REHEARSAL = Scale(clips=2, tuning=1, single=2, video_frames=9, batch=2, random_weights=True)


def all_items() -> list[Item]:
    """Everything, the most important first."""
    found = [*calibration.items(), *frontier.items(), *strategies.items(), *caches.items()]
    found = [item for item in found if item.part != "cache" or caches.available(item.options["method"])]
    return sorted(found, key=lambda item: item.rank)


def main() -> None:
    found = _arguments()
    items = all_items()
    if found.only:
        items = [item for item in items if item.setting.name in found.only]
    if found.parts:
        items = [item for item in items if item.part in {*found.parts, "plain"}]
    if found.match:
        items = [item for item in items if item.part == "plain" or any(text in item.id for text in found.match)]
    if found.sample:  # of each part and setting the first ones, for a rehearsal
        seen: collections.Counter[tuple[str, str, str]] = collections.Counter()
        kept = []
        for item in items:
            key = (item.part, item.setting.name, str(item.options.get("method", "")))
            if item.part in ("plain", "moves", "search", "calibration") or seen[key] < found.sample:
                kept.append(item)
            seen[key] += 1
        items = kept
    if found.list:
        _list(items)
        return
    found.folder.mkdir(parents=True, exist_ok=True)
    found.scratch.mkdir(parents=True, exist_ok=True)
    scale = _REHEARSAL if found.rehearse else Scale(clips=found.clips, single=found.single, batch=found.batch)
    facts = {
        **asdict(scale),
        "torch": torch.__version__,
        "device": _device_name(),
        "precision": "float32, TF32 products",
    }
    (found.folder / "facts.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    Study(found, items, scale).run()


class Study:
    """The parent: hands out items, and is the only one that writes results."""

    def __init__(self, found: argparse.Namespace, items: list[Item], scale: Scale) -> None:
        self.folder, self.scratch, self.scale = found.folder, found.scratch, scale
        self.began = time.monotonic()
        self.end = self.began + 60 * found.minutes
        self.results = found.folder / "results.jsonl"
        self.done = self._known()
        self.waiting = [item for item in items if item.id not in self.done]
        self.failed: set[str] = set()
        self.workers: dict[Connection, Any] = {}
        self.busy: dict[Connection, Item] = {}
        self.pace = 1.0  # of items' own estimates, as measured
        count = found.gpus * found.per_gpu if found.gpus else found.processes
        context = multiprocessing.get_context("spawn")
        for number in range(count):
            device = f"cuda:{number % found.gpus}" if found.gpus else "cpu"
            ours, theirs = context.Pipe()
            threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) // count))
            arguments = (theirs, device, scale, found.scratch, found.folder, threads)
            worker = context.Process(target=work, args=arguments, daemon=True)
            worker.start()
            theirs.close()
            self.workers[ours] = worker

    def _known(self) -> set[str]:
        """Ids of what an earlier run did; plain runs are made again where their latents are not there."""
        known = set()
        for line in self.results.read_text(encoding="utf-8").splitlines() if self.results.exists() else ():
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if "error" not in row:
                    known.add(row["id"])
        missing = {
            calibration.reference_id(setting)
            for setting in SETTINGS.values()
            if not (self.scratch / f"{setting.name}.pt").exists()
        }
        return known - missing

    def run(self) -> None:
        """Hand out items until all are done or time is up."""
        idle = list(self.workers)
        while True:
            idle = [connection for connection in idle if not self._give(connection)]
            if not self.busy:
                break
            left = self.end - time.monotonic()
            if left <= 0:
                break
            for ready in wait(list(self.busy), timeout=left):
                connection = ready
                assert isinstance(connection, Connection)
                item = self.busy.pop(connection)
                try:
                    row = connection.recv()
                except EOFError:
                    self._write(item, {"error": f"the process ended, exit code {self.workers[connection].exitcode}"})
                    continue
                self._write(item, row)
                idle.append(connection)
        left_over = [*self.busy.values(), *self.waiting]
        for worker in self.workers.values():
            worker.terminate()
        print(f"{len(self.done)} done, {len(self.failed)} failed, {len(left_over)} left", flush=True)
        for part, count in collections.Counter(f"{item.part} / {item.setting.name}" for item in left_over).items():
            print(f"  left: {count} of {part}")

    def _give(self, connection: Connection) -> bool:
        """The first item that can be done now and in time; False if there is none."""
        left = self.end - time.monotonic()
        for item in self.waiting:
            if all(need in self.done for need in item.needs) and item.seconds * self.pace < left:
                self.waiting.remove(item)
                self.busy[connection] = item
                connection.send(item)
                return True
        return False

    def _write(self, item: Item, row: dict[str, Any]) -> None:
        named = {"id": item.id, "part": item.part, "setting": item.setting.name, "label": item.label}
        with self.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**named, **row}) + "\n")
        clock = time.monotonic() - self.began
        if "error" in row:
            self.failed.add(item.id)
            print(f"{clock:6.1f} s  {item.id}: FAILED: {row['error'].strip().splitlines()[-1]}", flush=True)
            return
        self.done.add(item.id)
        self.pace += 0.05 * (row["seconds"] / item.seconds - self.pace) if self.scale.clips > 2 else 0.0
        print(f"{clock:6.1f} s  {item.id}: {row['seconds']:.1f} s", flush=True)


def work(connection: Connection, device: str, scale: Scale, scratch: Path, folder: Path, threads: int) -> None:
    """A worker: items come, results go."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.set_flush_denormal(True)
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    session = Session(device, scale, scratch, folder)
    while True:
        try:
            item: Item = connection.recv()
        except EOFError:
            return
        began = time.monotonic()
        try:
            with torch.no_grad():
                row = item.work(session, item)
        except Exception:
            row = {"error": traceback.format_exc(limit=-4)}
        connection.send({**row, "seconds": round(time.monotonic() - began, 2)})


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def _list(items: list[Item]) -> None:
    """The order, with estimates."""
    groups: dict[tuple[float, str, str], list[float]] = {}
    for item in items:
        groups.setdefault((round(item.rank, 2), item.part, item.setting.name), []).append(item.seconds)
    for (rank, part, setting), seconds in groups.items():
        print(f"{rank:5.2f}  {part:12} {setting:7} {len(seconds):4} items {sum(seconds):7.0f} process-seconds")
    print(f"{len(items)} items, {sum(item.seconds for item in items):.0f} process-seconds")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of the results")
    parser.add_argument("--minutes", type=float, default=4.1, help="end then")
    parser.add_argument("--gpus", type=int, default=torch.cuda.device_count(), help="0 works on the CPU")
    parser.add_argument("--per_gpu", type=int, default=4, help="processes a GPU")
    parser.add_argument("--processes", type=int, default=1, help="processes on the CPU")
    parser.add_argument("--clips", type=int, default=Scale.clips, help="that judge")
    parser.add_argument("--single", type=int, default=Scale.single, help="clips that judge what runs clip by clip")
    parser.add_argument("--batch", type=int, default=Scale.batch, help="clips in one call")
    parser.add_argument("--only", nargs="*", choices=sorted(SETTINGS), help="these settings")
    parser.add_argument("--parts", nargs="*", help="these parts, and the plain runs")
    parser.add_argument("--match", nargs="*", help="items with one of these texts in their names, and the plain runs")
    parser.add_argument("--sample", type=int, help="of each part so many items only")
    parser.add_argument("--scratch", type=Path, help="folder for plain runs; by default in the temporary folder")
    parser.add_argument("--rehearse", action="store_true", help="random weights, two short clips")
    parser.add_argument("--list", action="store_true", help="print the order, and run nothing")
    found = parser.parse_args()
    if found.scratch is None:
        found.scratch = Path(tempfile.gettempdir()) / f"tinywan-study-{found.folder.resolve().name}"
    return found


if __name__ == "__main__":
    main()
