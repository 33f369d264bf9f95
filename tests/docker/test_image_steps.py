"""docker/Dockerfile, step by step in a clean folder: its command runs there, and what the specs name is imported."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from pipelines.digits import pipeline as digits
from pipelines.frozen_graph import pipeline as frozen_graph
from pipelines.kubeflow import compile_pipeline, deployment
from pipelines.tabular import pipeline as tabular
from quantizer_core.config import PreprocessConfig, QuantizationConfig
from quantizer_core.version import VERSION
from tests.conftest import REPO_ROOT
from tests.helpers.dockerfile import read_dockerfile
from tests.helpers.image_steps import Built, build_in_folder, run_in_folder

DOCKERFILE = REPO_ROOT / "docker" / "Dockerfile"
OURS = ("components", "pipelines", "quantizer_core")

#: Imports what the arguments name, modules and what is in them, and tells where every loaded module came from.
IMPORT = """
import json, pkgutil, sys
for name in sys.argv[1:]:
    pkgutil.resolve_name(name)
files = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
print("files:", json.dumps({name: file for name, file in files.items() if isinstance(file, str)}))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    root = tmp_path_factory.mktemp("image").resolve() / "root"
    found = sorted(REPO_ROOT.glob(".cache/uv/*/bin/uv"))
    yield build_in_folder(DOCKERFILE, REPO_ROOT, root, uv=found[-1] if found else None)
    shutil.rmtree(root)  # some GB


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> list[pipeline_spec_pb2.PipelineSpec]:
    """Every pipeline, compiled."""
    roots = {"pipeline_root": "gs://b/runs", "serving_root": "gs://b/serving"}
    pipelines = [
        digits.create_pipeline(data_root="gs://b/digits", **roots),
        tabular.create_pipeline(data_root="gs://b/rows", **roots),
        frozen_graph.create_pipeline(
            graph_path="gs://b/net.pb",
            examples_root="gs://b/data",
            quantization_config=QuantizationConfig(
                preprocess=PreprocessConfig(features={"images": "image"}), only_faster=False
            ),
            metric="agreement",
            fingerprint="1",
            **roots,
        ),
    ]
    folder = tmp_path_factory.mktemp("specs")
    return [compile_pipeline(pipeline, str(folder / "pipeline.yaml"), "image") for pipeline in pipelines]


def named_by(spec: pipeline_spec_pb2.PipelineSpec) -> set[str]:
    """Returns what a spec's commands import: modules, executors, functions of the user's, artifact types."""
    names = set()
    for executor in deployment(spec).executors.values():
        command, arguments = list(executor.container.command), list(executor.container.args)
        assert command[:2] == ["python", "-m"]
        names |= {command[2], arguments[arguments.index("--executor_class_path") + 1]}
    for task in spec.root.dag.tasks.values():
        values = [given.runtime_value.constant.string_value for given in task.inputs.parameters.values()]
        names |= {value for value in values if re.fullmatch(rf"(?:{'|'.join(OURS)})(?:\.\w+)+", value)}
    types = re.findall(r"title: ([\w.]+)", json.dumps(json_format.MessageToDict(spec)))
    return names | {name for name in types if name.split(".")[0] in OURS}


def test_specs_name_executors_functions_and_types(specs: list[pipeline_spec_pb2.PipelineSpec]) -> None:
    assert set().union(*map(named_by, specs)) >= {
        "tfx.orchestration.kubeflow.v2.container.kubeflow_v2_run_executor",
        "components.freezer.executor.Executor",
        "components.graph_importer.executor.Executor",
        "components.quantizer.executor.Executor",
        "components.FrozenGraph",
        "components.CalibrationRanges",
        "components.QuantizationEvaluation",
        "pipelines.digits.trainer.run_fn",
        "pipelines.tabular.trainer.run_fn",
        "pipelines.tabular.preprocessing.preprocessing_fn",
    }


@pytest.mark.slow
@pytest.mark.long
def test_only_the_compiler_s_installation_is_left_out(built: Built) -> None:
    (left_out,) = built.left_out
    assert "install --yes --no-install-recommends g++" in left_out
    runs = [instruction for instruction in read_dockerfile(DOCKERFILE) if instruction.name == "RUN"]
    assert len(runs) == 5
    assert (built.image.root / "home" / "quantizer").stat().st_mode & 0o7777 == 0o1777


@pytest.mark.slow
@pytest.mark.long
def test_entry_point_tells_its_commands(built: Built) -> None:
    image = built.image
    assert (list(image.entry_point), list(image.command)) == (["quantizer"], ["--help"])
    finished = run_in_folder(image, [*image.entry_point, *image.command])
    assert finished.returncode == 0, finished.stdout
    for command in ("convert", "doctor", "lineage"):
        assert re.search(rf"^  {command} ", finished.stdout, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.long
def test_doctor_finds_nothing_wrong_in_the_image(built: Built) -> None:
    finished = run_in_folder(built.image, [*built.image.entry_point, "doctor"])
    assert finished.returncode == 0, finished.stdout
    assert VERSION in finished.stdout and "2.16.2" in finished.stdout


@pytest.mark.slow
@pytest.mark.long
def test_all_that_the_specs_name_is_in_the_image(built: Built, specs: list[pipeline_spec_pb2.PipelineSpec]) -> None:
    names = sorted(set().union(*map(named_by, specs)))
    finished = run_in_folder(built.image, ["python", "-c", IMPORT, *names])
    assert finished.returncode == 0, finished.stdout[-4000:]
    files = {name: Path(file) for name, file in json.loads(finished.stdout.rsplit("files:", 1)[1]).items()}
    packages = built.image.root / "opt" / "quantizer" / "lib" / "python3.10" / "site-packages"
    for name, file in files.items():
        # The interpreter's own library lies outside; nothing of the checkout or its environment may be seen.
        own = Path(sys.base_prefix) in file.parents and "site-packages" not in file.parts
        assert packages in file.parents or own, f"{name} comes from {file}"
    for name in OURS:
        assert files[name] == packages / name / "__init__.py"


@pytest.mark.slow
@pytest.mark.long
def test_what_is_not_in_the_image_is_told(built: Built) -> None:
    """Else the test above could not fail: what the checkout has beside the packages must not be found there."""
    finished = run_in_folder(built.image, ["python", "-c", IMPORT, "benchmarks.accuracy_cases"])
    assert finished.returncode != 0
    assert "No module named 'benchmarks'" in finished.stdout
