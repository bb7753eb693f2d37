"""Images of every format become 8-bit pixels, or an error that names their row."""

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from asap_exp.core.errors import UserError
from asap_exp.data.catalog import IMAGE_DATASETS
from asap_exp.data.image_decoding import decoded_pixels
from asap_exp.data.parquet import Part

CIFAR10, DIGITS = IMAGE_DATASETS["cifar10"], IMAGE_DATASETS["digits"]
GREY = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
COLOURS = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def file_of(pixels: np.ndarray | Image.Image, image_format: str = "PNG") -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, image_format)
    return buffer.getvalue()


def part(column: pa.Array) -> Part:
    return Part("/data/train.parquet", pa.table({"img": column}))


def structs(*contents: bytes | None) -> Part:
    return part(pa.array([{"bytes": content, "path": "x.png"} for content in contents]))


def refused(*contents: bytes | None) -> str:
    with pytest.raises(UserError) as error:
        decoded_pixels([structs(*contents)], CIFAR10)
    message = str(error.value)
    assert message.startswith("the images of cifar10 cannot be used: the one in row ")
    return message


@pytest.mark.parametrize("factor", [256, 257])
def test_bugs_f19_grey_images_of_16_bits_are_scaled_and_not_clipped(factor):
    deep = file_of(GREY.astype(np.uint16) * factor)
    (pixels,) = decoded_pixels([structs(deep)], CIFAR10)
    assert (pixels == GREY).all()
    one_channel = Part("file", pa.table({"img": [{"bytes": deep}]}))
    assert (decoded_pixels([one_channel], DIGITS)[0, 0] == GREY).all()
    (pixels,) = decoded_pixels([structs(file_of(GREY.astype(np.uint16) * factor, "TIFF"))], CIFAR10)
    assert (pixels == GREY).all()


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_bugs_f19_pixels_whose_range_nobody_knows_are_refused(kind):
    message = refused(file_of(COLOURS), file_of(GREY.astype(kind), "TIFF"))
    assert "row 1 (counted from 0) of /data/train.parquet has 32-bit pixels" in message


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "GIF", "PPM", "TIFF"])
def test_formats_without_loss_are_read(image_format):
    pixels = decoded_pixels([structs(file_of(COLOURS[:, :, 0], image_format))], DIGITS)
    assert (pixels[0, 0] == COLOURS[:, :, 0]).all()


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()], ids=str)
def test_column_of_plain_bytes_or_of_arrays_is_read(kind):
    column = pa.array([file_of(COLOURS)], kind)
    assert (decoded_pixels([part(column)], CIFAR10)[0] == COLOURS.transpose(2, 0, 1)).all()
    arrays = pa.array([COLOURS.tolist()], pa.list_(pa.list_(pa.list_(pa.uint8()))))
    assert (decoded_pixels([part(arrays)], CIFAR10)[0] == COLOURS.transpose(2, 0, 1)).all()


def test_column_of_something_else_is_named():
    with pytest.raises(UserError, match=r"column img of /data/train\.parquet holds int64"):
        decoded_pixels([part(pa.array([1, 2]))], CIFAR10)


def test_bugs_f19_row_that_cannot_be_read_is_named_with_its_cause():
    good = file_of(COLOURS)
    jpeg = file_of(COLOURS, "JPEG")
    assert "row 2 (counted from 0)" in refused(good, good, jpeg[: len(jpeg) // 2])
    assert "is damaged (image file is truncated" in refused(jpeg[: len(jpeg) * 3 // 4])
    assert "row 1" in refused(good, None)
    assert "has no bytes" in refused(None)
    assert "is not in a known image format (PNG, WEBP, JPEG" in refused(b"")
    assert "is not in a known image format" in refused(b"hello, world" * 9)


def test_bugs_f19_images_of_several_sizes_or_of_no_square_are_refused():
    small, wide = file_of(COLOURS[:16, :16]), file_of(COLOURS[:16])
    message = refused(file_of(COLOURS), small)
    assert "row 1" in message
    assert "has 16 x 16 pixels, the first one 32 x 32; save all images in the same size" in message
    assert "has 32 x 16 pixels; crop or pad all images to squares" in refused(wide)


def test_images_of_another_size_keep_theirs():
    assert decoded_pixels([structs(file_of(COLOURS[:16, :16]))], CIFAR10).shape == (1, 3, 16, 16)


@pytest.mark.parametrize("largest", [65535, 1000])
def test_wide_w7_grey_maps_of_16_bits_are_scaled(largest):
    values = (GREY.astype(np.int64) * largest // 255).astype(">u2")
    height, width = values.shape
    content = f"P5 {width} {height} {largest}\n".encode() + values.tobytes()
    (pixels,) = decoded_pixels([structs(content)], CIFAR10)
    scaled = values.astype(np.int64) * 255 / largest
    assert np.abs(pixels - scaled).max() <= 1
    assert pixels.max() > 200
