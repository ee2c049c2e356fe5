# make demo    install, prepare the digits, train, sample, score: under 7 minutes on two CPU cores
# make test    install, lint, types, tests
# make test-interop  beside torch, diffusers and torch-fidelity, in an environment of its own (about 1.5 GB)
# make evidence  the figures of README.md: six digits runs, the benchmarks of layer and step, above an hour on two cores
# PYTHON=python3.12 VENV=.venv312 choose another interpreter and its environment.

PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
CONFIG ?= digits

.PHONY: help demo test test-interop evidence smoke lint format types tests install dev clean
.DEFAULT_GOAL := help

help:
	@sed -n '1,5s/^# //p' Makefile

install: $(VENV)/.installed
dev: $(VENV)/.dev

$(VENV)/.installed: pyproject.toml requirements.txt
	@$(PYTHON) -c "import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f'error: pom_jax needs Python 3.11 to 3.13, and $(PYTHON) is {v[0]}.{v[1]}; say make PYTHON=python3.12 ...')"
	@echo "[install] jax and its friends go into $(VENV) (about 750 MB, half a minute or more)"
	@$(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	@echo "[install] the tools for developing go into $(VENV)"
	@$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: install
	@echo "[1/4] prepare: the real 8 x 8 digits become shards in data/digits"
	@$(RUN) prepare.py digits --out=data/digits
	@echo "[2/4] train: runs/$(CONFIG) (the same command continues a run that was stopped)"
	@$(RUN) train.py --config=configs/digits.py --workdir=runs/$(CONFIG)
	@echo "[3/4] sample: a labelled grid"
	@$(RUN) sample.py --workdir=runs/$(CONFIG) --guidance=1.5 --num=100 --out=runs/$(CONFIG)/samples/grid.png
	@echo "[4/4] score: against held-out real digits"
	@$(RUN) eval.py --workdir=runs/$(CONFIG)
	@echo "[done] pictures: runs/$(CONFIG)/samples/grid.png   scores: runs/$(CONFIG)/eval/scores.md   next: README.md"

EVIDENCE := $(foreach seed,0 1,$(foreach mixer,pom power attention,runs/evidence/$(mixer)-$(seed)))

evidence: dev
	@$(RUN) prepare.py digits --out=data/digits
	@for run in $(EVIDENCE); do mixer=$${run##*/}; \
	    $(RUN) train.py --config=configs/digits.py:$${mixer%-*} --config.seed=$${mixer#*-} --workdir=$$run \
	    && $(RUN) eval.py --workdir=$$run || exit 1; done
	@$(RUN) -m benchmarks.digits_mixers $(EVIDENCE)
	@$(RUN) -m benchmarks.digits_run
	@$(RUN) -m benchmarks.train_step
	@$(RUN) -m benchmarks.dense
	@$(RUN) -m benchmarks.mixer

test: dev lint types tests

test-interop: $(VENV)-interop/.installed
	@$(VENV)-interop/bin/python -m pytest tests/interop

# torch-fidelity asks for torchvision, whose builds bring a CUDA torch; what the tests use needs neither.
$(VENV)-interop/.installed: pyproject.toml requirements.txt
	@echo "[install] torch, diffusers and torch-fidelity go into $(VENV)-interop (about 1.5 GB, some minutes)"
	@$(PYTHON) -m venv $(VENV)-interop
	@$(VENV)-interop/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test-interop]'
	@$(VENV)-interop/bin/python -m pip install --quiet --disable-pip-version-check --no-deps torch-fidelity==0.4.0
	@touch $@

lint: dev
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check --quiet .

format: dev
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .

types: dev
	@$(RUN) -m pyrefly check

tests: dev
	@$(RUN) -m pytest -n 2

smoke: dev
	@$(RUN) -m pytest -n 2 -m smoke

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
