"""Stage 5: the speed of the attention operators alone. `python -m asap_exp.benchmark`"""

from asap_exp.core import app
from asap_exp.core.config import BenchmarkConfig


def run(config: BenchmarkConfig) -> None:
    """Benchmark the operators; the imports wait until the configuration has been validated."""
    from asap_exp.benchmark.benchmark import benchmark

    benchmark(config)


if __name__ == "__main__":
    app.main("benchmark", BenchmarkConfig, run)
