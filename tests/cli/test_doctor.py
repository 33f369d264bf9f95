"""``quantizer doctor``: facts about the machine, every kernel tried, and an exit code that says whether all is well."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from quantizer_core.cli.doctor import as_text
from quantizer_core.cli.main import cli
from quantizer_core.lowering import conformance
from quantizer_core.lowering.conformance import CheckResult
from quantizer_core.onednn import SWITCH
from quantizer_core.runtime import has_vnni


def test_a_machine_that_runs_int8():
    result = CliRunner().invoke(cli, ["doctor", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["healthy"] and found["onednn"] and found["weight_bits"] == (8 if has_vnni() else 7)
    assert found["tensorflow"] == found["packages"]["tensorflow"] and found["cpu"]
    assert len(found["checks"]) >= 12 and all(check["error"] <= check["bound"] for check in found["checks"])
    text = as_text(found)
    assert "INT8 graphs run right here" in text and "_FusedQuantizedConv2D" in text and "error in codes" in text


def test_a_kernel_that_is_wrong_is_named(monkeypatch):
    monkeypatch.setattr(
        conformance, "quick_check", lambda: (CheckResult("good", 0.5, 0.502), CheckResult("Bad|conv", 9.0, 0.502),
                                             CheckResult("Broken", float("inf"), 0.502, "no such op"))
    )  # fmt: skip
    text = CliRunner().invoke(cli, ["doctor"])
    assert text.exit_code == 1
    assert "NOT READY: 2 of 3 kernels are wrong here: Bad|conv, Broken" in text.stdout
    assert "9.000" in text.stdout and "no such op" in text.stdout
    assert json.loads(CliRunner().invoke(cli, ["doctor", "--json"]).stdout)["checks"][2]["error"] is None


@pytest.mark.parametrize(
    ("setting", "code", "words"),
    [({"TF_ENABLE_ONEDNN_OPTS": "0"}, 1, "oneDNN is switched off"), ({"ONEDNN_MAX_CPU_ISA": "AVX2"}, 0, "7 to 8 bits")],
)
def test_settings_of_the_environment(setting, code, words):
    done = subprocess.run(
        [sys.executable, "-m", "quantizer_core.cli.main", "doctor"], env={**os.environ, **setting},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert words in done.stdout


def test_whether_others_have_to_ask_for_onednn_is_told():
    environment = {name: value for name, value in os.environ.items() if name != SWITCH}
    words = {None: f"({SWITCH} unset; this program asks for it, others have to)", "1": f"on ({SWITCH} 1)"}
    for given, said in words.items():
        setting = {} if given is None else {SWITCH: given}
        done = subprocess.run(
            [sys.executable, "-m", "quantizer_core.cli.main", "doctor"], env={**environment, **setting},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0 and said in done.stdout, done.stdout
