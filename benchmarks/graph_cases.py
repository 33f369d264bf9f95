"""Every graph of the shared data: what feeds it, what it is judged by, and the bar that INT8 has to reach."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.accuracy_cases import CASES, LABEL_KEY, MOST_VIEWS, shuffled, views_of
from benchmarks.common import shared_data

if TYPE_CHECKING:
    from quantizer_core.config import PreprocessConfig

PREPROCESS = Path(__file__).resolve().parent / "preprocess"
KEYWORDS = ("_silence_", "_unknown_", "yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
#: A person is in an image if one covers more than this share of it; images with smaller ones are left out.
PERSON_AREA = 0.005
PERSON = 1  # COCO's category

Outputs = Sequence[Sequence[np.ndarray]]  # of each example, each output
Judge = Callable[[Outputs, Outputs, Sequence[int], Sequence["int | None"]], "Figures"]


@dataclasses.dataclass(frozen=True)
class Figures:
    """What INT8 gives, beside FP32.

    Attributes:
      metric: its name, and unit if it has one.
      fp32, int8: the metric; ``fp32`` is NaN where INT8 is measured against it.
      passed: whether the bar is reached.
      bar: the bar in words.
      more: further figures in words.
    """

    metric: str
    fp32: float
    int8: float
    passed: bool
    bar: str
    more: str = ""


@dataclasses.dataclass(frozen=True)
class GraphCase:
    """One graph with the data it is measured on.

    Attributes:
      title: for tables.
      file: below ``graphs/`` of the shared data.
      outputs: names of output nodes; () for all.
      preprocess: makes the preprocessing.
      examples: makes the examples, in an order that any part of them may calibrate.
      judge: from the outputs of FP32 and INT8 on each evaluated example, its number among ``examples`` and its label.
      calibrate: how many examples calibrate.
      folds: parts of the examples, each evaluated by a conversion that was calibrated on others.
      views: how often each evaluated image is looked at (see ``views_of``).
      most: how many examples are evaluated of each part.
    """

    title: str
    file: str
    outputs: tuple[str, ...]
    preprocess: Callable[[], PreprocessConfig]
    examples: Callable[[], list[bytes]]
    judge: Judge
    calibrate: int = 128
    folds: int = 1
    views: int = 1
    most: int | None = None

    def parts(self) -> list[tuple[list[bytes], list[bytes], list[int]]]:
        """Returns for each fold the examples to calibrate with, those to evaluate, and the numbers of these."""
        found = self.examples()
        order = list(range(len(found)))
        if self.folds > 1:
            order = shuffled(order)
        result = []
        for fold in range(self.folds):
            numbers = order[fold :: self.folds] if self.folds > 1 else order[self.calibrate :]
            evaluated = set(numbers)
            others = [found[number] for number in order if number not in evaluated]
            thin = max(len(others) // self.calibrate, 1)
            numbers = numbers[: self.most]
            evaluation = [found[number] for number in numbers]
            if self.views > 1:
                evaluation = views_of(evaluation, self.views)
                numbers = [number for number in numbers for _ in range(self.views)]
            result.append((others[::thin][: self.calibrate], evaluation, numbers))
        return result


# --- data ---------------------------------------------------------------------------------------------------------


def _config(**fields: Any) -> Callable[[], PreprocessConfig]:
    def make() -> PreprocessConfig:
        from quantizer_core.config import PreprocessConfig

        return PreprocessConfig(**fields)

    return make


def _module(name: str) -> Callable[[], PreprocessConfig]:
    return _config(kind="module", module_file=str(PREPROCESS / f"{name}.py"))


def _coco_examples() -> list[bytes]:
    from quantizer_core.data import read_examples

    return list(read_examples(shared_data() / "images" / "coco128"))


def _recordings() -> list[bytes]:
    from quantizer_core.data import read_examples

    folder = shared_data() / "audio_speech_commands"
    return list(
        read_examples(folder, classes=KEYWORDS, image_key="wav_data", label_key=LABEL_KEY, extensions=(".wav",))
    )


def _annotations() -> dict[str, Any]:
    with open(shared_data() / "images" / "coco128" / "instances.json", encoding="utf-8") as file:
        return dict(json.load(file))


def _person_or_not() -> list[bytes]:
    import tensorflow as tf

    known = _annotations()
    examples = []
    for image in known["images"]:
        areas = [each["area"] for each in known["annotations"]
                 if (each["image_id"], each["category_id"]) == (image["id"], PERSON)]  # fmt: skip
        share = max(areas, default=0) / image["height"] / image["width"]
        if 0 < share <= PERSON_AREA:
            continue
        content = (shared_data() / "images" / "coco128" / image["file_name"]).read_bytes()
        features = {
            "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[content])),
            LABEL_KEY: tf.train.Feature(int64_list=tf.train.Int64List(value=[int(share > 0)])),
        }
        examples.append(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    return examples


# --- judges -------------------------------------------------------------------------------------------------------


def _classes(drop: float, agreement: float) -> Judge:
    """Judges by top-1 accuracy: the points that it may fall, and the agreement that suffices otherwise.

    Without VNNI weights have 7 bits: twice the loss is allowed.
    """

    def judge(fp32: Outputs, int8: Outputs, numbers: Sequence[int], labels: Sequence[int | None]) -> Figures:
        from quantizer_core.runtime import has_vnni

        times = 1 if has_vnni() else 2
        most, least = times * drop, 100 - times * (100 - agreement)
        right = np.array(labels)
        ours, theirs = (np.array([np.argmax(outputs[0]) for outputs in found]) for found in (int8, fp32))
        accuracy, exact, same = (
            float((ours == right).mean()),
            float((theirs == right).mean()),
            float((ours == theirs).mean()),
        )
        return Figures(
            "top-1 %", 100 * exact, 100 * accuracy, 100 * (exact - accuracy) <= most + 1e-9 and 100 * same >= least,
            f"{most:g} points, agreement {least:g} %", f"agreement {100 * same:.1f} %",
        )  # fmt: skip

    return judge


def _signal_to_noise(fp32: Outputs, int8: Outputs, numbers: Sequence[int], labels: Sequence[int | None]) -> Figures:
    """The peak signal-to-noise ratio of INT8's image to FP32's, 10·log10(1 / mean square), mean over the images."""
    ratios = [
        -10 * np.log10(np.mean(np.square(b[0] - a[0], dtype=np.float64))) for a, b in zip(fp32, int8, strict=True)
    ]
    mean = float(np.mean(ratios))
    return Figures("PSNR to FP32, dB", float("nan"), mean, mean >= 35, "35 dB", f"worst image {min(ratios):.1f} dB")


def _detections(fp32: Outputs, int8: Outputs, numbers: Sequence[int], labels: Sequence[int | None]) -> Figures:
    """COCO's mean average precision of YOLOX's boxes."""
    from benchmarks import yolox
    from quantizer_core.evaluation.detection import average_precision

    truth = yolox.truth(_annotations(), numbers)
    exact, ours = (
        average_precision(truth, [yolox.boxes(each.image, out[0]) for each, out in zip(truth, found, strict=True)])
        for found in (fp32, int8)
    )
    error = np.mean([np.linalg.norm(b[0] - a[0]) / np.linalg.norm(a[0]) for a, b in zip(fp32, int8, strict=True)])
    return Figures(
        "mAP %", 100 * exact.mean_ap, 100 * ours.mean_ap, 100 * (exact.mean_ap - ours.mean_ap) <= 1.5, "1.5 points",
        f"AP50 {100 * exact.ap50:.1f} → {100 * ours.ap50:.1f}, raw output off by {100 * error:.1f} %",
    )  # fmt: skip


def _faces(fp32: Outputs, int8: Outputs, numbers: Sequence[int], labels: Sequence[int | None]) -> Figures:
    """The share of FP32's faces that INT8 finds too: boxes that overlap by half or more."""
    from benchmarks.yolox import overlap

    total = matched = extra = 0
    for (exact, *_), (ours, *_) in zip(fp32, int8, strict=True):
        shared = overlap(exact.reshape(-1, 4), ours.reshape(-1, 4)) >= 0.5
        total += len(shared)
        matched += int(shared.any(1).sum()) if shared.size else 0
        extra += int((~shared.any(0)).sum()) if shared.size else ours.reshape(-1, 4).shape[0]
    share = 100 * matched / max(total, 1)
    return Figures("faces found, %", 100.0, share, share >= 90, "90 %", f"{matched} of {total}, {extra} others")


# --- the graphs ---------------------------------------------------------------------------------------------------


def _classifier(name: str, drop: float, agreement: float, views: int = MOST_VIEWS) -> GraphCase:
    case = CASES[name]

    def examples() -> list[bytes]:
        first, rest = case.examples()
        return [*first, *rest]

    return GraphCase(case.title, case.graph, (case.output,), case.preprocess, examples,
                     _classes(drop, agreement), folds=3, views=views)  # fmt: skip


def _keywords(name: str) -> GraphCase:
    return GraphCase(
        f"{name}, keywords", f"{name}.pb", ("labels_softmax",), _config(kind="tensors", label_key=LABEL_KEY),
        _recordings, _classes(1.0, 95.0), folds=3,
    )  # fmt: skip


GRAPH_CASES: dict[str, GraphCase] = {
    "mobilenet": _classifier("mobilenet", 0.5, 92.0),
    "mobilenet_8bit": GraphCase(
        "MobileNet V1 0.50 160, 8-bit weights", "mobilenet_v1_0.50_160_weights8bit.pb",
        ("MobilenetV1/Predictions/Reshape_1",), CASES["mobilenet"].preprocess,
        lambda: [*CASES["mobilenet"].examples()[0], *CASES["mobilenet"].examples()[1]],
        _classes(1.0, 90.0), folds=3, views=2,
    ),
    "squeezenet": _classifier("squeezenet", 0.3, 95.0),
    "resnet20": _classifier("resnet20", 0.3, 95.0, views=1),
    "resnet8": _classifier("resnet8", 0.3, 95.0, views=1),
    "vww": GraphCase(
        "MLPerf person or not, 96", "mlperf_vww_96.pb", ("Identity",),
        _config(kind="image", normalize="unit", label_key=LABEL_KEY), _person_or_not,
        _classes(1.0, 95.0), calibrate=64, folds=3,
    ),
    "yolox": GraphCase(
        "YOLOX-nano, COCO", "yolox_nano_coco.pb", ("output",), _module("yolox"), _coco_examples, _detections,
        calibrate=64, folds=2,
    ),
    "ds_cnn": _keywords("DS_CNN_S"),
    "cnn": _keywords("CNN_S"),
    "dnn": _keywords("DNN_S"),
    "crnn": _keywords("CRNN_S"),
    "gru": _keywords("GRU_S"),
    "mtcnn": GraphCase(
        "MTCNN, faces", "mtcnn.pb", ("box", "prob", "landmarks"), _module("mtcnn"), _coco_examples, _faces,
        calibrate=32, folds=2, most=32,
    ),
    "espcn": GraphCase(
        "ESPCN ×2, super-resolution", "ESPCN_x2.pb", ("NCHW_output",), _module("espcn"), _coco_examples,
        _signal_to_noise, calibrate=32, most=32,
    ),
}  # fmt: skip
