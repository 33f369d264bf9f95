"""Folders and TFRecords as examples: order, labels, bytes kept as they are, and clear words for what is wrong."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from quantizer_core.data import read_examples, read_labels, write_tfrecords
from quantizer_core.data.folders import find_files, read_folder
from quantizer_core.data.labels import LabelSource, parse_labels
from quantizer_core.errors import ConfigError, DataError


def parse(record: bytes) -> dict:
    features = tf.train.Example.FromString(record).features.feature
    return {name: (f.bytes_list.value or f.int64_list.value or f.float_list.value)[0] for name, f in features.items()}


def write_images(root: Path, *names: str) -> dict[str, bytes]:
    written = {}
    for seed, name in enumerate(names):
        image = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
        encode = tf.io.encode_jpeg if name.endswith(("jpg", "JPG", "jpeg")) else tf.io.encode_png
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(image).numpy())
        written[name] = path.read_bytes()
    return written


def test_a_flat_folder_gives_its_images_in_the_order_of_names(tmp_path: Path) -> None:
    written = write_images(tmp_path, "b.png", "a.jpg", "c.JPG")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_bytes(b"")
    examples = [parse(record) for record in read_examples(tmp_path)]
    assert [example["image/filename"].decode() for example in examples] == ["a.jpg", "b.png", "c.JPG"]
    assert [example["image/format"] for example in examples] == [b"jpeg", b"png", b"jpeg"]
    assert [example["image/encoded"] for example in examples] == [written[name] for name in ("a.jpg", "b.png", "c.JPG")]
    assert "image/class/label" not in examples[0]


def test_sub_folders_are_classes_in_alphabetical_order_and_examples_come_by_file_name(tmp_path: Path) -> None:
    write_images(tmp_path, "dog/1.png", "cat/1.png", "cat/2.png", "dog/0.png")
    (tmp_path / "ape").mkdir()  # a class without examples still counts
    examples = [parse(record) for record in read_examples(tmp_path, label_key="y", image_key="x")]
    assert [(e["image/filename"].decode(), e["y"]) for e in examples] == [
        ("dog/0.png", 2), ("cat/1.png", 1), ("dog/1.png", 2), ("cat/2.png", 1),
    ]  # fmt: skip
    assert all(example["x"].startswith(b"\x89PNG") for example in examples)


def test_classes_set_the_order_of_the_sub_folders(tmp_path: Path) -> None:
    write_images(tmp_path, "no/a.png", "yes/b.png")
    labels = [parse(r)["image/class/label"] for r in read_examples(tmp_path, classes=("silence", "yes", "no"))]
    assert labels == [2, 1]
    with pytest.raises(ConfigError, match="sub-folder 'no' .* is not in classes; did you mean 'nope'"):
        list(read_examples(tmp_path, classes=("nope", "yes")))


def test_the_first_files_are_of_all_classes_whatever_their_names(tmp_path: Path) -> None:
    names = ["cats/cat1.png", "cats/cat2.png", "cats/cat3.png", "dogs/dog1.png", "dogs/dog2.png", "emus/1.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = ["emus/1.png", "cats/cat1.png", "dogs/dog1.png", "cats/cat2.png", "dogs/dog2.png", "cats/cat3.png"]
    assert find_files(str(tmp_path)) == found


@pytest.mark.parametrize("names", [("only/a.png", "only/b.png"), ("x/a.png", "y/b.png", "c.png")])
def test_one_sub_folder_or_loose_files_are_no_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    write_images(tmp_path, *names)
    assert all("image/class/label" not in parse(record) for record in read_examples(tmp_path))


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("a,3\nb.jpg,5\n", ""),
        ("name,label\na.png,3\nb,5\n", ""),
        ("id,URL,TrueLabel\na,u,4\nb,v,6\n", ":id:TrueLabel:-1"),
        ("class,file\n2,sub/a.png\n4,b\n", ":file:class:1"),
        ("\ufeffname,label\r\na,3\r\nb,5\r\n", ":name:label"),
        ("x,label\na,3\nb,5\n", "::label"),
    ],
)
def test_labels_come_from_a_csv_file(tmp_path: Path, text: str, spec: str) -> None:
    folder = tmp_path / "images"
    write_images(folder, "sub/a.png", "b.jpg")
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
    examples = [parse(record) for record in read_examples(folder, labels=f"{tmp_path}/labels.csv{spec}")]
    assert [example["image/class/label"] for example in examples] == [3, 5]


def test_the_form_of_labels() -> None:
    assert parse_labels("gs://b/i.csv:Id:True:-1") == LabelSource("gs://b/i.csv", "Id", "True", -1)
    assert parse_labels("i.CSV") == LabelSource("i.CSV")
    for text in ("labels.txt", "i.csv:a:b:c", "i.csv:a:b:1:2"):
        with pytest.raises(ConfigError, match="is not of the form FILE.csv"):
            parse_labels(text)


@pytest.mark.parametrize(
    ("text", "spec", "kind", "message"),
    [
        ("name,label\nb,1\n", "", DataError, "has no label for file 'a.png'; did you mean 'b'|has no label"),
        ("name,label\na,cat\n", "", DataError, "data row 1: the label 'cat' of 'a' is no integer"),
        ("name,label\na,1\na,2\n", "", DataError, "data row 2 names 'a' a second time"),
        ("name,label\na\n", "", DataError, "data row 1 has 1 columns, the label is in column 2"),
        ("label,name\n1,a\n", ":name", ConfigError, "column 2 would hold both names and labels; name both"),
        ("name,label\na,1\n", ":nmae:label", ConfigError, "has no column 'nmae'; did you mean 'name'"),
        ("", "", DataError, "is empty"),
        ("name,label\na,9223372036854775808\n", "", DataError, "of 'a' is no class: it has more than 64 bits"),
        ('name,label\n"a,1\n' + "b,2\n" * 40_000, "", DataError, "labels.csv' is no CSV: field larger than"),
    ],
)
def test_bad_labels_are_named(tmp_path: Path, text: str, spec: str, kind: type[Exception], message: str) -> None:
    write_images(tmp_path / "images", "a.png")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(kind, match=message):
        list(read_examples(tmp_path / "images", labels=f"{tmp_path}/labels.csv{spec}"))


def test_spaces_around_headings_are_not_part_of_them(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("ImageId, TrueLabel\na, 5\n")
    assert read_labels(f"{tmp_path}/labels.csv:ImageId:TrueLabel") == {"a": 5}


@pytest.mark.filterwarnings("error")
def test_links_in_circles_are_not_followed(tmp_path: Path) -> None:
    write_images(tmp_path, "cats/1.png", "dogs/1.png")
    (tmp_path / "self").symlink_to(tmp_path)
    (tmp_path / "cats" / "enemies").symlink_to(tmp_path / "dogs")
    (tmp_path / "dogs" / "enemies").symlink_to(tmp_path / "cats")
    expected = ["cats/1.png", "cats/enemies/1.png", "dogs/1.png", "dogs/enemies/1.png"]
    assert sorted(find_files(str(tmp_path))) == expected
    assert sorted(find_files(f"{tmp_path}/")) == expected


def test_what_a_mac_puts_beside_the_classes_is_no_class(tmp_path: Path) -> None:
    write_images(tmp_path, "cats/1.png", "dogs/1.png", "__MACOSX/cats/._1.png", "__MACOSX/cats/1.png")
    found = [parse(record) for record in read_examples(tmp_path)]
    assert [(e["image/filename"], e["image/class/label"]) for e in found] == [(b"cats/1.png", 0), (b"dogs/1.png", 1)]


def test_a_name_that_is_no_utf8_is_told(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png")
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))).write_bytes(b"x")
    with pytest.raises(DataError, match=r"holds a name that is no UTF-8: b'.*caf\\xe9.png'"):
        read_examples(tmp_path)


def test_a_missing_folder_of_images_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none' does not exist, or is none"):
        list(read_folder(str(tmp_path / "none")))


@pytest.mark.parametrize(
    "name",
    [
        "train-00000-of-01024",
        "coco_val.record-00000-of-00010",
        "a.RECORD",
        "a.GZ",
        "x.tfrecords",
        "eval-00001-of-00004.gz",
    ],
)
def test_records_by_the_names_that_others_give_them(tmp_path: Path, name: str) -> None:
    write_tfrecords(RECORDS, str(tmp_path / name))
    (tmp_path / "old.tfrecords").mkdir()
    (tmp_path / "README-of-2").write_text("no records")
    assert list(read_examples(tmp_path)) == RECORDS


def test_shards_without_an_ending_are_read_back_by_their_folder(tmp_path: Path) -> None:
    write_tfrecords(RECORDS, str(tmp_path / "eval"), shards=2)
    assert sorted(read_examples(tmp_path)) == sorted(RECORDS)


def test_a_file_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    write_tfrecords(RECORDS, str(tmp_path / "a[1].tfrecord"))
    assert list(read_examples(tmp_path / "a[1].tfrecord")) == RECORDS


def test_names_that_are_like_those_of_tfrecords_hinder_no_folder_of_images(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png")
    for name in ("make_tfrecords.py", "tfrecords.md", "labels.csv.gz", ".old.tfrecord", "_tmp.tfrecord"):
        (tmp_path / name).write_text("no records")
    (tmp_path / "tfrecords").mkdir()
    assert len(list(read_examples(tmp_path))) == 1


def test_a_checkpoint_beside_tfrecords_is_passed_over(tmp_path: Path) -> None:
    write_tfrecords(RECORDS, str(tmp_path / "train.tfrecord"))
    (tmp_path / "model.ckpt.data-00000-of-00001").write_bytes(b"weights")
    assert list(read_examples(tmp_path)) == RECORDS


def test_a_file_system_that_is_not_there_is_told() -> None:
    with pytest.raises(DataError, match="no examples at 's3://bucket/data'"):
        read_examples("s3://bucket/data")


@pytest.mark.parametrize(
    "name", ["train.tfrecord", "train-00000-of-00001", "a.record-00000-of-00001", "x.tfrecords.gz"]
)
def test_images_beside_tfrecords_are_not_taken_for_the_data(tmp_path: Path, name: str) -> None:
    write_tfrecords(RECORDS, str(tmp_path / name))
    write_images(tmp_path, "raw/histogram.png")
    with pytest.raises(DataError, match=rf"holds TFRecords \({name}\) and images .*\*tfrecord\*"):
        read_examples(tmp_path)
    assert list(read_examples(tmp_path / f"{name[:4]}*")) == RECORDS


def test_a_missing_labels_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none.csv' cannot be read"):
        read_labels(f"{tmp_path}/none.csv")


def test_wav_files_go_into_the_feature_that_the_graph_reads(tmp_path: Path) -> None:
    for name in ("no/2.wav", "yes/1.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"RIFF" + name.encode())
    examples = [parse(record) for record in read_examples(tmp_path, image_key="wav_data", label_key="label")]
    assert examples[0] == {"wav_data": b"RIFFyes/1.wav", "label": 1, "filename": b"yes/1.wav"}
    assert examples[1]["label"] == 0


def test_other_extensions_can_be_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"1")
    (tmp_path / "b.png").write_bytes(b"2")
    assert [parse(r)["image/encoded"] for r in read_examples(tmp_path, extensions=["npy"])] == [b"1"]


RECORDS = [bytes([number]) * (number + 1) for number in range(7)]


@pytest.mark.parametrize("name", ["a.tfrecord", "a.tfrecord.gz"])
def test_a_tfrecord_file_round_trips(tmp_path: Path, name: str) -> None:
    path = str(tmp_path / "new" / name)
    assert write_tfrecords(RECORDS, path) == [path]
    assert list(read_examples(path)) == RECORDS
    assert name.endswith(".gz") == (Path(path).read_bytes()[:2] == b"\x1f\x8b")
    assert [file.name for file in (tmp_path / "new").iterdir()] == [name]


def test_gzip_is_recognised_by_content_also_where_the_first_length_looks_like_it(tmp_path: Path) -> None:
    zipped, plain = str(tmp_path / "zipped"), str(tmp_path / "plain")
    write_tfrecords(RECORDS, zipped, compression="GZIP")
    long = [bytes(0x088B1F)]  # its length is written as 1f 8b 08: gzip's signature
    write_tfrecords(long, plain, compression="")
    assert Path(plain).read_bytes()[:3] == b"\x1f\x8b\x08"
    assert list(read_examples(zipped)) == RECORDS and list(read_examples(plain)) == long


def test_shards_are_read_by_folder_and_by_pattern(tmp_path: Path) -> None:
    paths = write_tfrecords(RECORDS, str(tmp_path / "d.tfrecord.gz"), shards=3)
    assert [Path(path).name for path in paths] == [f"d.tfrecord-0000{i}-of-00003.gz" for i in range(3)]
    (tmp_path / "_SUCCESS").write_text("")
    wanted = RECORDS[0::3] + RECORDS[1::3] + RECORDS[2::3]
    assert list(read_examples(tmp_path)) == list(read_examples(f"{tmp_path}/d.*.gz")) == wanted


def test_writing_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name in ("a.gz", "b.gz"):
        write_tfrecords(RECORDS, str(tmp_path / name))
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.gz").read_bytes())


def test_a_failed_write_leaves_nothing_and_an_existing_file_stays(tmp_path: Path) -> None:
    def broken():
        yield b"one"
        raise DataError("broken")

    path = str(tmp_path / "a")
    with pytest.raises(DataError, match="broken"):
        write_tfrecords(broken(), path, shards=2)
    with pytest.raises(DataError, match="no examples to write"):
        write_tfrecords([], path)
    assert list(tmp_path.iterdir()) == []
    write_tfrecords([b"old"], path)
    with pytest.raises(ConfigError, match="output '.*a' exists"):
        write_tfrecords([b"new"], path)
    with pytest.raises(DataError, match="broken"):
        write_tfrecords(broken(), path, overwrite=True)
    assert list(read_examples(path)) == [b"old"]
    write_tfrecords([b"new"], path, overwrite=True)
    assert list(read_examples(path)) == [b"new"]


def test_odd_arguments_of_write_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="shards must be at least 1"):
        write_tfrecords(RECORDS, str(tmp_path / "a"), shards=0)
    with pytest.raises(ConfigError, match="compression is 'gzip'"):
        write_tfrecords(RECORDS, str(tmp_path / "a"), compression="gzip")


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_truncated_file_is_named_with_its_record(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.tfrecord{ending}"
    rng = np.random.default_rng(0)
    write_tfrecords([rng.bytes(5000) for _ in range(9)], str(path))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"a.tfrecord.*' cannot be read at record 8"):
        list(read_examples(path))


def test_a_file_that_is_no_tfrecord_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("this is no TFRecord file at all")
    with pytest.raises(DataError, match="cannot be read at record 0"):
        list(read_examples(tmp_path / "a"))


def test_nothing_there_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no examples at .*: no such file or folder"):
        read_examples(tmp_path / "none")
    with pytest.raises(DataError, match="holds neither files of .bmp"):
        read_examples(tmp_path)


def test_labels_do_not_go_with_tfrecords(tmp_path: Path) -> None:
    write_tfrecords(RECORDS, str(tmp_path / "a"))
    with pytest.raises(ConfigError, match="labels, classes and extensions go with a folder of files"):
        read_examples(tmp_path / "a", labels="labels.csv")


def test_the_shared_photos_are_labelled_by_their_csv_file(shared_data: Path) -> None:
    folder = shared_data / "images" / "nips2017_dev"
    labels = f"{folder}/images.csv:ImageId:TrueLabel:-1"
    examples = [parse(record) for record in read_examples(folder, labels=labels)]
    names = [example["image/filename"] for example in examples]
    assert len(examples) == 400 and names == sorted(names)
    assert all(0 <= example["image/class/label"] < 1000 for example in examples)
