#!/usr/bin/env bash
# Several processes on this machine, as on a pod: bash launch/local_processes.sh N -- ARGUMENTS of tvjax.main
# DEVICES_PER_PROCESS (1): CPU devices of each; RESTARTS (3): how often the job starts again after a process was lost.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
install_into_venv .
exec .venv/bin/python -m tvjax.parallel.local "$@"
