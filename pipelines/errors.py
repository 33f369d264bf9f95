"""How every runner ends where something given to it will not do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import click

from quantizer_core.errors import QuantizerError


@contextlib.contextmanager
def errors_told() -> Iterator[None]:
    """Ends the command with an error's message alone.

    Raises:
      click.ClickException: in place of a QuantizerError.
    """
    try:
        yield
    except QuantizerError as error:
        raise click.ClickException(str(error)) from None
