"""Runs a user's command on a graph file, without a shell, and hands on what it prints while it runs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from quantizer_core.errors import CommandError, ConfigError
from quantizer_core.onednn import onednn_environment

#: What stands for the graph in a command.
PLACEHOLDER = "{}"
#: The flags whose value stands for the graph, where a command holds no placeholder.
GRAPH_FLAGS = ("--input_graph", "--in_graph", "--input-graph", "--in-graph")
# What a shell would take for itself.
_SHELL_WORDS = frozenset({"|", "||", "&", "&&", ";", ">", ">>", "<", "2>", "2>&1", "&>"})
_CHUNK = 1 << 18
#: The pipe's capacity in bytes: the most that Linux lets any user ask for.
_PIPE_BYTES = 1 << 20
#: Seconds that a process has to end when asked to, and that a log may be silent once the command itself has ended.
_PATIENCE = 5.0


def command_words(command: str, graph: str) -> list[str]:
    """Returns the words of a command with the graph's path put in.

    ``{}`` stands for it wherever it is; without one the value of ``--input_graph``, ``--in_graph`` or the like is
    replaced; without either ``--input_graph PATH`` is appended.

    Raises:
      ConfigError: if the command is empty, has an open quotation, or words that only a shell understands.
    """
    if not isinstance(command, str):
        raise ConfigError(f"the calibration command must be a command line, one string, not {command!r}")
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"the calibration command {command!r} cannot be taken apart: {error}") from None
    if not words:
        raise ConfigError("the calibration command is empty: name a program that runs the graph on some examples")
    for word in words:
        if word in _SHELL_WORDS:
            raise ConfigError(
                f"the calibration command runs without a shell, which alone would understand {word!r}: "
                "put it into a script, or write bash -c '…'"
            )
    if any(PLACEHOLDER in word for word in words):
        return [word.replace(PLACEHOLDER, graph) for word in words]
    for index, word in enumerate(words):
        flag, equals, _ = word.partition("=")
        if flag in GRAPH_FLAGS and equals:
            words[index] = f"{flag}={graph}"
            return words
        if word in GRAPH_FLAGS:
            words[index + 1 : index + 2] = [graph]
            return words
    return [*words, GRAPH_FLAGS[0], graph]


def run_command(words: Sequence[str], on_data: Callable[[bytes], None], timeout: float | None = None) -> int:
    """Runs a command to its end; its standard output and error go to ``on_data`` as they come, to the last byte.

    It runs in a process group of its own, which is ended whole should the time run out or ``on_data`` raise an error.
    oneDNN is on in it, as in direct calibration, unless the environment says otherwise.

    Args:
      words: the program and its arguments.
      on_data: takes what was printed.
      timeout: seconds that it may take; None: any.

    Returns:
      Its exit code; that of a process that a signal ended is the signal's number, negative.

    Raises:
      CommandError: if it cannot be started or the time runs out.
    """
    environment = {"PYTHONUNBUFFERED": "1", **onednn_environment()}
    try:
        process = subprocess.Popen(
            list(words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0,
            env=environment, start_new_session=True,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        hint = f"; to set a variable write: env {shlex.join(words)}" if "=" in words[0] else ""
        raise CommandError(f"the calibration command cannot be started: {error}{hint}") from None
    try:
        with _orderly():
            _read(process, on_data, timeout)
            return process.wait()
    finally:
        _end_group(process)
        if process.stdout is not None:
            process.stdout.close()


@contextlib.contextmanager
def _orderly() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP end this process by an exception meanwhile, so that the command does not outlive it."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    signals: tuple[signal.Signals, ...] = ()
    if threading.current_thread() is threading.main_thread():
        signals = tuple(n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_DFL)
    for number in signals:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in signals:
            signal.signal(number, signal.SIG_DFL)


def _read(process: subprocess.Popen[bytes], on_data: Callable[[bytes], None], timeout: float | None) -> None:
    assert process.stdout is not None
    pipe = process.stdout.fileno()
    with contextlib.suppress(OSError):  # a write that finds room is never split
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    started = last = time.monotonic()

    def check_time() -> None:
        if timeout is not None and time.monotonic() - started >= timeout:
            raise CommandError(
                f"the calibration command took longer than {timeout:g} seconds and was ended: allow it more time, or "
                "give it fewer examples"
            )

    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            check_time()
            left = _PATIENCE if timeout is None else min(_PATIENCE, max(0.0, started + timeout - time.monotonic()))
            if selector.select(left):
                data = os.read(pipe, _CHUNK)
                if not data:
                    break
                last = time.monotonic()
                on_data(data)
            elif process.poll() is not None and time.monotonic() - last >= _PATIENCE:
                return  # something that it left running keeps the pipe open and has nothing to say
    while process.poll() is None:  # it has closed its outputs but goes on
        check_time()
        time.sleep(0.05)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends whatever is left of a command: asks first, then insists."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        if process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_PATIENCE)
    process.wait()
