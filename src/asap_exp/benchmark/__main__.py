"""Stage 5: the speed of attention operators, or of training. `python -m asap_exp.benchmark`"""

from asap_exp.core import app
from asap_exp.core.config import BenchmarkConfig


def run(config: BenchmarkConfig) -> None:
    """Benchmark operators or training steps; the imports wait until the configuration is valid."""
    if config.mode == "step":
        from asap_exp.benchmark.steps import benchmark_steps

        benchmark_steps(config)
        return
    from asap_exp.benchmark.benchmark import benchmark

    benchmark(config)


if __name__ == "__main__":
    app.main("benchmark", BenchmarkConfig, run)
