"""Tables and figures of all benchmarks, made from their records alone."""

from pathlib import Path

from asap_exp.core.config import PathsConfig
from asap_exp.core.console import say, shown
from asap_exp.core.files import write_bytes, write_text
from asap_exp.core.records.store import record_files
from asap_exp.report.benchmark_figure import time_figure
from asap_exp.report.benchmark_markdown import benchmark_csv, benchmark_markdown
from asap_exp.report.benchmark_records import gather, load_records
from asap_exp.report.report import png


def report_benchmarks(paths: PathsConfig, out: Path) -> bool:
    """Write benchmark.md, benchmark.csv and figures/ below `out`; return False without records."""
    folder = out / "records" / "benchmark"
    gather(paths, folder)
    records = load_records(folder)
    if not records:
        return False
    write_text(out / "benchmark.md", benchmark_markdown(records))
    write_text(out / "benchmark.csv", benchmark_csv(records))
    for record in records:
        figure = png(time_figure(record))
        write_bytes(out / "figures" / f"benchmark_{record.name}.png", figure)
    say(f"Benchmarks: {shown(out / 'benchmark.md')}")
    left_out = len(record_files(folder)) - len(records)
    if left_out:
        say(f"Left out of {shown(folder)}, named above: {left_out}")
    return True
