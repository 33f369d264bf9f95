"""Tables for people, as lines of text."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Sequence

#: Wide enough for any row: where no terminal sets the width, each row is one line.
_UNLIMITED = 10_000


def width() -> int:
    """Returns how many columns there are: the terminal's, or enough for any row where there is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else _UNLIMITED


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: int = 0) -> str:
    """Returns a table without lines; the first ``right`` columns are flush right."""
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=True, header_style="bold", box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number < right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    text = io.StringIO()
    Console(file=text, width=width(), color_system=None, markup=False, emoji=False).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())
