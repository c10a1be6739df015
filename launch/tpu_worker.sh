#!/usr/bin/env bash
# On one worker of a TPU slice; launch/tpu_pod.sh calls it, on all of them at once:
#   tpu_worker.sh install           a Python of its own (the image's may be too old) and tvjax with libtpu, in .venv
#   tpu_worker.sh run ARGUMENTS     python -m tvjax.main ARGUMENTS as one process of the slice
#   tpu_worker.sh stop              SIGTERM to that process: it saves and ends
#   tpu_worker.sh kill              SIGKILL to it: it hangs
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
pid_file=.running

# Usage: signal_run TERM. False where nothing runs; another process may have the number by now.
signal_run() {
  local pid
  pid=$(cat "$pid_file" 2>/dev/null) && grep -qa tvjax.main "/proc/$pid/cmdline" 2>/dev/null && kill "-$1" "$pid"
}

case ${1:-} in
  install)
    source launch/environment.sh
    if [[ ! -x .venv/bin/python ]]; then
      python3 -m pip install --quiet --user uv
      python3 -m uv venv --quiet --seed --python 3.12 .venv
    fi
    PYTHON=.venv/bin/python install_into_venv '.[tpu]'
    ;;
  run)
    shift
    # What a start before this one left behind would keep the chips to itself.
    for ((second = 0; second < 60; second++)); do
      signal_run TERM || break
      sleep 1
    done
    if signal_run KILL; then sleep 1; fi
    TVJAX_PROCESSES=auto .venv/bin/python -m tvjax.main "$@" &
    echo $! >"$pid_file"
    code=0
    wait $! || code=$?
    rm -f "$pid_file"
    echo "tvjax: this worker ended with code $code at $(date '+%F %T')" >&2
    exit "$code"
    ;;
  stop) signal_run TERM || true ;;
  kill) signal_run KILL || true ;;
  *)
    echo "tvjax: tpu_worker.sh: given '${1:-}'; accepted: install, run ARGUMENTS, stop, kill" >&2
    exit 2
    ;;
esac
