"""The rehearsal does what Kubeflow's driver and launcher do around a command, and refuses what needs a cluster."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from pipelines.kubeflow import read_spec
from pipelines.rehearsal import launch_here, rehearse
from quantizer_core.errors import ConfigError, QuantizerError

TYPE = {"instanceSchema": "title: tfx.Model\ntype: object\n"}

#: A command that gives its only output a number one above its input's, or the parameter ``start``.
COUNT = """
import json, sys
given = json.loads(sys.argv[1])
number = given["inputs"].get("parameterValues", {}).get("start", 0)
for value in given["inputs"].get("artifacts", {}).values():
    number = value["artifacts"][0]["metadata"]["number"] + 1
output = given["outputs"]["artifacts"]["out"]["artifacts"][0]
said = {"artifacts": {"out": {"artifacts": [{"name": output["name"], "metadata": {"number": number}}]}}}
open(given["outputs"]["outputFile"], "w").write(json.dumps(said))
"""


def task(name: str, source: str | None = None, **more: Any) -> dict[str, Any]:
    inputs: dict[str, Any] = {}
    if source:
        inputs["artifacts"] = {"in": {"taskOutputArtifact": {"producerTask": source, "outputArtifactKey": "out"}}}
    return {"componentRef": {"name": name}, "inputs": inputs, **more}


def spec(folder: Path, tasks: dict[str, Any], executors: dict[str, Any]) -> pipeline_spec_pb2.PipelineSpec:
    outputs = {"artifacts": {"out": {"artifactType": TYPE}}}
    document = {
        "root": {"dag": {"tasks": tasks}},
        "components": {name: {"executorLabel": name, "outputDefinitions": outputs} for name in tasks},
        "deploymentSpec": {"executors": executors},
    }
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(document))
    return read_spec(str(folder / "pipeline.yaml"))


def container(code: str = COUNT) -> dict[str, Any]:
    return {"container": {"image": "i", "command": ["python", "-c", code], "args": ["{{$}}"]}}


def numbers(outputs: dict[str, Any]) -> dict[str, float]:
    return {name: json_format.MessageToDict(artifacts["out"].metadata)["number"] for name, artifacts in outputs.items()}


def test_tasks_run_in_the_order_of_their_needs_and_hand_on_what_they_say(tmp_path: Path) -> None:
    start = {"parameters": {"start": {"runtimeValue": {"constant": 5}}}}
    tasks = {"a_last": task("a_last", "middle"), "middle": task("middle", "z_first"), "z_first": task("z_first")}
    tasks["z_first"]["inputs"] = start
    found = rehearse(spec(tmp_path, tasks, dict.fromkeys(tasks, container())), str(tmp_path / "root"), launch_here)
    assert list(found) == ["z_first", "middle", "a_last"]
    assert numbers(found) == {"z_first": 5, "middle": 6, "a_last": 7}
    assert found["middle"]["out"].uri == str(tmp_path / "root" / "middle" / "out")


def test_a_rehearsal_finds_nothing_of_the_one_before(tmp_path: Path) -> None:
    tasks = {"one": task("one")}
    tasks["one"]["inputs"] = {"parameters": {"start": {"runtimeValue": {"constant": 5}}}}
    made = spec(tmp_path, tasks, {"one": container()})
    for _ in range(2):
        rehearse(made, str(tmp_path / "root"), launch_here)
        left = tmp_path / "root" / "one" / "out" / "Split-train" / "data-00001-of-00002"
        assert not left.exists()
        left.parent.mkdir(parents=True)
        left.write_text("of a run with more shards")


def test_nor_of_one_that_failed(tmp_path: Path) -> None:
    code = "import json, sys; open(json.loads(sys.argv[1])['outputs']['outputFile'] + '.half', 'x'); sys.exit(1)"
    made = spec(tmp_path, {"one": task("one")}, {"one": container(code)})
    for _ in range(2):  # a file that is there cannot be made
        with pytest.raises(QuantizerError, match="task one ended with exit code 1:\n$"):
            rehearse(made, str(tmp_path / "root"), launch_here)


def test_what_a_rehearsal_before_left_is_not_removed_where_it_is_imported(tmp_path: Path) -> None:
    left = tmp_path / "root" / "one" / "out"
    left.mkdir(parents=True)
    importer = {"artifactUri": {"constant": str(left)}, "typeSchema": TYPE, "metadata": {"number": 40}}
    tasks = {"old": task("old"), "one": task("one", "old")}
    with pytest.raises(ConfigError, match="an importer names what a rehearsal before left in .*root/one"):
        rehearse(
            spec(tmp_path, tasks, {"old": {"importer": importer}, "one": container()}),
            str(tmp_path / "root"),
            launch_here,
        )
    assert left.exists()


def test_importer_gives_what_it_imports(tmp_path: Path) -> None:
    tasks = {"old": task("old"), "reader": task("reader", "old")}
    importer = {"artifactUri": {"constant": "/some/model"}, "typeSchema": TYPE, "metadata": {"number": 40}}
    executors = {"old": {"importer": importer}, "reader": container()}
    found = rehearse(spec(tmp_path, tasks, executors), str(tmp_path / "root"), launch_here)
    assert found["old"]["out"].uri == "/some/model"
    assert numbers(found) == {"old": 40, "reader": 41}


def test_command_runs_verbatim_but_for_the_executor_input(tmp_path: Path) -> None:
    commands: list[Sequence[str]] = []

    def note(command: Sequence[str]) -> tuple[int, str]:
        commands.append(command)
        Path(json.loads(command[-1])["outputs"]["outputFile"]).write_text("{}")
        return 0, ""

    rehearse(spec(tmp_path, {"only": task("only")}, {"only": container("print(1)")}), str(tmp_path / "root"), note)
    ((*words, given),) = commands
    assert words == ["python", "-c", "print(1)"]
    artifact = json.loads(given)["outputs"]["artifacts"]["out"]["artifacts"][0]
    assert artifact == {
        "name": "only/out",
        "uri": str(tmp_path / "root" / "only" / "out"),
        "type": TYPE,
        "metadata": {},
    }


def test_command_that_fails_ends_the_run_with_what_it_said(tmp_path: Path) -> None:
    tasks = {"a": task("a"), "b": task("b", "a")}
    executors = {"a": container("import sys; sys.exit('no such class')"), "b": container()}
    with pytest.raises(QuantizerError, match="task a ended with exit code 1:\nno such class"):
        rehearse(spec(tmp_path, tasks, executors), str(tmp_path / "root"), launch_here)
    assert not (tmp_path / "root" / "b").exists()


def test_command_runs_with_the_interpreter_at_hand() -> None:
    code, printed = launch_here(["python", "-c", "import sys; print(sys.prefix)"])
    assert (code, printed.strip()) == (0, sys.prefix)


@pytest.mark.parametrize(("caller", "seen"), [(None, "1"), ("0", "0")])
def test_command_has_onednn_as_in_the_image(monkeypatch: pytest.MonkeyPatch, caller: str | None, seen: str) -> None:
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    if caller:
        monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", caller)
    code = "import os; print(os.environ['TF_ENABLE_ONEDNN_OPTS'])"
    assert launch_here(["python", "-c", code]) == (0, f"{seen}\n")


@pytest.mark.parametrize(
    ("more", "executor", "message"),
    [
        ({"triggerPolicy": {"condition": "1 == 2"}}, container(), "task a has a condition"),
        ({}, {"resolver": {}}, "task a has a condition or is a resolver"),
        (
            {"inputs": {"parameters": {"p": {"componentInputParameter": "q"}}}},
            container(),
            "task a takes p from the run",
        ),
        ({}, {"importer": {"artifactUri": {"runtimeParameter": "u"}}}, "importer a takes its URI from the run"),
    ],
)
def test_what_needs_a_cluster_is_refused(
    tmp_path: Path, more: dict[str, Any], executor: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        rehearse(spec(tmp_path, {"a": {**task("a"), **more}}, {"a": executor}), str(tmp_path), launch_here)
