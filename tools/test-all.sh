#!/usr/bin/env bash
# Run the tests on every Python from 3.10 to 3.13 that is installed: on PATH, or under pyenv.
# Says which it ran and which it did not find; fails where one fails, or none was found.
set -eu
cd "$(dirname "$0")/.."

find_python() {
  for candidate in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/python; do
    if "$candidate" -c "import sys; sys.exit(sys.version_info[:2] != (${1/./, }))" 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
}

ran=() missing=()
for version in 3.10 3.11 3.12 3.13; do
  python=$(find_python "$version")
  if [ -z "$python" ]; then
    missing+=("$version")
    continue
  fi
  echo "=== Python $version ($python)"
  make --no-print-directory test PYTHON="$python" VENV=".venvs/$version" PACKAGE="${PACKAGE:--e .}"
  ran+=("$version")
done
echo "Tested on: ${ran[*]:-none}. Not installed here: ${missing[*]:-none}."
[ "${#ran[@]}" -gt 0 ]
