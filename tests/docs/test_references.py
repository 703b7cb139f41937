"""What can be set, asked, read or done is written down, and what is written down is there."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from gunicorn.config import KNOWN_SETTINGS

from docs import generate
from docs.reference import policy
from refork import api, decide
from refork_operator import names, reforks
from tests.docs.pages import DOCS, ROOT, code, pages, prose, tracked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.xdist_group("docs")  # programs are asked once

PROGRAMS = {
    "reforkctl": ("refork.ctl", ("status", "top", "refork", "rebase", "doctor", "workers", "estimate")),
    "refork-operator": ("refork_operator.cli", ()),
    "kubectl-refork": ("refork_operator.plugin", ("status", "now", "top")),
    "refork-exporter": ("refork.exporter", ()),
}
"""Where each program begins, and its commands. The server is none of them: gunicorn knows its settings."""

FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")


@cache
def flags(program: str) -> frozenset[str]:
    """Ask a program, and each of its commands, for what it takes."""
    if program == "refork":
        return frozenset(flag for setting in KNOWN_SETTINGS for flag in setting.cli or ()) | {"--help", "--version"}
    module, commands = PROGRAMS[program]
    ask = f"import sys; from {module} import main; sys.argv = [{program!r}, *sys.argv[1:], '--help']; sys.exit(main())"
    found: set[str] = set()
    for words in ([], *([command] for command in commands)):
        told = subprocess.run([sys.executable, "-c", ask, *words], capture_output=True, text=True, check=True, cwd=ROOT)
        found |= set(FLAG.findall(told.stdout))
    return frozenset(found)


def shown(path: Path) -> str:
    """Name a page in a test's name."""
    return str(path.relative_to(ROOT))


@cache
def everything() -> str:
    """Return all pages of the site in one."""
    return "\n".join(path.read_text() for path in pages() if path.is_relative_to(DOCS))


@pytest.mark.parametrize("path", list(generate.written()), ids=lambda path: path.name)
def test_what_is_generated_is_what_the_code_says(path: Path) -> None:
    """Run `python -m docs.generate` when this fails."""
    assert path.read_text() == generate.written()[path]


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_flag_is_documented(program: str) -> None:
    """In some page of the site, in its own words. (The settings of the server have a test of their own.)"""
    said = set(FLAG.findall(everything()))
    assert flags(program) - said - {"--help", "--version"} == set()


def commands(page: str) -> Iterator[list[str]]:
    """Find what a page gives to one of the programs: the words of each command line."""
    lines = "\n".join([*code(page, "sh", "console"), *re.findall(r"`([^`\n]+)`", prose(page))])
    for line in re.split(r"\n|&&|\|", lines.replace("\\\n", " ").replace("kubectl refork", "kubectl-refork")):
        words = line.removeprefix("$ ").partition(" #")[0].split()
        if words and words[0] in {"refork", *PROGRAMS} and "[" not in line:
            yield words


@pytest.mark.parametrize("path", [path for path in pages() if list(commands(path.read_text()))], ids=shown)
def test_commands_that_a_page_shows_can_be_given(path: Path) -> None:
    """Their flags exist: nobody pastes a line that is refused for its spelling."""
    for program, *words in commands(path.read_text()):
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given - flags(program) == set()


def test_every_annotation_is_documented() -> None:
    """What people write, and what the operator writes back."""
    values = [value for value in vars(names).values() if isinstance(value, str)]
    annotations = {value for value in values if value.startswith("refork.dev/")}
    assert len(annotations) >= 8
    assert {name for name in annotations if f"`{name}`" not in everything()} == set()


def test_every_reason_and_condition_is_documented() -> None:
    """The words that scripts and people wait for."""
    conditions = re.findall(r'Condition\(\s*"(\w+)"', (ROOT / "operator/refork_operator/report.py").read_text())
    assert set(conditions) >= {"Ready", "Reforking", "Degraded"}
    words = {*conditions, *names.Hold, *names.Trouble, *decide.Reason, *decide.Metric, *reforks.Outcome}
    words.remove(reforks.Outcome.POSTPONED)  # between two attempts, and seen by nobody
    assert [word for word in sorted(words) if f"`{word}`" not in everything()] == []


def test_every_value_of_a_label_is_documented() -> None:
    """Who writes a query need not guess."""
    page = (DOCS / "METRICS.md").read_text()
    values = [*api.WorkerState, *api.MoldState, *api.Trigger, *api.Outcome, *api.RolloutKind]
    assert [value for value in values if f"`{value}`" not in page] == []


def fields(schema: dict[str, Any], *, at: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Walk the fields of a schema."""
    for name, field in schema.get("properties", {}).items():
        yield f"{at}{name}", field
        yield from fields(field, at=f"{at}{name}.")
        yield from fields(field.get("items", {}), at=f"{at}{name}[].")


def test_every_field_of_a_policy_is_explained() -> None:
    """In the CRD itself, where `kubectl explain` and the page find it."""
    (version,) = yaml.safe_load(policy.CRD.read_text())["spec"]["versions"]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    assert [path for path, field in fields(spec) if not field.get("description")] == []


@pytest.mark.parametrize("path", tracked("helm/*/values.yaml"), ids=shown)
def test_every_value_of_a_chart_is_documented(path: Path) -> None:
    """In the chart's README, by its full name, or with all of the object that it belongs to."""
    documented = set(re.findall(r"^\| `([^`]+)` \|", path.with_name("README.md").read_text(), re.MULTILINE))
    for value in leaves(yaml.safe_load(path.read_text())):
        parts = value.split(".")
        assert {".".join(parts[: end + 1]) for end in range(len(parts))} & documented, value


def leaves(values: dict[str, Any], *, at: str = "") -> Iterator[str]:
    """Walk the values of a chart that are no groups of others."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, at=f"{at}{name}.")
        else:
            yield f"{at}{name}"


def installations() -> Iterator[Any]:
    """Find each installation that a page shows: the chart, and all that is set for the release up to there."""
    helm = re.compile(
        r"^(?:\$ )?helm (install|upgrade|template) ([\w-]+) \S*?(?:charts|helm)/(refork(?:-app)?)(?![\w-])(.*)"
    )
    for path in pages():
        releases: dict[str, list[str]] = {}
        for line in "\n".join(code(path.read_text(), "sh", "console")).replace("\\\n", " ").splitlines():
            for verb, release, chart, words in helm.findall(line):
                before = releases.get(release, []) if verb == "upgrade" and "reuse-values" in words else []
                releases[release] = before + re.findall(r"--set[ =]'?([^\s']+)", words)
                yield pytest.param(chart, releases[release], id=f"{shown(path)}: {verb} {release}")


@pytest.mark.parametrize(("chart", "assignments"), list(installations()))
def test_charts_take_what_a_page_sets(chart: str, assignments: list[str]) -> None:
    """The release renders: its schema and its checks accept every value that somebody will paste."""
    harness = pytest.importorskip("tests.helm.harness", reason="helm-python-sdk is not installed")
    values: dict[str, Any] = {}
    for assignment in assignments:
        path, _, text = assignment.partition("=")
        *groups, name = path.split(".")
        inner = values
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[name] = text.strip("{}").split(",") if text.startswith("{") else typed(text)
    harness.render(ROOT / "helm" / chart, values)


def typed(text: str) -> str | int | bool:
    """Read a value as Helm's --set does: whole numbers and truth are told from text, and nothing else is."""
    if text in {"true", "false"}:
        return text == "true"
    return int(text) if re.fullmatch(r"0|-?[1-9]\d*", text) else text


def threats() -> list[str]:
    """Return the rows of the threat tables."""
    (part,) = re.findall(r"^## Threats$(.*?)^## ", (DOCS / "SECURITY.md").read_text(), re.MULTILINE | re.DOTALL)
    return [line for line in part.splitlines() if line.startswith("|") and not line.startswith(("|---", "| who tries"))]


def test_every_threat_has_tests_and_they_exist() -> None:
    """The table is a list of tests, not a promise."""
    shown = [re.findall(r"`(test_\w+)`", row.split("|")[-2]) for row in threats()]
    assert len(shown) > 40
    assert all(shown)
    source = "\n".join(path.read_text() for path in tracked("tests/*.py"))
    there = set(re.findall(r"^(?:async )?def (test_\w+)\(", source, re.MULTILINE))
    assert {name for tests in shown for name in tests} - there == set()


def test_every_make_command_that_a_page_names_exists() -> None:
    """As `make help` lists them."""
    told = subprocess.run(["make", "help"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    targets = set(re.findall(r"^  ([a-z][a-z0-9-]*) ", told, re.MULTILINE))
    assert targets >= {"demo", "test", "docs"}
    make = re.compile(r"(?:^|`|[A-Z]+=\w+ )make ([a-z][a-z0-9-]*[a-z])(?![\w-])", re.MULTILINE)
    assert {name for path in pages() for name in make.findall(path.read_text())} - targets == set()


def test_figures_are_told_the_same_everywhere() -> None:
    """What README says of the benchmarks is what the other pages say of them."""
    names = (ROOT / "README.md", DOCS / "COMPARISON.md", DOCS / "FAQ.md")
    readme, compared, asked = (" ".join(path.read_text().split()) for path in names)
    ((before, after),) = re.findall(r"warm workers: ([\d,]+) MiB before, ([\d,]+) MiB after", readme)
    (reduction,) = re.findall(r"`make bench-demo` \| [^|]*\*\*(-[\d.]+ %)\*\*", readme)
    ((ours, preload),) = re.findall(r"`make bench-django` \| ([\d,]+) against ([\d,]+) MiB", readme)
    (leak,) = re.findall(r"`make bench-leak` \| [^|]*\*\*([\d.]+)\*\*", readme)
    assert f"| {before} MiB | {after} MiB, **{reduction}** |" in compared
    assert f"(`make bench-django`) | {preload} MiB | {ours} MiB |" in compared
    assert f"8 workers end at {preload} MiB with `--preload` and at {ours} with refork" in asked
    assert f"the largest is {leak} times the median" in asked


def test_links_lead_somewhere_where_they_are_written() -> None:
    """Also as they are read on GitHub: README, those of charts and examples, and out of docs/."""
    link = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")
    for path in pages():
        for target in link.findall(prose(path.read_text())):
            assert (path.parent / target).exists(), f"{path.relative_to(ROOT)}: {target}"


def test_what_pages_say_of_our_modules_is_there() -> None:
    """`refork.heap`, `refork.heap.seal()`: an essay that outlives what it is about would mislead."""
    named = set(re.findall(r"`(refork(?:\.[a-z_]+)+)(?:\(\))?`", everything())) - {"refork.dev"}
    assert {"refork.fork_safety", "refork.heap.seal"} <= named
    for name in sorted(named):
        assert resolves(name), name


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, attribute = name.rpartition(".")
        return hasattr(importlib.import_module(module), attribute)
    return True
