"""Splits are found or refused with a clear reason."""

from __future__ import annotations

from pathlib import Path

import apache_beam as beam
import pytest
import tensorflow as tf
from apache_beam.testing.util import assert_that, equal_to
from tfx.components.util import examples_utils
from tfx.proto import example_gen_pb2

from components.quantizer import beam_io
from components.quantizer.beam_io import records_in_turn, split_patterns
from quantizer_core.beam import ReadRecords
from quantizer_core.data.tfrecords import read_tfrecords
from quantizer_core.errors import DataError
from tests.helpers.tfx_artifacts import examples


def test_all_examples_of_all_artifacts_are_read(tmp_path: Path) -> None:
    first = examples(tmp_path / "1", {"train": [b"a", b"b", b"c"], "eval": [b"no"]})
    second = examples(tmp_path / "2", {"train": [b"d"], "eval": [b"no"]})
    patterns = split_patterns([first, second], "train")
    with beam.Pipeline() as pipeline:
        assert_that(pipeline | ReadRecords(patterns), equal_to([b"a", b"b", b"c", b"d"]))


def test_uncompressed_files_and_split_patterns_are_read(tmp_path: Path) -> None:
    artifact = examples(tmp_path, {"train": []})
    with tf.io.TFRecordWriter(str(tmp_path / "mine.tfrecord")) as writer:
        writer.write(b"a")
    artifact.set_string_custom_property(*examples_utils.get_custom_split_patterns_key_and_property({"train": "mine*"}))
    with beam.Pipeline() as pipeline:
        assert_that(pipeline | ReadRecords(split_patterns([artifact], "train")), equal_to([b"a"]))


def test_missing_split_names_the_known_ones(tmp_path: Path) -> None:
    artifact = examples(tmp_path, {"train": [b"a"], "eval": [b"b"]})
    with pytest.raises(DataError, match=r"no split 'trian'; did you mean 'train'\?; they have eval, train"):
        split_patterns([artifact], "trian")


def test_split_without_files_is_empty(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="split 'train' is empty"):
        split_patterns([examples(tmp_path, {"train": []})], "train")


def test_other_payloads_and_files_are_refused(tmp_path: Path) -> None:
    sequence = example_gen_pb2.PayloadFormat.FORMAT_TF_SEQUENCE_EXAMPLE
    with pytest.raises(DataError, match="FORMAT_TF_SEQUENCE_EXAMPLE; only FORMAT_TF_EXAMPLE"):
        split_patterns([examples(tmp_path / "1", {"train": [b"a"]}, sequence)], "train")
    parquet = examples(tmp_path / "2", {"train": [b"a"]})
    examples_utils.set_file_format(parquet, "FILE_FORMAT_PARQUET")
    with pytest.raises(DataError, match="only TFRecords can be read"):
        split_patterns([parquet], "train")


def test_records_come_from_files_in_turn_of_which_few_are_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = examples(tmp_path / "1", {"train": [b"a", b"b", b"c"]})
    second = examples(tmp_path / "2", {"train": [b"d"]})
    patterns = split_patterns([first, second], "train")
    # Two files a split: a and c, b; d, none.
    assert list(records_in_turn(patterns)) == [b"a", b"b", b"d", b"c"]
    opened: list[str] = []
    monkeypatch.setattr(beam_io, "_OPEN_FILES", 2)
    monkeypatch.setattr(beam_io, "read_tfrecords", lambda paths: opened.append(paths[0]) or read_tfrecords(paths))
    records = records_in_turn(patterns)
    assert next(records) == b"a" and len(opened) == 2
    assert list(records) == [b"b", b"c", b"d"] and len(opened) == 4
