# emkit's front door. `make` alone prints this file's targets. Needs git, make and any Python 3.9 or newer.
PROFILE  ?= mini
BACKBONE ?= internvl
JOBS     ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2)
PYTHON   ?= python3
UV       := 0.13.9
VERSION  := 3.11

TABLES   := $(patsubst eval/tables/%.yaml,%,$(wildcard eval/tables/*.yaml))
ALL      := $(addprefix table,1 2 3 4 5 6 7 8 9 10 11 12 13)
# SEEDS=5: as many draws of what is random, in place of the profile's; PROFILE_ARGS: Snakemake's, such as --profile slurm
SEEDS    ?=
PROFILE_ARGS ?=
RUN       = --profile $(PROFILE) --jobs $(JOBS) $(if $(PROFILE_ARGS),--snakemake "$(PROFILE_ARGS)")
PY       := .venv/bin/python
UV_READY := .uv/ready-$(UV)
# PROFILE=small runs a real model, which packages of its own bring
READY    := .venv/ready $(if $(filter small,$(PROFILE)),.venv/ready-small)
ZOO      := $(if $(filter small,$(PROFILE)),smollm2,$(BACKBONE))

# One thread a job keeps numbers reproducible and two jobs from slowing each other; parallelism is JOBS.
export OMP_NUM_THREADS := 1
export MKL_NUM_THREADS := 1
export OPENBLAS_NUM_THREADS := 1
export TOKENIZERS_PARALLELISM := false
export HF_HUB_DISABLE_TELEMETRY := 1
export PYTHONHASHSEED := 0
export EMKIT_SEEDS := $(SEEDS)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup setup-small lab taste test test-fast test-slurm lint format lock zoo zoo-smoke status doctor plan reproduce-tables reproduce-figures reproduce-all notebooks book clean $(TABLES:%=reproduce-%) $(TABLES:%=plan-%)

# Lines that begin with "#:" are what `make` prints: target | what it does | what it needs | how long it takes (2 cores).
#: help             | print this list                                          | -                         | at once
#: setup            | build .venv from requirements.lock (every target does)   | network, 7 GB of disk     | about 1 min
#: setup-small      | the packages of PROFILE=small, a real language model among them | network, 400 MB of disk | 20 s
#: lab              | JupyterLab on this folder, at the page that says which notebook to open first | a browser | 5 s
#: taste            | a few rows and columns of Table 1, by the same path      | 4 GB memory               | 3 min
#: reproduce-table1 | Table 1: merge, score, table, figures, executed notebook | 4 GB memory, 1 GB of disk | 15 min with set-up; 8 s when nothing changed
#: reproduce-table2 | Table 2, the same way, on the miniature Qwen2-VL         | 4 GB memory, 1 GB of disk | 16 min
#: reproduce-table3 | Table 3, the same way, on the miniature Mistral          | 5 GB memory, 1 GB of disk | 9 min
#: reproduce-tables | Tables 1 to 3, one after the other                       | 5 GB memory, 1 GB of disk | 45 min with set-up
#: reproduce-table4 | Table 4: the averages of Tables 5 to 7, which it runs    | 5 GB memory, 1 GB of disk | 30 min after Tables 1 to 3, reckoned
#: reproduce-table5 | Table 5: what each part of Expert Merging does, InternVL (6: Qwen2-VL, 7: Mistral) | 4 GB memory | 8 min after Table 1
#: reproduce-table6 | Table 6, the same way, on the miniature Qwen2-VL         | 4 GB memory               | 20 min after Table 2, reckoned
#: reproduce-table7 | Table 7, the same way, on the miniature Mistral          | 5 GB memory               | 8 min after Table 3, reckoned
#: reproduce-table8 | Table 8: the regulariser's weight, InternVL (9: Qwen2-VL, 10: Mistral) | 4 GB memory | 20 min after Table 1
#: reproduce-table9 | Table 9, the same way, on the miniature Qwen2-VL         | 4 GB memory               | 35 min after Table 2, beside other work
#: reproduce-table10 | Table 10, the same way, on the miniature Mistral        | 5 GB memory               | 12 min after Table 3
#: reproduce-table11 | Table 11: the number of samples, InternVL (12: Qwen2-VL, 13: Mistral) | 4 GB memory | 45 min after Table 1, reckoned from its halves
#: reproduce-table12 | Table 12, the same way, on the miniature Qwen2-VL       | 4 GB memory               | 66 min, beside other work
#: reproduce-table13 | Table 13, the same way, on the miniature Mistral        | 5 GB memory               | 28 min, beside other work
#: reproduce-figures | Figures 3 to 5 and their notebook, from Tables 1 to 3, which it runs | 5 GB memory  | 30 s after Tables 1 to 3
#: reproduce-all    | all thirteen tables and the figures                      | 5 GB memory, 2 GB of disk | 210 min, reckoned
#: status           | what stands of each table, and what a run is at          | -                         | 10 s
#: plan             | a line for each table: merges, fits, tokens, the judge's dollars | -                 | 6 s
#: doctor           | is everything here that Tables 1 to 3 need? A line for each thing, with what to do | network for hub ids | 30 s
#: plan-table1      | list the jobs behind Table 1 (or another), run none      | -                         | 10 s
#: notebooks        | execute every notebook again, JOBS at once               | 4 GB memory; of tables: that they were run | 6 min of processor time
#: book             | a site of notebooks, tables, methods and API that opens from a plain folder (build/book) | nothing more | 30 s of processor time
#: zoo              | train the mini models from nothing and compare their skills with the committed ones | 12 GB memory | about 45 min (BACKBONE=qwen2_vl: 40 min, reckoned from the steps' rates; mistral: 13 min beside other work; mistral with PROFILE=small: 65 min beside other work)
#: zoo-smoke        | train the smoke models (tests and CI)                    | 2 GB memory               | 1 min
#: test             | the whole test suite                                     | 4 GB memory               | 20 min (31 of processor time)
#: test-fast        | the tests without those that train, fit or run the pipeline | 2 GB memory             | 2 min
#: test-slurm       | one table on a real Slurm, a job and a node lost on the way | root, slurmctld, slurmd, slurm-client, munge | 6 min
#: lint             | ruff, mypy, and which room may import which              | -                         | 40 s
#: format           | ruff: fix and format; notebooks agree with their scripts and carry no outputs | -    | 10 s
#: lock             | resolve requirements.in into requirements.lock           | network                   | 10 s
#: clean            | remove the scores and run files of PROFILE, keep tables, notebooks, models and a judge's replies | - | at once
#: Variables: PROFILE=mini|mini-seed1|mini-seed2|smoke|small|paper, SEEDS=draws of what is random (default: the profile's, three), SEED=1|2 (of `make zoo`: a zoo of other seeds, that of PROFILE=mini-seed1), PROFILE_ARGS=Snakemake's, such as "--profile slurm" (one row a job on a cluster), BACKBONE=internvl|qwen2_vl|mistral (of the zoo targets), JOBS=number of jobs at once (default: cores), PYTHON=a Python to start set-up from (default: python3), LAB=further arguments of JupyterLab (LAB="--no-browser --port 8890")

help:
	@sed -n 's/^#: //p' $(firstword $(MAKEFILE_LIST)) | awk -F' *[|] *' \
	  'NF==4 {printf "make %-18s %s\n%23s needs: %s; takes: %s\n", $$1, $$2, "", $$3, $$4; next} {print "\n" $$0}'

# Set-up starts from whatever Python is there; the installer finds or fetches the one that the lock is for ($(VERSION)).
# .uv holds the installer, .venv the environment. Either counts as built only when its `ready` file stands, which is
# written last: what an interrupted set-up left is removed and built again.
$(UV_READY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null || { \
	  echo "error: set-up starts from a Python 3.9 or newer, found `$(PYTHON) --version 2>&1 | head -1`; install one or say where it is: make PYTHON=/path/to/python3" >&2; exit 2; }
	@rm -rf .uv && $(PYTHON) -m venv .uv || { echo "error: $(PYTHON) cannot make environments; install its venv module (Debian: python3-venv)" >&2; exit 2; }
	@.uv/bin/pip install --quiet --disable-pip-version-check uv==$(UV) && touch $@

.venv/ready: requirements.lock pyproject.toml | $(UV_READY)
	@echo "set-up: .venv from requirements.lock"
	@if [ -e $@ ]; then rm -f $@; else rm -rf .venv && .uv/bin/uv venv --quiet --python $(VERSION) .venv || { \
	  echo "error: there is no Python $(VERSION) here and none could be fetched; install it, or connect to the network" >&2; exit 2; }; fi
	@VIRTUAL_ENV=.venv .uv/bin/uv pip sync --require-hashes requirements.lock
	@VIRTUAL_ENV=.venv .uv/bin/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

setup: .venv/ready

.venv/ready-small: requirements-small.lock .venv/ready
	@echo "set-up: the packages of PROFILE=small from requirements-small.lock"
	@VIRTUAL_ENV=.venv .uv/bin/uv pip install --quiet --no-deps --require-hashes -r requirements-small.lock && touch $@

setup-small: .venv/ready-small

test: .venv/ready
	$(PY) -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

# whole files that train no model, fit no coefficients and start no harness
FAST := config coefficients combine objectives sequences transforms baselines variable importance files scores_cells stats_items data_answers data_examples data_regions shards explain keys project project_setup packaging table_files judge_rules judge_pairs signs text_items profile ablations remaining

# a real Slurm on the loopback interface; needs Debian's slurmctld, slurmd, slurm-client and munge, and root
test-slurm: .venv/ready
	$(PY) -m pytest -m slurm tests/test_slurm.py

test-fast: .venv/ready
	$(PY) -m pytest --numprocesses $(JOBS) --dist loadfile $(FAST:%=tests/test_%.py)

lint: .venv/ready
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/lint-imports

# of a notebook and its script that differ, jupytext takes the one that was changed last
format: .venv/ready
	$(PY) -m ruff check --fix . && $(PY) -m ruff format .
	.venv/bin/jupytext --quiet --set-kernel python3 --sync notebooks/*.ipynb notebooks/py/*.py
	.venv/bin/nbstripout --extra-keys "metadata.language_info metadata.jupytext" notebooks/*.ipynb

lock: $(UV_READY)
	.uv/bin/uv pip compile --quiet --python-version $(VERSION) --generate-hashes --no-emit-index-url --no-emit-find-links \
	  --custom-compile-command "make lock" requirements.in --output-file requirements.lock
	.uv/bin/uv pip compile --quiet --no-deps --python-version $(VERSION) --generate-hashes --no-emit-index-url \
	  --no-emit-find-links --custom-compile-command "make lock" requirements-small.in --output-file requirements-small.lock

zoo: $(READY)
	$(PY) -m emkit.cli zoo build $(BACKBONE)-$(PROFILE)$(SEED:%=-seed%) --jobs $(JOBS) \
	  --out $(if $(SEED),results/$(PROFILE)-seed$(SEED)/zoo/$(BACKBONE),results/zoo/.run/$(ZOO) --against results/zoo/$(ZOO))

zoo-smoke: .venv/ready
	$(PY) -m emkit.cli zoo build $(BACKBONE)-smoke --out results/smoke/zoo/$(BACKBONE) --jobs $(JOBS)

# a table is a file of eval/tables: a new one needs no line here
$(TABLES:%=reproduce-%): reproduce-%: $(READY)
	@$(PY) -m eval reproduce $* $(RUN)

# Tables 1 to 3 are the comparison with the baselines; 4 to 13 take Expert Merging apart; the figures show what it learned
reproduce-tables: $(READY)
	@$(PY) -m eval reproduce table1 table2 table3 $(RUN)

reproduce-figures: reproduce-tables
	@$(PY) -m eval figures --profile $(PROFILE)

reproduce-all: .venv/ready
	@$(PY) -m eval reproduce $(ALL) $(RUN)
	@$(PY) -m eval figures --profile $(PROFILE)

status: .venv/ready
	@$(PY) -m eval status $(ALL) --profile $(PROFILE)

plan: .venv/ready
	@$(PY) -m eval plan $(ALL) --profile $(PROFILE) --short

doctor: $(READY)
	@$(PY) -m eval doctor table1 table2 table3 --profile $(PROFILE)

$(TABLES:%=plan-%): plan-%: .venv/ready
	@$(PY) -m eval plan $* --profile $(PROFILE)

# one draw of calibration samples is enough for a taste
taste: export EMKIT_SEEDS := $(or $(SEEDS),1)
taste: reproduce-taste

notebooks: .venv/ready
	@$(PY) -m eval notebooks --profile $(PROFILE) --jobs $(JOBS)

# notebooks/.lab: Markdown opens as a page to read, and Lab asks no server for news
lab: .venv/ready
	@JUPYTER_PREFER_ENV_PATH=1 $(PY) -m jupyterlab --ServerApp.root_dir="$(CURDIR)" --LabApp.app_settings_dir="$(CURDIR)/notebooks/.lab" \
	  --LabApp.default_url=/lab/tree/notebooks/README.md $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB)

book: .venv/ready
	@$(PY) -m eval book --profile $(PROFILE) --out build/book

# a paid judge's replies and ledger (.run/judge) are kept: they cost money
clean:
	[ ! -d results/$(PROFILE)/.run ] || find results/$(PROFILE)/.run -mindepth 1 -maxdepth 1 ! -name judge -exec rm -rf {} +
	rm -rf $(patsubst eval/profiles/$(PROFILE)/%.yaml,results/$(PROFILE)/%,$(wildcard eval/profiles/$(PROFILE)/*.yaml))
