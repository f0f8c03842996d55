"""Hooks: one line of JSON per finished run, appended to the file that HALFFRAME_RUN_LOG names."""

from __future__ import annotations

import json
import os

import halfframe

__all__ = ["halfframe_report"]


@halfframe.hookimpl
def halfframe_report(report: halfframe.Report) -> None:
    """Append the report; without HALFFRAME_RUN_LOG, do nothing."""
    path = os.environ.get("HALFFRAME_RUN_LOG")
    if path:
        with open(path, "a", encoding="utf-8") as log:
            log.write(json.dumps(report.to_dict()) + "\n")
