import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from tests.ops.emulator import Emulator


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """Use one thread: the tensors are tiny, and tests run in several processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def unwritten_is_nan():
    """Fill outputs with NaN, so that an entry that no kernel writes is noticed."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["few heads", "many heads"])
def heads(request) -> Iterator[str]:
    """Make the heads of a test count as few or many: few heads get more warps each."""
    if request.param == "few heads":
        yield request.param
        return
    from asap_exp.ops.call import as_if, device_of

    here = device_of(torch.empty(0, device="cuda" if torch.cuda.is_available() else "cpu"))
    with as_if(here._replace(multiprocessors=0)):
        yield request.param


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> "Emulator":
    """Compile the emulated GPU once for all processes that run tests."""
    from tests.ops.emulator import Emulator

    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    (folder / "emulator").mkdir(exist_ok=True)
    return Emulator(folder / "emulator")
