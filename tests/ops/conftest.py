from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """The tensors are tiny and tests run in several processes: more threads get in the way."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def unwritten_is_nan():
    """A place of an output that no kernel writes is NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["few heads", "many heads"])
def heads(request) -> Iterator[str]:
    """As which the heads of a test count: the fused kernels give few of them more warps each."""
    if request.param == "few heads":
        yield request.param
        return
    from asap_exp.ops.call import as_if, device_of

    here = device_of(torch.empty(0, device="cuda" if torch.cuda.is_available() else "cpu"))
    with as_if(here._replace(multiprocessors=0)):
        yield request.param
