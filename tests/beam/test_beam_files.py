"""What goes into a Beam pipeline is read whole or refused; what comes out is there once, whole, or missed."""

from __future__ import annotations

from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to

from quantizer_core.beam import ReadRecords, WriteOne, files, read_one
from quantizer_core.data import write_tfrecords
from quantizer_core.errors import DataError
from quantizer_core.evaluation.run import EvaluationRun
from quantizer_core.reads import ReadCounts, Work


def write(path: str, *elements: object) -> None:
    with beam.Pipeline() as pipeline:
        _ = pipeline | beam.Create(elements) | WriteOne(path)


def test_all_files_of_all_patterns_are_read_whatever_their_compression(tmp_path: Path) -> None:
    write_tfrecords([b"a", b"b", b"c"], str(tmp_path / "one.gz"), shards=2)
    write_tfrecords([b"d"], str(tmp_path / "two"))
    with beam.Pipeline() as pipeline:
        found = pipeline | ReadRecords([f"{tmp_path}/one*", f"{tmp_path}/two"])
        assert_that(found, equal_to([b"a", b"b", b"c", b"d"]))


def test_a_pattern_without_files_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file matches .*none"), beam.Pipeline() as pipeline:
        _ = pipeline | ReadRecords([f"{tmp_path}/none*"])


def test_files_that_a_worker_does_not_see_fail_the_pipeline(tmp_path: Path) -> None:
    """Beam's own reading passes over a pattern that matches nothing."""
    path = tmp_path / "here"
    write_tfrecords([b"a"], str(path))
    pipeline = beam.Pipeline()
    _ = pipeline | ReadRecords([str(path)])
    path.unlink()
    with pytest.raises(DataError, match="a Beam worker sees 0 of the 1 files .*here: put them where all workers"):
        pipeline.run().wait_until_finish()


def test_other_files_that_a_worker_sees_fail_the_pipeline(tmp_path: Path) -> None:
    """As many as there are, of the same names, but older ones, say, in a copy of the folder."""
    path = tmp_path / "here"
    write_tfrecords([b"a"], str(path))
    pipeline = beam.Pipeline()
    _ = pipeline | ReadRecords([str(path)])
    write_tfrecords([b"a", b"b"], str(path), overwrite=True)
    with pytest.raises(DataError, match="a Beam worker sees files .*here of other names or sizes"):
        pipeline.run().wait_until_finish()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    for name in ("good", "cut"):
        write_tfrecords([b"a", b"b"], str(tmp_path / name))
    (tmp_path / "cut").write_bytes((tmp_path / "good").read_bytes()[:-1])
    with (
        pytest.raises(DataError, match=r"TFRecord file '.*/cut' cannot be read at record 1"),
        beam.Pipeline() as pipeline,
    ):
        _ = pipeline | ReadRecords([f"{tmp_path}/*"])


def test_one_element_is_written_whole(tmp_path: Path) -> None:
    write(str(tmp_path / "one"), {"new": 1})
    assert read_one(str(tmp_path / "one")) == {"new": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_an_element_written_twice_is_one(tmp_path: Path) -> None:
    """A runner may run a bundle again whose result it lost."""
    for _ in range(2):
        write(str(tmp_path / "one"), ("same", 1))
    assert read_one(str(tmp_path / "one")) == ("same", 1)


def test_runs_that_differ_in_what_they_took_are_one(tmp_path: Path) -> None:
    """A bundle that ran twice took two different times."""
    first, second = (EvaluationRun(reads=ReadCounts(5), work=Work(1, microseconds)) for microseconds in (7, 9))
    write(str(tmp_path / "evaluation"), first, second)
    assert len(list(tmp_path.iterdir())) == 2
    assert read_one(str(tmp_path / "evaluation")) == first


def test_a_lost_element_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "calibration-abc.123.partial").write_bytes(b"half")
    write(str(tmp_path / "calibration"))
    with pytest.raises(DataError, match="without writing calibration"):
        read_one(str(tmp_path / "calibration"))


def test_two_elements_are_noticed(tmp_path: Path) -> None:
    write(str(tmp_path / "calibration"), 1, 2)
    with pytest.raises(DataError, match="2 different results to calibration, not one"):
        read_one(str(tmp_path / "calibration"))


def test_a_write_that_breaks_leaves_no_element(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*arguments: object, **options: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(files.tf.io.gfile, "rename", full_disk)
    with pytest.raises(OSError, match="no space"):
        write(str(tmp_path / "one"), 1)
    monkeypatch.undo()
    with pytest.raises(DataError, match="without writing one"):
        read_one(str(tmp_path / "one"))
