"""A small teacher and its compiled copy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from torch import nn

    from tests.small_model import Classifier


@pytest.fixture(scope="session")
def teacher() -> Classifier:
    from tests.small_model import Classifier

    return Classifier().eval()


@pytest.fixture(scope="session")
def compiled(teacher: Classifier) -> nn.Module:
    from tests.small_model import compile_small, loader

    return compile_small(teacher, loader())
