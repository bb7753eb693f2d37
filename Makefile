# Every target builds the environment it needs. A stage takes any key=value: make train task=cifar seed=1
# Further words in ARGS="...": flags (ARGS="-m seed=0,1"), and arguments of tests and tools.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAGES := train distill evaluate report benchmark

# Words of the form key=value are variables of make. They are passed on quoted, as they were typed.
GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter line,$(origin $(name))),$(name)))
KEYS := $(filter-out row record sweep ARGS PYTHON VENV TORCH_INDEX,$(GIVEN))
QUOTED = '$(subst ','\'',$(1)=$(value $(1)))'
OVERRIDES = $(foreach key,$(KEYS),$(call QUOTED,$(key)))
$(foreach key,$(KEYS),$(eval unexport $(key)))
OTHERS := $(filter-out $(STAGES) reproduce sweep setup,$(MAKECMDGOALS))
ifneq ($(and $(KEYS),$(OTHERS)),)
$(error make $(firstword $(OTHERS)) does not know $(KEYS): give its arguments as ARGS="...")
endif

.DEFAULT_GOAL := help
.PHONY: help setup demo train distill evaluate report benchmark sweep reproduce publish test test-quick coverage test-gpu reliability lint lock docs

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.installed ## Make .venv with pinned versions; without CUDA: TORCH_INDEX=URL of PyTorch's CPU wheels

$(VENV)/.installed: pyproject.toml constraints.txt scripts/setup.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" TORCH_INDEX="$(TORCH_INDEX)" sh scripts/setup.sh
	@touch $@

demo: setup ## Train, compile, evaluate and report on digits, in minutes on a CPU
	@$(PY) scripts/demo.py

train: setup ## Train a model: make train task=cifar seed=1 attention=softmax
	@$(PY) -m asap_exp.train $(OVERRIDES) $(ARGS)

distill: setup ## Compile the newest teacher: make distill task=cifar layer=last
	@$(PY) -m asap_exp.distill $(OVERRIDES) $(ARGS)

evaluate: setup ## Measure the newest compiled map beside its teacher: make evaluate task=cifar
	@$(PY) -m asap_exp.evaluate $(OVERRIDES) $(ARGS)

report: setup ## Tables, figures and a page from all evaluations and benchmarks
	@$(PY) -m asap_exp.report $(OVERRIDES) $(ARGS)

benchmark: setup ## Time the attention operators alone: make benchmark mode=train
	@$(PY) -m asap_exp.benchmark $(OVERRIDES) $(ARGS)

sweep: setup ## Train, compile and evaluate combinations: make sweep task=digits attention=softmax,sinkhorn seed=0,1,2
	@$(PY) scripts/sweep.py $(sweep) $(OVERRIDES) $(ARGS)

reproduce: setup ## Make published rows again: make reproduce row=cifar_plain (or task=cifar)
	@$(PY) scripts/reproduce.py $(row) $(if $(task),--task $(task)) \
		$(foreach key,$(filter-out task,$(KEYS)),$(call QUOTED,$(key))) $(ARGS)

publish: setup ## Move records to the published results, for maintainers: make publish record=FILE
	@$(PY) scripts/publish.py $(record) $(ARGS)

test: setup ## Run the tests: make test ARGS="tests/ops -k padding"
	@$(PY) -m pytest $(ARGS)

test-quick: setup ## Run four fifths of them, in little over a minute: those not marked slow
	@$(PY) -m pytest -m "not slow" $(ARGS)

coverage: setup ## Run the tests and say which lines of the package none of them reaches
	@$(PY) -m pytest --cov --cov-report term:skip-covered $(ARGS)

test-gpu: setup ## Run the operators' tests at every size on a GPU; report in results/report/
	@$(PY) -c 'import sys, torch; torch.cuda.is_available() or sys.exit("error: test-gpu needs a GPU")'
	@$(PY) -m pytest tests/ops/test_fused*.py tests/ops/test_relaxed*.py tests/ops/test_routes.py tests/benchmark -n 4 --report results/report/gpu_tests.json $(ARGS)

reliability: setup ## Count kills, damages and bad settings survived (an hour or more): ARGS="kills --count 20"
	@$(PY) -m tests.reliability $(ARGS)

lint: setup ## Check style, types, spelling and which package imports which
	@$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy && $(VENV)/bin/codespell . && $(VENV)/bin/lint-imports
	@$(PY) scripts/import_graph.py | tail -1

lock: ## Write constraints.txt anew, with the versions it has where they still fit (needs uv): ARGS=--upgrade
	@uv pip compile --quiet pyproject.toml --all-extras --universal --python-version 3.11 \
		--no-header --no-annotate --no-emit-index-url --output-file constraints.txt $(ARGS)

docs: setup ## Build the documentation into site/; a broken link is a mistake
	@$(PY) scripts/build_docs.py
