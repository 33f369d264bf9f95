"""``quantizer``: the group of commands, and what becomes of errors.

Exit codes: 0 done; 1 the run failed; 2 wrong use (an option, or an output that exists); 3 converted, but not blessed.
"""

from __future__ import annotations

import logging
import os
import warnings

import click

from quantizer_core.cli.benchmark import benchmark
from quantizer_core.cli.completion import completion
from quantizer_core.cli.convert import convert
from quantizer_core.cli.diff_ranges import diff_ranges
from quantizer_core.cli.docker import docker
from quantizer_core.cli.doctor import doctor
from quantizer_core.cli.evaluate import evaluate
from quantizer_core.cli.inspect import inspect
from quantizer_core.cli.lineage import lineage
from quantizer_core.cli.make_tfrecords import make_tfrecords
from quantizer_core.cli.model_zoo import model_zoo
from quantizer_core.cli.summarize_graph import summarize_graph
from quantizer_core.errors import ConfigError, QuantizerError
from quantizer_core.onednn import use_onednn
from quantizer_core.version import VERSION


class _Group(click.Group):
    """Turns the product's errors into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except QuantizerError as error:
            click.echo(f"error: {' '.join(str(error).split())}", err=True)
            ctx.exit(2 if isinstance(error, ConfigError) else 1)
        except UnicodeEncodeError as error:  # TensorFlow's file systems take names of UTF-8 alone
            if not all("\udc80" <= letter <= "\udcff" for letter in error.object[error.start : error.end]):
                raise
            click.echo(f"error: a name is no UTF-8, rename it: {os.fsencode(error.object)!r}", err=True)
            ctx.exit(2)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(VERSION, prog_name="quantizer")
def cli() -> None:
    """Turn frozen FP32 TensorFlow graphs into INT8 ones, and see what that costs."""


for command in (
    convert, model_zoo, evaluate, benchmark, inspect, summarize_graph, diff_ranges, lineage, make_tfrecords, doctor,
    docker, completion,
):  # fmt: skip
    cli.add_command(command)


def main() -> None:
    """Runs the command line. TensorFlow's own chatter is off; TF_CPP_MIN_LOG_LEVEL=0 brings it back."""
    use_onednn()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if os.environ["TF_CPP_MIN_LOG_LEVEL"] != "0":
        logging.getLogger("tensorflow").setLevel(logging.ERROR)
        warnings.simplefilter("ignore")
    cli(prog_name="quantizer")


if __name__ == "__main__":
    main()
