# make demo: make a virtual environment, install, run the corruption sweep.   make test: lint, types and all tests.
# make test-slurm: start a SLURM of four emulated nodes and run the fault tests on it (Debian or Ubuntu; apt as root).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

SLURM_DIR ?= /tmp/inversion-bench-slurm
SLURM_TIMEOUT ?= 40m

.PHONY: demo test test-slurm lint clean

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet -e '.[dev,large]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/python -m bench.run sweep=corruptions

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

test-slurm: $(VENV)/installed-dev
	tests/slurm/cluster.sh start $(SLURM_DIR) && . $(SLURM_DIR)/env.sh && \
		timeout -s INT -k 60 $(SLURM_TIMEOUT) $(BIN)/python -m pytest tests/slurm --durations=5; \
		code=$$?; tests/slurm/cluster.sh stop $(SLURM_DIR); exit $$code

clean:
	rm -rf $(VENV) results build *.egg-info
