"""The registry of known models: ``models.json`` in the schema of 2020, checked against ``models.schema.json``."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantizer_core.config import PreprocessConfig, QuantizationConfig
from quantizer_core.errors import ConfigError, nearest

#: The registry that comes with the product.
MODELS = Path(__file__).with_name("models.json")
SCHEMA = Path(__file__).with_name("models.schema.json")


@dataclasses.dataclass(frozen=True)
class ZooModel:
    """One entry.

    Attributes:
      name: what ``--model`` takes.
      script: path of the launching script in a checkout of the zoo.
      arguments: its arguments that do not depend on files, in the words of a shell.
      in_graph, data_location, model_source_dir: likewise those that name files, ``{}`` in a file's place; "" if it
        takes no such argument.
      passed_on: what goes to the model's own script.
      config: inputs, outputs, exclusions, granularity and preprocessing.
      metric: the metric that its INT8 graph is judged by; "" if the entry has none.
    """

    name: str
    script: str
    arguments: tuple[str, ...]
    in_graph: str
    data_location: str
    model_source_dir: str
    passed_on: tuple[str, ...]
    config: QuantizationConfig
    metric: str

    def launch_command(
        self, zoo: str, data_location: str, source_dir: str | None = None, python: str = "python"
    ) -> list[str]:
        """Returns the command that runs the zoo's script on data, ``{}`` standing for the graph.

        Args:
          zoo: a checkout of the zoo.
          data_location: what the script takes as data.
          source_dir: the model's sources, where the script wants them.
          python: the interpreter.

        Raises:
          ConfigError: if the script is not in the checkout, or sources are wanted and not given, or the other way.
        """
        script = os.path.join(zoo, self.script)
        if not os.path.isfile(script):
            raise ConfigError(f"--models_zoo_location {zoo!r} has no {self.script}: give a checkout of the Model Zoo")
        if source_dir is None and self.model_source_dir:
            raise ConfigError(f"model {self.name!r} needs --models_source_dir with the sources that its script imports")
        if source_dir is not None and not self.model_source_dir:
            raise ConfigError(f"model {self.name!r} takes no --models_source_dir")
        command = [python, script, *_words(*self.arguments), *_words(self.in_graph)]
        command += [word.replace("{}", data_location) for word in _words(self.data_location)]
        if source_dir is not None:
            command += [word.replace("{}", source_dir) for word in _words(self.model_source_dir)]
        passed_on = _words(*self.passed_on)
        return [*command, *(["--"] if passed_on[:1] not in ([], ["--"]) else []), *passed_on]


def _words(*entries: str) -> list[str]:
    """Returns the words of a command line in parts, as the registry of 2020 has it: a part may hold blanks."""
    line = " ".join(entries)
    try:
        return shlex.split(line)
    except ValueError as error:
        raise ConfigError(f"registry of models: the launch arguments {line!r} cannot be taken apart: {error}") from None


def load_models(path: str | os.PathLike[str] = MODELS) -> dict[str, ZooModel]:
    """Reads a registry: model name → entry, in the file's order.

    Raises:
      ConfigError: if the file cannot be read, does not fit the schema (the place in it is named), names a model twice
        or holds a configuration that does not fit.
    """
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"registry of models {str(path)!r} cannot be read: {error}") from None
    _check(entries, str(path))
    models: dict[str, ZooModel] = {}
    for entry in entries:
        name = entry["MODEL_NAME"]
        if name in models:
            raise ConfigError(f"registry of models {str(path)!r} names {name!r} twice")
        models[name] = _model(entry)
    return models


def zoo_model(name: str, path: str | os.PathLike[str] = MODELS) -> ZooModel:
    """Returns one entry; raises ConfigError with the nearest name if there is none, and as ``load_models``."""
    models = load_models(path)
    if name not in models:
        raise ConfigError(f"--model {name!r} is not known{nearest(name, models)}; choose one of {', '.join(models)}")
    return models[name]


def _check(entries: Any, path: str) -> None:
    import jsonschema

    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))
    error = jsonschema.exceptions.best_match(validator.iter_errors(entries))
    if error is not None:
        raise ConfigError(f"registry of models {path!r} does not fit its schema at {error.json_path}: {error.message}")


def _model(entry: Mapping[str, Any]) -> ZooModel:
    launch, converter = entry["LAUNCH_BENCHMARK_PARAMS"], entry["QUANTIZE_GRAPH_CONVERTER_PARAMS"]
    direct = entry.get("DIRECT_CALIBRATION_PARAMS", {"PREPROCESS": {}, "METRIC": ""})
    try:
        config = QuantizationConfig(
            inputs=converter["INPUT_NODE_LIST"],
            outputs=converter["OUTPUT_NODE_LIST"],
            excluded_ops=converter["EXCLUDED_OPS_LIST"],
            excluded_nodes=converter["EXCLUDED_NODE_LIST"],
            per_channel=converter["PER_CHANNEL_FLAG"],
            preprocess=PreprocessConfig(**direct["PREPROCESS"]),
        )
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"model {entry['MODEL_NAME']!r}: {error}") from None
    return ZooModel(
        name=entry["MODEL_NAME"],
        script=launch["LAUNCH_BENCHMARK_SCRIPT"],
        arguments=tuple(launch["LAUNCH_BENCHMARK_CMD"]),
        in_graph=launch["IN_GRAPH"],
        data_location=launch["DATA_LOCATION"],
        model_source_dir=launch.get("MODEL_SOURCE_DIR", ""),
        passed_on=tuple(launch.get("DIRECT_PASS_PARAMS_TO_MODEL", ())),
        config=config,
        metric=direct["METRIC"],
    )
