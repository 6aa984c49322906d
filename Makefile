# Every target sets up .venv by itself. Needed on the machine: Python 3.10 to 3.13 with venv, and make.
PYTHON ?= python3
# Test processes; each runs torch on one thread.
JOBS ?= 2
# For `make gpu`: a Python with a CUDA build of torch.
GPU_PYTHON ?= python3

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The libraries that revgraph is compared with have an environment of their own.
PEERS := .venv-peers
PEERS_READY := $(PEERS)/.ready
# So have the libraries whose models are put through revgraph.
CLIENTS := .venv-clients
CLIENTS_READY := $(CLIENTS)/.ready

# The documentation's theme otherwise advertises its successor on every build.
export NO_MKDOCS_2_WARNING := 1

.PHONY: demo demo-text test test-slow check docs trust fuzz gallery cli-page seconds pictures bench bench-peers bench-step \
	bench-times bench-frontier bench-quality bench-oracle bench-alike bench-planning bench-flows bench-conversion bench-compile paper bench-complexity bench-angles bench-accuracy bench-limits bench-imagenet gpu clients clean

demo: $(READY)
	$(BIN)/python -m revgraph.training.demo --out runs/demo

# Some minutes; writes the figures and the chart of docs/transformers.md.
demo-text: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.language_model

# The checks and the quick tests. Tests of one file run in one process, so that what they share is made once.
test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not slow"

# All others, which take most of an hour, before a release: random graphs, foreign networks, benchmarks, whole trainings.
test-slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m slow

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python revgraph
	$(BIN)/lint-imports
	$(BIN)/mkdocs build --strict --quiet

fuzz: $(READY)
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m trust.fuzz

docs: $(READY)
	$(BIN)/mkdocs build --strict
	@echo "The documentation is in site/index.html"

# Runs the tests behind every promise, and writes their results to docs/trust.md.
trust: $(READY)
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m trust.page

# Plans and draws every shipped network, and writes docs/gallery.md; and what `revgraph list` says.
gallery: $(READY)
	$(BIN)/python -m revgraph.cli.shipped
	$(BIN)/python -m benchmarks.gallery

# Writes docs/cli.md from the commands themselves.
cli-page: $(READY)
	$(BIN)/python -m typer revgraph.cli.app utils docs --name revgraph --output docs/cli.md

# Times a step of RevNet-110 for the line that the README begins with; `make pictures` puts it there.
seconds: $(READY)
	$(BIN)/python -m benchmarks.reading_seconds

# Draws and tells what docs/pictures.md and docs/reading.md show.
pictures: $(READY)
	$(BIN)/python -m benchmarks.pictures
	$(BIN)/python -m benchmarks.reading

bench: bench-peers bench-step bench-times bench-frontier bench-quality bench-oracle bench-alike bench-planning bench-flows bench-conversion

bench-flows: $(READY)
	$(BIN)/python -m benchmarks.flows

# matplotlib, for the charts, is in the peers' environment.
bench-frontier: $(PEERS_READY)
	OMP_NUM_THREADS=1 $(PEERS)/bin/python -m benchmarks.frontier

bench-planning: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.planning_time

# What plans compute again, in shares of ordinary training's bytes: counted, not timed.
bench-quality: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.planning_quality

# Plans of small graphs against all schedules that there are; the search for these is that of the tests.
bench-oracle: $(READY)
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m benchmarks.planning_oracle

# Whether one graph has one plan in ten processes beside busy ones.
bench-alike: $(READY)
	$(BIN)/python -m benchmarks.planning_alike

# Estimated and measured times of steps, under plans along the frontier.
bench-times: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.step_times

bench-conversion: $(READY)
	$(BIN)/python -m benchmarks.dual_residual

# Compiled steps; needs a C++ compiler, and an hour or more of compiling.
bench-compile: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.compiled_steps

# On a machine with an NVIDIA GPU: promises, steps and limits there; writes docs/gpu.md. The environment is not
# ours: it has to have a CUDA build of torch, and nothing is downloaded.
gpu:
	PYTHONPATH=. $(GPU_PYTHON) -m benchmarks.gpu $(GPU_OPTIONS)

bench-peers: $(PEERS_READY)
	$(PEERS)/bin/python -m benchmarks.peers

bench-step: $(READY)
	$(BIN)/python -m benchmarks.step_profile

# The experiments of the paper.
paper: bench-complexity bench-angles bench-accuracy bench-limits bench-imagenet

bench-complexity: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.complexity

bench-angles: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.angles

# On CIFAR with DATA=folder, whose runs go on from where they stopped.
bench-accuracy: $(READY)
	$(BIN)/python -m benchmarks.accuracy $(if $(DATA),--data '$(DATA)' --runs runs/accuracy)

bench-limits: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.limits

bench-imagenet: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.imagenet

# Models of other libraries, traced, planned and trained; writes docs/clients.md.
clients: $(CLIENTS_READY)
	OMP_NUM_THREADS=1 $(CLIENTS)/bin/python -m benchmarks.clients

clean:
	rm -rf $(VENV) $(PEERS) $(CLIENTS) docs/tutorials/[0-9]* site dist runs .cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp goes first and comes back last: a set-up that was interrupted starts again from an empty .venv,
# a finished one is only brought up to date.
$(READY): constraints.txt pyproject.toml
	@if [ -f $@ ]; then rm $@; else rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt hatchling
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		--no-build-isolation --editable '.[train,draw,docs,dev]'
	@touch $@

$(PEERS_READY): benchmarks/peers-requirements.txt constraints.txt pyproject.toml
	rm -rf $(PEERS) && $(PYTHON) -m venv $(PEERS)
	@echo '*' > $(PEERS)/.gitignore
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt hatchling setuptools
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		--no-build-isolation --editable '.[bench]'
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
		-r benchmarks/peers-requirements.txt
	@touch $@

# torchvision, which timm imports, comes without dependencies: it asks for a torch of its own.
$(CLIENTS_READY): benchmarks/clients-requirements.txt constraints.txt pyproject.toml
	rm -rf $(CLIENTS) && $(PYTHON) -m venv $(CLIENTS)
	@echo '*' > $(CLIENTS)/.gitignore
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt hatchling
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		--no-build-isolation --editable .
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps torchvision==0.28.0
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-r benchmarks/clients-requirements.txt
	@touch $@
