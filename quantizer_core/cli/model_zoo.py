"""``quantizer model-zoo``: converts a model of the Model Zoo by what its registry entry says."""

from __future__ import annotations

import shlex
import sys
from typing import Any

import click

from quantizer_core.cli.options import debug_option, folder_options

#: Examples to calibrate on where no number is given.
EXAMPLES = 100
#: Options of ``convert`` → what they are called here.
_NAMES = {
    "input_graph": "in_graph",
    "output_graph": "out_graph",
    "calibration_data": "data_location",
    "evaluate_rest": "evaluate",
}


@click.command(name="model-zoo")
@click.option("--model", metavar="NAME", help="A model of the registry; see --list.")
@click.option("--in_graph", type=click.Path(), metavar="FILE", help="The frozen FP32 graph.")
@click.option(
    "--out_graph",
    type=click.Path(),
    metavar="FILE",
    help="The INT8 graph to write. [default: in_graph's name with _int8]",
)
@click.option("--data_location", type=click.Path(), metavar="PATH",
              help="Folder of images, or TFRecords of ImageNet or COCO (file, pattern or folder).")  # fmt: skip
@click.option("--models_zoo_location", type=click.Path(), metavar="DIR",
              help="A checkout of the Model Zoo: calibrate by its script, on --data_location.")  # fmt: skip
@click.option("--models_source_dir", type=click.Path(), metavar="DIR",
              help="The model's sources, where the zoo's script wants them.")  # fmt: skip
@click.option("--num_calibration_examples", type=click.IntRange(min=1), metavar="N",
              help="Calibrate on the first N examples. [default: 100]")  # fmt: skip
@click.option("--evaluate", is_flag=True, help="Compare FP32 and INT8 on the examples behind them.")
@click.option(
    "--evaluation_data", type=click.Path(), metavar="PATH", help="Compare FP32 and INT8 on these examples instead."
)
@click.option("--metric", help="[default: the model's: top1, or coco_map for detectors]")
@click.option("--max_drop", type=float, default=0.01, show_default=True, help="Largest loss of the metric accepted.")
@click.option("--image_size", type=int, help="Height and width of the images, where the graph takes any.")
@click.option(
    "--label_offset",
    type=int,
    help="Added to the class. [default: the model's, for classes from 1 in TFRecords and --labels, from 0 in folders]",
)
@folder_options
@debug_option
@click.option("--only_faster", type=bool, help="Leave FP32 what INT8 would make slower. [default: true]")
@click.option(
    "--registry", type=click.Path(), metavar="FILE.json", help="Another registry. [default: the nine models of 2020]"
)
@click.option(
    "--plan", type=click.Path(), metavar="FILE.json", help="Write which nodes run in INT8, and why others do not."
)
@click.option("--report", type=click.Path(), metavar="FILE.json", help="Write the figures of the evaluation.")
@click.option("--overwrite", is_flag=True, help="Replace outputs that exist.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table, and no progress.")
@click.option("--list", "list_models", is_flag=True, help="List the models of the registry and exit.")
@click.pass_context
def model_zoo(ctx: click.Context, as_json: bool, list_models: bool, **options: Any) -> None:
    """Convert a model of the Model Zoo to INT8: its inputs, outputs, exclusions, preprocessing and metric are known.

    What the entry does not exclude becomes INT8. No checkout of the zoo is needed; with --models_zoo_location the zoo's
    own script runs the graph, as in 2020.

    \b
    quantizer model-zoo --model resnet50 --in_graph resnet50.pb --out_graph resnet50_int8.pb \\
        --data_location imagenet_tfrecords/ --evaluate
    """
    if list_models:
        _list(options["registry"])
        return
    for option in ctx.command.params:
        if option.name in ("model", "in_graph", "data_location") and options[option.name] is None:
            raise click.MissingParameter(ctx=ctx, param=option)
    from quantizer_core.cli.conversion import run
    from quantizer_core.cli.report import tell

    tell(ctx, run(request_of(**options), quiet=as_json), as_json)


def request_of(
    *,
    model: str,
    in_graph: str,
    out_graph: str | None,
    data_location: str,
    models_zoo_location: str | None,
    models_source_dir: str | None,
    num_calibration_examples: int | None,
    evaluate: bool,
    metric: str | None,
    image_size: int | None,
    registry: str | None,
    **options: Any,
) -> Any:
    """Returns the ``Request`` to convert a model as its registry entry and the options say.

    Raises:
      ConfigError: if the registry has no such model or does not fit its schema, the model has no metric to evaluate
        by, or options do not go together.
    """
    from quantizer_core.cli.conversion import Request
    from quantizer_core.data.folders import is_folder_of_files
    from quantizer_core.errors import ConfigError
    from quantizer_core.graph.names import path_beside
    from quantizer_core.zoo import zoo_model
    from quantizer_core.zoo.registry import MODELS

    entry = zoo_model(model, registry or MODELS)
    metric = metric or entry.metric
    if not metric and (evaluate or options["evaluation_data"] is not None):
        raise ConfigError(f"model {model!r} has no metric in the registry: give --metric")
    size: dict[str, Any] = {}
    if image_size is not None:
        size = {"image_size": (image_size, image_size)}
        if entry.config.preprocess.resize == "none":
            size["resize"] = "stretch"
    if models_zoo_location is None:
        if models_source_dir is not None:
            raise ConfigError("--models_source_dir goes with --models_zoo_location")
        count = num_calibration_examples or EXAMPLES
        source: dict[str, Any] = {"calibration_data": data_location, "num_calibration_examples": count}
    else:
        for option, given in (("evaluate", evaluate), ("num_calibration_examples", num_calibration_examples)):
            if given:
                raise ConfigError(
                    f"--{option} does not go with --models_zoo_location, whose script has its own examples"
                )
        launch = entry.launch_command(models_zoo_location, data_location, models_source_dir, sys.executable)
        source = {"callback": shlex.join(launch)}
    labelled = options["evaluation_data"] or data_location
    if options["label_offset"] is None and options["labels"] is None and is_folder_of_files(labelled):
        # The entry counts on ImageNet's TFRecords, whose classes are numbered from 1; sub-folders are from 0.
        options["label_offset"] = entry.config.preprocess.label_offset + 1
    return Request(
        input_graph=in_graph,
        output_graph=out_graph or path_beside(in_graph, "int8"),
        evaluate_rest=evaluate,
        metric=metric or "similarity",
        mixed_precision=False,  # the entry says what stays FP32
        base=entry.config,
        option_names=_NAMES,
        **source,
        **size,
        **options,
    )


def _list(registry: str | None) -> None:
    from quantizer_core.zoo import load_models
    from quantizer_core.zoo.registry import MODELS

    for name, model in load_models(registry or MODELS).items():
        nodes = f"{', '.join(model.config.inputs)} -> {', '.join(model.config.outputs)}"
        click.echo(f"{name}: {nodes} ({model.metric or 'no metric'})")
