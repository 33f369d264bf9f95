"""The benchmarks of conversion and calibration: their chains convert whole, their tables say what was measured."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import quantizer_core as qc
from benchmarks import calibration, conversion
from quantizer_core.types import TensorSpec


@pytest.mark.parametrize("nodes", [5, 50])
def test_a_chain_converts_whole_and_computes_what_it_did(nodes: int) -> None:
    from quantizer_core.runtime import GraphSession

    graph_def, config = conversion.chain(nodes)
    assert len(graph_def.node) == nodes + 1
    prepared = qc.prepare(graph_def, config)
    converted = qc.convert(prepared, conversion.repeated_statistics(prepared), config)
    assert converted.plan.quantized == converted.plan.candidates == nodes // 5
    feeds = {"x": np.random.default_rng(1).normal(size=(2, 4, 4, 8)).astype(np.float32)}
    specs = (TensorSpec("x", "float32", (-1, 4, 4, 8)),)
    found = []
    for graph in (graph_def, converted.graph_def):
        with GraphSession(graph, specs, config.outputs) as session:
            found.append(session.run(feeds)[0])
    if nodes == 5:  # further on, the statistics of the first layer clip
        np.testing.assert_allclose(*found, atol=0.1)
    assert found[0].shape == found[1].shape


def test_the_table_of_conversion_gives_medians_and_time_a_node() -> None:
    runs = [
        {**dict.fromkeys(conversion.PARTS, 1.0), "total": total, "nodes": 2000, "quantized": 400, "candidates": 401}
        for total in (4.0, 5.0, 9.0)
    ]
    row = conversion.markdown({"resnet50": runs}, "Some CPU").splitlines()[-1]
    assert row == "| resnet50 | 2,000 | 400 of 401 | 1.00 | 1.00 | 1.00 | 1.00 | 5.00 (4.00–9.00) | 2.50 |"


def test_the_table_of_calibration_names_what_falls_short() -> None:
    rates = {("squeezenet", threads): {"infer": [100.0, 50.0], "observe": [60.0, 40.0]} for threads in (1, 2)}
    rates["mobilenet_025", 1] = {"infer": [100.0], "observe": [69.0]}
    text = calibration.markdown(rates, {calibration.FEW: [500.0], calibration.MANY: [530.0]})
    assert "| SqueezeNet 1.1 (file) | 2 | 75.0 | 50.0 | 0.70 × (0.60–0.80) |" in text
    assert text.endswith("Short of a bar (0.7 ×, 1.05 ×): MobileNet V1 0.25 (file), 1 threads; memory.")


@pytest.mark.slow
@pytest.mark.long
def test_both_run(shared_data: Path, tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "QUANTIZER_SHARED_DATA": str(shared_data)}
    page = tmp_path / "page.md"
    commands = (
        ("conversion", "--model", "chain_1000", "--repeats", "1"),
        ("calibration", "--graph", "squeezenet", "--repeats", "1", "--seconds", "0.5"),
    )
    for name, *arguments in commands:
        command = [sys.executable, "-m", f"benchmarks.{name}", *arguments, "--output", str(tmp_path / "out")]
        done = subprocess.run(
            [*command, "--markdown", str(page)], cwd=root, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    text = page.read_text(encoding="utf-8")
    assert "| chain_1000 | 1,001 | 200 of 200 |" in text and "| 10,000 |" in text
    seconds = json.loads((tmp_path / "out" / "conversion.json").read_text(encoding="utf-8"))["seconds"]["chain_1000"]
    assert all(later > 0 for _, later in itertools.pairwise([0, *(seconds[0][part] for part in conversion.PARTS)]))
