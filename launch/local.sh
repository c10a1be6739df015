#!/usr/bin/env bash
# The main job on this machine: makes .venv, installs tvjax, trains, evaluates and reports.
# Further arguments go to tvjax.main, e.g.: bash launch/local.sh --config=configs/tvp_synthetic.py:sinusoid
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
install_into_venv .
if [[ $# -eq 0 ]]; then
  set -- --config=configs/tvp_synthetic.py
fi
exec .venv/bin/python -m tvjax.main "$@"
