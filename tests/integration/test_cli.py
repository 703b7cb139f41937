"""The command line as a person meets it: what it teaches, and what it says when something is wrong.

Every test runs the real command. None of them needs a server: they end before there is one.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import gunicorn
import pytest
import trustme

import refork

SOURCES = os.pathsep.join([str(Path(refork.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
APP = """
def application(environ, start_response):
    start_response("200 OK", [])
    return []
"""


class Project:
    """A directory with an application, in which to run the command."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.write("app.py", APP)

    def write(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    def run(self, *words: str, python: str = sys.executable, **environment: str) -> subprocess.CompletedProcess[str]:
        inherited = {name: value for name, value in os.environ.items() if name != "GUNICORN_CMD_ARGS"}
        return subprocess.run(
            [python, "-m", "refork", *words],
            cwd=self.directory,
            env=inherited | {"PYTHONPATH": SOURCES, "COLUMNS": "100"} | environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def refused(self, *words: str, code: int = 1, **environment: str) -> str:
        """Run the command, which is to fail, and return its one line without the prefix."""
        ended = self.run(*words, **environment)
        lines = ended.stderr.splitlines()
        assert ended.returncode == code, ended.stderr
        assert len(lines) == 1, ended.stderr
        assert ended.stdout == ""
        assert lines[0].startswith("refork: error: ")
        return lines[0].removeprefix("refork: error: ")

    def settings(self, *words: str, **environment: str) -> dict[str, str]:
        """Return what `--print-config` shows."""
        ended = self.run("--print-config", *words, **environment)
        assert ended.returncode == 0, ended.stderr
        return dict(re.split(r" +=", line, maxsplit=1) for line in ended.stdout.splitlines() if "=" in line)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Make an empty project with an application in it."""
    return Project(tmp_path)


# --- what it teaches --------------------------------------------------------------------------------------------------


def test_help_teaches(project: Project) -> None:
    """What it is, how to begin, our options before gunicorn's, and what exit codes mean."""
    shown = project.run("--help").stdout
    order = ["usage: refork", "examples:", "options of refork:", "options of gunicorn: Server Socket:", "exit codes:"]
    positions = [shown.index(part) for part in order]
    assert positions == sorted(positions)
    assert "--refork-after" in shown
    assert "--worker-class" in shown
    assert max(len(line) for line in shown.splitlines()) <= 100


@pytest.mark.parametrize("flag", ["--reload", "--dirty-app", "--spew", "--control-socket "])
def test_help_does_not_offer_what_is_refused(project: Project, flag: str) -> None:
    """It would only be refused."""
    assert flag not in project.run("--help").stdout


@pytest.mark.parametrize("flag", ["-v", "--version"])
def test_the_versions_are_shown(project: Project, flag: str) -> None:
    """Of all three, because a report of a fault needs them."""
    python = ".".join(map(str, sys.version_info[:3]))
    expected = f"refork {refork.__version__} (gunicorn {gunicorn.__version__}, Python {python})\n"
    assert project.run(flag).stdout == expected


def test_a_good_configuration_is_silent(project: Project) -> None:
    """As it is with gunicorn."""
    ended = project.run("--check-config", "app")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


# --- where settings come from -----------------------------------------------------------------------------------------


def test_our_settings_work_in_the_file_in_the_environment_and_on_the_command_line(project: Project) -> None:
    """The later one wins, as with gunicorn's own."""
    project.write("gunicorn.conf.py", "refork_after = [5, 6]\nrefork_surge = 2\nmax_generations = 2\nseal = False\n")
    seen = project.settings("app", "--refork-surge", "4", GUNICORN_CMD_ARGS="--max-generations=3 --refork-surge 3")
    assert seen["refork_after"] == " (5, 6)"
    assert seen["max_generations"] == " 3"
    assert seen["refork_surge"] == " 4"
    assert seen["seal"] == " False"
    assert project.settings("app", "--no-seal", "--lifespan-keep", "-k", "asgi")["lifespan_keep"] == " True"


def test_the_application_may_be_named_in_the_file(project: Project) -> None:
    """`wsgi_app`, with a configuration that is a module."""
    project.write("conf.py", "wsgi_app = 'app:application'\n")
    assert project.settings("-c", "python:conf")["default_proc_name"] == " app:application"


def test_modules_are_found_by_chdir_and_pythonpath(project: Project) -> None:
    """Also for `--check-config`."""
    project.write("below/deep.py", APP)
    assert project.run("--check-config", "--chdir", "below", "deep").returncode == 0
    assert project.run("--check-config", "--pythonpath", "below", "deep").returncode == 0


def test_a_configuration_file_with_another_name_is_read_with_a_warning(project: Project) -> None:
    """gunicorn reads it, so refork does."""
    project.write("server.conf", "workers = 3\n")
    ended = project.run("--check-config", "-c", "server.conf", "app")
    assert ended.returncode == 0
    assert ended.stderr == "refork: warning: configuration file 'server.conf' is read as Python: name it *.py\n"


def test_an_edit_within_the_same_second_is_seen(project: Project) -> None:
    """A bytecode cache would not notice a file of the same age and size."""
    for workers in ("2", "3"):
        path = project.write("gunicorn.conf.py", f"workers = {workers}\n")
        os.utime(path, (1_000_000_000, 1_000_000_000))
        assert project.settings("app")["workers"] == f" {workers}"


def test_a_configuration_made_for_gunicorn_is_served(project: Project) -> None:
    """Long graceful timeouts are common, and ours give way."""
    seen = project.settings("app", "--graceful-timeout", "120", "--preload", "--worker-tmp-dir", "/dev/shm")
    assert seen["promote_timeout"] == " 150.0"


# --- a wrong command line ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "no application: name it, like `refork MODULE:CALLABLE`, or set wsgi_app in the configuration file"),
        (("app", "--nonsense"), "unknown option --nonsense; see refork --help"),
        (("app", "--refork-afer", "5"), "unknown option --refork-afer, did you mean --refork-after?; see"),
        (("app", "-w", "many"), "argument -w/--workers: invalid int value: 'many'"),
        (("app", "-w", "-3"), "argument -w/--workers: Value must be positive: -3"),
        (("app", "-w"), "argument -w/--workers: expected one argument"),
        (("app", "--spawn-timeout", "soon"), "argument --spawn-timeout: invalid float value: 'soon'"),
        (("app", "--spawn-timeout", "0"), "argument --spawn-timeout: 0.0: write a number of seconds, more than 0"),
        (("app", "--refork-after", "5,x"), "argument --refork-after: '5,x' is no schedule: write the number"),
        (("app", "--refork-surge", "0"), "argument --refork-surge: 0: write a whole number, 1 or more"),
        (("app", "--control-bind", ":80"), "argument --control-bind: no unix socket: ':80'; write unix:@NAME"),
        (("app", "--metrics-bind", "9090"), "argument --metrics-bind: no address: '9090'; write HOST:PORT"),
        (("app", "--user", "nobody-of-that-name"), "argument -u/--user: No such user: 'nobody-of-that-name'"),
        (("app", "--chdir", "nowhere"), "argument --chdir: can't chdir to 'nowhere'"),
    ],
)
def test_a_wrong_word_is_told_in_one_line(project: Project, words: tuple[str, ...], told: str) -> None:
    """With exit code 2, and without the forty lines of usage."""
    assert project.refused(*words, code=2).startswith(told)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [("-w many", "argument -w/--workers: invalid int value: 'many'"), ("'open", "No closing quotation")],
)
def test_a_wrong_word_in_the_environment_is_told_to_be_there(project: Project, arguments: str, told: str) -> None:
    """Nobody sees it on the command line."""
    assert project.refused("app", code=2, GUNICORN_CMD_ARGS=arguments).startswith(f"GUNICORN_CMD_ARGS: {told}")


# --- a wrong configuration --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("workers = 2\nbind = nonsense\n", "NameError: name 'nonsense' is not defined (conf.py:2)"),
        ("workers = \n", "SyntaxError: invalid syntax (conf.py:1)"),
        ("import sys\nsys.exit('no')\n", "SystemExit: it exited with 'no' (conf.py:2)"),
        ("import app, helper\n", "ZeroDivisionError: division by zero (helper.py:1)"),
    ],
)
def test_a_configuration_file_that_fails_is_told_with_its_line(project: Project, text: str, told: str) -> None:
    """And with no traceback."""
    project.write("helper.py", "1 / 0\n")
    project.write("conf.py", text)
    assert project.refused("-c", "conf.py", "app") == f"configuration file 'conf.py': {told}"


def test_a_configuration_file_that_is_no_python_is_told_to_be_read_as_such(project: Project) -> None:
    """Somebody may have written YAML."""
    project.write("server.yaml", "workers: two processes\n")
    said = project.refused("-c", "server.yaml", "app")
    assert said == (
        "configuration file 'server.yaml': SyntaxError: invalid syntax (server.yaml:1); it is read as Python, "
        "whatever its name"
    )


def test_a_configuration_file_that_is_not_there(project: Project) -> None:
    """The fix is the option."""
    assert project.refused("-c", "no.py", "app") == "configuration file 'no.py' does not exist: check --config"
    assert project.refused("-c", "python:no.conf", "app").startswith("configuration module 'no.conf': ModuleNotFound")
    assert project.refused("-c", ".", "app").startswith("configuration file '.': IsADirectoryError")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("workers = 'two'", "conf.py: workers: "),
        ("refork_after = 1.5", "conf.py: refork_after: 1.5 is no schedule: write the number of requests"),
        ("before_promote = lambda: None", "conf.py: before_promote: "),
        ("reload = True", "--reload: refork does not watch files."),
        ("on_dirty_starting = lambda arbiter: None", "on_dirty_starting: refork has no dirty workers."),
        ("promote_timeout = 5", "--promote-timeout (5 s) must exceed --graceful-timeout (30 s)"),
        ("raw_env = ['NAME']", "--env: environment setting 'NAME' invalid; write NAME=VALUE"),
    ],
)
def test_a_wrong_value_in_the_file_is_told_with_its_setting(project: Project, line: str, told: str) -> None:
    """With exit code 1: the command line was right."""
    project.write("conf.py", f"{line}\n")
    assert project.refused("-c", "conf.py", "app").startswith(told)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("-b", "127.0.0.1:70000"), "--bind: 70000 is no port: write one from 1 to 65535, or 0 for any that is free"),
        (("-b", "unix:"), "--bind: 'unix:' names no file: write unix:PATH"),
        (("--certfile", "no.pem"), "certfile 'no.pem' does not exist: check --certfile"),
        (("--log-config", "no.ini"), "logconfig 'no.ini' does not exist: check --log-config"),
        (("--access-logfile", "no/a.log"), "accesslog 'no/a.log': the folder does not exist: create it, or choose"),
        (("--certfile", "app.py"), "certfile 'app.py' cannot be used: "),
        (("--keyfile", "app.py"), "--keyfile is of no use alone: set --certfile too"),
    ],
)
def test_what_is_named_and_cannot_be_used_is_told(project: Project, words: tuple[str, ...], told: str) -> None:
    """By `--check-config` too, before anything is deployed."""
    assert project.refused("--check-config", *words, "app").startswith(told)


def test_a_key_that_does_not_fit_its_certificate_is_told(project: Project) -> None:
    """Every connection would fail otherwise, and the log would not say why."""
    for name in ("one", "other"):
        issued = trustme.CA().issue_cert("localhost")
        project.write(f"{name}.key", issued.private_key_pem.bytes().decode())
        project.write(f"{name}.pem", "".join(pem.bytes().decode() for pem in issued.cert_chain_pems))
    pair = ("--certfile", "one.pem", "--keyfile", "one.key")
    assert project.run("--check-config", *pair, "app").returncode == 0
    said = project.refused("--check-config", "--certfile", "one.pem", "--keyfile", "other.key", "app")
    assert said.startswith("certfile 'one.pem' and keyfile 'other.key' cannot be used: key values mismatch; check")
    assert project.refused("--check-config", *pair, "--ciphers", "NONE-SUCH", "app").startswith("ciphers 'NONE-SUCH'")


def test_everything_that_is_refused_is_told_at_once(project: Project) -> None:
    """A line for each."""
    ended = project.run("app", "--reload", "--spew", "--dirty-app", "app:Dirty")
    assert ended.returncode == 1
    assert [line.split()[2] for line in ended.stderr.splitlines()] == ["--reload:", "--spew:", "--dirty-app:"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("gaiohttp", "--worker-class 'gaiohttp': there is no such worker class; use one of asgi,"),
        ("app.Worker", "worker class 'app.Worker' cannot be loaded: AttributeError: "),
        ("nowhere.Worker", "worker class 'nowhere.Worker' cannot be loaded: ModuleNotFoundError: No module named"),
    ],
)
def test_a_worker_class_that_is_not_there(project: Project, name: str, told: str) -> None:
    """Told by `--check-config`, because the server leaves the loading to its mold."""
    assert project.refused("--check-config", "-k", name, "app").startswith(told)


# --- a wrong application ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "name", "told"),
    [
        ("", "nowhere:app", "ModuleNotFoundError: No module named 'nowhere'; check its name, --chdir and --pythonpath"),
        ("", "bad.deep", "ModuleNotFoundError: No module named 'bad.deep'; 'bad' is not a package; check its name,"),
        ("import nowhere\n", "bad", "ModuleNotFoundError: No module named 'nowhere' (bad.py:1)"),
        ("\n1 / 0\n", "bad", "ZeroDivisionError: division by zero (bad.py:2)"),
        ("import sys\nsys.exit(3)\n", "bad", "SystemExit: it exited with 3 (bad.py:2)"),
        ("x = 1\n", "bad", "Failed to find attribute 'application' in 'bad'."),
        ("x = 1\n", "bad:x", "Application object must be callable."),
        ("x = 1\n", "bad.py", "ImportError: Failed to find application, did you mean 'bad:application'?"),
    ],
)
def test_an_application_that_does_not_load(project: Project, code: str, name: str, told: str) -> None:
    """One line with the module, the cause and the line, and exit code 1."""
    project.write("bad.py", code)
    said = project.refused("--check-config", name)
    assert said.startswith(f"application {name!r} does not load: {told}")


@pytest.mark.parametrize("where", ["command line", "file"])
def test_a_traceback_is_there_for_the_asking(project: Project, where: str) -> None:
    """`--log-level debug` shows it, before the line."""
    project.write("bad.py", "1 / 0\n")
    project.write("gunicorn.conf.py", "loglevel = 'debug'\n" if where == "file" else "")
    words = ("--log-level", "debug") if where == "command line" else ()
    ended = project.run("--check-config", *words, "bad")
    assert ended.returncode == 1
    assert "Traceback (most recent call last)" in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("refork: error: application 'bad' does not load")


def test_a_traceback_is_there_for_a_broken_file_too(project: Project) -> None:
    """The configuration cannot say so yet, but the command line can."""
    project.write("conf.py", "1 / 0\n")
    assert "Traceback (most recent call last)" in project.run("-c", "conf.py", "--log-level=debug", "app").stderr


# --- a wrong machine --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["2.7.18", "3.6.15", "3.11.7"])
def test_an_older_python_is_told_what_is_needed(project: Project, version: str) -> None:
    """Before anything is imported that it cannot read."""
    python = Path.home() / ".pyenv" / "versions" / version / "bin" / "python"
    if not python.exists():
        pytest.skip(f"there is no Python {version} here")
    ended = project.run("app", python=str(python))
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"refork: error: Python 3.12 or newer is needed, this is {version}: ")
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("module", ["refork", "refork.cli"])
def test_another_platform_is_told_what_is_needed(project: Project, module: str) -> None:
    """By the command as by the module."""
    code = f"import sys, runpy; sys.platform = 'darwin'; runpy.run_module({module!r}, run_name='__main__')"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=project.directory,
        env=os.environ | {"PYTHONPATH": SOURCES},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("refork: error: Linux is needed, this is darwin: ")
    assert len(ended.stderr.splitlines()) == 1


# --- read once more ---------------------------------------------------------------------------------------------------

AGAIN = """
import os, sys
from refork.cli import load_application
from refork.errors import ConfigurationError

start = os.getcwd()
words = ["-c", "conf.py", "--chdir", "below", "deep"]
first = load_application(words)
assert (first.argv, first.start_directory) == (words, start), first.argv
assert os.getcwd() == os.path.join(start, "below")
assert first.cfg.workers == 2
for wrong in ("workers = 1 / 0", "reload = True"):
    with open(os.path.join(start, "conf.py"), "w") as file:
        file.write(wrong)
    try:
        load_application(first.argv, directory=first.start_directory)
    except ConfigurationError as error:
        print(error)
    assert os.getcwd() == os.path.join(start, "below")
with open(os.path.join(start, "conf.py"), "w") as file:
    file.write("workers = 3")
second = load_application(first.argv, directory=first.start_directory)
assert second.cfg.workers == 3
assert (second.start_directory, second.cfg.chdir) == (start, first.cfg.chdir)
assert "deep" not in sys.modules
"""


def test_a_running_server_can_read_its_configuration_again(project: Project) -> None:
    """Relative paths start where they started; a broken file raises, prints nothing, and leaves things as they are."""
    project.write("below/deep.py", APP)
    project.write("conf.py", "workers = 2")
    ended = subprocess.run(
        [sys.executable, "-c", AGAIN],
        cwd=project.directory,
        env=os.environ | {"PYTHONPATH": SOURCES},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    first, second = ended.stdout.splitlines()
    assert first == "configuration file 'conf.py': ZeroDivisionError: division by zero (conf.py:1)"
    assert second.startswith("--reload: refork does not watch files")
