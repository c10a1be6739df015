# shellcheck shell=bash
# Sourced by the launchers: a virtual environment in .venv with this checkout installed in it.

# Usage: install_into_venv '.[test]'. Installs only where setup.cfg has changed or an extra was not installed yet.
install_into_venv() {
  local python=${PYTHON:-python3} stamp=.venv/installed names name state missing=false
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "tvjax: $python: not Python 3.11 or newer; accepted: PYTHON=/path/to/python3.11 bash $0" >&2
    exit 2
  fi
  if [[ ! -x .venv/bin/python ]] && ! "$python" -m venv .venv; then
    rm -rf .venv
    echo "tvjax: $python cannot make a virtual environment (on Debian and Ubuntu: apt-get install python3-venv)" >&2
    exit 2
  fi
  state=$(cksum setup.cfg pyproject.toml | cksum)
  read -ra names <<<"tvjax ${1//[.,\[\]]/ }"
  for name in "${names[@]}"; do
    grep -qxF "$name $state" "$stamp" 2>/dev/null || missing=true
  done
  if [[ $missing == true ]]; then
    echo "installing $1 into .venv"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable "$1"
    printf '%s\n' "${names[@]/%/ $state}" >>"$stamp"
  fi
}
