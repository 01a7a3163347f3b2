# happywhale_nb: `make demo` runs the study on drawn photographs, `make test` checks everything.
PYTHON ?= python3
BIN := .venv/bin
README ?= README.md
BUNDLE ?= bundle
export PYTHONNOUSERSITE := 1
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help install results gallery demo test test-all soak mutants bench check docs export hooks readme lock bundle

help:  ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 10

install: .venv/.ready  ## install the pinned environment into .venv, and nothing else

demo: .venv/.ready  ## draw the demo photographs and run the whole study on them
	@happywhale demo

test: .venv/.ready check  ## under five minutes: every notebook's lessons, and the tests that need nothing else
	pytest -q -n 3 --dist worksteal -m "not rest"

test-all: .venv/.ready check  ## these and the rest: Chromium, PostgreSQL, Slurm, several hosts, benchmarks, kills, real photographs
	pytest -q -n 3 --dist worksteal -rs

soak: .venv/.ready  ## by hand, two hours: a kill at every write, full disks, a million rows, the paper's study on flukes; results go to docs/results
	HAPPYWHALE_KEEP_RESULTS=1 pytest -v -m soak -rs --timeout 3600

mutants: .venv/.ready  ## by hand, an hour: break the project on purpose, and see which tests notice
	python tests/mutation/run.py map
	python tests/mutation/run.py run
	python tests/mutation/run.py all
	python tests/mutation/run.py table

bench: .venv/.ready  ## time the project against named alternatives (QUICK=--quick to see that it works)
	@for script in $(filter-out bench/harness.py bench/baselines.py bench/counts.py bench/coverage.py bench/gap.py bench/leaderboard.py bench/neighbours.py bench/paper_small.py bench/recognition.py bench/species.py bench/subsets.py,$(wildcard bench/*.py)); do echo "\n$$script"; python $$script $(QUICK) || exit 1; done

check: .venv/.ready  ## lint notebooks and package
	@ruff check nbs happywhale_nb tests bench docs setup.py

docs: .venv/.ready  ## build the site, _docs/html/index.html, from the notebooks
	@python docs/stage.py _docs
	@sphinx-build -q -W --keep-going -c docs _docs/source _docs/html
	@echo "_docs/html/index.html"

export: .venv/.ready  ## after editing notebooks: clean them, write the package and the README from them
	nbdev_clean
	nbdev_export
	@$(MAKE) --no-print-directory readme

hooks: .venv/.ready  ## once, for who edits: JupyterLab saves notebooks clean, git merges them cell by cell
	@python -c 'from happywhale_nb.workflow.jupyter_hooks import install_hooks; print(install_hooks())'

results: .venv/.ready  ## tables and pictures of the measured results, and nbs/paper_map.ipynb, from docs/results
	@python docs/measured.py
	@python docs/paper_map.py

gallery: .venv/.ready  ## run the numbered notebooks on the demo, and store their outputs and the page's pictures
	@python docs/gallery.py

readme: .venv/.ready
	@jupyter nbconvert --log-level ERROR --to markdown --stdout nbs/index.ipynb \
	| sed -E -e 's#\]\((\.\./)#](#g' -e 's#\]\((images/|lib/|[0-9]{2}_|paper_map)#](nbs/\1#g' -e 's#src="images/#src="nbs/images/#g' > $(README)

# NVIDIA's libraries are installed where the driver answers. GPU=0 declines them and GPU=1 asks for them: either is
# remembered in .venv/gpu, and a change installs anew. `none`: no driver was found, and it is looked for again.
ifndef GPU
override GPU := $(shell grep -sx '[01]' .venv/gpu || { timeout 20 nvidia-smi -L 2>/dev/null | grep -q '^GPU ' && echo 1; } || echo none)
endif
ifneq ($(filter-out 0 1 none,$(GPU)),)
$(error GPU=$(GPU): 1 installs NVIDIA's libraries, 0 does not)
endif
ifneq ($(GPU),$(or $(shell cat .venv/gpu 2>/dev/null),none))
.PHONY: gpu-changed
.venv/.ready: gpu-changed
endif

# opencv-python's wheel loads libGL from the system; where that is missing, the same version without windows takes its place
.venv/.ready: requirements.lock requirements-headless.lock requirements-gpu.lock settings.ini setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"Python 3.11, 3.12 or 3.13 is needed (TensorFlow has no other builds); {sys.executable} is {v[0]}.{v[1]}. Name another: make PYTHON=python3.12 ...")'
	@echo "Installing the pinned environment into .venv: once, some minutes, 1.2 GB to fetch, 4.3 GB on disk"
ifeq ($(GPU),1)
	@echo "An NVIDIA card: its libraries for TensorFlow and JAX are installed too, 3 GB more (make GPU=0 ... does without)"
endif
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --no-compile --require-hashes -r requirements.lock $(if $(filter 1,$(GPU)),-r requirements-gpu.lock)
	@[ "$(GPU)" = 1 ] || ! grep -sqx 1 .venv/gpu || $(BIN)/python -m pip uninstall --quiet --yes -r requirements-gpu.lock
	@$(BIN)/python -c 'import cv2' 2>/dev/null || { $(BIN)/python -m pip uninstall --quiet --yes opencv-python && $(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements-headless.lock; }
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@echo $(GPU) > .venv/gpu
	@touch $@

# of this machine's system and Python; pip checks the hashes of the lock here, and those written here on the station
bundle: .venv/.ready  ## bundle/: every wheel with its hash, for a station without a network (BUNDLE=folder)
	@echo "Fetching the wheels of requirements.lock and the project's own into $(BUNDLE): some minutes, 1.2 GB"
	@rm -rf $(BUNDLE) && mkdir -p $(BUNDLE)/headless
	@$(BIN)/python -m pip wheel --quiet --require-hashes --wheel-dir $(BUNDLE) -r requirements.lock
	@$(BIN)/python -m pip wheel --quiet --require-hashes --no-deps --wheel-dir $(BUNDLE)/headless -r requirements-headless.lock
	@$(BIN)/python -c 'import sys; from happywhale_nb.workflow.kaggle import build_wheel; build_wheel(sys.argv[1])' $(BUNDLE)
	@cd $(BUNDLE) && for kind in . headless; do \
		$(abspath $(BIN))/python -m pip hash $$kind/*.whl | sed 'N; s/:\n/ /' > requirements-$$kind.txt; done
	@mv $(BUNDLE)/requirements-..txt $(BUNDLE)/requirements.txt
	@echo "On the station: cd $(BUNDLE) && python -m pip install --no-index --no-deps --require-hashes -r requirements.txt"

lock:  ## pin the requirements of settings.ini anew, with hashes
	$(PYTHON) -m venv .venv/lock && .venv/lock/bin/python -m pip install --quiet uv
	$(PYTHON) -c 'import configparser; c = configparser.ConfigParser(); c.read("settings.ini"); d = c["DEFAULT"]; print("\n".join(" ".join(d[k + "requirements"] for k in ("", "train_", "serve_", "study_", "notebooks_", "export_", "search_", "qdrant_", "postgres_", "track_", "heic_", "docs_", "dev_")).split() + ["setuptools>=70.1"]))' \
	| .venv/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header - -o requirements.lock
	grep '^opencv-python==' requirements.lock | tr -d '\\' | sed 's/opencv-python/opencv-python-headless/' \
	| .venv/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --no-deps --generate-hashes --no-annotate --no-header - -o requirements-headless.lock
	$(PYTHON) -c 'import configparser; c = configparser.ConfigParser(delimiters=["="]); c.read("settings.ini"); d = c["DEFAULT"]; print("\n".join((d["gpu_requirements"] + " " + d["jax-gpu_requirements"]).split()))' \
	| .venv/lock/bin/uv pip compile --quiet --universal --python-version 3.11 -c requirements.lock --generate-hashes --no-annotate --no-header \
	$$(sed -nE 's/^([a-z0-9._-]+)==.*/--no-emit-package \1/p' requirements.lock | sort -u) - -o requirements-gpu.lock
