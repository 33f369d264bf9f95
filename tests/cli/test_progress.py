"""Steps tell how far they are: a bar on a terminal, one plain line elsewhere, nothing when asked to be quiet."""

from __future__ import annotations

import re

import pytest

from quantizer_core.cli.progress import step


def test_a_terminal_gets_a_bar_with_what_is_done_of_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with step("Converting", unit="kernels") as seen:
        seen(3, 4)
    text = capsys.readouterr().err
    assert "━" in text and "3 of 4 kernels" in text
    assert re.fullmatch(r"Converting: 3 kernels, \d+\.\d s", text.splitlines()[-1].split("\r")[-1].split("\x1b[2K")[-1])


def test_a_known_total_is_shown_from_the_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with step("Calibrating", total=16) as seen:
        seen(5)
    assert "5 of 16 examples" in capsys.readouterr().err


def test_elsewhere_there_is_one_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    with step("Calibrating", total=16) as seen:
        seen(5)
        seen(7)
    assert re.fullmatch(r"Calibrating: 7 examples, \d+\.\d s\n", capsys.readouterr().err)


def test_quiet_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with step("Calibrating", quiet=True) as seen:
        seen(1, 2)
    assert capsys.readouterr() == ("", "")
