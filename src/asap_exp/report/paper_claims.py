"""The claims of the paper's abstract beside what our records say: figure, difference, verdict."""

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from statistics import mean

from asap_exp.core.records.benchmark import TIMED, BenchmarkRecord, Length
from asap_exp.core.records.steps import StepRecord
from asap_exp.report.groups import Group
from asap_exp.report.names import SOFTMAX
from asap_exp.report.paper_accuracy import Table
from asap_exp.report.paper_columns import heading, task_of
from asap_exp.report.paper_comparison import Comparison, compare
from asap_exp.report.paper_maps import measured
from asap_exp.report.paper_tasks import ASAP, PUBLISHED, RECENT, SINKHORN

HOLDS, FAILS, OPEN = "holds", "fails", "open"
SPEED_UP, RECOVERED = 5.3, 95.0
"""The paper's frozen-layer speed-up, and per cent of the teacher's accuracy that it recovers."""
MARGIN = 0.5
"""Points of accuracy that count as no difference, between rivals or to a teacher: our choice."""
LONG = 512
"""Tokens from which on the fused teacher is to be beaten as well."""
EAGER, FUSED = "sinkhorn_eager_20", "sinkhorn_20"


@dataclass(frozen=True)
class Claim:
    """Sentence of the abstract, the paper's figure, ours and their difference, and a verdict.

    `measured` says what our figure is of. The verdict is `open` where a measurement is missing.
    """

    words: str
    paper: str
    ours: str
    difference: str
    verdict: str
    measured: str
    command: str


Making = Callable[[str], str]
"""The command that makes the records of a column, by its title."""

Times = Mapping[str, float]
"""Milliseconds of each method at one length."""


def claims(
    groups: Mapping[str, Group],
    table: Table,
    benchmarks: Sequence[BenchmarkRecord],
    steps: Sequence[StepRecord],
    making: Making,
) -> list[Claim]:
    """Return the claims in the order of the abstract.

    `making` gives the command that makes the records of a column, by its title.
    """
    forward = [record for record in benchmarks if record.mode == "forward"]
    return [
        training_cost(benchmarks, steps),
        operator_speed(forward, EAGER, "plain PyTorch", lambda n: True),
        operator_speed(forward, FUSED, "fused", lambda n: n >= LONG),
        model_speed(groups, making),
        recovered(groups, table, making),
        competitive(groups, table, (SOFTMAX,), "softmax", making),
        competitive(groups, table, RECENT, "recent baselines", making),
        against_published(groups, table, making),
    ]


def verdict_of(holds: bool) -> str:
    return HOLDS if holds else FAILS


def training_cost(benchmarks: Sequence[BenchmarkRecord], steps: Sequence[StepRecord]) -> Claim:
    """Compare ESPFormer's training step with Sinkhorn's: of whole trainings, and of operators."""
    ratios: list[tuple[str, float]] = []
    for record in steps:
        ms = {row.attention: row.step_ms for row in record.rows}
        if {"espformer", "sinkhorn"} <= ms.keys():
            where = f"steps of {record.task} on {record.device}"
            ratios.append((where, ms["espformer"] / ms["sinkhorn"]))
    for benchmark in benchmarks:
        for length in benchmark.rows if benchmark.mode == "train" else ():
            times = times_of(length)
            if {"espformer", FUSED} <= times.keys():
                where = f"operators at n = {length.n} on {benchmark.device}"
                ratios.append((where, times["espformer"] / times[FUSED]))
    words = "training is cheaper than that of sliced transport (ESPFormer)"
    command = (
        "python -m asap_exp.benchmark mode=step task=catsdogs step.attentions=[sinkhorn,espformer]"
    )
    if not ratios:
        why = "no record has training steps of both"
        return Claim(words, "no figure public", "", "", OPEN, why, command)
    low, high = (end(ratio for _, ratio in ratios) for end in (min, max))
    ours, of = f"{low:.1f}x to {high:.1f}x as long", ", ".join(where for where, _ in ratios)
    return Claim(words, "no figure public", ours, "", verdict_of(low > 1), of, command)


def times_of(length: Length) -> dict[str, float]:
    return {
        cell.method: cell.ms.median
        for cell in length.cells
        if cell.status in TIMED and cell.ms is not None
    }


def operator_speed(
    records: Sequence[BenchmarkRecord], teacher: str, words: str, wanted: Callable[[int], bool]
) -> Claim:
    """Compare the frozen layer with its teacher, at the worst length and kind of inputs."""
    claim = f"a frozen layer is faster than the {words} teacher" + (
        f", n >= {LONG}" if teacher == FUSED else ", at every n"
    )
    timed = newest_ratios(records, teacher, wanted)
    if not timed:
        return Claim(claim, f"{SPEED_UP}x", "", "", OPEN, "no record has both", operators("random"))
    (kind, _, n), (ratio, label) = min(timed.items(), key=lambda item: item[1])
    lengths: dict[str, set[int]] = {}
    for inputs, _, length in timed:
        lengths.setdefault(inputs, set()).add(length)
    listed = "; ".join(
        f"{inputs} inputs, n = {', '.join(map(str, sorted(each)))}"
        for inputs, each in lengths.items()
    )
    return speed_up(
        claim,
        ratio,
        f"the operators, the worst in the newest record of each kind of inputs ({listed}): "
        f"{kind} inputs, n = {n}, {label}",
        operators(kind),
    )


def newest_ratios(
    records: Sequence[BenchmarkRecord], teacher: str, wanted: Callable[[int], bool]
) -> dict[tuple[str, str, int], tuple[float, str]]:
    """Return how many times as fast as its teacher the slowest unrefined map is, and which that is.

    By kind of inputs, device and length, each of the newest record that timed both: kernels change,
    so that an older one says nothing of those that run today.
    """
    found: dict[tuple[str, str, int], tuple[float, str]] = {}
    for record in sorted(records, key=lambda record: str(record.manifest.ended)):
        for length in filter(lambda row: wanted(row.n), record.rows):
            times = times_of(length)
            maps = [cell for cell in length.cells if cell.method in times]
            maps = [cell for cell in maps if is_plain_map(cell.method)]
            if teacher in times and maps:
                slowest = max(maps, key=lambda cell: times[cell.method])
                ratio = times[teacher] / times[slowest.method]
                found[record.inputs.kind, record.device, length.n] = ratio, slowest.label
    return found


def operators(inputs: str) -> str:
    """Return the command that times the operators on a kind of inputs."""
    return f"python -m asap_exp.benchmark inputs={inputs}"


def speed_up(claim: str, ratio: float, measured: str, command: str) -> Claim:
    """Compare a measured ratio with the paper's."""
    difference, verdict = ratio - SPEED_UP, verdict_of(ratio >= SPEED_UP)
    return Claim(
        claim, f"{SPEED_UP}x", f"{ratio:.1f}x", f"{difference:+.1f}x", verdict, measured, command
    )


def is_plain_map(method: str) -> bool:
    return method.startswith("asap_") and "refine" not in method


def model_speed(groups: Mapping[str, Group], making: Making) -> Claim:
    """Compare a layer of the trained models, with the accuracy that its model keeps."""
    claim = "a frozen layer is faster at matching accuracy, in the trained models"
    command = making("IMDb")
    ratios = {
        title: speed
        for title, group in groups.items()
        if task_of(title).title == title and (speed := speed_of(group))
    }
    if not ratios:
        return Claim(claim, f"{SPEED_UP}x", "", "", OPEN, "no record", command)
    worst = min(ratios, key=lambda title: ratios[title])
    listed = ", ".join(f"{title} {ratio:.1f}x" for title, ratio in ratios.items())
    return speed_up(
        claim,
        ratios[worst],
        f"the last layer, over the fused teacher's, of the tasks whose accuracy is within {MARGIN} "
        f"points; the slowest of {listed}",
        making(worst),
    )


def speed_of(group: Group) -> float | None:
    """Return the mean layer speed-up of a classifier's map of ASAP; None if its accuracy does not
    match.
    """
    teachers, maps = measured(group, SINKHORN), measured(group, ASAP)
    if group.first.trained_for.of_tokens or len(maps) < len(teachers):
        return None
    found = []
    for (teacher,), rows in zip(teachers, maps, strict=True):
        kept = mean(each.row.accuracy for each in rows)
        speeds = [each.row.layer_speedup for each in rows if each.row.layer_speedup is not None]
        if len(speeds) < len(rows) or 100 * (teacher.row.accuracy - kept) > MARGIN:
            return None
        found.append(mean(speeds))
    return mean(found)


def recovered(groups: Mapping[str, Group], table: Table, making: Making) -> Claim:
    """Return how much of the teacher's accuracy the compiled models keep, at their worst task."""
    claim = "replacing every layer recovers most of the teacher's accuracy, nothing retrained"
    command = making("CIFAR-100")
    shares = {
        title: 100 * asap / teacher
        for title, teacher, asap in both(table, SINKHORN, ASAP)
        if title in accuracy_titles() and teacher > 0
    }
    if not shares:
        return Claim(claim, f"above {RECOVERED:.0f} %", "", "", OPEN, "no record", command)
    worst = min(shares, key=lambda title: shares[title])
    return Claim(
        claim,
        f"above {RECOVERED:.0f} %",
        f"{shares[worst]:.2f} %",
        f"{shares[worst] - RECOVERED:+.2f} points",
        verdict_of(shares[worst] > RECOVERED),
        f"{worst_of(worst, shares)}; {evidence(groups[worst], SINKHORN, ASAP)}",
        making(worst),
    )


def competitive(
    groups: Mapping[str, Group],
    table: Table,
    rivals: Sequence[str],
    words: str,
    making: Making,
) -> Claim:
    """Compare ASAP with some rivals of the same recipe, each on each task that has both.

    It fails if any of them is better by more than `MARGIN`, and by more than chance. It holds if
    none is, and a difference of `MARGIN` would have been found from every one of them. Else it is
    open, as it is where a task lacks the rivals. The column of a shorter recipe counts for those
    that the task's first column lacks.
    """
    claim = f"ASAP is competitive with {words} of the same recipe"
    command = making("Cats & Dogs")
    gaps = {
        (title, rival): 100 * (asap - theirs)
        for rival in rivals
        for title, theirs, asap in both(table, rival, ASAP)
        if task_of(title).title in accuracy_titles() and speaks_for_task(table, title, rival)
    }
    if not gaps:
        return Claim(claim, "yes", "", "", OPEN, "none of them is trained yet", command)
    tests = {pair: compared(groups[pair[0]], ASAP, pair[1]) for pair in gaps}
    # Rounded, so that what is at the margin is not beyond it; + 0.0 makes 0 of -0.
    beyond = {pair: round(gap + MARGIN, 6) + 0.0 for pair, gap in gaps.items()}
    worse = [pair for pair in gaps if beyond[pair] < 0]
    lost = [pair for pair in worse if tests[pair].told]
    unknown = [pair for pair in gaps if not tests[pair].finds(MARGIN / 100)]
    worst = min(lost or gaps, key=lambda pair: gaps[pair])
    titles = {task_of(title).title for title, _ in gaps}
    missing = sorted(set(groups) & accuracy_titles() - titles)
    of = f"ASAP minus {worst[1]} on {worst_of(worst[0], titles)}"
    of += f"; {evidence(groups[worst[0]], ASAP, worst[1])}"
    if not worse and (others := [f"{rival} on {t}" for t, rival in unknown if (t, rival) != worst]):
        of += f"; {MARGIN} points could not have been found from {', '.join(others)}"
    of += f"; not trained for {', '.join(missing)}" if missing else ""
    verdict = FAILS if lost else OPEN if worse or unknown or missing else HOLDS
    return Claim(
        claim,
        "yes",
        f"{gaps[worst]:+.2f} points",
        f"{beyond[worst]:+.2f} to the margin of -{MARGIN}",
        verdict,
        of,
        making(worst[0]),
    )


def speaks_for_task(table: Table, title: str, method: str) -> bool:
    """Return True in a task's first column, and in another if the first one lacks the method."""
    first = task_of(title).title
    return title == first or table[method][first].mean is None


def worst_of(title: str, tasks: Sized) -> str:
    """Name the task of a worst case, and among how many it is."""
    return f"{title}, the worst of {len(tasks)} tasks" if len(tasks) > 1 else f"{title} alone"


def compared(group: Group, first: str, second: str) -> Comparison:
    """Compare two methods that both have numbers."""
    test = compare(group, first, second)
    assert test is not None, "both have numbers"
    return test


def evidence(group: Group, first: str, second: str) -> str:
    """Say whether a difference between two methods can be told from chance."""
    test = compared(group, first, second)
    finds = "" if test.detectable is None else f", finds from {100 * test.detectable:.2f} points"
    if test.p is None:
        finds = finds.replace("finds from", "a test finds from at most")
        return f"not tested: {test.how}{finds}"
    found = "larger" if test.significant else "not larger"
    return f"{found} than chance (p = {test.p:.2g}: {test.how}{finds})"


def against_published(groups: Mapping[str, Group], table: Table, making: Making) -> Claim:
    """Compare our teachers with the Sinkformers that others published, of other settings."""
    claim = "our Sinkhorn teacher is no worse than the published Sinkformer (other settings)"
    command = making("IMDb")
    name = next(iter(PUBLISHED))
    gaps = {title: 100 * (ours - theirs) for title, theirs, ours in both(table, name, SINKHORN)}
    if not gaps:
        return Claim(claim, "", "", "", OPEN, "no record", command)
    worst = min(gaps, key=lambda title: gaps[title])
    theirs = table[name][worst].text
    ours = table[SINKHORN][worst].mean
    assert ours is not None
    return Claim(
        claim,
        f"{theirs} %",
        f"{100 * ours:.2f} %",
        f"{gaps[worst]:+.2f} points",
        verdict_of(gaps[worst] >= 0),
        worst_of(heading(worst, groups[worst]), gaps),
        making(worst),
    )


def both(table: Table, first: str, second: str) -> Iterable[tuple[str, float, float]]:
    """Yield the title of each task that has numbers of both methods, and these numbers."""
    for title, cell in table.get(first, {}).items():
        one, two = cell.mean, table[second][title].mean
        if one is not None and two is not None:
            yield title, one, two


def accuracy_titles() -> set[str]:
    """Return the tasks that are judged by accuracy."""
    return set(PUBLISHED[next(iter(PUBLISHED))])
