# Each target does all of its own set-up: a fresh machine needs Python 3.11, make and a network to the package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
NODE_MODULES := node_modules/.package-lock.json
PACKAGE ?= .serverless
# Node.js comes with the Python packages.
WITH_NODE := PATH="$(abspath $(BIN)):$$PATH"

# Tests start hundreds of Python processes, each sooner with the bytecode of the one before.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-lowest test-newest unit integration acceptance matrix chaos fuzz search gpu-check gpu-wheels bench-ingest bench-api bench-console screenshots bench-train bench-rounds figures package check format lock schemas clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z -]+:.*## / {n = split($$1, names, " "); for (i = 1; i <= n; i++) printf "make %-15s%s\n", names[i], $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## Install everything into .venv, each package checked against its recorded digest

$(INSTALLED): pyproject.toml server/pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "foldtune needs Python 3.11 or newer: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@# Compiled once here: a training starts seconds sooner, also where the environment keeps Python from doing it.
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes --compile-bytecode requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable . --editable server
	@touch $@

demo: setup ## The whole loop on real Kafka and S3, in minutes; KEEP=1 leaves it running, LOOP=2 has it run by itself
	$(BIN)/foldtune demo $(if $(KEEP),--keep) $(if $(LOOP),--loop $(LOOP))

test: setup ## The three tiers, on real servers and a real model; says how long each took
	@failed=; times=; for tier in unit integration acceptance; do \
		started=$$(date +%s); $(MAKE) --no-print-directory $$tier || failed="$$failed $$tier"; \
		times="$$times, $$tier $$(($$(date +%s) - started)) s"; \
	done; echo "tiers$${times#,}"; test -z "$$failed" || { echo "failed:$$failed" >&2; exit 1; }

# Versions that resolvers may choose beside those of the lock; one environment at a time, of some gigabytes.
test-lowest: RESOLUTION = lowest-direct
test-newest: RESOLUTION = highest
test-lowest test-newest: setup ## Unit and contract tests on the lowest or the newest versions that pyproject.toml allows
	mkdir -p build
	$(BIN)/uv pip compile pyproject.toml server/pyproject.toml --excludes server/excludes.txt --all-extras --resolution $(RESOLUTION) \
		--no-header --quiet --upgrade --output-file build/$@.txt
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python build/$@
	$(BIN)/uv pip install --quiet --python build/$@/bin/python --excludes server/excludes.txt --requirement build/$@.txt --group test
	$(BIN)/uv pip install --quiet --python build/$@/bin/python --no-deps --editable . --editable server
	build/$@/bin/pytest --numprocesses 2 --dist worksteal -m "not slow and not matrix" tests/unit tests/compatibility
	rm -rf build/$@

unit: setup ## The inner loop: no server, two processes
	$(BIN)/pytest --numprocesses 2 --dist worksteal -m "not slow and not matrix" tests/unit tests/compatibility

integration: setup ## Each part against real Kafka, a real S3 server and real processes; four at a time, as many of them wait
	$(BIN)/pytest --numprocesses 4 --dist worksteal -m "slow and not matrix" tests/unit tests/compatibility tests/integration

acceptance: setup ## The demo, the functions of AWS, and a short run of faults
	$(BIN)/pytest --numprocesses 3 --dist loadfile -m "not matrix" tests/acceptance tests/chaos

matrix: setup ## Variants: every documented form of starting 1, 2, 3 and 5 workers, sabotaged chaos runs, …; SELECT=…
	$(BIN)/pytest -m matrix --durations 0 -o junit_family=xunit1 --junit-xml build/matrix.xml $(if $(SELECT),-k "$(SELECT)") tests

fuzz: setup ## Random events at and over every bound, each accounted for; SEED=… EVENTS=… MINUTES=…
	$(BIN)/python -m tests.fuzz --seed $(or $(SEED),0) --events $(or $(EVENTS),10000) --minutes $(or $(MINUTES),30)

search: setup ## Property tests with many more examples; EXAMPLES=…
	EXAMPLES=$(or $(EXAMPLES),20) $(BIN)/pytest --numprocesses 2 --dist worksteal tests/unit/streams tests/unit/launchers tests/compatibility

gpu-check: setup ## What only a GPU can show: its tests, speed, memory, resuming, torchrun; six minutes
	$(BIN)/python -m benchmarks.gpu_check

gpu-wheels: setup ## The packages of `python3 -m benchmarks.gpu_check --wheels build/gpu-wheels`, for a machine without network
	$(BIN)/python -m benchmarks.gpu_check --collect build/gpu-wheels

chaos: setup ## Ten minutes of faults, then a comparison with a model of the system; SEED=… MINUTES=…
	$(BIN)/python -m tests.chaos --seed $(or $(SEED),0) --minutes $(or $(MINUTES),10)

bench-ingest: setup ## Ingestion throughput, and the cost of growth, recovery and a snapshot
	$(BIN)/python -m benchmarks.ingest

bench-api: setup ## The HTTP API with 100,000 statuses: restart, latency by route, previews, growth of memory
	$(BIN)/python -m benchmarks.api

bench-console: setup ## The console's pages: time, first paint, growth of memory
	$(BIN)/python -m benchmarks.console

screenshots: setup ## Pictures of every page of the console, for docs/console.md; a demo of eight minutes
	$(BIN)/python -m tests.screenshots

bench-train: setup ## Training speed compared with sentence-transformers; DATA=… QUALITY=1
	@test -n "$(DATA)" || { echo 'bench-train needs a folder of data sets: make bench-train DATA=…' >&2; exit 2; }
	$(BIN)/python -m benchmarks.train --data "$(DATA)" $(if $(QUALITY),--quality)

bench-rounds: setup ## Ten trainings in a row on the logs of each model's agent; DATA=… (one data set)
	@test -n "$(DATA)" || { echo 'bench-rounds needs the folder of a data set: make bench-rounds DATA=…' >&2; exit 2; }
	$(BIN)/python -m benchmarks.rounds --data "$(DATA)"

package: setup $(NODE_MODULES) ## What `osls deploy` deploys to AWS, into .serverless; STAGE=prod PARAMETERS=--param=…
	$(WITH_NODE) node_modules/.bin/osls package --stage $(or $(STAGE),dev) --package $(PACKAGE) $(PARAMETERS)
	$(BIN)/cfn-lint --ignore-checks W3005 -- $(PACKAGE)/cloudformation-template-update-stack.json

$(NODE_MODULES): package-lock.json $(INSTALLED)
	$(WITH_NODE) npm ci --silent

figures: setup ## List the figures in the docs whose code has changed since they were measured
	$(BIN)/python -m benchmarks.figures

check: setup ## Lint, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: setup ## Format the code and apply ruff's fixes
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lock: setup ## Upgrade the locked dependencies
	$(BIN)/uv pip compile pyproject.toml server/pyproject.toml --excludes server/excludes.txt --all-extras --group dev --universal --generate-hashes --no-header \
		--no-annotate --quiet --output-file requirements.lock --upgrade

schemas: setup ## Write docs/events.md and the JSON Schemas from the models
	$(BIN)/foldtune schemas docs

clean: ## Remove the outputs of all targets
	rm -rf $(VENV) node_modules build .serverless .foldtune .mypy_cache .pytest_cache .ruff_cache .hypothesis
