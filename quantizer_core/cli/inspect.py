"""``quantizer inspect``: what INT8 costs each layer, worst first, or a saved plan as a table."""

from __future__ import annotations

from typing import Any

import click

from quantizer_core.cli.options import folder_options, graph_options, preprocess_options, quantization_options


@click.command()
@graph_options(required=False)
@click.option(
    "--evaluation_data",
    type=click.Path(),
    metavar="PATH",
    help="Compare on these examples. [default: the calibration data]",
)
@click.option("--evaluate_rest", is_flag=True,
              help="Compare on the calibration data behind the first --num_calibration_examples.")  # fmt: skip
@click.option("--examples", type=click.IntRange(min=1), default=64, show_default=True, metavar="N",
              help="Compare on the first N examples.")  # fmt: skip
@preprocess_options
@folder_options
@quantization_options
@click.option("--top", type=click.IntRange(min=1), metavar="K", help="Show the K worst tensors. [default: all]")
@click.option(
    "--plan",
    type=click.Path(),
    metavar="FILE.json",
    help="Only print this plan, which convert --plan wrote, as a table.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables, and no progress.")
def inspect(as_json: bool, top: int | None, plan: str | None, examples: int, **options: Any) -> None:
    """Show how far every INT8 tensor lies from its FP32 value, worst first, and what stays FP32 and why.

    The graph is calibrated and converted as by convert, but nothing is written. Then both graphs run on examples. SQNR
    is the signal-to-quantization-noise ratio in dB, errors of the layers before included: 10 dB more is a tenth of the
    noise. With --plan alone nothing is run.

    \b
    quantizer inspect --input_graph mobilenet.pb --calibration_data photos/ --preprocess inception \\
        --num_calibration_examples 128 --evaluate_rest --top 10
    """
    from quantizer_core.cli.inspection import Inspection, inspect_graph, read_plan
    from quantizer_core.cli.layer_tables import as_text, facts
    from quantizer_core.errors import ConfigError

    given = [f"--{name}" for name in ("input_graph", "calibration_data", "calibration") if options[name] is not None]
    if plan is not None:
        if given:
            raise ConfigError(f"--plan is printed alone, without {', '.join(given)}")
        found = Inspection(read_plan(plan))
    elif options["input_graph"] is None:
        raise ConfigError("give --input_graph and --calibration_data (or --plan alone)")
    else:
        found = inspect_graph(options, examples, quiet=as_json)
    if as_json:
        import json

        click.echo(json.dumps(facts(found, top), indent=2, sort_keys=True))
    else:
        click.echo(as_text(found, top))
