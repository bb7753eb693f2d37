"""What is null in a request is found in the data, shown, and part of the run's configuration."""

import numpy as np
import pytest
from PIL import Image

from asap_exp.core.composing import compose, load_saved
from asap_exp.core.config import OwnImageTrainConfig, OwnTextTrainConfig, TrainConfig
from asap_exp.core.errors import UserError
from asap_exp.core.runs import identity, public_config, recipe_hash, run_name, write_config
from asap_exp.data.own.sizes import chosen_sizes, usual_side
from asap_exp.data.own.text_facts import usual_length, vocabulary
from tests.data.own.made import (
    looked_up,
    noise,
    request,
    sentences,
    write_csv,
    write_folder,
    write_images,
)


@pytest.mark.slow
def test_images_show_their_size_colours_classes_and_statistics(tmp_path, capsys):
    config = looked_up("images", write_folder(tmp_path / "pets", 20, size=(40, 33)))
    data, model = config.data, config.model
    assert isinstance(config, OwnImageTrainConfig)
    assert (data.name, data.path) == ("pets", str(tmp_path / "pets"))
    assert (data.image_size, model.patch_size, data.channels) == (33, 3, 3)
    assert (data.image_column, data.label_column, data.num_classes) == ("image", "label", 3)
    assert data.augment.crop_padding == 4
    assert (data.val_fraction, data.test_fraction) == (0.1, 0.2)
    assert config.recipe.batch_size == 32
    assert np.allclose(data.mean, 0.5, atol=0.02)
    assert np.allclose(data.std, 0.29, atol=0.02)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"Data: pets, own image folder at {tmp_path / 'pets'}"
    assert "43 train, 5 validation (held out, data.val_fraction=0.1), 12 test (held" in lines[1]
    assert lines[2] == "  classes: 3, ant, bee, cat (folders; data.label_column)"
    assert "in colour, 40 x 33 (100%) pixels, of 48 looked at" in lines[3]
    assert "in 11 x 11 patches of 3 x 3, 121 tokens (data.image_size=33" in lines[4]
    assert lines[5].startswith("  mean 0.")


def test_statistics_are_those_of_the_training_images_alone(tmp_path):
    for split, value in (("train", 51), ("test", 255)):
        for name in "ab":
            (tmp_path / "flat" / split / name).mkdir(parents=True)
            for row in range(20):
                pixels = np.full((8, 8), value if row % 2 else 0, np.uint8)
                Image.fromarray(pixels).save(tmp_path / "flat" / split / name / f"{row}.png")
    data = looked_up("images", tmp_path / "flat").data
    assert (data.channels, data.mean, data.std) == (1, [0.1], [0.1])


def test_images_without_contrast_have_a_deviation_to_divide_by(tmp_path):
    for name in "ab":
        (tmp_path / "flat" / name).mkdir(parents=True)
        for row in range(20):
            Image.fromarray(np.zeros((8, 8), np.uint8)).save(
                tmp_path / "flat" / name / f"{row}.png"
            )
    assert looked_up("images", tmp_path / "flat").data.std == [0.001]


def test_what_is_given_is_not_looked_for(tmp_path, capsys):
    folder = write_folder(tmp_path / "pets", 20, size=(40, 40))
    given = (
        "data.name=zoo", "data.image_size=24", "model.patch_size=6", "data.channels=1",
        "data.mean=[0.25]", "data.std=[0.5]", "data.augment.crop_padding=0", "data.limit=30",
        "recipe.batch_size=7",
    )  # fmt: skip
    config = looked_up("images", folder, *given)
    data = config.data
    assert (data.name, data.image_size, config.model.patch_size) == ("zoo", 24, 6)
    assert (data.channels, data.mean, data.std) == (1, [0.25], [0.5])
    assert (data.augment.crop_padding, config.recipe.batch_size) == (0, 7)
    assert "a subset, data.limit=30" in capsys.readouterr().out


def test_batch_is_no_larger_than_the_training_rows(tmp_path, capsys):
    folder = write_folder(tmp_path / "pets", 10)
    assert looked_up("images", folder, "data.val_fraction=0.2").recipe.batch_size == 19
    told = "of at most all 19 training images, not 32 (recipe.batch_size=19)"
    assert told in capsys.readouterr().out
    small = looked_up("images", folder, "data.val_fraction=0.2", "recipe.batch_size=19")
    assert small.recipe.batch_size == 19
    assert "batches:" not in capsys.readouterr().out
    both = ("data.val_fraction=0.2", "data.train_on=train+val", "recipe.keep=last")
    assert looked_up("images", folder, *both).recipe.batch_size == 24


@pytest.mark.parametrize(
    "test_fraction", [True, False], ids=["test rows held out", "validation rows alone"]
)
def test_column_of_another_class_in_each_row_is_named_before_a_fraction(tmp_path, test_fraction):
    rows = {"text": ["one line", "another"], "note": ["x y", "z"]}
    path = write_csv(tmp_path / "notes" / "train.csv", **rows)
    if not test_fraction:
        write_csv(tmp_path / "notes" / "test.csv", **rows)
        path = path.parent
    with pytest.raises(UserError, match="another class in each of the 2 rows") as error:
        looked_up("texts", path)
    assert "column note of " in str(error.value)
    assert "note (string); set data.label_column=NAME" in str(error.value)
    assert "fraction" not in str(error.value)


def test_texts_show_their_columns_length_and_classes(tmp_path, capsys):
    file = write_csv(tmp_path / "news.csv", **sentences(90))
    config = looked_up("texts", file)
    data = config.data
    assert isinstance(config, OwnTextTrainConfig)
    assert (data.name, data.text_column, data.label_column) == ("news", "text", "label")
    assert (data.num_classes, data.max_length, data.vocab_size) == (3, 64, 1024)
    out = capsys.readouterr().out
    assert "64 train, 8 validation" in out
    assert "classes: 3, ant, bee, cat (column label; data.label_column)" in out


def test_masked_language_model_needs_no_classes(tmp_path):
    file = write_csv(tmp_path / "a.csv", words=sentences(40)["text"])
    data = looked_up("texts_mlm", file).data
    assert (data.text_column, data.label_column, data.num_classes) == ("words", None, None)


def headless(file, line):
    file.write_text("".join(line.format(row, (row + 1) % 2) + "\n" for row in range(40)))
    return file


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_file_without_a_header_is_refused_for_its_classes(tmp_path, ending):
    line = "some text number {}" + {"csv": ",", "tsv": "\t"}[ending] + "{}"
    with pytest.raises(UserError, match="1 is a value: put a line of names above it") as error:
        looked_up("texts", headless(tmp_path / f"a.{ending}", line))
    assert "if it is a name, say so with data.label_column=1" in str(error.value)


def test_file_without_a_header_is_refused_where_no_column_can_be_told(tmp_path):
    file = headless(tmp_path / "a.csv", "some text number {},sport{}")
    words = "sport1 is a value: put a line of names above it"
    for given in ((), ("data.text_column=text",)):
        with pytest.raises(UserError, match=words):
            looked_up("texts", file, *given)


@pytest.mark.parametrize(
    ("header", "given"),
    [
        ("text,1", ()),
        ("body,stars", ()),
        ("0,1", ()),
        ("body,2019", ("data.label_column=2019",)),
        ("What did you think?,mark", ("data.text_column=What did you think?",)),
    ],
)
def test_header_of_names_is_one(tmp_path, header, given, capsys):
    rows = "".join(f"some text number {row},{row % 2}\n" for row in range(40))
    (tmp_path / "a.csv").write_text(f"{header}\n{rows}")
    config = looked_up("texts", tmp_path / "a.csv", *given)
    assert (config.data.text_column, config.data.label_column) == tuple(header.split(","))
    assert "28 train, 4 validation" in capsys.readouterr().out.splitlines()[1]


def test_sentence_for_a_column_is_warned_of_unless_it_is_given(tmp_path, capsys):
    file = headless(tmp_path / "a.csv", "some text number {} again")
    looked_up("texts_mlm", file)
    assert "'some text number 0 again' is no text; if it is one, put" in capsys.readouterr().err
    looked_up("texts_mlm", file, "data.text_column=some text number 0 again")
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_splits_of_the_data_need_no_fraction(tmp_path):
    for split in ("train", "val", "test"):
        write_csv(tmp_path / f"{split}.csv", **sentences(30))
    data = looked_up("texts", tmp_path).data
    assert data.val_fraction is data.test_fraction is None
    with pytest.raises(UserError, match=r"data\.val_fraction=null, but .* has no validation split"):
        looked_up("texts", tmp_path / "train.csv", "data.val_fraction=null")
    with pytest.raises(UserError, match=r"data\.test_fraction=null, but .* has no test split"):
        looked_up("texts", tmp_path / "train.csv", "data.test_fraction=null")


@pytest.mark.slow
def test_path_is_saved_so_that_it_holds_anywhere(tmp_path, monkeypatch):
    write_csv(tmp_path / "news" / "train.csv", **sentences(60))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ASAP_EXP_DATA", raising=False)
    assert looked_up("texts", "news").data.path == str(tmp_path / "news")
    assert looked_up("texts", "news/*.csv").data.path == str(tmp_path / "news" / "*.csv")
    assert looked_up("texts", "train.csv", "data.root=news").data.path == str(
        tmp_path / "news" / "train.csv"
    )


def test_configuration_is_saved_and_read_again(tmp_path):
    config = looked_up("images", write_folder(tmp_path / "pets"))
    write_config(config, tmp_path)
    again = load_saved(tmp_path / "config.yaml", TrainConfig)
    assert again == config
    assert type(again) is OwnImageTrainConfig


@pytest.mark.slow
def test_identity_is_that_of_the_data_and_not_of_its_place(tmp_path):
    write_folder(tmp_path / "pets")
    first = looked_up("images", tmp_path / "pets")
    (tmp_path / "moved").mkdir()
    (tmp_path / "pets").rename(tmp_path / "moved" / "pets")
    moved = looked_up("images", tmp_path / "moved" / "pets")
    assert (run_name(moved), recipe_hash(moved)) == (run_name(first), recipe_hash(first))
    assert "path" not in identity(moved)["data"]
    assert str(tmp_path) not in str(public_config(moved)["data"])
    write_folder(tmp_path / "moved" / "pets", 1, ("owl",))
    assert run_name(looked_up("images", tmp_path / "moved" / "pets")) != run_name(first)


@pytest.mark.slow
def test_other_labels_of_files_as_large_are_other_data(tmp_path):
    names = []
    for labels in (["a", "b"] * 20, ["b", "a"] * 20):
        names.append(run_name(looked_up("texts", write_csv(
            tmp_path / "a.csv", text=[f"row {row}" for row in range(40)], label=labels
        ))))  # fmt: skip
    assert names[0] != names[1]


REFUSED = {
    "a mean too few": (("data.mean=[0.5]",), r"data\.mean=\[0\.5\] must have a number for each"),
    "a patch that does not divide": (
        ("data.image_size=10", "model.patch_size=3"),
        r"model\.patch_size=3 does not divide data\.image_size=10",
    ),
    "a size that no patch divides": (("data.image_size=97",), "such as data.image_size=96"),
    "too few to hold out": (("data.test_fraction=0.01",), r"data\.test_fraction=0\.01 of 60 rows"),
    "too few for validation": (("data.val_fraction=0.95",), r"data\.val_fraction=0\.95 of 48 rows"),
    "two channels": (("data.channels=2",), r"data\.channels=2 is not allowed; choose one of 1, 3"),
    "no deviation": (("data.std=[0,1,1]",), r"data\.std=\[0, 1, 1\]|data\.std=0"),
    "a wrong key": (("data.image_colum=x",), r"Did you mean image_column\?"),
    "a name with a slash": (("data.name=a/b",), r"data\.name='a/b' is not allowed"),
}


@pytest.mark.parametrize(("given", "words"), REFUSED.values(), ids=REFUSED)
def test_setting_that_does_not_fit_is_refused(tmp_path, given, words):
    folder = write_folder(tmp_path / "pets")
    with pytest.raises(UserError, match=words):
        looked_up("images", folder, *given)


def test_path_must_be_given_and_is_for_own_data():
    with pytest.raises(UserError, match=r"data\.path must be set; .*=FOLDER, which holds"):
        compose("train", ["task=images"], TrainConfig)
    with pytest.raises(UserError, match=r"data\.path=x is for your own data, with .*task=images"):
        request("cifar", "x")


def test_pooled_texts_are_for_one_published_run(tmp_path):
    with pytest.raises(UserError, match=r"data\.split=pooled deals .*data\.test_fraction"):
        request("texts", tmp_path, "data.split=pooled")


def test_damaged_image_is_named_before_training(tmp_path):
    folder = write_folder(tmp_path / "pets")
    for row in range(5, 10):  # more than there are test images
        (folder / "bee" / f"00{row}.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"images of pets .* one in .*bee/00[5-9]\.png is not in a"):
        looked_up("images", folder)


def test_damaged_image_of_parquet_is_named_by_its_row(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = write_images(tmp_path / "train.parquet", ["a", "b"] * 20)
    table = pq.read_table(file)
    images = table["image"].to_pylist()
    images[9]["bytes"] = images[9]["bytes"][:80]
    pq.write_table(table.set_column(0, "image", pa.array(images)), file)
    with pytest.raises(UserError, match=r"the one in row 9 \(counted from 0\) of .*train\.parquet"):
        looked_up("images", file, "data.test_fraction=0.1")


@pytest.mark.parametrize(
    ("side", "size", "patch"),
    [(1, 1, 1), (5, 4, 2), (8, 8, 2), (15, 14, 2), (16, 16, 2), (28, 28, 2), (32, 32, 4),
     (64, 64, 8), (72, 72, 9), (97, 96, 12), (128, 128, 16), (500, 128, 16)],
)  # fmt: skip
def test_patch_divides_the_size(side, size, patch):
    assert chosen_sizes(side, None, None) == (size, patch)


@pytest.mark.parametrize("side", range(16, 300))
def test_there_are_64_to_256_tokens_whatever_the_size(side):
    size, patch = chosen_sizes(side, None, None)
    assert size % patch == 0
    assert 64 <= (size // patch) ** 2 <= 256
    assert min(side, 128) - patch < size <= min(side, 128)


def test_given_sizes_are_kept():
    assert chosen_sizes(50, 224, None) == (224, 28)
    assert chosen_sizes(50, 8, None) == (8, 2)
    assert chosen_sizes(50, 9, None) == (9, 1)
    assert chosen_sizes(8, None, 1) == (8, 1)
    assert chosen_sizes(50, None, 7) == (49, 7)
    assert chosen_sizes(3, None, 7) == (7, 7)
    assert chosen_sizes(50, 30, 7) == (30, 7), "refused by the configuration"


def test_usual_side_is_the_shorter_one_of_the_most_frequent_size():
    assert usual_side([(40, 30), (20, 20), (40, 30)]) == 30
    assert usual_side([(20, 20), (40, 30)]) == 30, "the larger one of equally frequent"
    assert usual_side([image.shape[1::-1] for image in noise(3, (9, 7))]) == 7


@pytest.mark.slow
def test_length_and_vocabulary_grow_with_the_texts():
    assert usual_length(["x" * 40] * 9 + ["x" * 100_000]) == 64
    assert usual_length(["x" * 700]) == 192
    assert usual_length(["\u00e9" * 700]) == 352, "bytes, not letters"
    assert usual_length(["x" * 100_000]) == 512
    assert vocabulary(["a b"]) == 1024
    assert vocabulary(["word " * 500_000]) == 4096
    assert vocabulary(["word " * 5_000_000]) == 16384
