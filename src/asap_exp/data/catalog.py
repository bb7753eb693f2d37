"""The image data sets the project knows: shapes, statistics, and what their columns are called."""

from dataclasses import dataclass

from asap_exp.errors import UserError


@dataclass(frozen=True)
class ImageDataset:
    """Square images of `size` pixels; `mean` and `std` per channel on the scale 0..1.

    `rows` is how many the complete splits have: fewer are called a subset.
    """

    name: str
    size: int
    channels: int
    num_classes: int
    rows: dict[str, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    hub: str | None = None
    torchvision: str | None = None
    image_column: str = "img"
    label_column: str = "label"


IMAGE_DATASETS = {
    dataset.name: dataset
    for dataset in (
        ImageDataset(
            "digits",
            8,
            1,
            10,
            rows={"train": 1257, "test": 540},
            mean=(0.305,),
            std=(0.376,),
        ),
        ImageDataset(
            "cifar100",
            32,
            3,
            100,
            rows={"train": 50_000, "test": 10_000},
            mean=(0.5071, 0.4865, 0.4409),
            std=(0.2673, 0.2564, 0.2762),
            hub="uoft-cs/cifar100",
            torchvision="CIFAR100",
            label_column="fine_label",
        ),
        ImageDataset(
            "cifar10",
            32,
            3,
            10,
            rows={"train": 50_000, "test": 10_000},
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
            hub="uoft-cs/cifar10",
            torchvision="CIFAR10",
        ),
    )
}


def image_dataset(name: str) -> ImageDataset:
    if name not in IMAGE_DATASETS:
        raise UserError(
            f"data.name={name} is not known; choose one of {', '.join(sorted(IMAGE_DATASETS))}"
        )
    return IMAGE_DATASETS[name]
