# Two commands: `make demo` and `make test`. Each makes .venv and installs what it needs.

PYTHON ?= python3
PORT ?= 8000
VENV ?= .venv
# What is tested: the tree. CI sets this to the wheel it has built.
PACKAGE ?= -e .
# Which tests; all, if empty.
TESTS ?=
# A file with the versions to install, as pip's --constraint wants it; the newest, if empty.
LOCKED ?=
LOCK = tools/locked.txt
PIP = $(VENV)/bin/python -m pip --quiet --disable-pip-version-check
INSTALL = $(PIP) install $(if $(LOCKED),--constraint $(LOCKED))

.PHONY: demo quick test test-all test-v2 matrix frameworks fuzz package coverage lint types lock docs bench footprint late excel table survival sweep diagnosis gauntlet gauntlet-cost soak clean

demo: $(VENV)/demo
	@echo
	@echo "  Starting the example at http://127.0.0.1:$(PORT)/ (Ctrl-C ends it, PORT= moves it). Try:"
	@echo "    log in as demo / demo, add a client, import a CSV or a workbook"
	@echo "    /api/memory-status in the browser (any name, password demo)"
	@echo "    curl -H 'Authorization: Bearer demo' http://127.0.0.1:$(PORT)/api/memory-status"
	@echo "    curl -H 'Authorization: Bearer demo' -X POST http://127.0.0.1:$(PORT)/api/force-cleanup"
	@echo "    head -c 5000000 /dev/zero | curl --data-binary @- http://127.0.0.1:$(PORT)/login   (413)"
	@echo
	@cd examples/flask_app && LOWMEM_ADMIN_TOKEN=$${LOWMEM_ADMIN_TOKEN:-demo} \
	  exec $(abspath $(VENV))/bin/lowmem-wsgi run --bind 127.0.0.1:$(PORT) app:app

# The tests that start no server, in half a minute.
quick: $(VENV)/tests
	$(VENV)/bin/python -m pytest -q -n 2 tests/unit

test: $(VENV)/tests
	$(VENV)/bin/python -m pytest $(TESTS)

# The tests on every Python from 3.10 to 3.13 that is installed, and the unit tests on 3.14 and 3.15
# (on Debian, as root: in a chroot). LIVE_ON="3.15" make test-all: all the tests on 3.15, and the unit
# tests on the others.
test-all:
	tools/test-all.sh

# The tests that only a real cgroup v2 can prove, in a small virtual machine (QEMU; on Debian, as
# root; 8 minutes). Skipped with the reason where none can be had.
test-v2: $(VENV)/tests
	tools/test-v2.sh $(VENV)/bin/python

# Every server with every framework (12 minutes), and docs/servers.md from the results. MATRIX= takes
# options of pytest: with -k it is a part, and no page is written. Linux, as a user who may make a
# cgroup. uWSGI needs a C compiler and python3-dev; mod_wsgi apache2-dev as well, and a Python that
# the user nobody can read.
matrix: VENV = .venvs/matrix
matrix: .venvs/matrix/matrix
	$(VENV)/bin/python -m pytest tests/matrix -q -n 2 --dist loadgroup $(or $(MATRIX),--page docs/servers.md)

# The own tests of Flask, Django, Bottle and Falcon with every app wrapped, from their sources, and
# docs/frameworks.md from the results (4 minutes). FRAMEWORKS=flask: that one, and no page is written.
frameworks: VENV = .venvs/frameworks
frameworks: .venvs/frameworks/frameworks
	$(VENV)/bin/python tests/frameworks/run.py $(or $(FRAMEWORKS),--page docs/frameworks.md)

# Each target of the fuzzer for MINUTES (10), as many at a time as there are processors; the examples
# of each are counted. TARGETS="settings cookie_header": these alone.
fuzz: $(VENV)/tests
	$(VENV)/bin/python tests/fuzz/run.py --minutes $(or $(MINUTES),10) $(TARGETS)

# Which lines and branches the unit tests reach, by module.
coverage: $(VENV)/coverage
	$(VENV)/bin/coverage run -m pytest -q tests/unit
	$(VENV)/bin/coverage report

lint: $(VENV)/dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/codespell .
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/[!c]*.yml
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml

types: $(VENV)/dev
	$(VENV)/bin/mypy

# The newest versions of all that CI installs, for each Python, into tools/locked.txt. (Without
# setuptools: a Python that brings its own keeps it.)
lock: $(VENV)/lock
	echo '# Made by `make lock`: the versions that CI installs. Elsewhere: make test LOCKED=$(LOCK)' >$(LOCK).new
	$(VENV)/bin/uv pip compile --quiet --universal --python-version 3.10 --upgrade --no-header --no-annotate \
	  --no-emit-index-url --no-emit-package setuptools --extra gunicorn $(addprefix --group ,dev docs coverage package matrix) \
	  pyproject.toml >>$(LOCK).new
	mv $(LOCK).new $(LOCK)

# The wheel and the sdist, in dist/, and what an index and a type checker say of them.
package: $(VENV)/package
	rm -rf dist
	$(VENV)/bin/python -m build --outdir dist
	$(VENV)/bin/python -m twine check --strict dist/*
	$(VENV)/bin/check-wheel-contents dist/*.whl
	tools/verify-types.sh $(VENV)/bin dist/*.whl

# The pages that are made from the code, and all of docs/ as a site, in site/. A warning
# is an error, such as a link or an anchor that leads nowhere.
docs: $(VENV)/docs
	$(VENV)/bin/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict

bench: $(VENV)/bench
	$(VENV)/bin/python benchmarks/in_process.py
	$(VENV)/bin/python benchmarks/wrap_size.py
	$(VENV)/bin/python benchmarks/request_cost.py
	$(VENV)/bin/python benchmarks/shared_passes.py
	$(VENV)/bin/python benchmarks/at_rest.py

# A whole container at rest beside stock Gunicorn, and after spikes with each allocator (15 minutes).
# Linux, as a user who may make a cgroup.
footprint: $(VENV)/bench
	$(VENV)/bin/python benchmarks/footprint.py
	$(VENV)/bin/python benchmarks/allocators.py

# A container at rest with pandas and its kin at the top of the app, with late imports and without
# (3 minutes). Linux, as a user who may make a cgroup.
late: $(VENV)/bench
	$(VENV)/bin/python benchmarks/late_imports.py

# The import of an Excel sheet of 50,000 rows, in a child process and in the worker (3 minutes).
excel: $(VENV)/bench
	$(VENV)/bin/python benchmarks/excel.py

# The source document's table, before and after, measured on the example, and its picture (2
# minutes). Both: Linux, as a user who may make a cgroup.
table: $(VENV)/bench
	$(VENV)/bin/python benchmarks/table.py --picture docs/table.png

# What survives in 512 MB, beside plain Gunicorn (6 minutes); ten minutes of mixed load. Linux, as a
# user who may make a cgroup.
survival: $(VENV)/bench
	$(VENV)/bin/python benchmarks/survival.py
	$(VENV)/bin/python benchmarks/sweep.py --rounds 1 --leaks 1000 --cpu 1.0 --cpu 0.25 --jobs 2

# The same edges with all that a user varies varied, ten rounds of each (3 hours). Linux, as a user
# who may make cgroups.
sweep: $(VENV)/bench
	$(VENV)/bin/python benchmarks/sweep.py --jobs 2 --check

# Thirty sites whose memory goes by a script, and whether all that their status says is true (7
# minutes). Linux, as a user who may make a cgroup.
diagnosis: $(VENV)/bench
	$(VENV)/bin/python benchmarks/diagnosis.py --check

# Every server's own way to live in 512 MB beside lowmem-wsgi, and docs/gauntlet from the results.
# QUICK=1: 12 minutes on two cores; else some hours. GAUNTLET= takes options (--help). The same of
# what a request costs as heap, workers and routes grow. Linux, as a user who may make cgroups;
# uWSGI and mod_wsgi as in the matrix.
gauntlet: .venvs/gauntlet/gauntlet
	.venvs/gauntlet/bin/python benchmarks/gauntlet $(if $(QUICK),--quick) $(GAUNTLET)

gauntlet-cost: .venvs/gauntlet/gauntlet
	.venvs/gauntlet/bin/python benchmarks/gauntlet cost $(if $(QUICK),--quick) $(GAUNTLET)

soak: $(VENV)/bench
	$(VENV)/bin/python benchmarks/soak.py --minutes 10

clean:
	rm -rf .venv .venvs .gauntlet dist build site .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage

# A file each for what is installed, so that make knows when to install anew.
$(VENV)/pip:
	$(PYTHON) -m venv $(VENV)
	@touch $@

# Older ones know no dependency groups.
$(VENV)/python: $(VENV)/pip
	$(PIP) install --upgrade 'pip>=25.1'
	@touch $@

# Compiling all of pandas and matplotlib would take longer than the rest: Python compiles what it
# imports.
$(VENV)/demo: $(VENV)/pip pyproject.toml $(wildcard examples/flask_app/requirements*.txt)
	$(INSTALL) $(PACKAGE) -r examples/flask_app/requirements.txt
	$(INSTALL) --no-compile -r examples/flask_app/requirements-excel.txt
	@touch $@

# Two that have every server.
.venvs/matrix/matrix .venvs/gauntlet/gauntlet: VENV = $(@D)
.venvs/matrix/matrix .venvs/gauntlet/gauntlet: pyproject.toml
	$(MAKE) --no-print-directory VENV=$(VENV) $(VENV)/python
	$(INSTALL) $(PACKAGE) --group $(@F)
	$(INSTALL) 'uwsgi>=2.0.30' || echo "uWSGI cannot be built here: it is not run"
	$(INSTALL) 'mod_wsgi>=5' || echo "mod_wsgi cannot be built here: it is not run"
	@touch $@

.venvs/frameworks/frameworks: VENV = .venvs/frameworks
.venvs/frameworks/frameworks: pyproject.toml
	$(MAKE) --no-print-directory VENV=.venvs/frameworks .venvs/frameworks/python
	$(INSTALL) $(PACKAGE) --group frameworks
	@touch $@

$(VENV)/tests $(VENV)/docs $(VENV)/coverage $(VENV)/dev $(VENV)/bench $(VENV)/package $(VENV)/lock: $(VENV)/python pyproject.toml
	$(INSTALL) $(PACKAGE) --group $(notdir $@)
	@touch $@
