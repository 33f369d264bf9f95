"""``quantizer make-tfrecords``: a folder of files as TFRecords."""

from __future__ import annotations

import click

from quantizer_core.cli.options import IMAGE_KEY, LABEL_KEY, CommaList, folder_options


@click.command("make-tfrecords")
@click.option(
    "--images",
    required=True,
    type=click.Path(),
    metavar="DIR",
    help="Folder of images (or other files, see --extensions).",
)
@click.option(
    "--output",
    required=True,
    type=click.Path(),
    metavar="FILE",
    help="The TFRecord file; compressed if it ends in .gz.",
)
@folder_options
@click.option("--extensions", type=CommaList(), help="Files to take. [default: images, or else .wav]")
@click.option("--skip", type=click.IntRange(min=0), default=0, help="Leave out the first files.")
@click.option("--take", type=click.IntRange(min=1), help="Take so many files after that. [default: all]")
@click.option("--shards", type=click.IntRange(min=1), default=1, show_default=True, help="Spread over so many files.")
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
def make_tfrecords(
    images: str,
    output: str,
    labels: str | None,
    classes: tuple[str, ...] | None,
    image_key: str | None,
    label_key: str | None,
    extensions: tuple[str, ...] | None,
    skip: int,
    take: int | None,
    shards: int,
    overwrite: bool,
) -> None:
    """Write a folder of images as tf.Examples with image/encoded, image/class/label, image/filename and image/format.

    The files' bytes are kept as they are. Each sub-folder gives one file in turn, in the order of the names.
    """
    import itertools

    from quantizer_core.data import read_folder, write_tfrecords

    examples = read_folder(
        images,
        labels=labels,
        classes=classes,
        image_key=image_key or IMAGE_KEY,
        label_key=label_key or LABEL_KEY,
        extensions=extensions,
    )
    chosen = itertools.islice(examples, skip, None if take is None else skip + take)
    for path in write_tfrecords(chosen, output, shards, overwrite=overwrite):
        click.echo(path)
