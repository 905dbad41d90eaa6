# make book    environment, every notebook in the quick profile, the site, the claims table
# make test    the same environment, all tests
# make lab     JupyterLab at notebooks/
# make lab-test  every notebook in JupyterLab and a browser: about an hour
# make check   ruff, mypy and the quick tests, in a few minutes
# make hooks   have git run the checks on what is committed and pushed
# make bench   import time, overhead of a notebook, training and metrics against the alternatives
# make clean   remove what the other targets built; `make distclean` removes the environment too
#
# make book PYTHON=python3.12    names the Python that the environment is made from (3.11, 3.12 or 3.13)
# make test WORKERS=4            says how many tests run at once

SHELL := /bin/sh
PYTHON ?=
WORKERS ?= auto
PY := .venv/bin/python

# Threads that wait for work sleep instead of spinning, which on a busy machine costs many times the work itself. The
# bench measures torch as it comes.
book test lab lab-test check: export OMP_WAIT_POLICY ?= PASSIVE

# Data files that lie beside the checkout are used; without them, each data set is downloaded when it is first asked for.
ifneq ($(wildcard ../shared/data/mnist),)
LOSSBOOK_DATA ?= $(CURDIR)/../shared/data
export LOSSBOOK_DATA
endif

# The stamp says where the environment was made and from which Python: a folder that was moved, or another PYTHON, needs a
# new one. A new list of versions is installed over the old one.
stamp := .venv/.lossbook
built := $(shell cat $(stamp) 2>/dev/null)
anew := $(if $(findstring [$(CURDIR)] $(PYTHON),$(built)),,yes)

.PHONY: book test lab lab-test check hooks bench clean distclean
.DELETE_ON_ERROR:
ifdef anew
.PHONY: $(stamp)
endif

book: $(stamp)
	@$(PY) -m lossbook.book.cli book

# Numerical libraries get one thread each: several tests run at once. The notebooks come after the rest and share the
# cores among themselves, so that neither slows the other past a time limit.
test: $(stamp)
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --maxprocesses 8 --dist loadgroup -m "not notebooks and not lab"
	@$(PY) -m pytest -m notebooks

# Without a screen (and not on macOS, which has no DISPLAY) no browser is opened. Jupyter refuses root unless told.
lab: $(stamp)
	@$(PY) -m jupyterlab --ServerApp.ip=127.0.0.1 --ServerApp.root_dir=notebooks \
	  --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate --LabApp.extension_manager=readonly \
	  $(if $(or $(DISPLAY),$(WAYLAND_DISPLAY),$(findstring Darwin,$(shell uname))),,--no-browser) \
	  $(if $(filter 0,$(shell id -u)),--allow-root)

# A server, a browser, and every notebook run and worked by keyboard; a few of them are in `make test` too.
lab-test: $(stamp)
	@$(PY) -m pytest tests/test_jupyterlab.py

check: $(stamp)
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy lossbook
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(WORKERS) --maxprocesses 8 -m "not slow and not notebooks and not browser"

hooks: $(stamp)
	@$(PY) -m pre_commit install

bench: $(stamp)
	@$(PY) -m lossbook.book.cli bench

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name .venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv

# The stamp is removed first and written last: after an interruption the environment is made anew.
$(stamp): pyproject.toml constraints.txt
	@rm -f $(stamp); \
	fits='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'; \
	for python in $(if $(PYTHON),"$(PYTHON)",python3.11 python3.12 python3.13 python3); do \
	  "$$python" -c "$$fits" >/dev/null 2>&1 && break; \
	  python=; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "lossbook needs Python 3.11, 3.12 or 3.13, and $(if $(PYTHON),$(PYTHON) is not one of them,found none of them);" \
	    "name one: make PYTHON=/path/to/python3.12" >&2; \
	  exit 1; \
	fi; \
	$(if $(anew),"$$python" -m venv --clear .venv &&) \
	$(PY) -m pip install --disable-pip-version-check -c constraints.txt -e '.[site,bench,test]' && \
	echo "[$(CURDIR)] $$python" > $(stamp)
