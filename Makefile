# Two commands do everything: `make demo` runs the main job, `make test` passes the tests.
# TORCH picks another build of torch, for example TORCH="torch==2.13.0 --index-url URL-OF-A-CUDA-BUILD".

PYTHON ?= python3
TORCH  ?= torch==2.13.0
VENV   := .venv
BIN    := $(VENV)/bin
OUT    ?= demo

export RAY_USAGE_STATS_ENABLED = 0

.PHONY: demo test test-all lint audit system clean

demo: $(VENV)/.installed
	$(BIN)/rayad demo --out $(OUT)

# Files of tests run in as many processes as JOBS, each with a thread: one more than there are cores, since some wait.
JOBS   ?= 3

SIDE_BY_SIDE := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

test: $(VENV)/.dev system lint
	$(SIDE_BY_SIDE) -m "not long and not cuda" $(PYTEST)

test-all: $(VENV)/.dev system lint
	$(SIDE_BY_SIDE) -m "not cuda" $(PYTEST)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

# Known weaknesses of what is installed; asks for advisories on the network.
audit:
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/pip install --quiet pip-audit
	$(VENV)-audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

# torch comes first and by itself: a free choice of the resolver pulls gigabytes of CUDA.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(TORCH)
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[all]'
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	touch $@

# The browser of the pages' tests, the archive of the DICOMweb test, the checker of DICOM objects, what asks the
# dashboards' queries, and the compiler that Macs have. Only root on Debian can install them here; elsewhere the tests
# say what is missing.
SYSTEM := chromium fonts-dejavu-core orthanc orthanc-dicomweb dicom3tools prometheus clang
COMMANDS := chromium Orthanc dciodvfy prometheus clang++

system:
	@missing=; for c in $(COMMANDS); do command -v $$c >/dev/null || missing="$$missing $$c"; done; \
	if [ -z "$$missing" ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(SYSTEM) >/dev/null; \
	else echo "missing:$$missing; tests that need them will be skipped (Debian: apt-get install $(SYSTEM))"; fi

clean:
	rm -rf $(VENV) $(VENV)-audit build *.egg-info .pytest_cache .ruff_cache .import_linter_cache
