"""Images of every format become 8-bit pixels, or an error that names their row."""

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import ExifTags, Image

from asap_exp.core.errors import UserError
from asap_exp.data import image_decoding
from asap_exp.data.catalog import IMAGE_DATASETS, ImageDataset
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


def decoded(parts: list[Part], dataset: ImageDataset, size: int | None = None) -> np.ndarray:
    return decoded_pixels(parts, sum(part.table.num_rows for part in parts), dataset, size)


def refused(*contents: bytes | None) -> str:
    with pytest.raises(UserError) as error:
        decoded([structs(*contents)], CIFAR10)
    message = str(error.value)
    assert message.startswith("the images of cifar10 cannot be used: the one in row ")
    return message


@pytest.mark.parametrize("factor", [256, 257])
def test_grey_images_of_16_bits_are_scaled_and_not_clipped(factor):
    deep = file_of(GREY.astype(np.uint16) * factor)
    (pixels,) = decoded([structs(deep)], CIFAR10)
    assert (pixels == GREY).all()
    one_channel = Part("file", pa.table({"img": [{"bytes": deep}]}))
    assert (decoded([one_channel], DIGITS)[0, 0] == GREY).all()
    (pixels,) = decoded([structs(file_of(GREY.astype(np.uint16) * factor, "TIFF"))], CIFAR10)
    assert (pixels == GREY).all()


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_pixels_whose_range_nobody_knows_are_refused(kind):
    message = refused(file_of(COLOURS), file_of(GREY.astype(kind), "TIFF"))
    assert "row 1 (counted from 0) of /data/train.parquet has 32-bit pixels" in message


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "GIF", "PPM", "TIFF"])
def test_formats_without_loss_are_read(image_format):
    pixels = decoded([structs(file_of(COLOURS[:, :, 0], image_format))], DIGITS)
    assert (pixels[0, 0] == COLOURS[:, :, 0]).all()


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()], ids=str)
def test_column_of_plain_bytes_or_of_arrays_is_read(kind):
    column = pa.array([file_of(COLOURS)], kind)
    assert (decoded([part(column)], CIFAR10)[0] == COLOURS.transpose(2, 0, 1)).all()
    arrays = pa.array([COLOURS.tolist()], pa.list_(pa.list_(pa.list_(pa.uint8()))))
    assert (decoded([part(arrays)], CIFAR10)[0] == COLOURS.transpose(2, 0, 1)).all()


def test_column_of_something_else_is_named():
    with pytest.raises(UserError, match=r"column img of /data/train\.parquet holds int64"):
        decoded([part(pa.array([1, 2]))], CIFAR10)


def test_row_that_cannot_be_read_is_named_with_its_cause():
    good = file_of(COLOURS)
    jpeg = file_of(COLOURS, "JPEG")
    assert "row 2 (counted from 0)" in refused(good, good, jpeg[: len(jpeg) // 2])
    assert "is damaged (image file is truncated" in refused(jpeg[: len(jpeg) * 3 // 4])
    assert "row 1" in refused(good, None)
    assert "has no bytes" in refused(None)
    assert "is not in a known image format (PNG, WEBP, JPEG" in refused(b"")
    assert "is not in a known image format" in refused(b"hello, world" * 9)


def test_images_of_several_sizes_or_of_no_square_are_refused():
    small, wide = file_of(COLOURS[:16, :16]), file_of(COLOURS[:16])
    message = refused(file_of(COLOURS), small)
    assert "row 1" in message
    assert "has 16 x 16 pixels, the first one 32 x 32; save all images in the same size" in message
    assert "has 32 x 16 pixels; crop or pad all images to squares" in refused(wide)


def test_images_of_another_size_keep_theirs():
    assert decoded([structs(file_of(COLOURS[:16, :16]))], CIFAR10).shape == (1, 3, 16, 16)


@pytest.mark.parametrize("largest", [65535, 1000])
def test_grey_maps_of_16_bits_are_scaled(largest):
    values = (GREY.astype(np.int64) * largest // 255).astype(">u2")
    height, width = values.shape
    content = f"P5 {width} {height} {largest}\n".encode() + values.tobytes()
    (pixels,) = decoded([structs(content)], CIFAR10)
    scaled = values.astype(np.int64) * 255 / largest
    assert np.abs(pixels - scaled).max() <= 1
    assert pixels.max() > 200


def test_threads_keep_the_order_of_the_rows(monkeypatch):
    monkeypatch.setattr(image_decoding, "AT_ONCE", 3)
    monkeypatch.setattr(image_decoding, "cpu_count", lambda: 4)
    grey = [np.full((4, 4), value, np.uint8) for value in range(50)]
    parts = [structs(*map(file_of, grey[:20])), structs(*map(file_of, grey[20:]))]
    assert decoded(parts, DIGITS)[:, 0, 0, 0].tolist() == list(range(50))


def test_first_of_several_damaged_rows_is_named_whichever_thread_is_first(monkeypatch):
    monkeypatch.setattr(image_decoding, "AT_ONCE", 2)
    monkeypatch.setattr(image_decoding, "cpu_count", lambda: 4)
    good, files = file_of(COLOURS), [file_of(COLOURS)] * 40
    for row in (9, 11, 38):
        files[row] = good[: len(good) // 2]
    assert "row 9 (counted from 0)" in refused(*files)


def test_images_are_fitted_to_a_size_by_their_shorter_side_and_centre():
    halves = np.zeros((20, 60, 3), np.uint8)
    halves[:, 20:40] = 200  # the middle third is what a square crop shows
    (pixels,) = decoded([structs(file_of(halves))], CIFAR10, 10)
    assert pixels.shape == (3, 10, 10)
    assert (pixels[:, :, 1:-1] == 200).all()
    enlarged = decoded([structs(file_of(COLOURS[:5, :5]))], CIFAR10, 10)
    assert enlarged.shape == (1, 3, 10, 10)
    (cut,) = decoded([structs(file_of(COLOURS[:25]))], CIFAR10, 25)
    assert (cut == COLOURS[:25, 3:28].transpose(2, 0, 1)).all(), "cropped, not resampled"
    same = decoded([structs(file_of(COLOURS))], CIFAR10, 32)
    assert (same[0] == COLOURS.transpose(2, 0, 1)).all(), "of the size already: not resampled"


def test_photo_is_turned_upright():
    image = Image.fromarray(COLOURS)
    exif = image.getexif()
    exif[ExifTags.Base.Orientation] = 3  # upside down
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    (pixels,) = decoded([structs(buffer.getvalue())], CIFAR10, 32)
    assert (pixels == COLOURS[::-1, ::-1].transpose(2, 0, 1)).all()


def test_large_jpeg_is_decoded_at_a_fraction_and_looks_the_same():
    smooth = np.kron(
        np.arange(0, 250, 10, dtype=np.uint8).reshape(5, 5), np.ones((80, 80), np.uint8)
    )
    content = file_of(smooth, "JPEG")
    (drafted,) = decoded([structs(content)], DIGITS, 25)
    with Image.open(io.BytesIO(content)) as image:
        whole = np.asarray(image.convert("L").resize((25, 25), Image.Resampling.BILINEAR))
    assert np.abs(drafted[0].astype(int) - whole).mean() < 3


def test_path_of_a_file_stands_for_its_bytes(tmp_path):
    file = tmp_path / "x.png"
    file.write_bytes(file_of(COLOURS))
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    column = pa.array([{"bytes": None, "path": str(file)}], kind)
    assert (decoded([part(column)], CIFAR10)[0] == COLOURS.transpose(2, 0, 1)).all()
    missing = pa.array([{"bytes": None, "path": str(tmp_path / "y.png")}], kind)
    with pytest.raises(UserError, match=r"row 0 .* has no bytes"):
        decoded([part(missing)], CIFAR10)
