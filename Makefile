# Each target works on its own from a clean clone, on a machine with Python 3.11 and make.
# torch is the CPU build; everything is pinned in requirements.lock. Nothing comes from a model hub.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo study results pictures docs test check bench bench-serving cases fuzz faults soak deploy-test install-test pip-audit peers flwr clean

$(READY): pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: $(READY) ## train and compare all arms on six synthetic people; 16 to 17 minutes on 2 cores
	$(BIN)/idiolect demo

study: $(READY) ## personalized against global, centralized, fine-tuned and neutral over three seeds; 40 minutes on 2 cores, estimated
	$(BIN)/python -m benchmarks.personalization --arms global,centralized,personalized,neutral,global+finetune

test: $(READY) ## all tests, in a process for each core; 9 to 18 minutes on 2 cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

check: $(READY) ## linters, types, direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layering.py

results: $(READY) ## write every table and plot of docs/results from the stored rows of the studies; nothing is run
	$(BIN)/idiolect study tables

docs: $(READY) ## build the documentation into build/docs; warnings and dead links are errors
	@$(BIN)/python -c "import furo, myst_parser" 2>/dev/null || \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable '.[docs]' || \
	{ echo "make docs needs Sphinx, furo and MyST, and no package index gave them. Where one answers, run once:" >&2; \
	  echo "    $(BIN)/python -m pip install '.[docs]'" >&2; echo "Building and reading need no network after that." >&2; exit 1; }
	$(BIN)/python -m sphinx -q -W --keep-going -b html -d build/doctrees docs build/docs
	@echo "written: build/docs/index.html"

pictures: $(READY) ## docs/pictures of the report and of the web page, in Chromium, light and dark; 8 minutes on 2 quiet cores, of another run with RUN=
	$(BIN)/python -m benchmarks.pictures $(if $(RUN),--run $(RUN))

bench: $(READY) ## every figure of docs/benchmarks.md, measured on this machine beside its target; about an hour and a half on 2 quiet cores
	$(BIN)/python -m benchmarks

bench-serving: $(READY) ## the figures of the server and of the thin device alone; about 15 minutes on 2 quiet cores
	$(BIN)/python -m benchmarks serving serving_load thin

cases: $(READY) ## people's files and programs, made on the spot; writes docs/compatibility.md where all get their right answer
	IDIOLECT_CASES=1 $(BIN)/python -m pytest tests/cases

fuzz: $(READY) ## fuzz guard, wire, audio, archives, tables, the adapter parser and the server's API for long; about ten minutes on 2 cores
	IDIOLECT_FUZZ=500 IDIOLECT_FUZZ_ROW=1 $(BIN)/python -m pytest tests/fuzz tests/test_packed.py tests/serving/http/test_fuzz.py --timeout 3600

faults: $(READY) ## kill a run fifty times and let its disk fail at every write; about 15 minutes on 2 quiet cores
	IDIOLECT_FAULTS_ROW=1 $(BIN)/python -m pytest -m "long or not long" tests/faults/test_kills.py tests/faults/test_store_faults.py --timeout 3600

soak: $(READY) ## rounds with faults beside a server under load, for half an hour (SOAK_MINUTES)
	$(BIN)/python -m pytest -m long tests/faults/test_soak.py --timeout 7200

deploy-test: $(READY) ## a federation of real processes in network namespaces; needs root and iproute2, about 10 minutes on 2 cores
	$(BIN)/python -m pytest -m long tests/faults/test_deployment.py
	$(BIN)/python -m benchmarks.reliability

install-test: $(READY) ## build wheel and sdist, install each into a clean environment, and run it there and beside another project
	$(BIN)/python -m pytest -m long tests/test_install.py

pip-audit: ## known vulnerabilities of requirements.lock; asks the vulnerability database, and fails where it has no answer
	at=$$(mktemp -d) && trap 'rm -rf "$$at"' EXIT && { $(PYTHON) -m venv "$$at" || python3 -m venv "$$at"; } && \
	"$$at/bin/python" -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1 && \
	"$$at/bin/pip-audit" --requirement requirements.lock --no-deps --disable-pip --strict --progress-spinner off

PEERS := build/pfl
peers: $(PEERS)/.ready ## the environment in which pfl-research is measured; make bench then includes it

$(PEERS)/.ready: requirements.lock benchmarks/peers/requirements-pfl.txt
	$(PYTHON) -m venv $(PEERS) || python3 -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --requirement benchmarks/peers/requirements-pfl.txt
	touch $@

flwr: $(READY) ## the same app by Flower's own command
	. $(BIN)/activate && . ./flwr.env && flwr run . --stream

clean: ## everything that was made here; caches under ~/.cache/idiolect stay
	rm -rf $(VENV) runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
