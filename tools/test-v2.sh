#!/usr/bin/env bash
# Run the tests that only a real cgroup v2 can prove, in a virtual machine that has it.
#
#   tools/test-v2.sh PYTHON      (make test-v2)
#
# Where no such machine can be had the tests are skipped with the reason; with TESTS_NEED_VM=1 that
# is a failure. The machine is slow: waits are longer there (TESTS_SLOWER), what must hold is the same.
set -eu
cd "$(dirname "$0")/.."

survive=tests/live/test_survive.py edge=tests/live/test_edge.py
levels=tests/live/test_levels_on_servers.py offload=tests/live/test_offload_on_servers.py
tests=(
  # What is read: nested limits, page cache, memory.high, a container at the path /.
  tests/live/test_reading_in_cgroups.py
  $levels::test_the_status_agrees_with_the_kernel_and_page_cache_does_not_count
  # Levels.
  $survive::test_at_warn_a_large_upload_is_turned_away_and_a_small_one_is_not
  $survive::test_after_five_seconds_at_critical_nothing_comes_in_until_there_is_room
  # Survival: requests without end, memory that stays held. (A leak is for benchmarks/sweep.py: on
  # so slow a machine, one request of some hundreds can be lost at the first replacement.)
  "$survive::test_a_request_that_grows_without_end_is_503_and_the_others_do_not_notice[]"
  "$edge::test_a_loop_of_small_objects_is_503_and_nobody_else_is_lost[1.0--c]"
  $edge::test_a_worker_that_keeps_much_after_a_memory_error_is_replaced
  # What a worker died of, by memory.events.
  $survive::test_of_an_oom_kill_the_log_names_the_request_and_its_growth
  $survive::test_after_an_oom_kill_a_kill_from_outside_is_not_taken_for_another
  # The memory of offloaded calls.
  $offload::test_two_calls_that_do_not_both_fit_run_one_after_the_other_and_the_hasty_gets_503
  $offload::test_a_child_that_the_oom_killer_takes_is_out_of_memory_and_the_site_lives
)

export TESTS_NEED_CGROUP=v2 TESTS_SLOWER=${TESTS_SLOWER:-15}
status=0
tools/cgroup2-vm.sh -t 2700 "$1" -m pytest -v -p no:cacheprovider --color=no --durations=0 --durations-min=1 \
  "${tests[@]}" || status=$?
if [ $status = 125 ] && [ -z "${TESTS_NEED_VM:-}" ]; then
  echo "Skipped: the tests under cgroup v2, for want of a virtual machine (the reason is above)."
  status=0
fi
exit $status
