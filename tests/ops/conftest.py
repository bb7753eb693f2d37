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
def heads(request, monkeypatch):
    """As which the heads of a test count: the fused kernels give few of them more warps each."""
    if request.param == "many heads":
        monkeypatch.setattr("asap_exp.ops.kernels.launch.FEW", 0)
    return request.param
