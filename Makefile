# The whole life of the project in one-word commands. `make demo` needs Python 3.11 or newer and nothing else.
PYTHON ?= python3
VENV ?= .venv
OUT ?= demo-out
WORKERS ?= 2

BIN := $(VENV)/bin
ROOMS := cli composer evaluation formats registry toybox trainer
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# Nothing is ever downloaded by a demonstration or a test.
OFFLINE := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1

.PHONY: benchmark-methods benchmark-summary benchmark-own-defaults benchmark-calibration bench-training install demo test test-hub faults faults-http mutants slow fuzz system-packages bench check lint types imports docs links clean

install: $(INSTALLED_DEV)

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) setuptools torch==2.13.0
	$(PIP) --no-build-isolation --editable '.[torch]'
	touch $@

# The two reference implementations declare dependencies that would replace the pinned torch, hence --no-deps;
# what their arithmetic needs is part of the extra `dev`.
$(INSTALLED_DEV): $(INSTALLED)
	$(PIP) --no-build-isolation --editable '.[torch,dev]'
	$(PIP) --no-deps lycoris-lora perfusion-pytorch
	touch $@

# What tests talk to that no Python package brings: a registry of containers, a tracer of system calls, and a browser.
# Tests that need them say so and are skipped without them.
SYSTEM_PACKAGES := docker-registry strace chromium
system-packages:
	@if ! command -v apt-get >/dev/null; then echo "no apt here: install $(SYSTEM_PACKAGES) yourself"; \
	elif dpkg -s $(SYSTEM_PACKAGES) >/dev/null 2>&1; then echo "already installed: $(SYSTEM_PACKAGES)"; \
	elif [ "$$(id -u)" != 0 ]; then echo "not root: sudo make system-packages installs $(SYSTEM_PACKAGES)"; \
	else apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $(SYSTEM_PACKAGES) \
	|| echo "apt-get could not install $(SYSTEM_PACKAGES); tests that need them are skipped"; fi

demo: $(INSTALLED)
	$(OFFLINE) $(BIN)/concepts demo --out $(OUT)

test: $(INSTALLED_DEV)
	$(OFFLINE) $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile

# Every kill, error, full disk and loss of power at every operation of the store's commands, then its suite behind
# doubles of Windows, of a network share and of locks that exclude nobody; what says nothing about one of them is left
# out by the table in tests/faults/behind_double.py, with its reason. What was swept on the present code is not swept again
# (tests/faults/results.jsonl); SHARD=2/8 takes every eighth part from the second on. Writes the table of counts.
SHARD ?= 1/1
STORE_TESTS := tests/registry
faults: $(INSTALLED_DEV)
	$(OFFLINE) PYTHONPATH=. $(BIN)/python -m tests.faults --shard $(SHARD)
	for double in windows share lockless; do STORE_BEHIND=$$double $(OFFLINE) $(BIN)/python -m pytest -q \
		-p tests.faults.behind_double $(STORE_TESTS) || exit 1; done

# A pull through every way in which a web server can fail, at several places each; SHARD and results as above.
faults-http: $(INSTALLED_DEV)
	PYTHONPATH=. $(BIN)/python tests/registry/http_sweep.py --shard $(SHARD)
	cat docs/faults-http.md

# Small wrong changes to core and registry, a seeded sample, each against the tests of its module; goes on where it
# stopped (tests/mutants/results.jsonl) and begins none after MUTANT_SECONDS. Writes docs/mutants.md.
MUTANT_SECONDS ?= 3000
mutants: $(INSTALLED_DEV)
	$(OFFLINE) PYTHONPATH=. $(BIN)/python -m tests.mutants --seconds $(MUTANT_SECONDS)

# The Hub's client in its versions 1 and 2, which stand on different HTTP libraries, against the double of the Hub.
HUB_CLIENTS := 1.33.0 2.4.0
HUB_TESTS := tests/registry/test_hub.py tests/registry/test_remotes.py tests/cli/test_hub.py
test-hub: $(HUB_CLIENTS:%=.venv-hub-%/.installed)
	for version in $(HUB_CLIENTS); do .venv-hub-$$version/bin/python -m pytest -q -m '' $(HUB_TESTS) || exit 1; done

.venv-hub-%/.installed: pyproject.toml constraints.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	grep -v -i '^huggingface_hub==' constraints.txt > $(@D)/constraints.txt
	echo 'huggingface_hub==$*' >> $(@D)/constraints.txt
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -c $(@D)/constraints.txt 'setuptools>=77'
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -c $(@D)/constraints.txt \
		--no-build-isolation --editable . pytest hypothesis jaxtyping beartype
	touch $@

slow: $(INSTALLED_DEV)
	$(OFFLINE) $(BIN)/python -m pytest -q -m slow

# A million executions over every reader of files that others made; what was executed with the same code is on record
# (tests/fuzz/executions.jsonl, committed), so that several sessions add up.
EXECUTIONS ?= 1000000
fuzz: $(INSTALLED_DEV)
	$(OFFLINE) $(BIN)/python -m tests.fuzz --executions $(EXECUTIONS)

# Ours and the peer in one run; figures go to benchmarks/results/.
bench: $(INSTALLED_DEV)
	$(OFFLINE) $(BIN)/python benchmarks/startup.py benchmarks/results/startup.json
	$(OFFLINE) $(BIN)/python benchmarks/attaching.py benchmarks/results/attaching.json
	$(BIN)/python benchmarks/pulling.py benchmarks/results/pulling.json
	$(OFFLINE) $(BIN)/python benchmarks/importing.py benchmarks/results/importing.json
	$(OFFLINE) $(BIN)/python benchmarks/publishing.py benchmarks/results/publishing.json
	$(OFFLINE) $(BIN)/python benchmarks/identify.py benchmarks/results/identify.json
	$(OFFLINE) $(BIN)/python benchmarks/syncing.py benchmarks/results/syncing.json
	$(OFFLINE) $(BIN)/python benchmarks/adopting.py benchmarks/results/adopting.json
	$(OFFLINE) $(BIN)/python benchmarks/merging.py benchmarks/results/merging.json
	$(OFFLINE) $(BIN)/python benchmarks/switching.py benchmarks/results/switching.json
	$(OFFLINE) $(BIN)/python benchmarks/reproducing.py benchmarks/results/reproducing.json
	$(OFFLINE) $(BIN)/python benchmarks/index.py benchmarks/results/index.json
	$(OFFLINE) $(BIN)/python benchmarks/byte_planes.py

# Every training method on equal work, what claims of surveys need, several concepts together and a sample at own
# defaults: one piece a call, of PIECE_SECONDS in all. It goes on where it stopped and begins nothing that would end
# later. SHARDS processes of one thread each share the methods; a method that failed makes the call fail, after the
# summary. The results go to docs/toybench/, the table and the plots beside them.
PIECE_SECONDS ?= 2400
SHARDS ?= 2
# By another name: `make -n` runs every line that has the usual one, which would be hours.
SELF = $(MAKE)
BENCHMARK = OMP_NUM_THREADS=1 $(OFFLINE) $(BIN)/concepts benchmark-methods --verbose --out docs/toybench
benchmark-methods: $(INSTALLED)
	running=; status=0; \
	for shard in $$(seq $(SHARDS)); do \
		$(BENCHMARK) --everything --shard $$shard/$(SHARDS) --workdir .runs/toybench-$$shard \
			--seconds $(PIECE_SECONDS) & running="$$running $$!"; \
	done; \
	for process in $$running; do wait $$process || status=1; done; \
	$(SELF) --no-print-directory benchmark-summary && exit $$status

# Tables, plots and pages of what is measured so far.
benchmark-summary: $(INSTALLED)
	$(OFFLINE) $(BIN)/concepts benchmark-methods --summary --out docs/toybench
	$(OFFLINE) $(BIN)/concepts benchmark-methods --together --summary --out docs/toybench
	$(OFFLINE) $(BIN)/concepts report --benchmark docs/toybench --out docs/toybench.html
	if grep -q '^ "complete": true' docs/toybench.json; then cp docs/toybench.json evaluation/toybench.json; \
	else echo "the table is not complete: evaluation/toybench.json, which advise ships with, stays as it is"; fi

# The sample at each method's own steps alone, which is the last part of a piece otherwise.
benchmark-own-defaults: $(INSTALLED)
	$(BENCHMARK) --own-defaults --seconds $(PIECE_SECONDS)

# What the scorers' own numbers are worth: a minute.
benchmark-calibration: $(INSTALLED)
	$(BENCHMARK) --calibrate

# Ours against the loop that the field copies, at equal identity, and 16 concepts together against 16 apart: hours.
bench-training: $(INSTALLED_DEV)
	$(OFFLINE) $(BIN)/python benchmarks/training.py benchmarks/results/training.json

check: lint types imports docs

lint: $(INSTALLED_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED_DEV) links
	$(BIN)/mypy

imports: $(INSTALLED_DEV) links
	PYTHONPATH=.links $(BIN)/lint-imports

# Generated pages are current, and the tree, its package list and SPEC.md agree.
docs: $(INSTALLED_DEV)
	$(BIN)/python docs/generate.py --check
	$(OFFLINE) $(BIN)/python -m pytest -q tests/test_layout.py

# mypy and import-linter want one folder that looks like the package (docs/adr/0001).
links:
	@mkdir -p .links/conceptry
	@find .links/conceptry -type l ! -exec test -e {} \; -delete
	@for room in $(ROOMS); do ln -sfn ../../$$room .links/conceptry/$$room; done
	@for file in core/*.py core/py.typed; do ln -sfn ../../$$file .links/conceptry/$$(basename $$file); done

clean:
	rm -rf .links .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist *.egg-info $(OUT)
