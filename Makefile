# Every target makes what it needs: a virtual environment in .venv and the package in it, editable.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PYTEST := $(BIN)/python -P -m pytest --quiet --numprocesses auto --dist worksteal

NOTEBOOKS := $(wildcard notebooks/[0-9]*.py notebooks/assignments/*.py)
ASSIGNMENTS := $(notdir $(patsubst %/manifest.toml,%,$(wildcard minitorch_peft/course/assignments/*/manifest.toml)))

.PHONY: demo test test-all prove lint notebooks notebooks-check clean
.DELETE_ON_ERROR:

demo: $(VENV)/data.stamp  ## adapt a GPT from modern English to that of 1395, by each method
	$(BIN)/minitorch-peft compare

test: $(VENV)/dev.stamp  ## the fast tests
	$(PYTEST) -m "not slow and not parity"

test-all: $(VENV)/dev.stamp  ## the slow ones too (parity with the peers: pip install -e '.[peers]', then pytest -m parity)
	$(PYTEST) -m "not parity"

prove: $(addprefix prove-,$(ASSIGNMENTS))  ## the course's checks: known mistakes must lose the points, right solutions get them

prove-%: $(VENV)/dev.stamp
	$(BIN)/minitorch-peft course prove $*

lint: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

notebooks: $(VENV)/dev.stamp  ## executed copies of the walkthroughs and assignments, as .ipynb and .html
	mkdir -p notebooks/rendered
	for source in $(NOTEBOOKS); do \
	  name=notebooks/rendered/$$(basename $$source .py) && \
	  $(BIN)/jupytext --quiet --to ipynb --output $$name.ipynb $$source && \
	  $(BIN)/jupyter nbconvert --log-level WARN --to notebook --execute --inplace $$name.ipynb && \
	  $(BIN)/jupyter nbconvert --log-level WARN --to html $$name.ipynb || exit 1; \
	done

notebooks-check: $(VENV)/dev.stamp  ## run the walkthroughs and assignments as scripts
	for source in $(NOTEBOOKS); do echo $$source; MPLBACKEND=agg $(BIN)/python $$source > /dev/null || exit 1; done

$(VENV)/pip.stamp:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/data.stamp: $(VENV)/pip.stamp setup.cfg pyproject.toml
	$(PIP) install --editable '.[data]'
	touch $@

$(VENV)/dev.stamp: $(VENV)/pip.stamp setup.cfg pyproject.toml
	$(PIP) install --editable '.[data,dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info notebooks/rendered
