"""The walls between the rooms: what may import what, what the lock may hold, and that every room stands."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import quantizer_core

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "quantizer_core"
CORE_FILES = sorted(CORE.rglob("*.py"))
HEAVY = ("tensorflow", "apache_beam", "tfx", "keras", "ml_metadata")

FIXED_POINTS = {
    "apache-beam": "2.61.0",
    "kfp": "2.5.0",
    "ml-metadata": "1.16.0",
    "numpy": "1.26.4",
    "protobuf": "3.20.3",
    "pyarrow": "10.0.1",
    "tensorflow": "2.16.2",
    "tensorflow-model-analysis": "0.47.1",
    "tfx": "1.16.0",
    "tfx-bsl": "1.16.1",
}


def heavy_modules_after(code: str) -> list[str]:
    """Runs ``code`` in a new interpreter and returns which heavy packages it left in ``sys.modules``."""
    probe = (
        "import sys\n"
        "try:\n"
        f"    exec({code!r})\n"
        "except SystemExit as leave:\n"
        "    assert not leave.code, leave.code\n"
        f"print('\\nheavy:', *(name for name in {HEAVY!r} if name in sys.modules))\n"
    )
    run = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout.rsplit("heavy:", 1)[1].split()


def imported_modules(path: Path) -> Iterator[str]:
    """Yields the full name of every module that the file imports anywhere, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def lock_lines() -> list[str]:
    return (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()


def test_the_probe_sees_a_heavy_import() -> None:
    assert "tensorflow" in heavy_modules_after("import sys, types; sys.modules['tensorflow'] = types.ModuleType('t')")


@pytest.mark.parametrize(
    "code",
    [
        "import quantizer_core; quantizer_core.QuantizationConfig(); quantizer_core.GraphError; dir(quantizer_core)",
        "import quantizer_core.config, quantizer_core.errors, quantizer_core.version",
        "import runpy, sys; sys.argv = ['quantizer', '--help']; "
        "runpy.run_module('quantizer_core.cli.main', run_name='__main__')",
        "import runpy, sys; sys.argv = ['quantizer', 'convert', '--help']; "
        "runpy.run_module('quantizer_core.cli.main', run_name='__main__')",
        "import quantizer_core.lineage",
    ],
    ids=["package", "config", "help", "convert-help", "lineage"],
)
def test_costs_no_framework(code: str) -> None:
    assert heavy_modules_after(code) == []


def test_core_imports_no_tfx_and_beam_and_ml_metadata_in_one_room_each() -> None:
    homes = {"apache_beam": CORE / "beam", "ml_metadata": CORE / "lineage"}
    for path in CORE_FILES:
        tops = {name.split(".")[0] for name in imported_modules(path)}
        assert not tops & {"tfx", "tfx_bsl", "kfp", "components", "pipelines", "tests"}, path
        for package, home in homes.items():
            assert home in path.parents or package not in tops, path


def test_every_public_name_is_there() -> None:
    for name in quantizer_core.__all__:
        assert getattr(quantizer_core, name) is not None
        assert name in dir(quantizer_core)
    assert set(quantizer_core.__all__) == set(quantizer_core._HOMES)


def test_a_function_stays_one_when_its_module_is_loaded() -> None:
    import quantizer_core.prepare
    import quantizer_core.quantize

    assert callable(quantizer_core.prepare)
    assert callable(quantizer_core.quantize)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        quantizer_core.quantise  # noqa: B018


def test_lock_pins_the_fixed_points() -> None:
    pins = dict(re.findall(r"^([a-zA-Z0-9._-]+)(?:\[[^\]]*\])?==([^ ]+) \\$", "\n".join(lock_lines()), re.MULTILINE))
    assert {name: pins.get(name) for name in FIXED_POINTS} == FIXED_POINTS
    for wanted in ("click", "rich", "scikit-learn", "pytest", "hypothesis", "ruff", "mypy"):
        assert wanted in pins


def test_lock_holds_pins_and_hashes_alone() -> None:
    form = re.compile(r"#.*|[a-zA-Z0-9._\[\],-]+==[a-zA-Z0-9.+!]+ \\|    --hash=sha256:[0-9a-f]{64}(?: \\)?")
    for line in lock_lines():
        assert form.fullmatch(line), line
        assert "://" not in line and "/" not in line, line


@pytest.mark.parametrize(
    "room",
    [
        "quantizer_core",
        "quantizer_core/graph",
        "quantizer_core/rewrites",
        "quantizer_core/calibration",
        "quantizer_core/planning",
        "quantizer_core/lowering",
        "quantizer_core/evaluation",
        "quantizer_core/lineage",
        "quantizer_core/data",
        "quantizer_core/beam",
        "quantizer_core/preprocessing",
        "quantizer_core/cli",
        "components",
        "pipelines",
        "pipelines/digits",
        "pipelines/frozen_graph",
        "tests",
    ],
)
def test_room_stands_and_says_what_it_is_for(room: str) -> None:
    source = (ROOT / room / "__init__.py").read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(source)), f"{room}/__init__.py has no docstring"
