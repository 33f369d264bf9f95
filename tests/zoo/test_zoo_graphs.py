"""Two of the nine Model Zoo graphs of the shared data, converted by their registry entries alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.graphs import WEIGHTED
from quantizer_core.cli.main import cli
from quantizer_core.graph.files import load_graph
from quantizer_core.graph.summarize import input_specs
from quantizer_core.runtime import GraphSession
from quantizer_core.zoo import zoo_model


def converted(name: str, shared_data: Path, folder: Path) -> tuple[dict, Path, Path]:
    fp32, int8 = folder / f"{name}.pb", folder / f"{name}_int8.pb"
    script = shared_data / "zoo" / "materialize.py"
    subprocess.run([sys.executable, script, shared_data / "zoo" / f"{name}.pb.xz", fp32], check=True)
    arguments = ["--model", name, "--in_graph", fp32, "--data_location", shared_data / "images" / "nips2017_dev"]
    arguments += ["--num_calibration_examples", 16, "--json"]
    result = CliRunner().invoke(cli, ["model-zoo", *map(str, arguments)])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout), fp32, int8


def in_int8(facts: dict) -> float:
    counts = [count for op, count in facts["by_op"].items() if op in WEIGHTED]
    return sum(done for done, _ in counts) / sum(total for _, total in counts)


@pytest.mark.slow
def test_mobilenet(shared_data: Path, tmp_path: Path) -> None:
    facts, fp32, int8 = converted("mobilenet_v1", shared_data, tmp_path)
    assert in_int8(facts) >= 0.95 and facts["int8_bytes"] < 0.27 * facts["fp32_bytes"]
    config = zoo_model("mobilenet_v1").config
    inputs = input_specs(load_graph(str(fp32)), config.inputs)
    images = np.random.default_rng(0).uniform(-1, 1, (3, 224, 224, 3)).astype(np.float32)
    for batch in (1, 3):
        with GraphSession(load_graph(str(int8)), inputs, config.outputs) as session:
            found = session.run({"input": images[:batch]})[0]
        assert found.shape == (batch, 1001)
        np.testing.assert_allclose(found.sum(1), 1, rtol=1e-4)


@pytest.mark.slow
def test_ssd_mobilenet_keeps_its_control_flow_at_any_size_and_batch(shared_data: Path, tmp_path: Path) -> None:
    facts, fp32, int8 = converted("ssd_mobilenet", shared_data, tmp_path)
    assert in_int8(facts) == 1 and facts["by_op"]["ConcatV2"][0] == 0  # excluded by the entry
    graphs = [load_graph(str(path)) for path in (fp32, int8)]
    loops = [sum(node.op in ("Enter", "Exit", "While", "NextIteration") for node in graph.node) for graph in graphs]
    assert loops[0] == loops[1]
    config = zoo_model("ssd_mobilenet").config
    inputs = input_specs(graphs[0], config.inputs)
    assert inputs[0].dtype == "uint8"
    rng = np.random.default_rng(0)
    with GraphSession(graphs[1], inputs, config.outputs) as session:
        for shape in ((1, 300, 300, 3), (1, 240, 411, 3), (2, 128, 128, 3)):
            boxes, scores, number, classes = session.run({"image_tensor": rng.integers(0, 256, shape, np.uint8)})
            assert len(boxes) == len(scores) == len(number) == len(classes) == shape[0]
            assert np.isfinite(boxes).all() and np.isfinite(scores).all()
