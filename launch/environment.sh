# shellcheck shell=bash
# Sourced by the launchers: a virtual environment in .venv with this checkout installed in it.

# Usage: install_into_venv '.[test]'. Installs again only where setup.cfg or what is asked for has changed.
install_into_venv() {
  local python=${PYTHON:-python3} stamp=.venv/installed wanted
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "tvjax: $python: not Python 3.11 or newer; accepted: PYTHON=/path/to/python3.11 bash $0" >&2
    exit 2
  fi
  if [[ ! -x .venv/bin/python ]] && ! "$python" -m venv .venv; then
    rm -rf .venv
    echo "tvjax: $python cannot make a virtual environment (on Debian and Ubuntu: apt-get install python3-venv)" >&2
    exit 2
  fi
  wanted="$1 $(cksum setup.cfg pyproject.toml | cksum)"
  if ! grep -qxF "$wanted" "$stamp" 2>/dev/null; then
    echo "installing $1 into .venv"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable "$1"
    echo "$wanted" >>"$stamp"
  fi
}
