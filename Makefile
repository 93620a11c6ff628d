# course: fetch, run every notebook, show the results (PROFILE=smoke: in small, to see it work)
# test:   everything that CI runs                          lab: open the notebooks
# fetch:  speech and weights only                        bench: measure against the peers  lint: format and check
# check:  what of the tests needs no weights and little time
# site:   build the pages in build/site             clean: remove .venv and all that was built here, but not the cache
# colab:  build/asrlib-course.zip for Google Colab

CHECK  := -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'
PROFILE := reference
PYTHON := $(shell for p in python3.11 python3.12 python3.13 python3; do $$p $(CHECK) 2>/dev/null && echo $$p && break; done)
READY  := .venv/.complete
SITE   := .venv/bin/python -m tools.site && rm -rf build/site && .venv/bin/sphinx-build -E -W --keep-going -q -d build/doctrees docs build/site && echo "Open build/site/index.html"
NBVAL  := --nbval-lax --nbval-current-env --nbval-cell-timeout 600 --nbval-sanitize-with tests/notebooks/nbval.cfg

# tqdm would put a warning into every notebook: it misses ipywidgets, whose state would bloat the outputs.
export PYTHONWARNINGS := ignore:IProgress not found

.PHONY: course test check lab fetch lint bench site colab clean

course: $(READY)
	@.venv/bin/asrlib fetch
	@.venv/bin/asrlib run --profile $(PROFILE); code=$$?; $(SITE) && exit $$code

# Two processes share the tests: one at a time while they are short, and what belongs to one notebook together.
test: $(READY)
	.venv/bin/ruff check --quiet .
	.venv/bin/ruff format --check --quiet .
	.venv/bin/pytest -p no:nbval -n 2 --dist worksteal --ignore-glob '*/test_smoke.py' --ignore-glob '*/test_jupyterlab.py' tests/unit tests/notebooks tests/faults
	ASRLIB_PROFILE=smoke ASRLIB_HEADLESS=1 .venv/bin/pytest -n 2 --dist loadscope $(NBVAL) tests/notebooks/test_smoke.py tests/notebooks/test_jupyterlab.py notebooks/*.ipynb

check: $(READY)
	.venv/bin/ruff check --quiet .
	.venv/bin/ruff format --check --quiet .
	.venv/bin/pytest -p no:nbval -n 2 --dist worksteal -m "not weights and not slow" --ignore-glob '*/test_smoke.py' --ignore-glob '*/test_jupyterlab.py' tests/unit tests/notebooks tests/faults

lab: $(READY)
	@.venv/bin/jupyter lab notebooks

fetch: $(READY)
	@.venv/bin/asrlib fetch

lint: $(READY)
	@.venv/bin/ruff check --fix .
	@.venv/bin/ruff format .

bench: $(READY)
	@.venv/bin/python benchmarks/transcription.py
	@.venv/bin/python benchmarks/growth.py
	@.venv/bin/python benchmarks/scale.py
	@.venv/bin/python benchmarks/finetune_step.py

site: $(READY)
	@$(SITE)

colab: $(READY)
	@.venv/bin/python -m tools.colab archive

clean:
	rm -rf .venv build docs/_generated .ruff_cache .hypothesis

# The stamp is written last, so that a killed or failed installation is taken up again the next time.
$(READY): requirements.lock environments/optimum.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed: install it and run make again." >&2; exit 1; }
	@echo "Setting up .venv with the tested packages: some minutes the first time."
	@$(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install -qq --disable-pip-version-check -r requirements.lock -e ".[all]"
	@.venv/bin/python -m asrlib.io.environment
	@touch $@
