"""Decoding of image files to 8-bit pixels."""

import io
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from joblib import cpu_count
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from asap_exp.core.console import progress
from asap_exp.core.errors import UserError
from asap_exp.data.catalog import ImageDataset
from asap_exp.data.memory_check import check_fits
from asap_exp.data.parquet import Part

Item = TypeVar("Item")
Result = TypeVar("Result")

Content = bytes | str | None
"""Image file: its bytes, its path, or None if a row has neither."""
AT_ONCE = 64
"""Images that a thread decodes at once."""
SHOWN = 3
"""Sizes of images that are listed."""

# Common formats first: probing every PIL format takes as long as decoding a small image.
IMAGE_FORMATS = ("PNG", "WEBP", "JPEG")
OTHER_FORMATS = ("BMP", "GIF", "TIFF", "PPM")


class Unreadable(Exception):
    """Raised when the image of a row cannot be used; the message says why and what to do."""


class Piece(NamedTuple):
    """Consecutive image files of a part, from its row `start`."""

    part: Part
    start: int
    files: list[Content]


def decoded_pixels(
    parts: Iterable[Part], rows: int, dataset: ImageDataset, size: int | None = None
) -> np.ndarray:
    """Decode all images, `rows` in number, to uint8 `[rows, channels, size, size]`.

    Without a `size` all must be squares of one size; with it, others are resized to their shorter
    side and cropped at the centre. Threads share the work: PIL decodes and resizes without holding
    Python's lock. Shows its progress. Raises UserError that names the first row without a usable
    image.
    """
    some = pieces(parts, dataset.image_column)
    first = decoded_piece(next(some), dataset, size, None)
    if size is not None:
        check_fits(f"data.image_size={size}", (rows, *first.shape[1:]))
    pixels = np.empty((rows, *first.shape[1:]), np.uint8)
    shape = first.shape[1:]
    others = in_threads(lambda piece: decoded_piece(piece, dataset, size, shape), some)
    done = 0
    for block in progress(
        chain([first], others), f"Decoding {rows:,} images of {dataset.name}", rows, size=len
    ):
        pixels[done : done + len(block)] = block
        done += len(block)
    return pixels


def pieces(parts: Iterable[Part], column: str) -> Iterator[Piece]:
    """Yield the image files in the portions that a thread takes."""
    for part in parts:
        files = contents(part, column)
        for start in range(0, part.table.num_rows, AT_ONCE):
            yield Piece(part, start, list(islice(files, AT_ONCE)))


def decoded_piece(
    piece: Piece, dataset: ImageDataset, size: int | None, shape: tuple[int, ...] | None
) -> np.ndarray:
    """Decode the files of a piece to uint8 `[files, channels, height, width]`.

    `shape` is that of the first image of all, `[channels, height, width]`, or None for that of this
    piece.
    """
    images: list[np.ndarray] = []
    for row, content in enumerate(piece.files):
        with named(dataset.name, piece.part.place(piece.start + row)):
            images.append(decoded_image(content, dataset.channels, size))
            shape = shape or images[0].shape
            check_size(images[-1].shape, shape)
    return np.stack(images)


def in_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield `work` of each item in their order; a thread per CPU core, few items ahead."""
    workers = cpu_count()
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def contents(part: Part, column: str) -> Iterator[Content]:
    """Yield the bytes, or the path, of each row's image file."""
    for chunk in part.table[column].chunks:
        kind = chunk.type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            values = pc.struct_field(chunk, "bytes")
            if values.null_count and kind.get_field_index("path") >= 0:
                yield from bytes_or_paths(chunk, values)
                continue
        elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            values = chunk
        else:
            values = pc.struct_field(as_images(chunk, part, column), "bytes")
        for value in values:
            yield value.as_py()


def bytes_or_paths(images: pa.StructArray, values: pa.Array) -> Iterator[Content]:
    """Yield the bytes of images, or the path of a file that exists, as `datasets` stores them."""
    for value, path in zip(values, pc.struct_field(images, "path"), strict=True):
        content, file = value.as_py(), path.as_py()
        yield file if content is None and file is not None and Path(file).is_file() else content


def as_images(chunk: pa.Array, part: Part, column: str) -> pa.Array:
    """Convert other types that `datasets` accepts as images, such as arrays of pixels."""
    import datasets

    try:
        return datasets.Image(decode=False).cast_storage(chunk)
    except Exception as error:
        raise UserError(
            f"column {column} of {part.name} holds {chunk.type}, which is not an image; store the "
            "bytes of image files there"
        ) from error


def decoded_image(content: Content, channels: int, size: int | None = None) -> np.ndarray:
    """Decode an image file to uint8 `[channels, height, width]`, fitted to `size` if given."""
    mode = {1: "L", 3: "RGB"}[channels]
    with readable(content) as image:
        if size is None:
            pixels = np.asarray(of_eight_bits(image).convert(mode))
        else:
            pixels = np.asarray(fitted(image, mode, size))
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def header(content: Content) -> tuple[tuple[int, int], str]:
    """Return width and height, as it is shown, and the mode of an image file; decodes no pixel."""
    with readable(content) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return (image.size[::-1] if turned else image.size), image.mode


def sizes_words(sizes: Counter[tuple[int, int]]) -> str:
    """List the most frequent of some (width, height), each with its share."""
    usual = ", ".join(
        f"{width} x {height} ({count / sizes.total():.0%})"
        for (width, height), count in sizes.most_common(SHOWN)
    )
    return f"{usual}{f' and {len(sizes) - SHOWN} more' if len(sizes) > SHOWN else ''} pixels"


def stored_sizes(parts: Iterable[Part], dataset: ImageDataset) -> str:
    """Describe the sizes of the image files of some parts; decodes no pixel.

    Raises UserError that names the first row without a usable image.
    """
    sizes: Counter[tuple[int, int]] = Counter()
    for part in parts:
        for row, content in enumerate(contents(part, dataset.image_column)):
            with named(dataset.name, part.place(row)):
                sizes[header(content)[0]] += 1
    return sizes_words(sizes)


@contextmanager
def readable(content: Content) -> Iterator[Image.Image]:
    """Open an image file; raise Unreadable for every fault that shows while it is read."""
    if content is None:
        raise Unreadable("has no bytes; put the image file itself into the row, or remove the row")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with opened(content) as image:
                yield image
    except UnidentifiedImageError as error:
        kinds = ", ".join((*IMAGE_FORMATS, *OTHER_FORMATS))
        raise Unreadable(f"is not in a known image format ({kinds}); replace it") from error
    except Unreadable:
        raise
    except Exception as error:
        raise Unreadable(f"is damaged ({error}); replace it, or remove the row") from error


@contextmanager
def named(dataset: str, place: str) -> Iterator[None]:
    """Add data set and place of an image to the reason why it is unreadable."""
    try:
        yield
    except Unreadable as reason:
        raise UserError(
            f"the images of {dataset} cannot be used: the one in {place} {reason}"
        ) from reason


def fitted(image: Image.Image, mode: str, size: int) -> Image.Image:
    """Turn an image upright, resize it to its shorter side and crop it at the centre."""
    if min(image.size) > 2 * size:
        image.draft(mode, (2 * size, 2 * size))  # a JPEG is decoded at a fraction of its size
    upright = ImageOps.exif_transpose(of_eight_bits(image)).convert(mode)
    if min(upright.size) != size:
        upright = ImageOps.cover(upright, (size, size), Image.Resampling.BILINEAR)
    left, top = (upright.width - size) // 2, (upright.height - size) // 2
    return upright.crop((left, top, left + size, top + size))


def opened(content: bytes | str) -> Image.Image:
    """Open an image file, its bytes or its path, trying the common formats first."""
    file = content if isinstance(content, str) else io.BytesIO(content)
    try:
        return Image.open(file, formats=IMAGE_FORMATS)
    except UnidentifiedImageError:
        return Image.open(file, formats=OTHER_FORMATS)


def of_eight_bits(image: Image.Image) -> Image.Image:
    """Keep the high byte of 16-bit greys, as PIL does for colours; PIL clips greys at 255."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise Unreadable(
            f"has 32-bit pixels (mode {image.mode}), whose range is unknown; save it with 8 or 16 "
            "bits per channel"
        )
    return image


def check_size(shape: tuple[int, ...], first: tuple[int, ...]) -> None:
    """Raise Unreadable unless `[channels, height, width]` is square and as large as the first."""
    height, width = shape[1:]
    if shape != first:
        raise Unreadable(
            f"has {width} x {height} pixels, the first one {first[2]} x {first[1]}; "
            "save all images in the same size"
        )
    if height != width:
        raise Unreadable(f"has {width} x {height} pixels; crop or pad all images to squares")
