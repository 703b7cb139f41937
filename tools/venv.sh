#!/bin/sh
# Make the virtual environment that the Makefile's commands run in, with refork and its native module built in place.
# usage: tools/venv.sh DIRECTORY [GROUP]...      PYTHON=/path/to/python3 chooses the interpreter
# It installs only what is missing, so that a second run needs no network.
set -eu

say() { printf '%s\n' "$*" >&2; }
fits() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 12) or sys.implementation.name != "cpython")' 2>/dev/null; }

# Candidates are tried by running them: a shim on the PATH may stand for a version that is not there.
find_python() {
    for each in ${PYTHON:-python3.13 python3.12 python3.14 python3 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[2-9]*/bin/python3}; do
        if fits "$each"; then
            echo "$each"
            return
        fi
    done
    say "error: no Python 3.12 or later found${PYTHON:+ (PYTHON=$PYTHON is not)}." \
        "Install one (Debian 13, Ubuntu 24.04: apt install python3-venv python3-dev) or name it: make PYTHON=/path/to/python3.13"
    exit 1
}

venv=$1
shift
if ! command -v "${CC:-cc}" >/dev/null 2>&1; then
    say "error: no C compiler found (${CC:-cc}). Install one (Debian: apt install gcc python3-dev) or name it: make CC=clang"
    exit 1
fi
if ! fits "$venv/bin/python"; then
    python=$(find_python)
    say "making $venv with $("$python" --version) ($python)"
    "$python" -m venv --clear "$venv" || {
        say "error: $python cannot make a virtual environment. Install its venv module (Debian: apt install python3-venv)"
        exit 1
    }
fi
export PIP_DISABLE_PIP_VERSION_CHECK=1
"$venv/bin/python" -m pip install --quiet 'pip>=25.1' 'setuptools>=77'
groups=
for each in "$@"; do groups="$groups --group $each"; done
say "installing refork${1:+ with what these need: $*} into $venv"
# The extension is optional to setup.py, so a failed build is not an error there; it is one here.
# shellcheck disable=SC2086
"$venv/bin/python" -m pip install --quiet --no-build-isolation --editable . $groups
"$venv/bin/python" -c 'import refork._fork, refork._heap' 2>/dev/null || {
    say "error: the native modules did not build." \
        "Install Python's headers (Debian: apt install python3-dev), then: make clean && make demo." \
        "The compiler's words: $venv/bin/python setup.py build_ext --inplace"
    exit 1
}
