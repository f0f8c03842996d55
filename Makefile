# Two commands, each with its own set-up: `make demo` and `make test`. Python 3.11 and pip are all they need.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/pip --disable-pip-version-check install --quiet --constraint .ci/constraints.txt
# Other versions of the hosts that the tests run on, each in a folder of its own.
OTHER_WAN = 2.2.0 2.2.11

.PHONY: demo test lint clean

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py

test: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

# torch first and on its own: a plain or ranged requirement would take the newest build with gigabytes of CUDA.
$(VENV)/.torch: .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	touch $@

# The official package without its own requirements: torchvision and flash-attn have no CPU build, and the
# text-to-video and image-to-video code needs only what is listed here.
$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) --no-deps wan22
	$(PIP) diffusers transformers accelerate easydict ftfy regex tqdm sentencepiece
	$(PIP) --editable .
	touch $@

$(VENV)/.test: $(VENV)/.demo
	$(PIP) --editable ".[test]"
	for version in $(OTHER_WAN); do \
		$(BIN)/pip --disable-pip-version-check install --quiet --no-deps \
			--target $(VENV)/hosts/wan22-$$version wan22==$$version || exit; \
	done
	touch $@

clean:
	rm -rf $(VENV)
