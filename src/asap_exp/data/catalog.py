"""Catalogue of the known data sets: sizes, classes and column names."""

from dataclasses import dataclass
from typing import TypeVar

from asap_exp.core.errors import check_choice


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Description of a data set.

    `rows` gives the number of rows of each complete split; a split with fewer is called a subset.
    `hub` is the repository on the Hugging Face hub, followed by the configuration if it has
    several. `local` lists the names that a local folder of Parquet files may have. `class_names`
    are in the order of the labels; `trained_names` are the names of the data that a model was
    trained on, and take precedence over `class_names`. With `labels_read=False` any integer is
    accepted as a label.
    """

    name: str
    rows: dict[str, int]
    num_classes: int
    hub: tuple[str, ...] | None = None
    label_column: str = "label"
    local: tuple[str, ...] = ()
    class_names: tuple[str, ...] | None = None
    trained_names: tuple[str, ...] | None = None
    labels_read: bool = True

    @property
    def folders(self) -> tuple[str, ...]:
        """Folder names to look for below the data root."""
        return self.local or (self.name,)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that are read from the tables."""
        return (self.label_column,) if self.num_classes else ()


@dataclass(frozen=True, kw_only=True)
class ImageDataset(Dataset):
    """Data set of square images, `size` pixels wide; `mean` and `std` per channel, scale 0..1.

    With `several_sizes` its sources differ in size and their images need not be square: each is
    resized to its shorter side and cropped at the centre, and records say how large it was. A
    source with a training split alone is divided if there is a `test_fraction`; `undivided` lists
    the rows of such sources that are complete.
    """

    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    torchvision: str | None = None
    image_column: str = "img"
    several_sizes: bool = False
    test_fraction: float | None = None
    undivided: tuple[int, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.image_column, *super().columns)


@dataclass(frozen=True, kw_only=True)
class TextDataset(Dataset):
    """Data set of texts in `text_column`.

    `line_break` is the markup that stands for a line break. With `joined`, each row is a line of
    one long text. A data set that is `embedded` in the package needs no source.
    """

    text_column: str = "text"
    line_break: str | None = None
    joined: bool = False
    embedded: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.text_column, *super().columns)


CIFAR100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup
dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
leopard lion lizard lobster man maple motorcycle mountain mouse mushroom oak orange orchid otter
palm pear pickup_truck pine plain plate poppy porcupine possum rabbit raccoon ray road rocket rose
sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper
table tank telephone television tiger tractor train trout tulip turtle wardrobe whale willow wolf
woman worm
"""

IMAGE_DATASETS = {
    dataset.name: dataset
    for dataset in (
        ImageDataset(
            name="digits",
            size=8,
            channels=1,
            num_classes=10,
            rows={"train": 1257, "test": 540},
            mean=(0.305,),
            std=(0.376,),
        ),
        ImageDataset(
            name="cifar100",
            size=32,
            channels=3,
            num_classes=100,
            rows={"train": 50_000, "test": 10_000},
            mean=(0.5071, 0.4865, 0.4409),
            std=(0.2673, 0.2564, 0.2762),
            hub=("uoft-cs/cifar100",),
            torchvision="CIFAR100",
            label_column="fine_label",
            class_names=tuple(CIFAR100_CLASSES.split()),
        ),
        ImageDataset(
            name="cifar10",
            size=32,
            channels=3,
            num_classes=10,
            rows={"train": 50_000, "test": 10_000},
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
            hub=("uoft-cs/cifar10",),
            torchvision="CIFAR10",
            class_names=(
                "airplane",
                "automobile",
                "bird",
                "cat",
                "deer",
                "dog",
                "frog",
                "horse",
                "ship",
                "truck",
            ),
        ),
        # Kaggle's 25,000 images. Local copies of 72 x 72 pixels have a split of their own; the hub
        # has 23,410 full images and no test split. Mean and deviation are those of the copies.
        ImageDataset(
            name="catsdogs",
            size=72,
            channels=3,
            num_classes=2,
            rows={"train": 20_000, "test": 5_000},
            mean=(0.4880, 0.4549, 0.4166),
            std=(0.2565, 0.2506, 0.2527),
            hub=("microsoft/cats_vs_dogs",),
            image_column="image",
            label_column="labels",
            class_names=("cat", "dog"),
            local=("cats_vs_dogs",),
            several_sizes=True,
            test_fraction=0.2,
            undivided=(23_410, 25_000),
        ),
    )
}

TEXT_DATASETS = {
    dataset.name: dataset
    for dataset in (
        TextDataset(
            name="agnews",
            num_classes=4,
            rows={"train": 120_000, "test": 7_600},
            hub=("fancyzhx/ag_news",),
            class_names=("World", "Sports", "Business", "Sci/Tech"),
            local=("ag_news",),
        ),
        TextDataset(
            name="dbpedia",
            num_classes=14,
            rows={"train": 560_000, "test": 70_000},
            hub=("fancyzhx/dbpedia_14",),
            class_names=(
                "Company",
                "EducationalInstitution",
                "Artist",
                "Athlete",
                "OfficeHolder",
                "MeanOfTransportation",
                "Building",
                "NaturalPlace",
                "Village",
                "Animal",
                "Plant",
                "Album",
                "Film",
                "WrittenWork",
            ),
            local=("dbpedia_14", "dbpedia_14_subset"),
            text_column="content",
        ),
        TextDataset(
            name="yelp",
            num_classes=5,
            rows={"train": 650_000, "test": 50_000},
            hub=("Yelp/yelp_review_full",),
            class_names=("1 star", "2 star", "3 stars", "4 stars", "5 stars"),
            local=("yelp_review_full",),
        ),
        TextDataset(
            name="imdb",
            num_classes=2,
            rows={"train": 25_000, "test": 25_000},
            hub=("stanfordnlp/imdb", "plain_text"),
            class_names=("neg", "pos"),
            line_break="<br />",
        ),
        TextDataset(
            name="wikitext2",
            num_classes=0,
            rows={"train": 36_718, "validation": 3_760, "test": 4_358},
            hub=("Salesforce/wikitext", "wikitext-2-v1"),
            local=("wikitext-2",),
            joined=True,
        ),
        TextDataset(
            name="wikitext2_excerpt",
            num_classes=0,
            rows={"train": 85, "validation": 31, "test": 14},
            joined=True,
            embedded=True,
        ),
    )
}
DATASETS: dict[str, Dataset] = {**IMAGE_DATASETS, **TEXT_DATASETS}

Kind = TypeVar("Kind", bound=Dataset)


def image_dataset(name: str) -> ImageDataset:
    """Return the image data set called `name`, or raise UserError."""
    return known(name, IMAGE_DATASETS)


def text_dataset(name: str) -> TextDataset:
    """Return the text data set called `name`, or raise UserError."""
    return known(name, TEXT_DATASETS)


def known(name: str, datasets: dict[str, Kind]) -> Kind:
    """Return `datasets[name]`, or raise UserError with the known names."""
    check_choice("data.name", name, tuple(sorted(datasets)))
    return datasets[name]
