"""Decoding of image files to 8-bit pixels."""

import io
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, UnidentifiedImageError

from asap_exp.core.errors import UserError
from asap_exp.data.catalog import ImageDataset
from asap_exp.data.parquet import Part

# Common formats first: probing every PIL format takes as long as decoding a small image.
IMAGE_FORMATS = ("PNG", "WEBP", "JPEG")
OTHER_FORMATS = ("BMP", "GIF", "TIFF", "PPM")


class Unreadable(Exception):
    """Raised when the image of a row cannot be used; the message says why and what to do."""


def decoded_pixels(parts: Sequence[Part], dataset: ImageDataset) -> np.ndarray:
    """Decode all images to uint8 `[rows, channels, size, size]`.

    Raises UserError that names the first row without a usable image.
    """
    mode = {1: "L", 3: "RGB"}[dataset.channels]
    images: list[np.ndarray] = []
    for part in parts:
        for row, content in enumerate(contents(part, dataset.image_column)):
            try:
                images.append(decoded_image(content, mode))
                check_size(images[-1], images[0])
            except Unreadable as reason:
                raise UserError(
                    f"the images of {dataset.name} cannot be used: the one in {part.place(row)} "
                    f"{reason}"
                ) from reason
    pixels = np.stack(images)
    pixels = pixels[:, None] if dataset.channels == 1 else pixels.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(pixels)


def contents(part: Part, column: str) -> Iterator[bytes | None]:
    """Yield the bytes of each row's image file."""
    for chunk in part.table[column].chunks:
        kind = chunk.type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            values = pc.struct_field(chunk, "bytes")
        elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            values = chunk
        else:
            values = pc.struct_field(as_images(chunk, part, column), "bytes")
        for value in values:
            yield value.as_py()


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


def decoded_image(content: bytes | None, mode: str) -> np.ndarray:
    """Decode an image to uint8 `[height, width]`, or `[height, width, channels]` for `mode` RGB."""
    if content is None:
        raise Unreadable("has no bytes; put the image file itself into the row, or remove the row")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with opened(content) as image:
                return np.asarray(of_eight_bits(image).convert(mode))
    except UnidentifiedImageError as error:
        kinds = ", ".join((*IMAGE_FORMATS, *OTHER_FORMATS))
        raise Unreadable(f"is not in a known image format ({kinds}); replace it") from error
    except Unreadable:
        raise
    except Exception as error:
        raise Unreadable(f"is damaged ({error}); replace it, or remove the row") from error


def opened(content: bytes) -> Image.Image:
    """Open an image file, trying the common formats first."""
    try:
        return Image.open(io.BytesIO(content), formats=IMAGE_FORMATS)
    except UnidentifiedImageError:
        return Image.open(io.BytesIO(content), formats=OTHER_FORMATS)


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


def check_size(image: np.ndarray, first: np.ndarray) -> None:
    """Raise Unreadable unless `image` is square and as large as `first`."""
    height, width = image.shape[:2]
    if image.shape != first.shape:
        raise Unreadable(
            f"has {width} x {height} pixels, the first one {first.shape[1]} x {first.shape[0]}; "
            "save all images in the same size"
        )
    if height != width:
        raise Unreadable(f"has {width} x {height} pixels; crop or pad all images to squares")
