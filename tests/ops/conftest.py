from collections.abc import Iterator

import pytest
import torch


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
