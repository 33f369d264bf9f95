"""The Quantizer under LocalDagRunner gives the same bytes whatever Beam runner ``beam_pipeline_args`` names."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from tfx import v1 as tfx
from tfx.types import standard_artifacts

from components.artifacts import FrozenGraph
from components.quantizer.component import Quantizer
from pipelines.record import RunRecord, latest_run
from quantizer_core.config import PreprocessConfig, QuantizationConfig
from tests.helpers.beam_runs import direct
from tests.helpers.prism import ROOT, portable_options, why_no_prism, worker_pool
from tests.helpers.tfx_artifacts import conv_net, examples, frozen_graph, tensor_example

CONFIG = QuantizationConfig(
    batch_size=8,
    max_bad_fraction=0.2,
    preprocess=PreprocessConfig(features={"images": "image"}, label_key="label"),
    only_faster=False,
)
RUNNERS = ("one", "threads", "processes", "prism-loopback", "prism-external")
#: What must not differ by a bit: the statistics, the graph, the plan, the verdict with its figures.
SAME = {
    "calibration_ranges": ("calibration.ranges",),
    "evaluation": ("evaluation.json",),
    "quantized_model": ("quantized_graph.pb", "plan.json"),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A frozen graph, and 64 examples to calibrate and 62 to evaluate on, of which a few are bad."""
    folder = tmp_path_factory.mktemp("inputs")
    images = np.random.default_rng(7).normal(size=(120, 8, 8, 1))
    good = [tensor_example(index % 4, image=image) for index, image in enumerate(images)]
    short = [tensor_example(0, image=image[:3]) for image in images[:4]]
    splits = {"train": [*good[:60], *short], "eval": [b"\xff", *good[60:], tensor_example(image=images[0])]}
    examples(folder / "examples", splits)
    frozen_graph(folder / "frozen", conv_net(4))
    return folder


def quantize(inputs: Path, output: Path, arguments: list[str]) -> RunRecord:
    """Runs a pipeline of the Quantizer alone."""
    frozen = tfx.dsl.Importer(source_uri=str(inputs / "frozen"), artifact_type=FrozenGraph).with_id("Frozen")
    data = tfx.dsl.Importer(
        source_uri=str(inputs / "examples"),
        artifact_type=standard_artifacts.Examples,
        properties={"split_names": '["train", "eval"]'},
    ).with_id("Data")
    quantizer = Quantizer(
        frozen_graph=frozen.outputs["result"], examples=data.outputs["result"], quantization_config=CONFIG, max_drop=1.0
    )
    metadata = str(output / "metadata.db")
    tfx.orchestration.LocalDagRunner().run(
        tfx.dsl.Pipeline(
            pipeline_name="runners",
            pipeline_root=str(output / "pipeline"),
            components=[frozen, data, quantizer],
            metadata_connection_config=tfx.orchestration.metadata.sqlite_metadata_connection_config(metadata),
            beam_pipeline_args=arguments,
        )
    )
    return latest_run(metadata, "runners")


def shipped_package(folder: Path) -> tuple[Path, Path]:
    """Returns what a worker gets by ``--setup_file``, installed, and a file that its import on a worker leaves behind.

    Beam's stager runs ``setup.py sdist`` and workers install the archive.
    """
    source, unpacked, installed = (folder / name for name in ("source", "unpacked", "installed"))
    for name in ("quantizer_core", "components", "pipelines"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    setup = [sys.executable, "setup.py", "--quiet"]
    subprocess.run([*setup, "sdist", "--dist-dir", str(folder / "dist")], cwd=source, check=True, capture_output=True)
    (archive,) = (folder / "dist").iterdir()
    with tarfile.open(archive) as file:
        file.extractall(unpacked)
    (root,) = unpacked.iterdir()
    subprocess.run([*setup, "build", "--build-lib", str(installed)], cwd=root, check=True, capture_output=True)
    mark = folder / "imported"
    with open(installed / "quantizer_core" / "__init__.py", "a", encoding="utf-8") as file:
        file.write(f"\nopen({str(mark)!r}, 'w').close()\n")
    return installed, mark


@pytest.fixture(scope="module")
def records(
    inputs: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> dict[str, RunRecord]:
    """The pipeline's record on every runner; without those of Prism where Prism cannot be had.

    The workers of the pool get what ``--setup_file`` ships and no more: TFX cannot be imported there.
    """
    folder = tmp_path_factory.mktemp("runners")
    arguments = {
        "one": direct(),
        "threads": direct(2, "multi_threading"),
        "processes": [*direct(2, "multi_processing"), "--sdk_container_image=unused"],
    }
    found = {name: quantize(inputs, folder / name, values) for name, values in arguments.items()}
    if why_no_prism():
        return found
    endpoint = request.getfixturevalue("prism_endpoint")
    found["prism-loopback"] = quantize(inputs, folder / "loopback", portable_options(endpoint))
    installed, mark = shipped_package(folder)
    without_tfx = folder / "without_tfx" / "tfx"
    without_tfx.mkdir(parents=True)
    (without_tfx / "__init__.py").write_text("raise ImportError('a worker needs no TFX')\n")
    with worker_pool([without_tfx.parent, installed]) as pool:
        found["prism-external"] = quantize(inputs, folder / "external", portable_options(endpoint, pool))
    assert mark.exists(), "the pool's workers did not import the shipped package"
    return found


@pytest.fixture(params=RUNNERS)
def runner(request: pytest.FixtureRequest, records: dict[str, RunRecord]) -> str:
    if request.param not in records:
        request.getfixturevalue("prism_endpoint")  # skips, and says why
    return request.param


@pytest.mark.slow
def test_statistics_graph_and_verdict_are_the_same_bytes_on_every_runner(
    records: dict[str, RunRecord], runner: str
) -> None:
    for key, names in SAME.items():
        for name in names:
            first, found = (Path(records[which].outputs[key].uri, name).read_bytes() for which in ("one", runner))
            assert found == first and found, f"{key}/{name}"


@pytest.mark.slow
def test_what_was_read_and_skipped_and_why_is_in_the_evaluation(records: dict[str, RunRecord], runner: str) -> None:
    evaluation = records[runner].outputs["evaluation"]
    expected = {
        "calibration_examples": 60,
        "calibration_skipped": 4,
        "calibration_skipped_wrong_shape": 4,
        "evaluation_examples": 60,
        "evaluation_skipped": 2,
        "evaluation_skipped_damaged_record": 1,
        "evaluation_skipped_missing_label": 1,
    }
    facts = json.loads(Path(evaluation.uri, "evaluation.json").read_text())["facts"]
    counters = json.loads(Path(evaluation.uri, "counters.json").read_text())
    for figures in (facts, counters, evaluation.properties):
        assert {name: figures[name] for name in expected} == expected
    for stage in ("calibration", "evaluation"):
        assert counters[f"{stage}_batches"] == evaluation.properties[f"{stage}_batches"] >= 8
        assert 0 < counters[f"{stage}_inference_seconds"] < 600
        # ML Metadata's SQLite keeps six digits.
        seconds = evaluation.properties[f"{stage}_inference_seconds"]
        assert seconds == pytest.approx(counters[f"{stage}_inference_seconds"], rel=1e-4)
