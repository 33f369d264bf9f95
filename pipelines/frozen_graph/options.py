"""The command-line options that the frozen graph pipeline has under every runner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from quantizer_core.config import QuantizationConfig


def pipeline_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds them; ``pipeline_arguments`` turns their values into arguments of ``create_pipeline``."""
    options = [
        click.option("--graph", default="", help="The frozen FP32 graph (.pb)."),
        click.option("--examples", default="", help="Directory with TFRecord files of tf.Examples."),
        click.option("--calibration", default="calibration*", show_default=True, help="Files in it to calibrate on."),
        click.option("--evaluation", default="evaluation*", show_default=True, help="Files in it to evaluate on."),
        click.option(
            "--config", default="{}", show_default=True, help="The QuantizationConfig as JSON, or @FILE with it."
        ),
        click.option("--calibration_examples", default=0, help="How many examples to calibrate on; 0: all."),
        click.option("--evaluation_examples", default=0, help="How many examples to evaluate on; 0: all."),
        click.option(
            "--metric", default="top1", show_default=True, help="top1, top5; agreement, similarity (no labels)."
        ),
        click.option("--max_drop", default=0.01, show_default=True, help="Largest loss of the metric that is blessed."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def pipeline_arguments(
    graph: str,
    examples: str,
    config: str = "{}",
    calibration: str = "calibration*",
    evaluation: str = "evaluation*",
    calibration_examples: int = 0,
    evaluation_examples: int = 0,
    metric: str = "top1",
    max_drop: float = 0.01,
) -> dict[str, Any]:
    """Returns the arguments of ``create_pipeline`` for values of the options.

    Raises:
      ConfigError: if ``config`` is no QuantizationConfig.
      click.UsageError: if the file that ``config`` names cannot be read.
    """
    return {
        "graph_path": graph,
        "examples_root": examples,
        "quantization_config": QuantizationConfig.from_json(text_of(config)),
        "calibration_pattern": calibration,
        "evaluation_pattern": evaluation,
        "num_calibration_examples": calibration_examples,
        "num_evaluation_examples": evaluation_examples,
        "metric": metric,
        "max_drop": max_drop,
    }


def text_of(option: str) -> str:
    """Returns a ``--config``, read from the file that it names with ``@FILE``.

    Raises:
      click.UsageError: if the file cannot be read.
    """
    if not option.startswith("@"):
        return option
    try:
        with open(option[1:], encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        raise click.UsageError(f"--config {option}: {error.strerror}") from None
