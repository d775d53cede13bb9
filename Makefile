# The commands of this book; `make help` lists them. Only `make` and Python 3.11+ must be there.
PY ?= python3
PORT ?= 8000
VENV := .venv
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready
SITE_READY := $(VENV)/.site-ready
TEACHING := $(VENV)/.teaching
PEERS := $(VENV)/peers
OUT ?= runs/peers.json
COURSE ?= course
PIP := $(PYTHON) -m pip install --quiet --disable-pip-version-check
IS_NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'

# Sums are rounded in another order on another number of threads. Two everywhere keeps printed
# numbers alike on a laptop and on a server, and small networks gain nothing from more.
OMP_NUM_THREADS ?= 2
export OMP_NUM_THREADS

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install book test test-site lint lab serve notebooks train-demo benchmark stress \
        mutants clean assignments grade feedback test-assignments

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' Makefile

install: $(READY) ## make .venv and install everything into it

# Done once, and again when a list of packages changes.
$(READY): requirements.txt pyproject.toml
	@$(PYTHON) $(IS_NEW_ENOUGH) 2>/dev/null || { \
	  $(PY) $(IS_NEW_ENOUGH) 2>/dev/null || { \
	    echo "This book needs Python 3.11 or newer, and '$(PY)' is older or not there." >&2; \
	    echo "Install a newer one from https://www.python.org/downloads/ and say which:" \
	         "make $(or $(firstword $(MAKECMDGOALS)),book) PY=python3.12" >&2; \
	    exit 1; }; \
	  echo "Installing into $(VENV): a few minutes and about 6 GB, once."; \
	  $(PY) -m venv --clear $(VENV); }
	$(PIP) -r requirements.txt
	$(PIP) --no-deps -e .
	@touch $@

# A warning is shown only when its page is read anew, so a failed build must forget what it read.
BOOK := $(VENV)/bin/jupyter-book build . -W --keep-going

book: $(READY) ## build the book, print its address, open it where there is a browser
	$(BOOK) || { rm -rf _build/.doctrees; exit 1; }
	@$(PYTHON) tools/show_page.py _build/html/index.html

test: $(READY) lint ## lint, then the whole suite: library and notebooks
	TQDM_DISABLE=1 $(PYTHON) -m pytest

# Set DIFFUSION_SITE to the folder of a book that is already built to test that one.
test-site: $(READY) $(SITE_READY) ## test the built book in a real browser
	@$(if $(DIFFUSION_SITE),:,$(BOOK) --all >/dev/null)
	$(PYTHON) -m pytest tests/site --reruns 2

# A browser, and the compiler that built the pages' kernel: a test builds it again.
$(SITE_READY): requirements-site.txt tests/site/package-lock.json diffusion_lib/web/kernel.wasm \
               | $(READY)
	$(PIP) -r requirements-site.txt
	@command -v npm >/dev/null || { \
	  echo "The browser tests need npm: install Node.js (Debian: apt-get install npm)." >&2; exit 1; }
	npm ci --prefix tests/site --silent
	@browser="$$($(PYTHON) tools/screenshots.py --browser >/dev/null 2>&1 || \
	  echo chromium fonts-liberation)"; \
	compiler="$$($(PYTHON) diffusion_lib/web/build.py --missing)"; \
	get() { apt-get -qq install --no-install-recommends "$$@" >/dev/null; }; \
	[ -z "$$browser$$compiler" ] || [ "$$(id -u)" != 0 ] || { \
	  apt-get -qq update && { get $$browser $$compiler || get $$browser; }; }
	@$(PYTHON) tools/screenshots.py --browser
	@touch $@

lint: $(READY) ## ruff, and the repository's address the same everywhere
	$(PYTHON) -m ruff check .
	$(PYTHON) tools/repository.py check

lab: $(READY) ## open the notebooks in JupyterLab
	$(PYTHON) -m jupyter lab notebooks

serve: book ## build the book and serve it at http://127.0.0.1:8000 (PORT=...)
	$(PYTHON) -m http.server --bind 127.0.0.1 --directory _build/html $(PORT)

notebooks: $(READY) ## re-run every notebook, and stamp it
	$(PYTHON) tools/notebooks.py run

train-demo: $(READY) ## train on 8x8 digits from nothing (a minute), sample and evaluate
	rm -rf runs/demo
	$(PYTHON) -m diffusion_lib train --recipe demo --out runs/demo
	$(PYTHON) -m diffusion_lib sample --model runs/demo --out runs/demo/samples.png
	$(PYTHON) -m diffusion_lib evaluate --model runs/demo

# The other libraries stay out of .venv: their venv sees its packages by a .pth file and adds its own.
$(PEERS)/.ready: benchmarks/requirements-peers.txt $(READY)
	$(PYTHON) -m venv $(PEERS)
	$(PYTHON) -c 'import site; print(site.getsitepackages()[0])' > \
	  $$($(PEERS)/bin/python -c 'import site; print(site.getsitepackages()[0])')/book.pth
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check \
	  -r benchmarks/requirements-peers.txt
	@touch $@

# RACE: further options, such as RACE="--rounds 1". The second line needs a C++ compiler.
benchmark: export OMP_NUM_THREADS := 1
benchmark: export PYTHONPATH := .
benchmark: $(PEERS)/.ready ## time training and sampling beside two other libraries (OUT=...)
	$(PEERS)/bin/python benchmarks/peers.py --out $(OUT) $(RACE)
	$(PEERS)/bin/python benchmarks/peers.py --out $(OUT) $(RACE) --compiled

stress: $(READY) ## kill a training run twenty times and prove that it resumes exactly
	$(PYTHON) benchmarks/stress.py

mutants: $(READY) ## break each guarded formula, one at a time, and see a test fail
	$(PYTHON) tools/mutants.py

$(TEACHING): assignments/requirements.txt $(READY)
	$(PIP) -r assignments/requirements.txt
	@touch $@

assignments: $(TEACHING) ## for teachers: make the notebooks of a course (COURSE=course)
	$(PYTHON) assignments/build.py --course $(COURSE)

grade: $(TEACHING) ## for teachers: grade a folder of hand-ins (SUBMISSIONS=...)
	@test -n "$(SUBMISSIONS)" || { echo "Say where they are: make grade SUBMISSIONS=folder" >&2; exit 1; }
	$(PYTHON) assignments/grade.py $(SUBMISSIONS) --course $(COURSE)

feedback: $(TEACHING) ## for teachers: enter the marks given by hand, write pages of feedback
	$(PYTHON) assignments/grade.py --feedback --course $(COURSE)

test-assignments: $(TEACHING) ## prove that right and wrong solutions get the points they should
	TQDM_DISABLE=1 $(PYTHON) -m pytest tests/assignments

clean: ## remove what can be made again (.venv stays)
	rm -rf _build build .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
