"""The speed benchmark's tables and plot, from times that are made up, and one whole run of a small graph."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import tables
from benchmarks.speed import BF16, FP32, NEURAL_COMPRESSOR, OPENVINO, OURS, Case, Row, earlier, markdown, plot
from benchmarks.speed_cases import SPEED_CASES

ROOT = Path(__file__).resolve().parents[2]


def rows() -> list[Row]:
    times = {FP32: [8.0, 10.0, 9.0], BF16: [6.0, 6.0, 6.0], OURS: [4.0, 2.0, 3.0], OPENVINO: [2.0, 2.0, 6.0]}
    return [
        Row("mobilenet_025", 1, 1, times),
        Row("mobilenet_025", 2, 1, {**times, NEURAL_COMPRESSOR: [6.0, 6.0, 6.0]}),
    ]


def test_ratios_are_those_of_repeats_side_by_side() -> None:
    row = rows()[0]
    assert row.ratio(OURS) == (3.0, 2.0, 5.0)
    assert row.ratio(OURS, OPENVINO) == (1.0, 0.5, 2.0)


def test_tables_name_what_was_not_measured() -> None:
    case = Case("mobilenet_025", Path("x"), {OURS: 1.25, OPENVINO: 3.0}, 0.26, {NEURAL_COMPRESSOR: "no such op"})
    lines = markdown([case], rows(), "Some CPU", 3).splitlines()
    assert lines[0] == "Measured on Some CPU; median of 3 repeats in turn, in brackets the least and the most."
    heads = [cell.strip() for cell in lines[2].strip("|").split("|")]
    (first, second) = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines[4:6])
    found = dict(zip(heads, first, strict=True))
    assert found["FP32, ms"] == "9.00" and found["ours, ms"] == "3.00"
    assert found["ours to FP32"] == "3.00 × (2.00–5.00)" and found["ours to OpenVINO/NNCF"] == "1.00 × (0.50–2.00)"
    assert found["Neural Compressor 2.6, ms"] == "–" and found["ours to Neural Compressor 2.6"] == "–"
    assert dict(zip(heads, second, strict=True))["ours to Neural Compressor 2.6"] == "2.00 × (1.50–3.00)"
    assert "| MobileNet V1 0.25 (file) | 1.2 | 3.0 | 0.26 × |" in lines
    assert lines[-1] == "- MobileNet V1 0.25 (file), Neural Compressor 2.6: no such op"


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    plot(rows(), tmp_path / "new" / "speed.png")
    assert (tmp_path / "new" / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_an_earlier_run_of_this_machine_fills_in_other_graphs(tmp_path: Path) -> None:
    report = tmp_path / "speed.json"
    assert earlier(report, 3, ["squeezenet"]) == ([], [])
    case = Case("mobilenet_025", tmp_path / "mobilenet_025", {OURS: 1.25}, 0.26, {OPENVINO: "no such op"})
    told = {
        "machine": tables.machine(),
        "repeats": 3,
        "cases": [{**dataclasses.asdict(case), "folder": "mobilenet_025"}],
        "rows": [dataclasses.asdict(row) for row in rows()],
    }
    report.write_text(json.dumps(told))
    assert earlier(report, 3, ["squeezenet"]) == ([case], rows())
    assert earlier(report, 3, ["mobilenet_025"]) == earlier(report, 2, ["squeezenet"]) == ([], [])
    report.write_text(json.dumps({**told, "machine": "another"}))
    assert earlier(report, 3, ["squeezenet"]) == ([], [])


def test_graphs_are_told_apart() -> None:
    assert len({case.title for case in SPEED_CASES.values()}) == len(SPEED_CASES)
    assert {key for key, case in SPEED_CASES.items() if case.trained} == {"mobilenet_025", "squeezenet"}


@pytest.mark.slow
@pytest.mark.long
def test_a_graph_of_the_shared_data_is_timed(shared_data: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed", "--graph", "mobilenet_025", "--peer", "none", "--repeats", "1",
         "--seconds", "0.01", "--output", str(tmp_path), "--markdown", str(tmp_path / "page.md")],
        cwd=ROOT, env={**os.environ, "QUANTIZER_SHARED_DATA": str(shared_data.resolve())}, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "speed.json").read_text())
    assert [(row["threads"], row["batch"]) for row in report["rows"]] == [(1, 1), (2, 1)]  # the file fixes its batch
    assert all(set(row["times"]) >= {FP32, OURS} for row in report["rows"])
    assert 0.2 < report["cases"][0]["size"] < 0.35
    assert "MobileNet V1 0.25 (file)" in (tmp_path / "page.md").read_text() and (tmp_path / "speed.png").exists()
