"""From the bytes of image files to pixels of 8 bits."""

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

# Asking each of PIL's formats in turn takes as long as decoding a small image.
IMAGE_FORMATS = ("PNG", "WEBP", "JPEG")
OTHER_FORMATS = ("BMP", "GIF", "TIFF", "PPM")


class Unreadable(Exception):
    """Why a row's image cannot be used, and what to do about it."""


def decoded_pixels(parts: Sequence[Part], dataset: ImageDataset) -> np.ndarray:
    """uint8 `[rows, channels, size, size]`; UserError names the first row that is no such image."""
    mode = {1: "L", 3: "RGB"}[dataset.channels]
    images: list[np.ndarray] = []
    for part in parts:
        for row, content in enumerate(contents(part, dataset.image_column)):
            try:
                images.append(decoded_image(content, mode))
                check_size(images[-1], images[0])
            except Unreadable as reason:
                raise UserError(
                    f"the images of {dataset.name} cannot be used: that in {part.place(row)} "
                    f"{reason}"
                ) from reason
    pixels = np.stack(images)
    pixels = pixels[:, None] if dataset.channels == 1 else pixels.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(pixels)


def contents(part: Part, column: str) -> Iterator[bytes | None]:
    """The bytes of each row's image file."""
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
    """Whatever else the hub's library takes for images, such as arrays of pixels."""
    import datasets

    try:
        return datasets.Image(decode=False).cast_storage(chunk)
    except Exception as error:
        raise UserError(
            f"column {column} of {part.name} holds {chunk.type}, which is no image; give it the "
            "bytes of image files"
        ) from error


def decoded_image(content: bytes | None, mode: str) -> np.ndarray:
    """uint8 `[height, width]`, with channels last where `mode` has several."""
    if content is None:
        raise Unreadable("has no bytes; put the image file itself into the row, or take it out")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with opened(content) as image:
                return np.asarray(of_eight_bits(image).convert(mode))
    except UnidentifiedImageError as error:
        kinds = ", ".join((*IMAGE_FORMATS, *OTHER_FORMATS))
        raise Unreadable(f"is no image of a known format ({kinds}); replace it") from error
    except Unreadable:
        raise
    except Exception as error:
        raise Unreadable(f"is damaged ({error}); replace it, or take the row out") from error


def opened(content: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content), formats=IMAGE_FORMATS)
    except UnidentifiedImageError:
        return Image.open(io.BytesIO(content), formats=OTHER_FORMATS)


def of_eight_bits(image: Image.Image) -> Image.Image:
    """The high byte of 16 bits, as PIL takes it of colours; of greys, it would cut at 255."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise Unreadable(
            f"has pixels of 32 bits (mode {image.mode}), whose range nobody knows; save it with 8 "
            "or 16 bits a channel"
        )
    return image


def check_size(image: np.ndarray, first: np.ndarray) -> None:
    height, width = image.shape[:2]
    if image.shape != first.shape:
        raise Unreadable(
            f"has {width} x {height} pixels, the first one {first.shape[1]} x {first.shape[0]}; "
            "save all of them in one size"
        )
    if height != width:
        raise Unreadable(f"has {width} x {height} pixels; cut or fill all of them to squares")
