"""Tells how a long step gets on: a moving line on a terminal, one plain line at its end elsewhere. All on stderr."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import click

#: Seconds between two updates of the moving line.
_INTERVAL = 0.1


@contextlib.contextmanager
def step(what: str, quiet: bool = False, unit: str = "examples") -> Iterator[Callable[[int], None]]:
    """Shows one step, for example ``Calibrating``, and yields the function that is told the number of examples."""
    if quiet:
        yield lambda count: None
        return
    from rich.console import Console

    console = Console(stderr=True)
    started = shown = time.monotonic()
    total = 0

    def seen(count: int) -> None:
        nonlocal total, shown
        total = count
        now = time.monotonic()
        if status is not None and now - shown >= _INTERVAL:
            shown = now
            status.update(f"{what}: {count} {unit}")

    with contextlib.ExitStack() as stack:
        status = stack.enter_context(console.status(what)) if console.is_terminal else None
        yield seen
    counted = f"{total} {unit}, " if total else ""
    click.echo(f"{what}: {counted}{time.monotonic() - started:.1f} s", err=True)
