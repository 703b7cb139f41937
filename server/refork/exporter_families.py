"""What the exporter tells Prometheus, as families of metrics; pure.

A fact that refork itself would tell of a server has the name that refork gives it, so that dashboards and rules work
before and after the change, and one graph shows both. What is told only here begins with ``refork_estimate`` (what
refork would save) or ``refork_exporter`` (how the exporter does). What refork knows of its own workers and nobody else
can (generations, requests, erosion since they were ready) is not told, rather than guessed.

Each metric is explained in docs/EXPORTER.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from refork import memory
from refork.estimate import Role
from refork.exporter_report import Outcome, Trouble
from refork.exporter_search import State
from refork.exposition import Family, Kind, labels
from refork.process_families import about_cgroup, about_memory, about_processes, about_sampling, gauge, place

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refork.estimate import Estimate, Share
    from refork.exporter_report import Estimated, Report
    from refork.exposition import Sample


def families(report: Report) -> Iterator[Family]:
    """Yield them all: the server's, those of the estimate, the exporter's own."""
    if report.found.state is State.WATCHING:
        yield from _about_server(report)
    yield from about_sampling(report.sampling)
    yield from _about_estimate(report.estimated)
    yield from _about_exporter(report)


def _about_server(report: Report) -> Iterator[Family]:
    seen = [(place(each.role, each.slot), each) for each in report.seen]
    # A sum in which one is missing is wrong, and nobody could tell.
    totals = memory.totals(each.memory for _, each in seen) if report.ready else None
    yield from about_memory(((at, each.memory) for at, each in seen), totals)
    # A counter that is a sum falls when one of its processes ends: what comes and goes has none.
    lasting = [(at, each.process) for at, each in seen if each.role is not Role.OTHER and each.process is not None]
    yield from about_processes(
        ((at, each.process) for at, each in seen),
        cpu=[(at, process.cpu_seconds) for at, process in lasting],
        faults=[(at, process.minor_faults) for at, process in lasting],
        started=next((each.process.started_at for _, each in seen if each.role is Role.MASTER and each.process), None),
    )
    yield from about_cgroup(report.cgroup)


def _about_estimate(estimated: Estimated) -> Iterator[Family]:
    if estimated.latest is not None:
        yield from _about_latest(estimated.latest)
    yield gauge("refork_estimate_age_seconds", "How long ago the estimate was made.", estimated.age)
    outcomes = [(labels(outcome=outcome), estimated.outcomes.get(outcome, 0)) for outcome in Outcome]
    yield Family("refork_estimates", Kind.COUNTER, "Attempts at an estimate, by how they ended.", outcomes)
    spent = "Processor time spent on estimates."
    yield Family("refork_estimate_cpu_seconds", Kind.COUNTER, spent, [("", estimated.seconds)])


def _about_latest(latest: Estimate) -> Iterator[Family]:
    yield gauge("refork_estimate_used_bytes", "Sum of PSS over all processes when the estimate was made.", latest.used)
    ends = [("at_most", latest.at_most)]
    if latest.contents:  # else the lower end is nothing, because nothing is known
        ends.insert(0, ("at_least", latest.at_least))
    expected: list[Sample] = [(labels(bound=bound), future.used) for bound, future in ends]
    meaning = "What the server would use under refork, by whether that saves at least or at most what it could."
    yield Family("refork_estimate_expected_bytes", Kind.GAUGE, meaning, expected)
    saved: list[Sample] = [(labels(bound=bound), future.won) for bound, future in ends]
    meaning = "What refork would save: at least (what is equal now) and at most (if the workers do the same work)."
    yield Family("refork_estimate_saved_bytes", Kind.GAUGE, meaning, saved)
    duplicate = "Share of the workers' private memory that another worker has too."
    yield gauge("refork_estimate_duplicate_ratio", duplicate, _value(latest.duplicate))
    changing = "Share of the workers' private memory that changed between two looks."
    yield gauge("refork_estimate_changing_ratio", changing, _value(latest.changing))
    yield gauge("refork_estimate_pages", "Pages that were compared for the estimate.", latest.samples)
    readable = "Whether the contents of pages could be read; without them there is no lower end."
    yield gauge("refork_estimate_contents_readable", readable, int(latest.contents))


def _value(share: Share | None) -> float | None:
    return None if share is None else share.value


def _about_exporter(report: Report) -> Iterator[Family]:
    found = report.found
    states = [(labels(state=state), int(state is found.state)) for state in State]
    yield Family("refork_exporter_state", Kind.GAUGE, "What the exporter does: 1 for one of the states.", states)
    servers = "Prefork servers that the exporter could watch; it watches the largest."
    yield gauge("refork_exporter_servers", servers, found.servers)
    troubles = [(labels(kind=trouble), report.troubles.get(trouble, 0)) for trouble in Trouble]
    yield Family("refork_exporter_errors", Kind.COUNTER, "What went wrong in looking, by kind.", troubles)
    own, process = report.own_memory, report.own_process
    yield gauge("refork_exporter_memory_pss_bytes", "PSS of the exporter itself.", None if own is None else own.pss)
    used: list[Sample] = [] if process is None else [("", process.cpu_seconds)]
    yield Family("refork_exporter_cpu_seconds", Kind.COUNTER, "Processor time of the exporter itself.", used)
    tree = found.tree
    server, program = ("", "") if tree is None else (tree.server, tree.program)
    facts = labels(version=report.version, server=server, program=program)
    meaning = "Version of the exporter, and what it watches, as labels; always 1."
    yield Family("refork_exporter", Kind.INFO, meaning, [(facts, 1)])
