"""The Quantizer's parameters are checked when the pipeline is written and again before the work starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tfx.orchestration.data_types import RuntimeParameter
from tfx.types import Channel, standard_artifacts

from components.artifacts import CalibrationRanges, FrozenGraph
from components.quantizer.component import Quantizer
from components.quantizer.parameters import Parameters
from quantizer_core.config import PreprocessConfig, QuantizationConfig
from quantizer_core.errors import ConfigError
from quantizer_core.version import VERSION

CONFIG = QuantizationConfig(excluded_nodes=("a",), preprocess=PreprocessConfig(label_key="label"))


def _quantizer(**parameters: Any) -> Quantizer:
    channels = {"frozen_graph": Channel(type=FrozenGraph), "examples": Channel(type=standard_artifacts.Examples)}
    return Quantizer(**channels, **{"quantization_config": CONFIG, **parameters})


def test_parameters_are_plain_and_round_trip() -> None:
    properties = _quantizer(max_drop=0, num_calibration_examples=5).exec_properties
    assert {type(value) for value in properties.values()} <= {str, int, float}
    assert Parameters.from_exec_properties(properties) == Parameters(
        CONFIG, "train", "eval", 5, 0, "top1", 0.0, VERSION
    )
    # Kubeflow hands whole numbers on as floats.
    floats = {**properties, "num_calibration_examples": 5.0, "num_evaluation_examples": 0.0}
    assert Parameters.from_exec_properties(floats) == Parameters.from_exec_properties(properties)


def test_config_may_be_its_json_and_the_cache_key_is_the_same() -> None:
    given = _quantizer(quantization_config=CONFIG.to_json()).exec_properties
    assert given == _quantizer().exec_properties
    short = _quantizer(quantization_config='{"preprocess": {"label_key": "label"}, "excluded_nodes": ["a"]}')
    assert short.exec_properties == given


def test_outputs_are_the_standard_types() -> None:
    outputs = _quantizer().outputs
    assert outputs["quantized_model"].type is standard_artifacts.Model
    assert outputs["blessing"].type is standard_artifacts.ModelBlessing
    assert outputs["evaluation"].type.TYPE_NAME == "components.QuantizationEvaluation"
    assert outputs["calibration_ranges"].type is CalibrationRanges


def test_ranges_are_an_input_that_may_be_left_out() -> None:
    assert set(_quantizer().inputs) == {"frozen_graph", "examples"}
    ranges = Channel(type=CalibrationRanges)
    assert _quantizer(calibration_ranges=ranges).inputs["known_ranges"] is ranges
    with pytest.raises(TypeError, match="CalibrationRanges"):
        _quantizer(calibration_ranges=Channel(type=FrozenGraph))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"metric": "top11"}, "did you mean 'top1'"),
        ({"max_drop": 1.5}, r"max_drop must lie in \[0, 1\]"),
        ({"max_drop": -0.1}, r"max_drop must lie in \[0, 1\]"),
        ({"num_calibration_examples": -1}, "num_calibration_examples must be 0"),
        ({"num_evaluation_examples": -1}, "num_evaluation_examples must be 0"),
        ({"max_drop": "1%"}, "max_drop must be a number, not '1%'"),
        ({"num_calibration_examples": None}, "num_calibration_examples must be a number, not None"),
        ({"calibration_split": ""}, "calibration_split is empty"),
        ({"quantization_config": "{"}, "no valid JSON"),
        ({"quantization_config": '{"per_chanel": true}'}, "did you mean 'per_channel'"),
        ({"quantization_config": QuantizationConfig()}, "needs labels"),
        ({"metric": RuntimeParameter("metric", str)}, "metric is a RuntimeParameter; .* give the value itself"),
        ({"quantization_config": RuntimeParameter("config", str)}, "quantization_config is a RuntimeParameter"),
    ],
)
def test_values_outside_their_domain_are_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _quantizer(**parameters)


def test_agreement_needs_no_labels() -> None:
    assert (
        _quantizer(quantization_config=QuantizationConfig(), metric="agreement").exec_properties["metric"]
        == "agreement"
    )


def test_cache_key_follows_the_preprocessing_modules_content(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    config = QuantizationConfig(preprocess=PreprocessConfig(kind="module", module_file=str(module), label_key="label"))
    keys = set()
    for text in ("one", "two"):
        module.write_text(text)
        keys.add(_quantizer(quantization_config=config).exec_properties["module_fingerprint"])
    assert len(keys) == 2
    module.unlink()
    with pytest.raises(ConfigError, match=r"module\.py cannot be read"):
        _quantizer(quantization_config=config)
    known = _quantizer(quantization_config=config, module_fingerprint="known")
    assert known.exec_properties["module_fingerprint"] == "known"


def test_missing_parameter_is_named() -> None:
    properties = dict(_quantizer().exec_properties)
    del properties["metric"]
    with pytest.raises(ConfigError, match="'metric' is missing"):
        Parameters.from_exec_properties(properties)
