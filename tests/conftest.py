"""What holds for all tests: where nothing may be skipped, a skip is a failure."""

from __future__ import annotations

import os

import pytest

CLUSTER = "needs a cluster"
"""How the reason of the one skip begins that is allowed everywhere."""


def _forbidden(reports: list[pytest.TestReport]) -> list[str]:
    found = []
    for report in reports:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if not reason.startswith(CLUSTER):
            found.append(f"{report.nodeid}: {reason}")
    return found


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """With ``REFORK_NO_SKIPS`` set, fail when a test was skipped for anything but the want of a cluster."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if not os.environ.get("REFORK_NO_SKIPS") or reporter is None:
        return
    found = _forbidden(reporter.stats.get("skipped", []))
    if found:
        reporter.write_line("\nskipped where nothing may be skipped:\n  " + "\n  ".join(found), red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
