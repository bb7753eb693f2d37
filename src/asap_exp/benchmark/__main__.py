"""Stage 5: the speed of attention operators, or of training. `python -m asap_exp.benchmark`"""

from asap_exp.core import app
from asap_exp.core.config import BenchmarkConfig
from asap_exp.core.score import Score


def run(config: BenchmarkConfig) -> Score | None:
    """Benchmark operators or training steps; the imports wait until the configuration is valid."""
    if config.check:
        from asap_exp.benchmark.check import check

        return check(config)
    if config.mode == "step":
        from asap_exp.benchmark.steps import benchmark_steps

        benchmark_steps(config)
        return None
    from asap_exp.benchmark.benchmark import benchmark

    benchmark(config)
    return None


if __name__ == "__main__":
    app.main("benchmark", BenchmarkConfig, run)
