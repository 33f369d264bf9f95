"""``quantizer summarize-graph``, ``make-tfrecords`` and the group itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf
from click.testing import CliRunner, Result

from quantizer_core.cli.main import cli
from quantizer_core.cli.options import preprocess_config
from quantizer_core.config import PreprocessConfig
from quantizer_core.data import read_examples
from quantizer_core.errors import ConfigError
from quantizer_core.version import VERSION


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.mark.parametrize("arguments", [["--help"], *([c, "--help"] for c in cli.commands), ["--version"], ["convert"]])
def test_help_and_wrong_use_need_no_tensorflow(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['quantizer', *{arguments!r}]\n"
        "from quantizer_core.cli.main import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as leave:\n"
        "    code = leave.code or 0\n"
        "heavy = {'tensorflow', 'numpy', 'apache_beam', 'tfx', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == (2 if arguments == ["convert"] else 0), result.stderr


def test_commands_and_version() -> None:
    assert sorted(cli.commands) == [
        *("benchmark", "completion", "convert", "diff-ranges", "docker", "doctor", "evaluate", "inspect", "lineage"),
        *("make-tfrecords", "model-zoo", "summarize-graph"),
    ]
    assert VERSION in run("--version").stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("quantizer mod", "model-zoo"),
        ("quantizer convert --input_g", "--input_graph"),
        ("quantizer convert --method m", "minmax"),
        ("quantizer convert --input_graph mob", "mob"),  # type "file": the shell completes it
    ],
)
def test_shells_complete_the_command_line(words: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shells = {shell: run("completion", shell) for shell in ("bash", "zsh", "fish")}
    for shell, result in shells.items():
        assert result.exit_code == 0 and f"_QUANTIZER_COMPLETE={shell}_complete" in result.stdout
    environment = {"_QUANTIZER_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done = CliRunner().invoke(cli, [], prog_name="quantizer")
    found = dict(line.split(",", 1)[::-1] for line in done.stdout.splitlines())
    assert expected in found
    assert found[expected] == ("file" if expected == "mob" else "plain")


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, 4], name="x")
        tf.matmul(x, tf.ones([4, 2]), name="y")
    path = tmp_path / "graph.pb"
    path.write_bytes(graph.as_graph_def().SerializeToString())
    return path


def test_summarize_graph(graph: Path) -> None:
    text = run("summarize-graph", "--in_graph", graph, "--input_binary")
    assert text.exit_code == 0
    assert "input   x  float32 [?, 4]" in text.stdout and "output  y" in text.stdout
    assert f"quantizer convert --input_graph {graph}" in text.stdout
    facts = json.loads(run("summarize-graph", "--in_graph", graph, "--json").stdout)
    assert facts["outputs"] == ["y"] and facts["quantizable"] == {"MatMul": 1}


def test_summarize_graph_of_something_else(tmp_path: Path) -> None:
    result = run("summarize-graph", "--in_graph", tmp_path / "none.pb")
    assert result.exit_code == 1 and result.stderr.startswith("error: ") and "none.pb" in result.stderr
    (tmp_path / "text.pb").write_text("no graph")
    assert run("summarize-graph", "--in_graph", tmp_path / "text.pb").exit_code == 1


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for number in range(6):
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tf.io.encode_png(tf.fill([2, 2, 3], tf.cast(number, tf.uint8))).numpy())
    return folder


def test_make_tfrecords_holds_what_the_folder_holds(images: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "data.tfrecord.gz"
    result = run("make-tfrecords", "--images", images, "--output", output)
    assert result.exit_code == 0 and result.stdout.split() == [str(output)]
    assert list(read_examples(output)) == list(read_examples(images))


def test_make_tfrecords_splits_by_name(images: Path, tmp_path: Path) -> None:
    first, rest = tmp_path / "first", tmp_path / "rest"
    assert run("make-tfrecords", "--images", images, "--output", first, "--take", 2).exit_code == 0
    assert run("make-tfrecords", "--images", images, "--output", rest, "--skip", 2, "--shards", 2).exit_code == 0
    whole = list(read_examples(images))
    assert list(read_examples(first)) == whole[:2]
    assert sorted(read_examples(f"{rest}-*")) == sorted(whole[2:])


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--skip", "6"], 1, "no examples to write"),
        (["--labels", "x.txt"], 2, "is not of the form FILE.csv"),
        (["--extensions", "jpg"], 1, "holds no file of jpg"),
        (["--images", "nowhere"], 1, "'nowhere'"),
    ],
)
def test_make_tfrecords_refuses(images: Path, tmp_path: Path, options: list[str], code: int, message: str) -> None:
    result = run("make-tfrecords", "--images", images, "--output", tmp_path / "out.gz", *options)
    assert result.exit_code == code and message in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_make_tfrecords_keeps_what_exists(images: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.gz"
    output.write_bytes(b"mine")
    result = run("make-tfrecords", "--images", images, "--output", output)
    assert result.exit_code == 2 and "exists" in result.stderr and output.read_bytes() == b"mine"
    assert run("make-tfrecords", "--images", images, "--output", output, "--overwrite").exit_code == 0
    assert len(list(read_examples(output))) == 6


BASE = PreprocessConfig(label_key="y", label_offset=1)


@pytest.mark.parametrize(
    ("text", "changes", "wanted"),
    [
        (None, {}, BASE),
        ("torch", {}, PreprocessConfig(kind="image", normalize="torch", label_key="y", label_offset=1)),
        ("none", {"label_offset": 0, "bgr": True}, PreprocessConfig(kind="image", bgr=True, label_key="y")),
        ("tensors", {"image_key": None}, BASE),
        ("my.py", {}, PreprocessConfig(kind="module", module_file="my.py", label_key="y", label_offset=1)),
        ('{"kind": "image"}', {"resize": "crop"}, PreprocessConfig(kind="image", resize="crop")),
    ],
)
def test_the_preprocess_option(text: str | None, changes: dict, wanted: PreprocessConfig) -> None:
    assert preprocess_config(BASE, text, **changes) == wanted


@pytest.mark.parametrize("text", ["[1]", "{]", "jpeg", '{"normalize": "unti"}'])
def test_a_bad_preprocess_option(text: str) -> None:
    with pytest.raises(ConfigError):
        preprocess_config(BASE, text)
