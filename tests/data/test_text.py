"""The text data module on fixtures in each data set's schema, and the sources of texts."""

from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest
import torch

from asap_exp.core.config import TrainConfig
from asap_exp.core.errors import UserError
from asap_exp.data import build_data
from asap_exp.data.catalog import TEXT_DATASETS, text_dataset
from asap_exp.data.raw_texts import RawTexts, load_texts, pooled
from asap_exp.data.sources import DataNotFound
from asap_exp.data.text import TextDataModule
from asap_exp.data.tokenizer import FILE, tokenizer_hash
from asap_exp.data.tokens import CLS
from tests.composed import composed
from tests.data.parquet import write_texts
from tests.data.sentences import make_folder, make_texts, text_root
from tests.stages import TINY_TEXT

CLASSIFICATION = ("agnews", "dbpedia", "yelp", "imdb")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("ASAP_EXP_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return text_root(tmp_path_factory.mktemp("texts"), *CLASSIFICATION)


def module(root, task="agnews", *overrides: str, folder=None, **options) -> TextDataModule:
    where = (f"data.root={root}", f"data.cache={root / 'cache'}")
    given = [f"task={task}", *TINY_TEXT, *where, *overrides]
    config = composed("train", given, TrainConfig)
    data = build_data(config.data, batch_size=16, seed=0, folder=folder, **options)
    assert isinstance(data, TextDataModule)
    return data


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_local_folder_is_read_in_the_schema_of_the_hub(root, name):
    dataset = TEXT_DATASETS[name]
    texts, labels = make_texts(200, dataset.num_classes)
    raw = load_texts(dataset, "train", str(root), None)
    assert raw.texts == texts
    assert raw.labels == labels
    assert raw.source == "local Parquet files"


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIFICATION)
def test_every_task_gives_batches_for_its_classes(root, name):
    data = module(root, name)
    data.setup()
    assert data.num_classes == TEXT_DATASETS[name].num_classes
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        for batch, labels in loader:
            assert (batch.ids[:, 0] == CLS).all()
            assert batch.ids.max() < 400
            assert 0 <= labels.min() <= labels.max() < data.num_classes
    rows = [data.train_dataloader().num_samples, data.val_dataloader().num_samples]
    assert rows == [data.identity["train_rows"], data.identity["val_rows"]]
    assert sum(rows) == 200


def test_a_subset_is_known_as_one(root):
    data = module(root, "dbpedia")
    data.setup()
    data.test_dataloader()
    assert data.identity["train_split_rows"] == 200
    assert data.identity["train_split_rows_in_all"] == 560_000
    assert (data.identity["test_rows"], data.identity["test_rows_in_all"]) == (40, 70_000)


def test_markup_for_a_line_break_is_one(tmp_path):
    for split in ("train", "test"):
        write_texts(
            tmp_path / "imdb" / f"{split}.parquet", TEXT_DATASETS["imdb"], ["One.<br />Two."], [1]
        )
    assert load_texts(text_dataset("imdb"), "train", str(tmp_path), None).texts == ["One.\nTwo."]


def test_no_data_and_no_network_is_one_sentence_with_the_ways(tmp_path, monkeypatch):
    from asap_exp.data import sources

    def refuse(url: str) -> None:
        raise sources.Unavailable("no network in tests")

    monkeypatch.setattr(sources, "require_reachable", refuse)
    with pytest.raises(UserError) as error:
        load_texts(TEXT_DATASETS["dbpedia"], "train", str(tmp_path), None)
    message = str(error.value)
    assert f"{tmp_path / 'dbpedia_14'} or {tmp_path / 'dbpedia_14_subset'}" in message
    assert "Provide it in one of two ways" in message
    assert "torchvision" not in message


def test_hub_is_asked_for_its_name_and_configuration(tmp_path, monkeypatch):
    import datasets

    from asap_exp.data import sources

    make_folder(tmp_path, TEXT_DATASETS["imdb"])
    real, asked = datasets.load_dataset, []

    def hub(*name: str, split: str, cache_dir: str):
        asked.append((*name, split))
        file = tmp_path / "imdb" / f"{split}.parquet"
        return real("parquet", data_files=str(file), split="train", cache_dir=cache_dir)

    monkeypatch.setattr(sources, "require_reachable", lambda url: None)
    monkeypatch.setattr(datasets, "load_dataset", hub)
    monkeypatch.delenv("ASAP_EXP_DATA", raising=False)
    raw = load_texts(TEXT_DATASETS["imdb"], "test", None, str(tmp_path / "cache"))
    assert asked == [("stanfordnlp/imdb", "plain_text", "test")]
    assert raw.texts == make_texts(40, 2, seed=1)[0]
    assert raw.source == "Hugging Face hub, stanfordnlp/imdb plain_text"


def test_tokenizer_is_of_the_training_split_and_is_kept_in_the_run(root, tmp_path):
    data = module(root)
    data.setup()
    sha = data.identity["tokenizer_sha256"]
    assert sha == tokenizer_hash(data.tokenizer)
    data.save(tmp_path)
    assert (tmp_path / FILE).is_file()
    # Later stages use the saved one, whatever the training split holds today.
    make_folder(tmp_path, TEXT_DATASETS["agnews"], train=60)
    later = module(tmp_path, folder=tmp_path)
    later.test_dataloader()
    assert later.identity["tokenizer_sha256"] == sha
    other = module(tmp_path)
    other.setup()
    assert other.identity["tokenizer_sha256"] != sha


def test_empty_text_is_a_sample_like_any_other(tmp_path):
    dataset = TEXT_DATASETS["agnews"]
    texts, labels = make_texts(60, 4)
    texts[5] = ""
    for split in ("train", "test"):
        write_texts(tmp_path / "ag_news" / f"{split}.parquet", dataset, texts, labels)
    data = module(tmp_path)
    loader = data.test_dataloader()
    assert loader.num_samples == 60
    assert loader.texts.lengths[5] == 1
    lengths = [n for b, _ in loader for n in valid_lengths(b)]
    assert sorted(lengths) == sorted(loader.texts.lengths.tolist())


def valid_lengths(batch) -> list[int]:
    if batch.key_padding_mask is None:
        return [batch.ids.shape[1]] * len(batch)
    return (~batch.key_padding_mask).sum(dim=1).tolist()


def test_training_is_shuffled_and_augmented_and_the_rest_is_neither(root):
    data = module(root, "agnews", "data.mask_share=0.5")
    data.setup()
    train, val = data.train_dataloader(), data.val_dataloader()
    assert train.shuffled
    assert not val.shuffled
    masked = [(batch.ids == 3).any().item() for batch, _ in train]
    assert all(masked)
    assert not any((batch.ids == 3).any() for batch, _ in val)
    fit, held_out = data.calibration_dataloaders(samples=20, holdout=10, batch_size=8, seed=0)
    assert (fit.num_samples, held_out.num_samples) == (20, 10)
    assert not any((batch.ids == 3).any() for batch, _ in fit)


def test_pooled_split_deals_both_splits_anew(root):
    train, test = (load_texts(TEXT_DATASETS["imdb"], s, str(root), None) for s in ("train", "test"))
    dealt = [pooled(train, test, split, seed=0) for split in ("train", "test")]
    assert [len(part.texts) for part in dealt] == [192, 48]
    pairs = [pair for part in dealt for pair in zip(part.texts, part.labels, strict=True)]
    everything = [
        pair for part in (train, test) for pair in zip(part.texts, part.labels, strict=True)
    ]
    assert sorted(pairs) == sorted(everything)
    assert pooled(train, test, "test", seed=0) == dealt[1]
    assert pooled(train, test, "test", seed=1) != dealt[1]

    data = module(root, "imdb", "data.split=pooled")
    data.setup()
    data.test_dataloader()
    assert data.identity["split"] == "pooled"
    assert data.identity["train_split_rows_in_all"] == 40_000
    assert data.identity["test_rows_in_all"] == 10_000


def test_whole_splits_are_not_called_subsets(root, monkeypatch):
    data = module(root, "imdb")
    data.dataset = replace(data.dataset, rows={"train": 200, "test": 40})
    data.setup()
    data.test_dataloader()
    assert data.identity["train_split_rows"] == data.identity["train_split_rows_in_all"]
    assert data.identity["test_rows"] == data.identity["test_rows_in_all"]


def test_validation_fraction_is_needed_where_there_is_no_validation_split(root):
    with pytest.raises(UserError, match=r"data\.val_fraction=null, but agnews has no validation"):
        module(root, "agnews", "data.val_fraction=null").setup()


@pytest.mark.slow
def test_same_fixture_has_the_same_identity(root):
    first, second = module(root), module(root, "agnews", "recipe.batch_size=4")
    for data in (first, second):
        data.setup()
    assert first.identity == second.identity
    other = module(root, "agnews", "data.max_length=40")
    other.setup()
    assert other.identity["train_sha256"] == first.identity["train_sha256"], "of the whole split"


def test_texts_of_another_order_have_another_hash():
    raw = RawTexts(["a", "b"], [0, 0], "x")
    assert raw.take(np.array([1, 0])).sha256 != raw.sha256


def test_ids_lie_on_the_device_that_is_asked_for(root):
    data = module(root, device=torch.device("cpu"))
    data.setup()
    assert data.train_dataloader().texts.ids.device.type == "cpu"


def masked_module(root, *overrides: str) -> TextDataModule:
    data = module(root, "wikitext", "data.max_length=32", *overrides)
    data.setup()
    return data


def test_lines_of_wikitext_are_one_text_in_blocks(tmp_path):
    dataset = TEXT_DATASETS["wikitext2"]
    make_folder(tmp_path, dataset)
    data = masked_module(tmp_path)
    train, val, test = data.train_dataloader(), data.val_dataloader(), data.test_dataloader()
    for loader, split in ((train, "train"), (val, "validation"), (test, "test")):
        assert set(loader.texts.lengths[:-1]) == {32}
        raw = load_texts(dataset, split, str(tmp_path), None)
        tokens = data.tokenizer.encode("".join(raw.texts)).ids
        assert abs(loader.texts.lengths.sum() - loader.num_samples - len(tokens)) <= len(raw.texts)
    assert data.sample_name == "blocks of text"
    assert data.num_classes == 400
    assert data.identity["val_rows"] == 42
    assert data.identity["train_rows"] == data.identity["train_split_rows"] == 202


@pytest.mark.slow
def test_masks_are_drawn_anew_in_training_and_once_in_evaluation(tmp_path):
    make_folder(tmp_path, TEXT_DATASETS["wikitext2"])
    data = masked_module(tmp_path)
    val = data.val_dataloader()
    first, again = ([batch.ids for batch, _ in val] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = masked_module(tmp_path, "recipe.batch_size=3", "seed=5").val_dataloader()
    assert torch.equal(other.texts.ids, val.texts.ids), "whatever the batches and the seed"
    assert not torch.equal(
        masked_module(tmp_path, "data.mask_seed=1").val_dataloader().texts.ids, val.texts.ids
    )
    train = data.train_dataloader()
    torch.manual_seed(0)
    (one, targets), (two, _) = next(iter(train)), next(iter(train))
    assert not torch.equal(one.positions, two.positions)
    valid = one.ids.numel() if one.key_padding_mask is None else int((~one.key_padding_mask).sum())
    assert len(targets) == round(0.15 * (valid - len(one)))


def test_validation_split_of_its_own_and_a_fraction_exclude_each_other(tmp_path):
    make_folder(tmp_path, TEXT_DATASETS["wikitext2"])
    with pytest.raises(UserError, match=r"has a validation split of its own; set data\.val_fract"):
        masked_module(tmp_path, "data.val_fraction=0.1")


def test_masked_language_model_on_texts_leaves_out_those_without_a_token(tmp_path):
    dataset = TEXT_DATASETS["agnews"]
    texts, labels = make_texts(60, 4)
    texts[5] = ""
    for split in ("train", "test"):
        write_texts(tmp_path / "ag_news" / f"{split}.parquet", dataset, texts, labels)
    data = module(tmp_path, "agnews_mlm", "data.layout=texts")
    assert data.test_dataloader().num_samples == 59
    for batch, targets in data.test_dataloader():
        assert len(targets) == len(batch.positions) > 0


def test_excerpt_is_in_the_package_with_its_notice():
    dataset = TEXT_DATASETS["wikitext2_excerpt"]
    for split, rows in dataset.rows.items():
        raw = load_texts(dataset, split, None, None)
        assert len(raw.texts) == rows
        assert all(text.endswith("\n") and text.count("\n") == 1 for text in raw.texts)
    notice = files("asap_exp.data") / "excerpts" / "wikitext2_excerpt" / "NOTICE"
    assert "Creative Commons Attribution-ShareAlike" in notice.read_text(encoding="utf-8")


def test_texts_without_classes_cannot_be_classified(tmp_path):
    with pytest.raises(UserError, match=r"wikitext2 have no classes; set data\.objective=mlm"):
        module(tmp_path, "wikitext", "data.objective=classification", "data.layout=texts")


def rewrite(root, split: str, texts: list, labels: list, name: str = "agnews") -> None:
    write_texts(
        root / text_dataset(name).folders[0] / f"{split}.parquet", text_dataset(name), texts, labels
    )


@pytest.mark.parametrize("overrides", [(), ("data.layout=texts",)], ids=["blocks", "texts"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_masked_tokens_of_empty_texts_are_refused(tmp_path, overrides, split):
    root = text_root(tmp_path, "agnews")
    rewrite(root, split, [""] * 40, [0, 1, 2, 3] * 10)
    data = module(root, "agnews_mlm", *overrides)

    def load() -> None:
        data.setup()
        data.test_dataloader()

    with pytest.raises(UserError, match=r"nothing to predict: all .* of agnews are empty"):
        load()


def test_block_without_a_token_of_its_own_is_left_out(tmp_path):
    root = text_root(tmp_path, "agnews")
    rewrite(root, "test", ["a", "", "", "", "", "b"], [0] * 6)  # blocks: CLS and two more
    loader = module(root, "agnews_mlm", "data.max_length=3").test_dataloader()
    assert loader.num_samples == 2
    for batch, targets in loader:
        assert len(batch.positions) == len(targets) > 0


def test_test_labels_are_refused_before_training(tmp_path):
    root = text_root(tmp_path, "agnews")
    rewrite(root, "test", ["a", "b"], [0, -1])
    with pytest.raises(UserError, match=r"has -1 in row 1 .*test\.parquet.*0 to 3"):
        module(root).setup()
    (root / "ag_news" / "test.parquet").unlink()
    module(root).setup()


def test_labels_that_are_not_read_may_be_any(tmp_path):
    root = text_root(tmp_path, "agnews")
    texts, _ = make_texts(40, 4)
    rewrite(root, "train", texts, [-1] * 40)
    rewrite(root, "test", texts, [-1] * 40)
    data = module(root, "agnews_mlm")
    data.setup()
    assert len(data.test_dataloader())


def test_row_of_a_class_with_one_row_is_for_training(tmp_path):
    root = text_root(tmp_path, "agnews")
    texts, _ = make_texts(40, 4)
    rewrite(root, "train", texts, [0] * 20 + [3] + [1] * 19)
    data = module(root)
    data.setup()
    assert 3 in data.train_dataloader().texts.labels
    assert 3 not in data.val_dataloader().texts.labels


def test_order_of_classes_is_kept_in_the_run(tmp_path):
    import datasets

    def write(folder, split: str, names: list[str]) -> None:
        features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)}
        texts = [f"{name} {i}" for i in range(10) for name in "abcd"]
        labels = [names.index(text[0]) for text in texts]
        rows = datasets.Dataset.from_dict(
            {"text": texts, "label": labels}, features=datasets.Features(features)
        )
        (folder / "ag_news").mkdir(parents=True, exist_ok=True)
        rows.to_parquet(str(folder / "ag_news" / f"{split}.parquet"))

    first, elsewhere, run = tmp_path / "first", tmp_path / "elsewhere", tmp_path / "run"
    write(first, "train", ["a", "b", "c", "d"])
    data = module(first)
    data.setup()
    data.save(run)
    # Another folder, with only a test split, has another order.
    write(elsewhere, "test", ["d", "b", "a", "c"])
    test = module(elsewhere, folder=run).test_dataloader()
    assert test.texts.labels.tolist() == [0, 1, 2, 3] * 10
    (run / "classes.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match=r"classes\.json is damaged"):
        module(elsewhere, folder=run)


def test_hashes_of_the_content_are_those_of_the_identity(root):
    data = module(root)
    hashes = module(root).content_hashes()
    data.setup()
    assert hashes == {key: data.identity[key] for key in ("train_sha256", "val_rows_sha256")}
    with pytest.raises(DataNotFound):
        module(root / "nowhere", "yelp").content_hashes()
