"""Stage 4: tables, figures and a page from the records. `python -m asap_exp.report`"""

from asap_exp.core import app
from asap_exp.core.config import ReportConfig


def run(config: ReportConfig) -> None:
    """Run the stage; slow imports wait until the configuration has been checked."""
    if config.check:
        from asap_exp.report.check import check

        check(config)
        return

    from asap_exp.report.benchmarks import report_benchmarks
    from asap_exp.report.paper import report_paper
    from asap_exp.report.report import report
    from asap_exp.report.step_table import report_steps

    # A benchmark belongs to no task and no run.
    everything = config.task.name is None and config.run is None
    benchmarks = everything and report_benchmarks(config.paths, config.folder, config.figures)
    steps = everything and report_steps(config.paths, config.folder)
    report(config, required=not (benchmarks or steps))
    if everything:
        report_paper(config)


if __name__ == "__main__":
    app.main("report", ReportConfig, run)
