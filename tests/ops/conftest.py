import pytest
import torch


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """The tensors are tiny and tests run in several processes: more threads get in the way."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
