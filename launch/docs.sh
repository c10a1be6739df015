#!/usr/bin/env bash
# The API reference in build/api/, from the docstrings: makes .venv if needed, installs the docs extra, runs pdoc.
# Arguments go to pdoc in the place of the folder, e.g. to serve the pages: bash launch/docs.sh --port=8080
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
install_into_venv '.[docs]'
if [[ $# -eq 0 ]]; then
  rm -rf build/api
  set -- --output-directory=build/api
fi
# A package brings all of its modules, if it has no __all__; a pattern behind ! leaves some out.
public=(
  tvjax tvjax.settings tvjax.errors tvjax.plugins
  tvjax.tasks tvjax.tasks.{base,gaussian,prompt,shifts,geometries,oracles,text,suite,retrieval}
  tvjax.vectors tvjax.nn '!tvjax\.nn\.pretrained\..*' tvjax.evals tvjax.text tvjax.methods
  tvjax.train.state tvjax.train.loop tvjax.parallel.mesh tvjax.experiments.base tvjax.report.page tvjax.report.tables
  tvjax.report.results
)
# pdoc shows the names that stand in a module; tvjax and tvjax.tasks import theirs at their first use. A warning of pdoc,
# as of a module that cannot be imported, is an error.
JAX_PLATFORMS=${JAX_PLATFORMS:-cpu} exec .venv/bin/python -W error::UserWarning -c '
import pdoc.__main__
import tvjax
import tvjax.tasks

for package in (tvjax, tvjax.tasks):
    vars(package).update((name, getattr(package, name)) for name in package.__all__)
pdoc.__main__.cli()
' --docformat=markdown "$@" "${public[@]}"
