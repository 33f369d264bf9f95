"""Running a user's command: its words, its output to the last byte, its end by itself or by the clock."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quantizer_core.calibration.command import command_words, run_command
from quantizer_core.errors import CommandError, ConfigError


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("python a.py", ["python", "a.py", "--input_graph", "G.pb"]),
        ("python a.py {} --again={}", ["python", "a.py", "G.pb", "--again=G.pb"]),
        ("python a.py --input_graph old.pb -n 3", ["python", "a.py", "--input_graph", "G.pb", "-n", "3"]),
        ("python a.py --in-graph=old.pb", ["python", "a.py", "--in-graph=G.pb"]),
        ("python a.py --input_graph={} --in_graph x", ["python", "a.py", "--input_graph=G.pb", "--in_graph", "x"]),
        ("python a.py --input_graph", ["python", "a.py", "--input_graph", "G.pb"]),
        ("'my tool' \"two words\" --in_graph x", ["my tool", "two words", "--in_graph", "G.pb"]),
    ],
)
def test_the_graph_takes_its_place(command: str, words: list[str]) -> None:
    assert command_words(command, "G.pb") == words


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "is empty"),
        ("python 'a.py", "cannot be taken apart"),
        ("python a.py {} 2>&1 | tee log", "without a shell, .* '2>&1'"),
        ("cd x && python a.py {}", "'&&'"),
    ],
)
def test_what_is_no_command_is_wrong_use(command: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        command_words(command, "G.pb")


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def collected(words: list[str], timeout: float | None = 60) -> tuple[int, bytes]:
    parts: list[bytes] = []
    code = run_command(words, parts.append, timeout)
    return code, b"".join(parts)


def test_both_outputs_are_read_to_the_end() -> None:
    code, data = collected(python("import sys; sys.stderr.write('e' * 5_000_000); print('o' * 5_000_000); sys.exit(3)"))
    assert code == 3 and data == b"e" * 5_000_000 + b"o" * 5_000_000 + b"\n"


def test_output_comes_while_the_command_runs() -> None:
    seen: list[tuple[float, bytes]] = []
    run_command(python("import time; print(1); time.sleep(1); print(2)"), lambda b: seen.append((time.monotonic(), b)))
    assert b"".join(data for _, data in seen) == b"1\n2\n"  # in as many parts as Python writes
    assert seen[-1][0] - seen[0][0] > 0.5


def test_onednn_is_on_unless_the_environment_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os; print(os.environ['TF_ENABLE_ONEDNN_OPTS'])"
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    assert collected(python(code)) == (0, b"1\n")
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    assert collected(python(code)) == (0, b"0\n")


def test_no_shell_looks_at_the_words(tmp_path: Path) -> None:
    _, data = collected([*python("import sys; print(sys.argv[1])"), f"$HOME `touch {tmp_path}/made`"])
    assert data.startswith(b"$HOME `touch") and not list(tmp_path.iterdir())


def test_a_signal_shows_in_the_exit_code() -> None:
    assert collected(python("import os; os.kill(os.getpid(), 9)"))[0] == -9


GRANDCHILD = (
    "import signal, subprocess, sys, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "print(child.pid, flush=True)\n"
)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(process: int) -> bool:
    for _ in range(100):
        if not alive(process):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("code", ["time.sleep(600)", "import os; os.close(1); os.close(2); time.sleep(600)"])
def test_the_whole_group_ends_when_time_runs_out(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantizer_core.calibration.command._PATIENCE", 0.5)
    parts: list[bytes] = []
    started = time.monotonic()
    with pytest.raises(CommandError, match="longer than 1.5 seconds"):
        run_command(python(GRANDCHILD + code), parts.append, 1.5)
    assert time.monotonic() - started < 10
    assert gone(int(parts[0]))


def test_an_error_of_the_reader_ends_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantizer_core.calibration.command._PATIENCE", 0.5)
    pids: list[int] = []

    def refuse(data: bytes) -> None:
        pids.append(int(data))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_command(python(GRANDCHILD + "time.sleep(600)"), refuse)
    assert gone(pids[0])


def test_what_a_command_leaves_running_does_not_hold_it_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantizer_core.calibration.command._PATIENCE", 0.5)
    code, data = collected(python(GRANDCHILD))
    assert code == 0 and gone(int(data))


def test_a_program_that_is_not_there_is_told() -> None:
    with pytest.raises(CommandError, match="cannot be started: .*no-such-program"):
        run_command(["no-such-program"], lambda data: None)
    with pytest.raises(CommandError, match="write: env A=1 python"):
        run_command(shlex.split("A=1 python"), lambda data: None)


def test_files_of_this_process_stay_closed() -> None:
    reading, writing = os.pipe()
    try:
        assert (
            collected(python(f"import os\ntry:\n os.fstat({writing})\nexcept OSError: print('closed')"))[1]
            == b"closed\n"
        )
    finally:
        os.close(reading)
        os.close(writing)


def test_a_list_is_no_command() -> None:
    with pytest.raises(ConfigError, match=r"must be a command line, one string, not \['python'"):
        command_words(["python", "a.py"], "G.pb")  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_does_not_outlive_who_started_it(tmp_path: Path, number: signal.Signals) -> None:
    child = f"import os, time; open({str(tmp_path / 'child')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = f"from quantizer_core.calibration.command import run_command; run_command({python(child)!r}, print)"
    with subprocess.Popen(python(code), stderr=subprocess.DEVNULL) as parent:
        end = time.monotonic() + 60
        while not (tmp_path / "child").exists() or not (tmp_path / "child").read_text():
            assert time.monotonic() < end and parent.poll() is None
            time.sleep(0.05)
        parent.send_signal(number)
        assert parent.wait(30) == 128 + number
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "child").read_text()), 0)
