"""The case that the runner falls back to: MobileNet V1 0.25 and 400 labelled photos of the shared data."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

from quantizer_core.config import PreprocessConfig, QuantizationConfig
from quantizer_core.errors import DataError

#: Photos, by name, that calibrate; the others evaluate.
NUM_CALIBRATION_IMAGES = 128

CONFIG = QuantizationConfig(
    inputs=("input",),
    outputs=("MobilenetV1/Predictions/Reshape_1",),
    preprocess=PreprocessConfig(
        kind="image",
        normalize="inception",
        label_key="image/class/label",
        label_offset=1,  # class 0 of its 1001 is the background
    ),
)

#: With 272 photos one accuracy is known to a few points only.
MAX_DROP = 0.03


def shared_data() -> Path:
    """Returns the folder with graphs and images: ``QUANTIZER_SHARED_DATA``, or ``../shared/data`` beside the checkout.

    Raises:
      DataError: if it is missing.
    """
    checkout = Path(__file__).resolve().parents[2]
    folder = Path(os.environ.get("QUANTIZER_SHARED_DATA") or checkout.parent / "shared" / "data")
    if not (folder / "graphs").is_dir():
        raise DataError(
            f"no shared data in {folder}; name its folder in QUANTIZER_SHARED_DATA, or give --graph and --examples"
        )
    return folder


def config(changes: str) -> QuantizationConfig:
    """Returns the choices for MobileNet with those of a JSON object in place of its own.

    Raises:
      ConfigError: if ``changes`` is no QuantizationConfig.
    """
    QuantizationConfig.from_json(changes)
    own, given = json.loads(CONFIG.to_json()), json.loads(changes.strip() or "{}")
    preprocess = {**own["preprocess"], **given.get("preprocess", {})}
    return QuantizationConfig.from_json(json.dumps({**own, **given, "preprocess": preprocess}))


def files(shared: Path, directory: str) -> dict[str, str]:
    """Writes the photos as TFRecords into ``directory``, unless they are there; returns the runner's paths."""
    from quantizer_core.data import read_examples, write_tfrecords

    folder = shared / "images" / "nips2017_dev"
    paths = [os.path.join(directory, f"{name}.tfrecord.gz") for name in ("calibration", "evaluation")]
    if not all(os.path.exists(path) for path in paths):
        photos = read_examples(str(folder / "images"), labels=f"{folder / 'images.csv'}:ImageId:TrueLabel:-1")
        write_tfrecords(itertools.islice(photos, NUM_CALIBRATION_IMAGES), paths[0], overwrite=True)
        write_tfrecords(photos, paths[1], overwrite=True)
    return {"graph": str(shared / "graphs" / "mobilenet_v1_0.25_224_frozen.pb"), "examples": directory}
