# Two commands do everything: `make demo` runs the main job, `make test` passes the tests.
# TORCH picks another build of torch, for example TORCH="torch==2.13.0 --index-url URL-OF-A-CUDA-BUILD".

PYTHON ?= python3
TORCH  ?= torch==2.13.0
VENV   := .venv
BIN    := $(VENV)/bin
OUT    ?= demo

export RAY_USAGE_STATS_ENABLED = 0
export RAY_AUTH_MODE ?= disabled

.PHONY: demo test test-all lint system clean

demo: $(VENV)/.installed
	$(BIN)/rayad demo --out $(OUT)

test: $(VENV)/.dev system lint
	$(BIN)/python -m pytest -m "not long and not cuda" $(PYTEST)

test-all: $(VENV)/.dev system lint
	$(BIN)/python -m pytest -m "not cuda" $(PYTEST)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

# torch comes first and by itself: a free choice of the resolver pulls gigabytes of CUDA.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(TORCH)
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# The browser of the report's test. Only root on Debian can install it here; elsewhere the test says what is missing.
system:
	@if command -v chromium >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; \
	else echo "chromium is missing: the report's browser test will be skipped (Debian: apt-get install chromium)"; fi

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .import_linter_cache
