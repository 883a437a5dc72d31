# Everything runs in .venv, made on first use with the versions that constraints.txt pins.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
export OMP_WAIT_POLICY ?= passive

.PHONY: demo test test-all check lint bench clean

demo: .venv/ready
	$(BIN)/surefoot study quick --out demo

test: .venv/ready
	$(BIN)/pytest

test-all: .venv/ready
	$(BIN)/pytest -m "slow or not slow"

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

check: lint test

bench: .venv/ready
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/monitor.py
	$(BIN)/python benchmarks/ring.py
	$(BIN)/python benchmarks/feed.py

clean:
	rm -rf .venv demo

# --no-build-isolation: the build backend is pinned with everything else
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt hatchling editables
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev]'
	touch $@
