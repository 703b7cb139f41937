# refork's commands. Each does its own set-up: Python 3.12+ and a C compiler are all that a machine needs.
#   make demo                     make PYTHON=/usr/bin/python3.12 test
# `make help` lists them all.

VENV ?= .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
# The environment is made anew when what it is made from has changed; otherwise no command touches the network.
SOURCES := pyproject.toml setup.py tools/venv.sh $(wildcard server/refork/_*.c)
INSTALLED := $(VENV)/.made
WITH_EXAMPLES := $(VENV)/.made-with-examples
WITH_TESTS := $(VENV)/.made-with-tests
WITH_LINT := $(VENV)/.made-with-lint
WITH_DOCS := $(VENV)/.made-with-docs
export PYTHON CC

BENCHES := demo django throughput refork seal endurance sampling chaos leak operator
bench_demo := demo --bench
bench_django := django_memory
bench_throughput := throughput
bench_refork := refork_speed
bench_seal := seal
bench_endurance := endurance
bench_sampling := sampling
bench_chaos := chaos
bench_leak := leak
bench_operator := operator

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs manifests sanitize e2e-kind clean $(BENCHES:%=bench-%)

help:  ## this list
	@printf '%s\n' 'make COMMAND; each sets up what it needs by itself (a virtual environment in $(VENV))' ''
	@sed -n 's/^\([a-z][a-z0-9-]*\):.*## \(.*\)/  \1@\2/p' $(MAKEFILE_LIST) | column -t -s @ 2>/dev/null \
		|| sed -n 's/^\([a-z][a-z0-9-]*\):.*## \(.*\)/  \1: \2/p' $(MAKEFILE_LIST)
	@printf '%s\n' '' 'PYTHON=/path/to/python3.12  the interpreter (default: the first of 3.13, 3.12, 3.14, python3)' \
		'TESTS="tests/unit -k load"   what make test runs' 'REFORKS=100                 how many make bench-endurance does' \
		'SECONDS=600                 how long make bench-chaos goes on'

demo: $(INSTALLED)  ## eight warm workers shrink to the memory of one, under load (under two minutes)
	@$(PY) -m benchmarks.demo

TESTS ?= tests
# Tests wait for servers more than they compute: more processes than processors.
JOBS ?= 4
test: $(WITH_TESTS)  ## all tests; TESTS=path for some of them
	$(PY) -m pytest -n $(JOBS) --dist loadgroup $(TESTS)

lint: $(WITH_LINT)  ## style, types and import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(WITH_DOCS)  ## the pages of the site, into site/
	$(PY) -m mkdocs build --strict --quiet

manifests: $(WITH_TESTS)  ## the tables in the charts' READMEs, and deploy/ from the charts
	$(PY) helm/readme.py
	$(PY) deploy/generate.py

bench-demo: ## memory of 8 workers that built 10 million objects each, before and after one refork
bench-django: ## memory of a Django application, against gunicorn --preload
bench-throughput: ## requests a second of each worker class, against gunicorn; latency during a refork
bench-refork: ## how long a refork takes, step by step, with a heap of 1 GiB
bench-seal: ## how many objects a second are sealed
bench-endurance: ## what grows over 100 reforks under load (nothing should)
bench-sampling: ## what it costs to know the memory of 64 workers, and how fast it is told
bench-chaos: ## ten minutes of random kills and reforks under load (SECONDS=600)
bench-leak: ## memory over thirty generations that each replace a cache of 50 MB
bench-operator: $(WITH_TESTS) ## what the operator costs with 2,000 pods, and how soon it commands
$(BENCHES:%=bench-%): bench-%: $(WITH_EXAMPLES)
	@$(PY) -m benchmarks.$(bench_$*)

sanitize: $(WITH_TESTS)  ## the native module under AddressSanitizer and UndefinedBehaviorSanitizer
	$(PY) -m pytest -v -rs tests/stress/test_heap_sanitizers.py

e2e-kind: $(WITH_TESTS)  ## what is promised, on a real cluster: with images of this checkout, by kind (needs docker, kubectl)
	@tools/e2e_kind.sh $(PY)

clean:  ## remove everything that was made here
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .cache
	rm -rf server/*.egg-info server/refork/*.so
	find . -name __pycache__ -type d -not -path './.venv*' -exec rm -rf {} +

$(INSTALLED): $(SOURCES)
	@tools/venv.sh $(VENV)
	@touch $@

$(WITH_EXAMPLES): $(INSTALLED)
	@tools/venv.sh $(VENV) examples
	@touch $@

$(WITH_TESTS): $(INSTALLED)
	@tools/venv.sh $(VENV) test stress
	@touch $@

$(WITH_LINT): $(WITH_TESTS)
	@tools/venv.sh $(VENV) lint
	@touch $@

$(WITH_DOCS): $(INSTALLED)
	@tools/venv.sh $(VENV) docs
	@touch $@
