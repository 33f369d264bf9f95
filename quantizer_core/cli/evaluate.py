"""``quantizer evaluate``: FP32 and INT8 graphs that are there already, compared on examples."""

from __future__ import annotations

from typing import Any

import click

from quantizer_core.cli.options import batch_options, folder_options, gate_options, pair_options, preprocess_options


@click.command()
@pair_options(int8_required=True)
@click.option("--evaluation_data", required=True, metavar="PATH", type=click.Path(),
              help="Folder of images or WAV files, or TFRecords of tf.Examples (file, pattern or folder).")  # fmt: skip
@click.option("--skip_examples", type=click.IntRange(min=0), default=0, metavar="N",
              help="Leave out the first N examples, those of the calibration. [default: 0]")  # fmt: skip
@click.option("--num_examples", type=click.IntRange(min=1), metavar="N",
              help="Compare on N examples at most. [default: all]")  # fmt: skip
@gate_options
@preprocess_options
@folder_options
@batch_options
@click.option("--report", metavar="FILE.json", type=click.Path(), help="Write the figures.")
@click.option("--overwrite", is_flag=True, help="Replace a report that exists.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table, and no progress.")
@click.pass_context
def evaluate(
    ctx: click.Context, as_json: bool, int8_graph: str, skip_examples: int, num_examples: int | None, metric: str,
    max_drop: float, report: str | None, overwrite: bool, **options: Any,
) -> None:  # fmt: skip
    """Compare an FP32 graph and the INT8 graph made of it on examples, and judge whether INT8 is good enough.

    The exit code is 0 if the metric falls by no more than --max_drop, 3 if by more.

    \b
    quantizer evaluate --input_graph mobilenet.pb --int8_graph mobilenet_int8.pb --evaluation_data photos/ \\
        --labels photos.csv --preprocess inception --label_offset 1 --skip_examples 128
    """
    import itertools

    from quantizer_core.cli.gate import check_comparison, check_gate, evaluated, with_label
    from quantizer_core.cli.pair import load_pair
    from quantizer_core.cli.progress import step
    from quantizer_core.cli.report import evaluation_as_text
    from quantizer_core.cli.steps import CalibrationRequest, check_output, config_of, examples_of
    from quantizer_core.runtime import check_machine
    from quantizer_core.whole_file import write_text

    check_gate(metric, max_drop)
    request = CalibrationRequest(**options)
    config = with_label(config_of(request), metric)
    if report is not None:
        check_output("--report", report, overwrite)
    check_machine()
    with step("Loading", as_json):
        pair = load_pair(request, int8_graph, config)
    path = request.evaluation_data or ""
    end = None if num_examples is None else skip_examples + num_examples
    first, examples = (
        itertools.islice(examples_of(request, path, pair.config, pair.inputs), skip_examples, end) for _ in range(2)
    )
    config = check_comparison(first, pair.config, metric, path)
    assert pair.int8 is not None
    graphs = (pair.fp32, pair.int8, pair.inputs, pair.outputs)
    result = evaluated(graphs, examples, config, metric, max_drop, as_json)
    click.echo(result.to_json().rstrip() if as_json else evaluation_as_text(result))
    if report is not None:
        write_text(report, result.to_json())
    if not result.blessed:
        ctx.exit(3)
