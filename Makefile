# make demo    one figure from nothing but Python >= 3.10 and a C++ compiler: .venv, notebook, out.html
# make gallery every notebook in the demo profile: gallery/index.html
# make look    every page of the gallery in headless Chromium, narrow and wide, light and dark; every notebook in JupyterLab
# make test    the whole suite in the same environment; DDLNL_DATA=folder adds the tests on real archives
# make lint    style of the code and the notebooks, and that the notebooks are stored without outputs
# make sanitize  the tests of the operators and their hostile calls under AddressSanitizer and UndefinedBehaviorSanitizer
# make faults  every fault of tests/faults in its full count (some twelve minutes), and the table of them: faults.json
# make clean   remove what the other targets made
# PYTHON=...   chooses the interpreter .venv is made from

VENV := .venv
BIN := $(VENV)/bin
PIP := PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pip install --quiet --constraint $(VENV)/pins.txt
SUPPORTED := import sys; sys.exit(sys.version_info < (3, 10))
PYTHON ?= $(shell for python in python3.12 python3.11 python3.10 python3.13 python3.14 python3; do \
	$$python -c '$(SUPPORTED)' 2>/dev/null && echo $$python && break; done)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# A kernel installed for the user must not take the place of the one in .venv.
export JUPYTER_PREFER_ENV_PATH := 1

.PHONY: demo gallery look test lint sanitize faults install install-test clean

demo:
	@start=$$(date +%s) && $(MAKE) --no-print-directory install && ready=$$(date +%s) && \
	$(BIN)/python -m papermill notebooks/fig2_symmetric.ipynb out.ipynb -p ipc 50 && \
	$(BIN)/python -m ddlnl export out.ipynb out.html && end=$$(date +%s) && \
	$(BIN)/python -m ddlnl summary out.ipynb && \
	echo "The figure and how it was made: $(CURDIR)/out.html" && \
	echo "Seconds: install $$((ready - start)), compute $$((end - ready))"

gallery: install
	@$(BIN)/python -m ddlnl gallery gallery --workers 2

look: gallery install-test
	$(BIN)/python tests/browser.py gallery
	$(BIN)/python tests/lab.py gallery

test: install-test
	$(BIN)/python -m pytest

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/nbstripout --verify notebooks/*.ipynb

sanitize: install-test
	$(BIN)/python tests/variants.py sanitize

faults: install-test
	rm -f faults.json
	DDLNL_FAULTS=full DDLNL_FAULTS_TABLE=faults.json $(BIN)/python -m pytest tests/faults

install: $(VENV)/installed
install-test: $(VENV)/installed-test

$(VENV)/installed-test: EXTRAS := [test,slurm,cleaning]

# The build requirements come first: setup.py compiles against the torch installed here, where a build in isolation would
# fetch a second one.
$(VENV)/installed $(VENV)/installed-test: $(VENV)/pins.txt setup.py pyproject.toml $(wildcard csrc/*)
	@echo "Installing into $(VENV) (the first time: some minutes, about 6 GB)"
	@$(PIP) 'pip>=21.3' setuptools ninja torch
	@$(PIP) --no-build-isolation --editable '.$(EXTRAS)'
	@touch $(VENV)/installed $@

$(VENV)/pins.txt: environment.yml
	@$(or $(PYTHON),false) -c '$(SUPPORTED)' 2>/dev/null || \
	{ echo "ddlnl needs Python 3.10 or newer: install one, or name it with PYTHON=/path/to/python3." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@sed -n 's/^ *- \(.*==.*\)$$/\1/p' $< > $@

clean:
	rm -rf $(VENV) build *.egg-info ddlnl/_C*.so ddlnl/SHA256SUMS out.ipynb out.html faults.json gallery .pytest_cache .ruff_cache .hypothesis
