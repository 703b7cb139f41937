#!/usr/bin/env bash
# Build the wheel with the given environment's `build`, install it in a new one, and serve an application from it.
set -euo pipefail
cd "$(dirname "$0")/.."
made_with=$1
work=$(mktemp -d)
trap 'kill "${server:-}" 2>/dev/null || true; wait "${server:-}" 2>/dev/null || true; rm -rf "$work"' EXIT

"$made_with/bin/python" -m build --wheel --outdir "$work/dist" . >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
"$made_with/bin/python" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "$work"/dist/*.whl

cat >"$work/hello.py" <<'PYTHON'
from refork import heap

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"served" if not heap.capability() else heap.capability().encode()]
PYTHON

cd "$work"
socket="unix:$work/hello.sock"
venv/bin/refork hello:app --workers 2 --bind "$socket" --control-bind "unix:$work/control.sock" 2>server.log &
server=$!
ask() { curl --silent --show-error --retry 50 --retry-delay 0 --retry-all-errors --unix-socket hello.sock http://x/; }
for _ in $(seq 100); do [ -S hello.sock ] && break; sleep 0.1; done
answer=$(ask) || { cat server.log; exit 1; }
[ "$answer" = served ] || { echo "the wheel does not serve, or cannot seal: $answer"; cat server.log; exit 1; }
venv/bin/reforkctl --socket "unix:$work/control.sock" refork --wait
answer=$(ask)
[ "$answer" = served ] && echo "the wheel serves, before and after a refork"
