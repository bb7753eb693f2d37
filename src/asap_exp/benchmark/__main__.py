"""Stage 5: the speed of the attention operators alone. `python -m asap_exp.benchmark`"""

from asap_exp.core import app
from asap_exp.core.config import BenchmarkConfig


def run(config: BenchmarkConfig) -> None:
    """The work itself, imported only once the configuration has been found right."""
    from asap_exp.benchmark.benchmark import benchmark

    benchmark(config)


if __name__ == "__main__":
    app.main("benchmark", BenchmarkConfig, run)
