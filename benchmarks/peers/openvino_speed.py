"""Times a model that ``openvino_driver.py`` wrote: ``openvino_speed.py FOLDER THREADS BATCH SECONDS``.

Runs in OpenVINO's own environment, one setting a process; prints the median milliseconds of a step.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import openvino as ov


def main(folder: Path, threads: int, batch: int, seconds: float) -> None:
    case = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    images = np.resize(np.load(folder / "calibration.npy"), (batch, *case["shape"]))
    core = ov.Core()
    model = core.read_model(folder / "openvino.xml")
    model.reshape([batch, *case["shape"]])
    # One stream: the latency of a step, as TensorFlow's session gives it.
    hints = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(model, "CPU", hints)
    request = compiled.create_infer_request()
    for _ in range(3):
        request.infer([images], share_inputs=True)
    times: list[float] = []
    gc.disable()
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        request.infer([images], share_inputs=True)  # not copied, as TensorFlow does not copy them
        times.append(1e3 * (time.perf_counter() - start))
    print(statistics.median(times))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
