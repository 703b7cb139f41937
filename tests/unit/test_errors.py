"""One line has to tell what went wrong, and where in the user's code."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest
from gunicorn.errors import AppImportError, ConfigError
from gunicorn.util import import_app
from hypothesis import given
from hypothesis import strategies as st

from refork.errors import ConfigurationError, UsageError, describe
from refork.platform_check import obstacle

if TYPE_CHECKING:
    from pathlib import Path


def raised(code: str, directory: Path, monkeypatch: pytest.MonkeyPatch, *, name: str = "faulty") -> BaseException:
    """Import a module with this code and return what it raises."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(directory))
    monkeypatch.chdir(directory)
    monkeypatch.delitem(sys.modules, name, raising=False)
    try:
        import_app(name)
    except BaseException as error:  # noqa: BLE001
        passed = error.__traceback__
        return error.with_traceback(passed and passed.tb_next)  # less the frame of this very function
    raise AssertionError("it was expected to raise")


def test_the_line_of_the_application_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative to where the person is."""
    error = raised("import os\n\nos.environ['NOT_THERE_AT_ALL']\n", tmp_path, monkeypatch)
    assert describe(error) == "KeyError: 'NOT_THERE_AT_ALL' (faulty.py:3)"


def test_the_standard_library_is_not_to_blame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it raises was asked for by the user's line."""
    error = raised("import json\njson.loads('{')\n", tmp_path, monkeypatch)
    assert describe(error).startswith("JSONDecodeError: ")
    assert describe(error).endswith("(faulty.py:2)")


def test_an_installed_package_is_blamed_when_nothing_else_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An application may be installed itself."""
    error = raised("1 / 0\n", tmp_path / "site-packages", monkeypatch)
    assert describe(error) == "ZeroDivisionError: division by zero (faulty.py:1)"


def test_the_users_line_is_named_rather_than_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The innermost line that the user can change."""
    packages = tmp_path / "lib" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "thirdparty.py").write_text("def fail():\n    1 / 0\n")
    monkeypatch.syspath_prepend(str(packages))
    error = raised("import thirdparty\n\nthirdparty.fail()\n", tmp_path, monkeypatch)
    assert describe(error) == "ZeroDivisionError: division by zero (faulty.py:3)"


def test_a_syntax_error_is_where_it_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has passed no frame of the file that it is in."""
    error = raised("x = 1\ndef\n", tmp_path, monkeypatch)
    assert describe(error) == "SyntaxError: invalid syntax (faulty.py:2)"


@pytest.mark.parametrize(("code", "shown"), [("sys.exit(3)", "3"), ("sys.exit('no database')", "'no database'")])
def test_an_application_that_exits_is_described_too(
    code: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what it wanted to exit with."""
    error = raised(f"import sys\n{code}\n", tmp_path, monkeypatch)
    assert describe(error) == f"SystemExit: it exited with {shown} (faulty.py:2)"


def test_a_module_that_is_not_there_has_no_line() -> None:
    """None of the frames is the user's."""
    with pytest.raises(ModuleNotFoundError) as caught:
        import_app("there_is_no_such_module")
    (text := describe(caught.value)).index("ModuleNotFoundError: No module named 'there_is_no_such_module'")
    assert "gunicorn" not in text


@pytest.mark.parametrize("kind", [ConfigError, AppImportError, ConfigurationError, UsageError])
def test_our_own_sentences_stand_for_themselves(kind: type[Exception]) -> None:
    """They say already what and where."""
    assert describe(kind("the port is in use:\nchoose another")) == "the port is in use: choose another"


def test_an_exception_that_cannot_be_written_down_is_described() -> None:
    """The report of a fault must not be a fault."""

    class Broken(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert describe(Broken()).endswith("Broken: (its message could not be read)")


@given(st.text(), st.sampled_from([ValueError, SystemExit, ConfigurationError, OSError, SyntaxError]))
def test_a_description_is_always_one_line(message: str, kind: type[BaseException]) -> None:
    """And not a long one: it goes through a channel, and to a terminal."""
    assert len(describe(kind(message)).splitlines()) == 1
    assert len(describe(kind(message * 1000))) < 600


def test_the_working_directory_may_be_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the path is whole."""
    gone = tmp_path / "gone"
    gone.mkdir()
    error = raised("1 / 0\n", tmp_path, monkeypatch)
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert describe(error) == f"ZeroDivisionError: division by zero ({tmp_path}/faulty.py:1)"


def test_usage_and_configuration_have_their_exit_codes() -> None:
    """As argparse and gunicorn have them."""
    assert (ConfigurationError.exit_status, UsageError.exit_status) == (1, 2)


@pytest.mark.parametrize(
    ("version", "platform", "told"),
    [
        ((3, 12, 0), "linux", ""),
        ((3, 15, 0), "linux", ""),
        ((4, 0, 0), "linux2", ""),
        ((3, 11, 9), "linux", "Python 3.12 or newer is needed, this is 3.11.9"),
        ((2, 7, 18), "linux2", "Python 3.12 or newer is needed, this is 2.7.18"),
        ((3, 13, 0), "darwin", "Linux is needed, this is darwin"),
        ((3, 13, 0), "win32", "Linux is needed, this is win32"),
    ],
)
def test_where_refork_cannot_run_it_says_so(version: tuple[int, ...], platform: str, told: str) -> None:
    """Before an import fails."""
    said = obstacle(version, platform)
    assert said.startswith(told)
    assert bool(said) == bool(told)
    json.dumps(said).encode("ascii")
