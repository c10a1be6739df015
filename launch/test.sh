#!/usr/bin/env bash
# The tests but for the slow ones: makes .venv if needed, installs the test extra, runs pytest (further arguments go to
# it: -m slow for the slow ones, -m "not exhaustive" for what a change must pass).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
install_into_venv '.[test]'
exec .venv/bin/python -m pytest "$@"
