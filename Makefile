.DEFAULT_GOAL := help
SHELL := /bin/sh
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(shell for p in python3.12 python3.11 python3; do $$p -c '$(FITS)' 2>/dev/null && command -v $$p && exit; done; command -v python3)
BIN := .venv/bin
INSTALLED := .venv/.installed
# What the GPUs' executors need beside the package's own dependencies; databricks.yml names the same.
ENGINE ?= vllm==0.27.1 transformers==5.22.2
DEMO := --config conf/local.yaml --output-path demo/lake

.PHONY: help demo test test-models test-clusters test-faults lint types fmt docs bench bench-gpu wheel zip environment clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

$(INSTALLED): pyproject.toml constraints.txt
	@tools/check_machine.sh "$(PYTHON)"
	@echo "captionlake: installing into .venv (about 7 GB, a minute or two)"
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	@VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install --constraint constraints.txt --editable '.[cpu,dev,local]'
	@touch $@

demo: $(INSTALLED) ## the whole pipeline on sample clips, on this machine's CPU
	@tools/check_machine.sh $(BIN)/python
	$(BIN)/python -m demo.make_clips demo/clips
	$(BIN)/captionlake run $(DEMO) --input-path demo/clips \
	  --model-variant demo --model-dir demo/checkpoints \
	  --generate-captions --enhance-captions --generate-previews
	$(BIN)/python -m demo.show demo/lake demo/previews

# Versions that others have, beside those that the suite runs on.
.venv/%/.installed: tests/requirements-%.txt $(INSTALLED)
	@echo "captionlake: installing $* for its tests"
	@rm -rf $(@D)
	@VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install --quiet --no-deps --target $(@D) --requirement $<
	@touch $@

test: $(INSTALLED) .venv/spark-4.0/.installed ## the test suite
	@tools/check_machine.sh $(BIN)/python
	$(BIN)/python -m pytest

test-clusters: $(INSTALLED) .venv/spark-4.0/.installed ## tests of submissions to clusters, and of Spark 4.0
	@tools/check_machine.sh $(BIN)/python
	$(BIN)/python -m pytest -m clusters

test-models: $(INSTALLED) .venv/transformers-4.57.6/.installed ## tests of what the models get and say
	@tools/check_machine.sh $(BIN)/python
	$(BIN)/python -m pytest -m models

test-faults: $(INSTALLED) ## tests that kill processes and load engines anew
	$(BIN)/python -m pytest -m faults

lint: $(INSTALLED) ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED) ## mypy --strict
	$(BIN)/mypy

fmt: $(INSTALLED) ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED) ## the pages that are made from the code
	$(BIN)/python tools/make_docs.py

bench: $(INSTALLED) ## the CPU path, the peer's way beside ours; an hour on two cores
	$(BIN)/python -m benchmarks.cpu_path
	$(BIN)/python -m benchmarks.spark_path

bench-gpu: $(INSTALLED) ## windows a second on this machine's card, the peer's way beside ours
	$(BIN)/python -m benchmarks.gpu_captions

wheel: $(INSTALLED) ## dist/captionlake-*.whl
	rm -rf build
	VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv build --quiet --wheel --out-dir dist .

zip: $(INSTALLED) ## dist/captionlake.zip for spark-submit --py-files
	$(BIN)/python tools/make_zip.py dist/captionlake.zip

environment: $(INSTALLED) ## dist/environment.tar.gz for spark-submit --archives: the packages of executors
	rm -rf environment
	$(PYTHON) -m venv environment
	VIRTUAL_ENV=$(CURDIR)/environment $(BIN)/uv pip install venv-pack==0.2.0 \
	  --requirement pyproject.toml $(if $(ENGINE),--extra gpu $(ENGINE))
	mkdir -p dist
	environment/bin/venv-pack --quiet --prefix environment --output dist/environment.tar.gz --force

clean: ## remove what the demo and the builds made
	rm -rf demo/lake demo/clips demo/previews demo/files demo/curated build dist environment
