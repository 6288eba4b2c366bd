# Each target makes the virtual environment when it is missing, and reinstalls only when pyproject.toml has changed.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo demo-detection test lint docs lower-bounds audit

demo: $(VENV)/.installed
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
	  scripts/train.py --config examples/digits.yaml

demo-detection: $(VENV)/.installed
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
	  scripts/train.py --config examples/digit_scenes.yaml

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The site, in site/; a dead link is an error.
docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 PATH="$(abspath $(VENV))/bin:$$PATH" $(BIN)/mkdocs build --strict

# The oldest versions that pyproject.toml allows, in an environment of their own, and a part of the tests with them.
LOW := .venv-lowest
LOWEST := tests/coordination tests/alignment tests/data/test_streams.py tests/data/test_domain_pair.py \
  tests/models/test_image_classification.py tests/training/test_run.py tests/training/test_checkpoints.py

$(LOW)/versions.txt: pyproject.toml
	test -x $(LOW)/bin/python || $(PYTHON) -m venv $(LOW)
	$(LOW)/bin/python -m pip install --quiet uv pip-audit
	$(LOW)/bin/uv pip compile --quiet --resolution lowest-direct --extra demo --extra onnx pyproject.toml -o $@

lower-bounds: $(LOW)/versions.txt
	test -x $(LOW)/run/bin/python || $(LOW)/bin/uv venv --quiet --python $(PYTHON) $(LOW)/run
	$(LOW)/bin/uv pip install --quiet --python $(LOW)/run/bin/python -r $(LOW)/versions.txt pytest pytest-xdist \
	  hypothesis tensorboard
	$(LOW)/bin/uv pip install --quiet --python $(LOW)/run/bin/python --no-deps --editable .
	OMP_NUM_THREADS=1 PATH="$(abspath $(LOW))/run/bin:$$PATH" $(LOW)/run/bin/python -m pytest -q -m "not slow" $(LOWEST)

# Known vulnerabilities of the oldest and of the newest versions; it asks a service over the network.
audit: $(LOW)/versions.txt
	$(LOW)/bin/pip-audit --no-deps --disable-pip -r $(LOW)/versions.txt
	$(LOW)/bin/uv pip compile --quiet --upgrade --extra demo --extra onnx pyproject.toml -o $(LOW)/newest.txt
	$(LOW)/bin/pip-audit --no-deps --disable-pip -r $(LOW)/newest.txt

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[demo,dev]'
	touch $@
