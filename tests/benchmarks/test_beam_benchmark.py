"""The Beam benchmark: its tables say what was measured, its memory counts children, and a stage of it runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.beam import (
    CALIBRATION,
    DEMO,
    GRAPH,
    MANY,
    MEMORY,
    START,
    Setting,
    measure,
    memory_of,
    tables,
    write_records,
)


def test_tables_give_median_spread_and_ratio_to_one_worker() -> None:
    seconds = {"1 worker": (40.0, 44.0, 42.0), "2 processes": (63.0, 60.0, 66.0), "Prism": (42.0, 42.0, 42.0)}
    results = {setting: [{"seconds": value} for value in seconds[setting.runner]] for setting in DEMO}
    lines = tables(results, ", busy").splitlines()
    assert lines[0].endswith(", busy. Median, and least and most of the repeats.")
    assert "| 1 worker | 42.0 (40.0–44.0) | ×1.00 |" in lines and "| 2 processes | 63.0 (60.0–66.0) | ×1.50 |" in lines


def test_examples_a_second_leave_the_start_out() -> None:
    half = (MANY - START) / 2
    seconds = {START: 10.0, MANY: 10.0 + half / 100}  # 200 a second once it runs
    results = {setting: [{"seconds": seconds[setting.examples]}] for setting in CALIBRATION}
    assert "| 10.0 | 200 (200–200) | ×1.00 |" in tables(results, "")


def test_memory_has_a_row_a_setting() -> None:
    results = {setting: [{"peak_mib": 100.0 + number} for number in range(3)] for setting in MEMORY}
    rows = [line for line in tables(results, "").splitlines() if "101 (100–102)" in line]
    assert len(rows) == len(MEMORY) and "| convert | 1 worker | 10,000 |" in rows[3]


def test_memory_of_a_process_counts_its_children() -> None:
    alone = memory_of(os.getpid())
    code = "held = bytearray(1) * (200 << 20); print(flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as child:
        assert child.stdout is not None and child.stdin is not None
        child.stdout.readline()
        both = memory_of(os.getpid())
        child.stdin.close()
    assert both - alone > 200 << 10


@pytest.mark.slow
def test_a_stage_runs_in_a_process_of_its_own(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).resolve().parent.parent.parent)
    (tmp_path / GRAPH).write_bytes((shared_data / "graphs" / GRAPH).read_bytes())
    write_records(shared_data, tmp_path)
    for task in ("calibrate", "convert", "evaluate"):
        found = measure(Setting("memory", task, "1 worker", START), tmp_path)
        assert found["seconds"] > 0 and found["peak_mib"] > 200
