"""Stage 4: tables, figures and a page from the records. `python -m asap_exp.report`"""

from asap_exp import stages
from asap_exp.config import ReportConfig


def run(config: ReportConfig) -> None:
    """The work itself, imported only once the configuration has been found right."""
    from asap_exp.evaluation.report import report

    report(config)


if __name__ == "__main__":
    stages.main("report", ReportConfig, run)
