"""Quantises a frozen graph with OpenVINO and NNCF at their defaults, and classifies the evaluation images if any.

Runs in OpenVINO's own environment; see this folder's ``__init__.py`` for what it reads and writes.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import nncf
import numpy as np
import openvino as ov


def main(folder: Path) -> None:
    case = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    calibration = np.load(folder / "calibration.npy")
    started = time.perf_counter()
    shape = [1, *calibration.shape[1:]]
    outputs = [f"{name}:0" for name in case.get("outputs", [case["output"]])]
    # Without the port it finds neither end of a frozen graph.
    model = ov.convert_model(case["graph"], input=[(f"{case['input']}:0", shape)], output=outputs)
    dataset = nncf.Dataset([image[None] for image in calibration])
    quantized = nncf.quantize(model, dataset, subset_size=len(calibration))
    seconds = time.perf_counter() - started
    ov.save_model(quantized, folder / "openvino.xml", compress_to_fp16=False)
    if (folder / "evaluation.npy").exists():
        compiled = ov.compile_model(quantized, "CPU")
        scores = [np.reshape(compiled([image[None]])[0], -1) for image in np.load(folder / "evaluation.npy")]
        np.save(folder / "int8.npy", np.argmax(scores, 1))
    print(seconds)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
