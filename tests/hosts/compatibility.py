"""The host tests on every version of every host, and the table of what passed: ``python tests/hosts/compatibility.py``.

Each pair runs in a process of its own that finds that version first. The usual version is the environment's own; the
others lie in folders beside it, put there by the Makefile from ``.ci/hosts``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parent
FOLDERS = Path(sys.prefix) / "hosts"


@dataclass(frozen=True)
class Host:
    """A pipeline, the package that brings it, and the tests that say whether it works.

    Attributes:
        pipeline: for the table.
        package: the distribution.
        module: the importable package.
        files: test files.
        selected: pytest's ``-k``.
        versions: of the package, where not all have it.
    """

    pipeline: str
    package: str
    module: str
    files: tuple[str, ...]
    selected: str
    versions: tuple[str, ...] = ()


HOSTS = (
    Host(
        "`wan.text2video.WanT2V`",
        "wan22",
        "wan",
        ("test_wan_t2v.py", "test_wan_nothing_leaks.py", "test_cfg_truncation.py", "test_denoised.py"),
        "not tiny_wan_i2v and not tiny_diffusers",
    ),
    # wan22 2.2.0 is hard-wired to 81 frames, so there only the test at 81 frames says anything.
    Host("`wan.image2video.WanI2V`", "wan22", "wan", ("test_wan_i2v.py",), ""),
    Host(
        "`diffusers.WanPipeline`",
        "diffusers",
        "diffusers",
        ("test_diffusers.py", "test_cross_host.py", "test_denoised.py"),
        "not i2v and not tiny_wan",
    ),
    Host("`diffusers.WanImageToVideoPipeline`", "diffusers", "diffusers", ("test_diffusers.py",), "i2v"),
    Host("`diffusers.Wan22Blocks`", "diffusers", "diffusers", ("test_diffusers_modular.py",), "", ("0.42.1",)),
)
SELECTED = {("`wan.image2video.WanI2V`", "2.2.0"): "every_version"}
VERSIONS = {"wan22": ("2.2.0", "2.2.3", "2.2.11"), "diffusers": ("0.35.2", "0.36.0", "0.42.1")}
USUAL = {"wan22": "2.2.3", "diffusers": "0.35.2"}


@dataclass(frozen=True)
class Outcome:
    """What became of a pair: counts of tests, and pytest's output."""

    passed: int
    failed: int
    skipped: int
    output: str

    def __str__(self) -> str:
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        return f"{self.passed} tests pass{skipped}" if self.passed and not self.failed else f"FAILS ({self.failed})"


def run(host: Host, version: str, selected: str | None = None) -> Outcome:
    """Run the tests of `host` on `version`; raises FileNotFoundError if that version is not installed."""
    environment = dict(os.environ)
    if version != USUAL[host.package]:
        folder = FOLDERS / f"{host.package}-{version}"
        if not folder.is_dir():
            raise FileNotFoundError(f"{host.package} {version} is not in {FOLDERS}; `make compat` puts it there")
        environment |= {"PYTHONPATH": str(folder), "HALFFRAME_EXPECTED_HOST": f"{host.module}={folder}"}
    if selected is None:
        selected = SELECTED.get((host.pipeline, version), host.selected)
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-k", selected]
    finished = subprocess.run(
        [*command, *(str(TESTS / name) for name in host.files)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    output = finished.stdout + finished.stderr
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|error|skipped)", output)}
    failed = counts.get("failed", 0) + counts.get("error", 0)
    if finished.returncode and not failed:
        failed = 1
    return Outcome(counts.get("passed", 0), failed, counts.get("skipped", 0), output)


def main() -> int:
    code = 0
    lines = ["| pipeline | package | version | |", "| --- | --- | --- | --- |"]
    for host in HOSTS:
        for version in host.versions or VERSIONS[host.package]:
            outcome = run(host, version)
            lines.append(f"| {host.pipeline} | {host.package} | {version} | {outcome} |")
            print(lines[-1], file=sys.stderr, flush=True)
            if outcome.failed or not outcome.passed:
                code = 1
                print(outcome.output, file=sys.stderr)
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
