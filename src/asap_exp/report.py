"""Stage 4: tables, figures and a page from the records. `python -m asap_exp.report`"""

from asap_exp import stages
from asap_exp.config import ReportConfig
from asap_exp.evaluation.report import report

if __name__ == "__main__":
    stages.main("report", ReportConfig, report)
