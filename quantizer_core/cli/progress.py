"""Tells how a long step gets on: a bar on a terminal, one plain line at its end elsewhere. All on stderr."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Protocol

import click

from quantizer_core.reads import ReadCounts


class Seen(Protocol):
    """Is told how far a step is, and how much there is of it where that is known."""

    def __call__(self, count: int, total: int | None = None) -> None: ...


@contextlib.contextmanager
def step(what: str, quiet: bool = False, unit: str = "examples", total: int | None = None) -> Iterator[Seen]:
    """Shows one step, for example ``Calibrating``, and yields the function that is told how far it is.

    Args:
      what: the step.
      quiet: show nothing.
      unit: what is counted.
      total: how many there are, at the most; None where nobody knows.
    """
    if quiet:
        yield lambda count, total=None: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    started = time.monotonic()
    counted = 0
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(), TimeRemainingColumn(compact=True),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total, count="")

        def seen(count: int, total: int | None = None) -> None:
            nonlocal counted
            counted = count
            most = total or progress.tasks[0].total
            of = f" of {most:.0f}" if most else ""
            progress.update(task, completed=count, total=most, count=f"{count}{of} {unit}")

        yield seen
    done = f"{counted} {unit}, " if counted else ""
    click.echo(f"{what}: {done}{time.monotonic() - started:.1f} s", err=True)


def warn_of_skipped(stage: str, reads: ReadCounts, quiet: bool = False) -> None:
    """Tells for each kind of fault how many examples were left out, and what is wrong with one of them."""
    for warning in () if quiet else reads.warnings(stage):
        click.echo(f"warning: {warning}", err=True)
