# `make demo`, `make test` and `make docs`, each with its own set-up. Python 3.11 and pip are all they need.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Not quiet: the first call downloads for minutes, and pip shows how far it is.
PIP = $(BIN)/pip --disable-pip-version-check install --no-warn-conflicts --constraint .ci/constraints.txt
# Packages of one file of requirements into the folder of the target, apart from everything else.
APART_PIP = $(BIN)/pip --disable-pip-version-check install --quiet --no-deps --upgrade --target $(@D) --requirement $<
# Other versions of the hosts that the tests run on: one file of requirements each, one folder each.
HOSTS = $(patsubst .ci/hosts/%.txt,$(VENV)/hosts/%/.done,$(wildcard .ci/hosts/*.txt))
# The versions of ComfyUI that the tests run on, each with its hashes. ComfyUI is GPL: it is downloaded, never committed.
COMFYUI = $(patsubst .ci/comfyui/%.txt,$(VENV)/comfyui/%/.done,$(wildcard .ci/comfyui/*.txt))

# Ray and sglang, each in a folder of its own: what the examples that use them are tested on.
ENGINES = $(patsubst .ci/engines/%.txt,$(VENV)/engines/%/.done,$(wildcard .ci/engines/*.txt))

# Tests that need other packages, each with a target of its own.
APART = comfyui cache_dit engines support

.PHONY: demo test docs compat test-comfyui test-cache-dit test-engines test-support clean

demo: $(VENV)/.demo
	$(BIN)/halfframe demo

test: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal $(APART:%=--ignore tests/%)

# The site, into site/. Every link and every name of the API reference must be found.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# torch first and on its own: a plain or ranged requirement would take the newest build with gigabytes of CUDA.
$(VENV)/.torch: .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	touch $@

# The official package without its own requirements: torchvision and flash-attn have no CPU build, and the
# text-to-video and image-to-video code needs only what is listed here.
$(VENV)/.demo: $(VENV)/.torch pyproject.toml examples/halfframe-tinywan/pyproject.toml
	$(PIP) --no-deps wan22
	$(PIP) diffusers transformers accelerate easydict ftfy regex tqdm sentencepiece
	$(PIP) --editable . --editable examples/halfframe-tinywan
	touch $@

$(VENV)/.test: $(VENV)/.demo $(HOSTS)
	$(PIP) --editable ".[test]"
	touch $@

$(VENV)/hosts/%/.done: .ci/hosts/%.txt $(VENV)/.torch
	$(APART_PIP)
	touch $@

$(VENV)/.docs: $(VENV)/.torch pyproject.toml
	$(PIP) --editable ".[docs]"
	touch $@

# The node on ComfyUI's real code; CI runs it after `make test`.
test-comfyui: $(VENV)/.test $(COMFYUI)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/comfyui

$(VENV)/comfyui/%/.done: .ci/comfyui/%.txt $(VENV)/.torch
	$(APART_PIP) --require-hashes
	touch $@

# halfframe beside cache-dit's real code; CI runs it after `make test`.
test-cache-dit: $(VENV)/.test $(VENV)/cache-dit/.done
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/cache_dit

$(VENV)/cache-dit/.done: .ci/cache-dit.txt $(VENV)/.torch
	$(APART_PIP) --require-hashes
	touch $@

# The Ray example with two actors, and the SGLang plugin on SGLang's own stage; heavy, so CI runs it after the rest.
test-engines: $(VENV)/.test $(ENGINES)
	OMP_NUM_THREADS=1 PYTHONPATH=$(VENV)/engines/ray $(BIN)/python -m pytest tests/engines/test_ray.py
	OMP_NUM_THREADS=1 PYTHONPATH=$(VENV)/engines/sglang $(BIN)/python -m pytest tests/engines/test_sglang.py

$(VENV)/engines/%/.done: .ci/engines/%.txt $(VENV)/.torch
	$(APART_PIP)
	touch $@

# LoRA, quantization, offloading and parallelism beside halfframe: the table in docs/hosts.md, line by line.
test-support: $(VENV)/.test $(VENV)/support/.done
	OMP_NUM_THREADS=1 PYTHONPATH=$(VENV)/support:$(VENV)/hosts/diffusers-0.42.1 $(BIN)/python -m pytest tests/support

$(VENV)/support/.done: .ci/support.txt $(VENV)/.torch
	$(APART_PIP)
	touch $@

# Runs the host tests on every version and prints the README's table of what works.
compat: $(VENV)/.test
	$(BIN)/python tests/hosts/compatibility.py

clean:
	rm -rf $(VENV)
