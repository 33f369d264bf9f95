"""Option types and groups of options that several commands share."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

from quantizer_core.config import (
    CALIBRATION_METHODS,
    NORMALIZATIONS,
    REDUCE_RANGE,
    RESIZES,
    ROUNDINGS,
    WEIGHT_CLIPPING,
    PreprocessConfig,
    QuantizationConfig,
)
from quantizer_core.errors import ConfigError, nearest

_Function = TypeVar("_Function", bound=Callable[..., Any])

#: The feature that holds the class in examples made from folders, as in most TFRecords of images.
LABEL_KEY = "image/class/label"
IMAGE_KEY = "image/encoded"


class CommaList(click.ParamType):
    """``a,b,c`` as a tuple of names."""

    name = "NAME,NAME…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        return tuple(part.strip() for part in value.split(",") if part.strip())


class IntegerList(click.ParamType):
    """``1,2,4`` as a tuple of positive integers."""

    name = "N,N…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        numbers = _integers(value)
        if not numbers or min(numbers) <= 0:
            self.fail(f"{value!r} is no list of positive numbers like 1,2,4", param, ctx)
        return numbers


class Shape(click.ParamType):
    """``NAME=A,B,C`` as a name and a tuple of positive integers; nothing behind the = is a scalar."""

    name = "INPUT=A,B,C"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[int, ...]]:
        if isinstance(value, tuple):
            return value
        name, equals, sizes = value.partition("=")
        numbers = _integers(sizes) if sizes else ()
        if not name or not equals or numbers is None or min(numbers, default=1) <= 0:
            self.fail(f"{value!r} is not like image=224,224,3", param, ctx)
        return name, numbers


def _integers(text: str) -> tuple[int, ...] | None:
    """Returns the numbers between commas, or None if something else is there."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        return None


class ImageSize(click.ParamType):
    """``H,W`` (or one number for both) as a pair of integers."""

    name = "H,W"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        numbers = _integers(value) or ()
        if len(numbers) not in (1, 2) or min(numbers) <= 0:
            self.fail(f"{value!r} is neither H,W nor one number", param, ctx)
        return numbers * 2 if len(numbers) == 1 else numbers


def _apply(options: list[Callable], function: _Function) -> _Function:
    for option in reversed(options):
        function = option(function)
    return function


def _ends() -> list[Callable]:
    """Options on where a graph begins and ends."""
    return [
        click.option("--inputs", type=CommaList(), help="Input nodes. [default: all placeholders]"),
        click.option("--outputs", type=CommaList(), help="Output nodes. [default: the nodes that no other reads]"),
        click.option("--signature", help="A SavedModel's signature. [default: serving_default]"),
    ]


def graph_options(required: bool = True) -> Callable[[_Function], _Function]:
    """Options on the graph to convert, ``required`` or not, and on what to calibrate it with."""
    options = [
        click.option(
            "--input_graph",
            required=required,
            type=click.Path(),
            metavar="PATH",
            help="Frozen GraphDef (.pb, .pbtxt) or SavedModel.",
        ),
        *_ends(),
        click.option(
            "--calibration_data",
            type=click.Path(),
            metavar="PATH",
            help="Folder of images or WAV files, or TFRecords of tf.Examples (file, pattern or folder).",
        ),
        click.option(
            "--num_calibration_examples",
            type=click.IntRange(min=1),
            metavar="N",
            help="Calibrate on the first N examples, of each sub-folder one in turn. [default: all]",
        ),
        click.option(
            "--calibration",
            type=click.Path(),
            metavar="FILE",
            help="Take what an earlier run saw in place of --calibration_data, for another --method, exclusion or "
            "rounding without another pass over the data: of convert --save_calibration, or a CalibrationRanges.",
        ),
    ]
    return lambda function: _apply(options, function)


def gate_options(function: _Function) -> _Function:
    """Options on when INT8 is good enough."""
    options = [
        click.option(
            "--metric",
            default="top1",
            show_default=True,
            help="top1, top5 (need labels), agreement or similarity (need none); of detectors coco_map (needs "
            "objects) or boxes (share of FP32's boxes that INT8 finds).",
        ),
        click.option(
            "--max_drop", type=float, default=0.01, show_default=True, help="Largest loss of the metric accepted."
        ),
    ]
    return _apply(options, function)


def pair_options(int8_required: bool) -> Callable[[_Function], _Function]:
    """Options on an FP32 graph and the INT8 graph made of it, ``int8_required`` or not."""
    options = [
        click.option(
            "--input_graph",
            required=True,
            type=click.Path(),
            metavar="PATH",
            help="The FP32 graph (.pb, .pbtxt, SavedModel).",
        ),
        click.option(
            "--int8_graph",
            required=int8_required,
            type=click.Path(),
            metavar="PATH",
            help="The INT8 graph (.pb, .pbtxt).",
        ),
        *_ends(),
    ]
    return lambda function: _apply(options, function)


def quantization_options(function: _Function) -> _Function:
    """Options on what becomes INT8 and how; see ``QuantizationConfig``."""
    options = [
        click.option("--excluded_ops", type=CommaList(), help="Operation types that stay FP32."),
        click.option("--excluded_nodes", type=CommaList(), help="Nodes that stay FP32."),
        click.option("--per_channel", type=bool, help="One weight scale for each output channel. [default: true]"),
        click.option(
            "--method", type=click.Choice(CALIBRATION_METHODS), help="How values become a range. [default: mse]"
        ),
        click.option(
            "--percentile", type=float, help="For --method percentile: share of the values kept. [default: 99.99]"
        ),
        click.option(
            "--reduce_range",
            type=click.Choice(REDUCE_RANGE),
            help="Weights of 7 to 8 bits, exact on CPUs without VNNI too. [default: auto]",
        ),
        click.option(
            "--weight_clipping", type=click.Choice(WEIGHT_CLIPPING), help="Clip outlying weights. [default: none]"
        ),
        click.option(
            "--equalization", type=bool, help="Scale channels so that small ones use more codes. [default: true]"
        ),
        click.option(
            "--fine_inputs", type=bool, help="Two codes for inputs that 8 bits cannot hold well. [default: true]"
        ),
        click.option(
            "--mixed_precision",
            type=bool,
            help="Leave the first layers of a classifier FP32 where their rounding costs most. [default: true]",
        ),
        click.option("--only_faster", type=bool, help="Leave FP32 what INT8 would make slower. [default: true]"),
        click.option(
            "--serving_batch_size", type=int, help="Examples a step that only_faster judges for. [default: 1]"
        ),
        click.option("--bias_correction", type=bool, help="Shift biases by the mean rounding error. [default: true]"),
        click.option(
            "--rounding",
            type=click.Choice(ROUNDINGS),
            help="Round each weight with regard to the others, or by itself. [default: second_order]",
        ),
        click.option(
            "--refine_examples",
            type=click.IntRange(min=0),
            metavar="N",
            help="Choose weights and biases on N calibration examples; 0: without. [default: 32]",
        ),
    ]
    return _apply(options, batch_options(function))


def batch_options(function: _Function) -> _Function:
    """Options on the size of a step and the examples that may be left out, and the file with all choices."""
    options = [
        click.option("--batch_size", type=int, help="Examples a step. [default: 16, or what the graph fixes]"),
        click.option(
            "--max_batch_bytes", type=int, help="Fewer, where a step would take more memory. [default: 1 GiB]"
        ),
        click.option(
            "--max_bad_fraction",
            type=float,
            help="Largest share of examples that may be left out as they cannot be read. [default: 0.01]",
        ),
        click.option(
            "--config",
            type=click.Path(),
            metavar="FILE.json",
            help="A QuantizationConfig; options given here go before it.",
        ),
    ]
    return _apply(options, function)


def debug_option(function: _Function) -> _Function:
    """The option to keep the intermediate graphs; ``--debug`` alone means true, as in 2020."""
    return click.option(
        "--debug",
        type=bool,
        is_flag=False,
        flag_value="true",
        default=False,
        metavar="[BOOLEAN]",
        help="Keep the intermediate graphs beside the INT8 one.",
    )(function)


def callback_options(function: _Function) -> _Function:
    """Options on calibration by a command of the user's."""
    options = [
        click.option(
            "--callback",
            metavar="COMMAND",
            help="Calibrate by a command that runs the graph on examples of its own, in place of --calibration_data. "
            "{} in it, or the value of its --input_graph or --in-graph, becomes a graph that prints its ranges. It "
            "runs without a shell.",
        ),
        click.option(
            "--callback_timeout",
            type=click.FloatRange(min=0, min_open=True),
            metavar="SECONDS",
            help="How long the command may take. [default: any time]",
        ),
        debug_option,
    ]
    return _apply(options, function)


def folder_options(function: _Function) -> _Function:
    """Options on how a folder of files becomes examples."""
    options = [
        click.option(
            "--labels",
            metavar="FILE.csv[:NAME[:LABEL[:OFFSET]]]",
            help="Labels for a folder of files: a CSV file, its column of file names (default: the first), its column "
            "of classes (default: the second) and a number added to each class. Without it the sub-folders are the "
            "classes, if there are several.",
        ),
        click.option(
            "--classes",
            type=CommaList(),
            help="The sub-folders in the order of the class index. [default: alphabetical]",
        ),
        click.option("--image_key", help=f"The feature with the image's bytes. [default: {IMAGE_KEY}]"),
        click.option("--label_key", help=f"The integer feature with the class. [default: {LABEL_KEY}]"),
    ]
    return _apply(options, function)


def preprocess_options(function: _Function) -> _Function:
    """Options on how an example becomes the graph's inputs; see ``preprocess_config``."""
    options = [
        click.option(
            "--preprocess",
            metavar="KIND",
            help="Images: none (0…255), unit (0…1), inception (-1…1), torch or caffe (ImageNet's mean). Other data: "
            "tensors (each input from the feature of its name), a FILE.py with FEATURES and preprocess(features), "
            "or a PreprocessConfig as JSON. [default: tensors]",
        ),
        click.option("--image_size", type=ImageSize(), help="Size of the image. [default: that of the graph's input]"),
        click.option("--resize", type=click.Choice(RESIZES), help="How an image comes to its size. [default: stretch]"),
        click.option("--bgr", is_flag=True, default=None, help="Swap the image's channels to BGR."),
        click.option(
            "--label_offset", type=int, help="Added to the class; 1 for models that count from 1. [default: 0]"
        ),
    ]
    return _apply(options, function)


def preprocess_config(base: PreprocessConfig, preprocess: str | None, **changes: Any) -> PreprocessConfig:
    """Returns ``base`` with the shell's options applied.

    Args:
      base: from the config file, or the default.
      preprocess: a normalisation (which means images), ``tensors``, a path that ends in ``.py``, or JSON; None keeps
        the base's.
      changes: fields of PreprocessConfig; None keeps what is there.

    Raises:
      ConfigError: for an unknown kind (the nearest is named), broken JSON or a value that does not fit.
    """
    fields: dict[str, Any] = {}
    if preprocess is None:
        pass
    elif preprocess.lstrip().startswith("{"):
        base = _from_json(preprocess)
    elif preprocess.endswith(".py"):
        fields = {"kind": "module", "module_file": preprocess}
    elif preprocess == "tensors":
        fields = {"kind": "tensors", "module_file": ""}
    elif preprocess in NORMALIZATIONS:
        fields = {"kind": "image", "normalize": preprocess, "module_file": ""}
    else:
        known = (*NORMALIZATIONS, "tensors")
        raise ConfigError(
            f"--preprocess is {preprocess!r}{nearest(preprocess, known)}; "
            f"choose one of {', '.join(known)}, a .py file or a JSON object"
        )
    fields |= {name: value for name, value in changes.items() if value is not None}
    return dataclasses.replace(base, **fields)


def _from_json(text: str) -> PreprocessConfig:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"--preprocess is no valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"--preprocess must be a JSON object, not {text!r}")
    return QuantizationConfig(preprocess=values).preprocess  # type: ignore[arg-type]
