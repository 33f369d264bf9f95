"""``quantizer completion``: what a shell has to read so that it completes the command line."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the lines that make a shell complete commands, options and their values.

    \b
    bash, in ~/.bashrc:                    eval "$(quantizer completion bash)"
    zsh, in ~/.zshrc:                      eval "$(quantizer completion zsh)"
    fish: quantizer completion fish > ~/.config/fish/completions/quantizer.fish
    """
    from quantizer_core.cli.main import cli

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "quantizer", "_QUANTIZER_COMPLETE").source())
