.DEFAULT_GOAL := help
.PHONY: help audit browser test lint results families docs

PYTHON ?= python3
BIN := .venv/bin
CORE := .venv/.core
READY := .venv/.dev
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# An audit needs the package alone; pages, browsers and documentation tools come with the first other target.
$(CORE): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) -e .
	@touch $@

$(READY): $(CORE)
	$(INSTALL) -e ".[dev,testbed]"
	@touch $@

audit: $(CORE) ## Audit the shipped testbed model into runs/testbed
	$(BIN)/unmemorize audit --run runs/testbed

# The system's package where this may install it, for its libraries; else a build of its own in the user's cache.
browser: $(READY) ## Install chromium for the browser tests, unless there is one
	@command -v chromium >/dev/null \
	|| { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -q && apt-get install -qy chromium; } \
	|| $(BIN)/playwright install chromium

# One thread per worker: torch's own threads would fight the workers for the cores.
test: $(READY) browser ## Run the tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

lint: $(READY) ## Check style, types, and imports between layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

results: $(READY) ## Measure the published numbers again
	$(BIN)/python benchmarks

families: $(READY) ## Run every method on every family and write their table again
	$(BIN)/python benchmarks families

docs: $(READY) ## Build the documentation into docs/_build
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going docs docs/_build
