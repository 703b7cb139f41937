"""The rules of the chart: understood, tested case by case, computed from real series; each alert has its page."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import yaml

from refork import ctl, ctl_picture, ctl_table
from refork_operator import plugin
from tests.integration.server import until
from tests.observability.dashboard import FLEET, POD, Dashboard
from tests.observability.prometheus import needs_prometheus
from tests.observability.stage import RULES

if TYPE_CHECKING:
    from tests.observability.stage import Stage

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed: apt-get install prometheus")

ROOT = Path(__file__).parents[2]
CASES = Path(__file__).with_name("refork.rules.test.yaml")
RUNBOOKS = ROOT / "docs/runbooks"
INDEX = RUNBOOKS / "README.md"
PAGES = [ROOT / "README.md", ROOT / "docs/METRICS.md", *sorted(RUNBOOKS.glob("*.md"))]

NAME = re.compile(r"(?<![\w:./-])(?:namespace_\w+:)?refork_[\w:]+(?![\w/.-])")
"""A metric in an expression, recorded or exported."""

PROMQL = re.compile(r"```promql\n(.*?)```", re.DOTALL)
TABLED = re.compile(r"^\| [^|`]+\? \| `([^`]*refork_[^`]*)` \|", re.MULTILINE)


def rules(kind: str) -> list[dict[str, Any]]:
    """All rules that have a ``record``, or an ``alert``."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"] if kind in rule]


ALERTS = {rule["alert"]: rule for rule in rules("alert")}
RECORDED = {rule["record"]: rule for rule in rules("record")}


def promtool(*words: str) -> None:
    """Run it, and fail with what it says."""
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *words], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_understands_the_rules() -> None:
    """Syntax, templates, duplicates: what Prometheus would refuse at its start."""
    promtool("check", "rules", str(RULES))


@needs_promtool
def test_rules_do_what_their_cases_say() -> None:
    """Each alert with a case in which it fires, and neighbours and moments in which it does not."""
    promtool("test", "rules", str(CASES))


def test_every_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    """A rule that never fires, or always, would pass half of them."""
    fired, silent = set(), set()
    for group in yaml.safe_load(CASES.read_text())["tests"]:
        for case in group.get("alert_rule_test", ()):
            (fired if case["exp_alerts"] else silent).add(case["alertname"])
    assert fired == silent == set(ALERTS)


def test_every_recorded_series_has_a_case() -> None:
    """Or is used by a rule that has one."""
    text = CASES.read_text() + "".join(rule["expr"] for rule in [*rules("alert"), *rules("record")])
    assert [name for name in RECORDED if name not in text] == []


def test_names_of_recorded_series_say_which_labels_are_left() -> None:
    """LEVEL:METRIC:OPERATION, where the level is what ``by`` names; ratios of recorded series have their level."""
    for name, rule in RECORDED.items():
        level, _, operation = name.split(":")
        kept = {",".join(labels.replace(" ", "").split(",")) for labels in re.findall(r"by \(([^)]*)\)", rule["expr"])}
        levels = {found.partition(":")[0] for found in NAME.findall(rule["expr"]) if ":" in found}
        assert {labels.replace(",", "_") for labels in kept} | levels == {level}, name
        assert re.fullmatch(r"sum|min|count|ratio|rate\d+[mh]|increase\d+[mh]", operation), name


def test_every_alert_says_who_is_called_and_what_to_do() -> None:
    """A severity, a summary, a description, and the page."""
    for name, rule in ALERTS.items():
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}, name
        notes = rule["annotations"]
        assert set(notes) == {"summary", "description", "runbook_url"}, name
        assert notes["runbook_url"] == f"https://refork.dev/runbooks/{name}/"


def test_every_alert_has_its_page_and_every_page_its_alert() -> None:
    """And the index names all of them, with the severity of the rule."""
    pages = {path.stem for path in RUNBOOKS.glob("*.md")} - {INDEX.stem}
    assert pages == set(ALERTS)
    rows = re.findall(r"^\| \[(\w+)\]\((\w+)\.md\) \| (\w+) \|", INDEX.read_text(), re.MULTILINE)
    assert all(title == page for title, page, _ in rows)
    assert {name: severity for name, _, severity in rows} == {
        name: rule["labels"]["severity"] for name, rule in ALERTS.items()
    }


def test_every_page_has_the_same_three_questions() -> None:
    """Whoever was woken up finds them blindly."""
    for name in ALERTS:
        text = (RUNBOOKS / f"{name}.md").read_text()
        headlines = re.findall(r"^#+ .+$", text, re.MULTILINE)
        assert headlines == [f"# {name}", "## What it means", "## How to see it", "## What to do"], name
        assert PROMQL.search(text), f"{name} shows no query"


def test_the_commands_of_the_pages_are_understood() -> None:
    """Of reforkctl and of the plugin of kubectl, by their own parsers: nobody learns of a renamed flag at night."""
    pages = "".join(page.read_text() for page in RUNBOOKS.glob("*.md"))
    spoken = [line.partition("#")[0] for line in re.findall(r"(?:reforkctl|kubectl refork) [a-z][^`|\n]*", pages)]
    assert len(spoken) >= 20
    for line in spoken:
        words = shlex.split(re.sub(r"\bN\b", "4", line))
        if words[0] == "reforkctl":
            ctl._parser().parse_args(words[1:])
        else:
            plugin._parse(words[2:])


def test_the_pages_about_the_operator_find_it_by_its_label() -> None:
    """The label job is the name of a release, and no object of it need be called like that."""
    operator = pytest.importorskip("tests.helm.harness", reason="helm-python-sdk is not installed")
    labels = operator.render(operator.OPERATOR, name="mine").one("Deployment")["metadata"]["labels"]
    pages = [(RUNBOOKS / f"{name}.md").read_text() for name in ("ReforkOperatorNotLeading", "ReforkOperatorApiErrors")]
    for page in pages:
        assert f"OPERATOR=app.kubernetes.io/name={labels['app.kubernetes.io/name']}\n" in page
        assert "$APP" not in page


def test_what_needs_a_terminal_is_given_one() -> None:
    """`reforkctl top` draws once and ends where there is none."""
    pages = "".join(page.read_text() for page in RUNBOOKS.glob("*.md"))
    assert set(re.findall(r'exec (.*)"\$POD" -- reforkctl top', pages)) == {"-it "}


@needs_prometheus
@pytest.mark.xdist_group("observability")
def test_what_the_pages_look_for_in_a_status_is_there(stage: Stage) -> None:
    """Each name that somebody is told to look for in the JSON, and each column of `reforkctl top`."""
    status = msgspec.json.encode(stage.pods[0].server.status()).decode()
    pages = "".join(page.read_text() for page in RUNBOOKS.glob("*.md"))
    wanted = set(re.findall(r'[\'`]("\w+")[\'`]', pages))
    assert len(wanted) >= 6
    assert {name for name in wanted if f"{name}:" not in status} == set()
    columns = set(re.findall(r"column ([A-Z]+)", pages))
    assert columns <= {column.name for column in ctl_picture._COLUMNS} | set(ctl_table._COLUMNS)


def asked() -> dict[str, list[str]]:
    """All expressions that are written down anywhere, by where they stand."""
    found = {f"rule {name}": [rule["expr"]] for name, rule in (RECORDED | ALERTS).items()}
    for path in (FLEET, POD):
        found[path.stem] = [query.expression for query in Dashboard.read(path).queries()]
    for path in PAGES:
        text = path.read_text()
        found[str(path.relative_to(ROOT))] = [*PROMQL.findall(text), *TABLED.findall(text)]
    return found


@needs_prometheus
@pytest.mark.xdist_group("observability")
def test_every_metric_that_is_asked_for_exists(stage: Stage) -> None:
    """In the exposition of the real server or operator, or recorded: a metric that was renamed is found here."""
    names = set(stage.prometheus.ask("/api/v1/label/__name__/values")["data"])
    exported = {name for name in names if name.startswith("refork_")}
    for where, expressions in asked().items():
        wanted = {name for expression in expressions for name in NAME.findall(expression)}
        assert wanted <= exported | set(RECORDED), f"{where}: {wanted - exported - set(RECORDED)}"


@needs_prometheus
@pytest.mark.xdist_group("observability")
def test_a_real_prometheus_computes_the_rules(stage: Stage) -> None:
    """None of them has an error, and each recorded series has a value."""

    def unwell() -> list[str]:
        groups = stage.prometheus.ask("/api/v1/rules")["data"]["groups"]
        return [rule["name"] for group in groups for rule in group["rules"] if rule["health"] != "ok"]

    until(lambda: not unwell(), what="an evaluation of all rules")
    for name in RECORDED:
        until(lambda wanted=name: stage.prometheus.query(wanted), what=f"a value of {name}")


@needs_prometheus
@pytest.mark.xdist_group("observability")
def test_the_sums_are_those_of_the_pods(stage: Stage) -> None:
    """What is recorded for the workload is what its two pods say."""
    for metric in ("refork_memory_pss_bytes", "refork_memory_saved_bytes", "refork_gain_predicted_bytes"):
        difference = f'namespace_job:{metric}:sum{{job="web"}} / on (namespace, job) sum by (namespace, job) ({metric})'
        until(lambda asked=difference: abs((stage.prometheus.number(asked) or 0) - 1) < 0.01, what=difference)


@needs_prometheus
@pytest.mark.xdist_group("observability")
def test_the_queries_of_the_runbooks_can_be_asked(stage: Stage) -> None:
    """Somebody copies them at night."""
    for name in ALERTS:
        for query in PROMQL.findall((RUNBOOKS / f"{name}.md").read_text()):
            stage.prometheus.query(query)
