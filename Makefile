# Every command of the project. A fresh machine needs Python 3.10 to 3.13, pip and make; `make demo` and `make test`
# build `.venv` themselves, from the pins in requirements/, and refresh it when the pins change.

PYTHON ?= python3
JOBS ?= 2
ARGS ?=

BIN := .venv/bin
BIN5 := .venv-v5/bin
PIP := -m pip --disable-pip-version-check install --quiet
export PYTHONUTF8 := 1
# Two test workers on two cores: one thread each.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.DEFAULT_GOAL := help
.PHONY: help demo test test-v5 lint format types bench stub families pins venv clean

help: ## show this list
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

demo: .venv/.run ## the main job on real text: pre-train, warm-start, fine-tune, summarise (a few minutes)
	$(BIN)/warmstart demo $(ARGS)

test: .venv/.test ## all tests but those that need a network (ARGS="-k name" picks some)
	$(TEST_ENV) $(BIN)/pytest -n $(JOBS) --dist worksteal -m "not network" $(ARGS)

test-v5: .venv-v5/.test ## the parity tests against transformers 5, in an environment of their own (Python 3.11 on)
	$(TEST_ENV) $(BIN5)/pytest -n $(JOBS) --dist worksteal -m "v5 and not network" tests $(ARGS)

lint: .venv/.test ## format, lint, import rules
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/lint-imports --no-cache
	$(BIN)/python tools/write_stub.py --check
	$(BIN)/python tools/write_families.py --check

format: .venv/.test ## put the code in order
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: .venv/.test ## the type checker
	$(BIN)/mypy

bench: .venv-v5/.test ## speed and memory beside transformers 5, as a table
	$(BIN5)/python -m benchmarks $(ARGS)

stub: .venv/.test ## write the stub of the public names after a change of their table
	$(BIN)/python tools/write_stub.py

families: .venv/.test ## write the table of families in docs/families.md after a change of them
	$(BIN)/python tools/write_families.py

venv: .venv/.test ## the environment for work on the project

clean: ## remove the environments and what the tools left
	rm -rf .venv .venv-v5 .venv-pins build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

# --- the environments -----------------------------------------------------------------------------------------------
# torch comes first and alone: pip then takes the build that the machine has at hand (a CPU build, say) and what follows
# finds it there. Without build isolation the build tools are pinned too. A stamp file says which pins are installed.

.venv/.torch: requirements/torch.txt
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/python $(PIP) -r requirements/torch.txt
	@touch $@

.venv/.run: .venv/.torch requirements/run.txt pyproject.toml
	$(BIN)/python $(PIP) --no-build-isolation -r requirements/run.txt
	$(BIN)/python $(PIP) --no-build-isolation --no-deps -e .
	@touch $@

.venv/.test: .venv/.run requirements/test.txt requirements/test-tf.txt
	$(BIN)/python $(PIP) --no-build-isolation -r requirements/test.txt
	$(BIN)/python $(PIP) --no-deps -r requirements/test-tf.txt
	@touch $@

.venv-v5/.test: requirements/torch.txt requirements/test-v5.txt pyproject.toml
	test -x $(BIN5)/pip || $(PYTHON) -m venv .venv-v5
	$(BIN5)/python $(PIP) -r requirements/torch.txt
	$(BIN5)/python $(PIP) --no-build-isolation -r requirements/test-v5.txt
	$(BIN5)/python $(PIP) --no-build-isolation --no-deps -e .
	@touch $@

# --- the pins -------------------------------------------------------------------------------------------------------
# One file serves Python 3.10 to 3.13, with markers (transformers 5: from 3.11). The CUDA packages are left out: a CUDA build
# of torch names its own. The tests interpret Triton's kernels, so that test.txt has it.

COMPILE := .venv-pins/bin/uv pip compile --quiet --universal --no-annotate --no-header --upgrade
WITHOUT_CUDA := sed -i.old -E '/^(nvidia-|cuda-)/d'

pins: ## resolve requirements/*.txt anew from pyproject.toml and requirements/*.in
	$(PYTHON) -m venv .venv-pins
	.venv-pins/bin/python $(PIP) uv
	$(COMPILE) --python-version 3.10 pyproject.toml --extra dev requirements/torch.in requirements/test.in -o requirements/test.txt
	$(COMPILE) --python-version 3.10 pyproject.toml requirements/run.in -c requirements/test.txt -o requirements/run.txt
	$(COMPILE) --python-version 3.10 requirements/torch.in -c requirements/test.txt -o requirements/torch.txt
	$(COMPILE) --python-version 3.11 pyproject.toml requirements/test-v5.in -c requirements/torch.txt -o requirements/test-v5.txt
	$(WITHOUT_CUDA) requirements/*.txt
	sed -i.old '/^triton/d' requirements/run.txt requirements/torch.txt requirements/test-v5.txt
	rm -rf .venv-pins requirements/*.old
