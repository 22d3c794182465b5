#!/usr/bin/env bash
# Check that all that a wheel exports has types.
#
#   tools/verify-types.sh BIN WHEEL      (make package)
#
# BIN is the folder with pyright. Pyright looks at an installed package, so the wheel is installed in
# a temporary environment.
set -eu
bin=$(cd "$1" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
wheel=$(readlink -f "$2")
"$bin/python" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip --quiet --disable-pip-version-check install "$wheel" types-psutil
# It asks the Python on PATH where packages are, and would take those of the current folder first.
cd "$folder"
PATH="$folder/venv/bin:$PATH" "$bin/pyright" --verifytypes lowmem_wsgi --ignoreexternal
