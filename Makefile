# Two commands: `make demo` and `make test`. Each makes .venv and installs what it needs.

PYTHON ?= python3
PORT ?= 8000
VENV ?= .venv
# What is tested: the tree. CI sets this to the wheel it has built.
PACKAGE ?= -e .
PIP = $(VENV)/bin/python -m pip --quiet --disable-pip-version-check

.PHONY: demo quick test test-all coverage lint types docs bench late excel table survival sweep diagnosis soak clean

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
	$(VENV)/bin/python -m pytest

# The tests on every Python from 3.10 to 3.13 that is installed.
test-all:
	tools/test-all.sh

# Which lines and branches the unit tests reach, by module.
coverage: $(VENV)/coverage
	$(VENV)/bin/coverage run -m pytest -q tests/unit
	$(VENV)/bin/coverage report

lint: $(VENV)/dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/dev
	$(VENV)/bin/mypy

# The pages that are made from the code.
docs: $(VENV)/tests
	$(VENV)/bin/python docs/generate.py

bench: $(VENV)/bench
	$(VENV)/bin/python benchmarks/in_process.py
	$(VENV)/bin/python benchmarks/wrap_size.py
	$(VENV)/bin/python benchmarks/request_cost.py
	$(VENV)/bin/python benchmarks/shared_passes.py
	$(VENV)/bin/python benchmarks/at_rest.py

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

soak: $(VENV)/bench
	$(VENV)/bin/python benchmarks/soak.py --minutes 10

clean:
	rm -rf .venv .venvs dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage

# A file each for what is installed, so that make knows when to install anew.
$(VENV)/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade 'pip>=25.1'
	@touch $@

$(VENV)/demo: $(VENV)/python pyproject.toml examples/flask_app/requirements-excel.txt
	$(PIP) install $(PACKAGE) -r examples/flask_app/requirements-excel.txt
	@touch $@

$(VENV)/tests $(VENV)/coverage $(VENV)/dev $(VENV)/bench: $(VENV)/python pyproject.toml
	$(PIP) install $(PACKAGE) --group $(notdir $@)
	@touch $@
