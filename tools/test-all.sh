#!/usr/bin/env bash
# Run the tests on every Python from 3.10 to 3.15 that can be had: on PATH, under pyenv, or, for 3.14
# and 3.15, in a chroot of Debian unstable (tools/newest-python.sh).
# LIVE_ON="3.11": the tests that start servers run on these alone; by default on each that needs no
# chroot. SERVERS_ON="3.13": on these also, but not those of the commands, the docs and the example,
# which the Python hardly changes. In the chroot is no chromium: what needs one is skipped there.
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

unit="-n 2 tests/unit"
servers=""
for name in cli compare_command docs docs_commands doctor example example_excel example_pages gauntlet \
  imports_command printing status_page trace; do
  servers+=" --ignore=tests/live/test_$name.py"
done
ran=() missing=()
for version in 3.10 3.11 3.12 3.13 3.14 3.15; do
  python=$(find_python "$version")
  how=() what= venv=.venvs/$version
  case " ${LIVE_ON:-$version} " in
    *" $version "*) ;;
    *) case " ${SERVERS_ON:-} " in
      *" $version "*) what=$servers ;;
      *) what=$unit ;;
    esac ;;
  esac
  if [ -z "$python" ] && [ "${version#*.}" -ge 14 ] && tools/newest-python.sh true; then
    python=python$version how=(env TESTS_NEED_BROWSER= tools/newest-python.sh) venv=$venv-chroot
    [ -n "${LIVE_ON:-}" ] || what=$unit
  fi
  if [ -z "$python" ]; then
    missing+=("$version")
    continue
  fi
  echo "=== Python $version ($python)"
  ${how[@]+"${how[@]}"} make --no-print-directory test PYTHON="$python" VENV="$venv" \
    PACKAGE="${PACKAGE:--e .}" TESTS="$what"
  case $what in
    "$unit") ran+=("$version (unit tests)") ;;
    "$servers") ran+=("$version (unit tests and servers)") ;;
    *) ran+=("$version") ;;
  esac
done
printf 'Tested on: %s\n' "$(IFS=,; echo "${ran[*]:-none}")"
printf 'Not to be had here: %s\n' "$(IFS=,; echo "${missing[*]:-none}")"
[ "${#ran[@]}" -gt 0 ]
