"""Converts a graph by the Python API of 2020: calibrated by a command, or by feeds that Python makes.

python examples/quantize_python.py --input_graph mobilenet.pb --data_location photos/ --output_graph mobilenet_int8.pb
python examples/quantize_python.py --input_graph mobilenet.pb --random_feeds 8 --algo KL
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from quantizer_core.onednn import use_onednn

use_onednn()  # before TensorFlow is imported, which GraphConverter does

from quantizer_core import GraphConverter

INFERENCE = Path(__file__).with_name("inference.py")


def random_feeds(count: int) -> Iterator[dict[str, np.ndarray]]:
    """Stands for batches of your training data, prepared as the graph takes them."""
    random = np.random.default_rng(0)
    for _ in range(count):
        yield {"input": random.uniform(-1, 1, (1, 224, 224, 3)).astype(np.float32)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input_graph", required=True)
    parser.add_argument("--output_graph")
    calibration = parser.add_mutually_exclusive_group(required=True)
    calibration.add_argument("--data_location", help="a folder of images, for examples/inference.py to run on")
    calibration.add_argument("--random_feeds", type=int, metavar="N")
    parser.add_argument("--algo", default="DIRECT")
    parser.add_argument("--debug", action="store_true", help="keep the intermediate graphs")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    converter = GraphConverter(
        arguments.input_graph,
        arguments.output_graph,
        inputs=["input"],
        outputs=["MobilenetV1/Predictions/Reshape_1"],
        per_channel=True,
        algo=arguments.algo,
    )
    if arguments.data_location:
        # {} becomes the graph that prints its ranges.
        converter.gen_calib_data_cmds = (
            f"'{sys.executable}' '{INFERENCE}' --input_graph={{}} --data_location '{arguments.data_location}'"
        )
    else:
        converter.calibration_feeds = random_feeds(arguments.random_feeds)
    converter.debug = arguments.debug
    converter.convert()


if __name__ == "__main__":
    main()
