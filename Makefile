# Everything runs in .venv, made on first use with the versions that constraints.txt pins.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# As many tests side by side as there are cores, a file's in one process: they share what they make.
SIDE_BY_SIDE := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
export OMP_WAIT_POLICY ?= passive

.PHONY: demo test test-all test-clients check lint bench clean

demo: .venv/ready
	$(BIN)/surefoot study quick --out demo

test: .venv/ready
	@tests/browser/bring.sh
	$(BIN)/pytest $(SIDE_BY_SIDE)

test-all: .venv/ready
	@tests/browser/bring.sh
	$(BIN)/pytest $(SIDE_BY_SIDE) -m "slow or not slow"

# trainers that nobody here wrote; without their packages `make test` leaves these tests out
test-clients: .venv/clients-ready
	$(BIN)/pytest tests/clients -m "slow or not slow" -n 2 --dist loadgroup

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

# TorchRec without its dependencies: it asks for FBGEMM's build for GPUs
.venv/clients-ready: .venv/ready
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[clients]'
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps torchrec fbgemm-gpu-cpu
	touch $@
