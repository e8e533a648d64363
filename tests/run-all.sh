#!/usr/bin/env bash
# The whole proof, in order of cost; `make test` has set the machine up before. The suite runs on this
# machine's Python and again, but for the fleet, on the newest CPython to be had. The first failure ends it.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s (%s)\n' "$1" "$(date +%T)"; }
name_of() { "$1" -c 'import platform; print(platform.python_implementation(), platform.python_version())'; }

python=.venv/bin/python
ran=()

newest=$($python tests/newest_python.py)
if [ -n "$newest" ] && { [ ! -e .venv-newest/.ready ] || [ pyproject.toml -nt .venv-newest/.ready ]; }; then
  step "an environment for $(name_of "$newest")"
  rm -rf .venv-newest
  "$newest" -m venv .venv-newest
  .venv-newest/bin/pip install --quiet --disable-pip-version-check -e '.[hub,agent,dev]'
  touch .venv-newest/.ready
fi

# Both at once: they mostly wait, for containers and for time to pass, and share nothing but the engine.
# All hundred kills of the hub happen on one of them.
other=""
if [ -n "$newest" ]; then
  said=$(mktemp)
  trap 'rm -f "$said"; [ -z "$other" ] || kill "$other" 2>/dev/null || true' EXIT
  GRIDCORE_KILL_ROUNDS=20 .venv-newest/bin/python -m pytest tests/unit tests/contract tests/integration >"$said" 2>&1 &
  other=$!
fi
step "unit, contract and integration tests on $(name_of $python)"
$python -m pytest tests/unit tests/contract tests/integration --durations=10
ran+=("$(name_of $python): unit, contract, integration, fleet, molecule")
if [ -n "$other" ]; then
  step "the same, meanwhile, on $(name_of .venv-newest/bin/python)"
  result=0
  wait "$other" || result=$?
  other=""
  cat "$said"
  [ "$result" -eq 0 ]
  ran+=("$(name_of .venv-newest/bin/python): unit, contract, integration")
fi

step "shutdown with held requests on CPython 3.12 or newer"
modern=""
for candidate in $python .venv-newest/bin/python; do
  if [ -x "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 12))'; then
    modern=$candidate
  fi
done
if [ -n "$modern" ]; then
  # pytest ends with 5, a failure, when the marker selects nothing.
  "$modern" -m pytest -m shutdown tests/unit tests/contract tests/integration
  ran+=("$(name_of "$modern"): shutdown with held requests")
else
  echo "no CPython 3.12 or newer on this machine: not run"
fi

step "a real fleet over SSH"
$python -m pytest tests/fleet --durations=10

step "Molecule: hub and agent on one systemd host"
(cd ansible && PATH="$PWD/../.venv/bin:$PATH" molecule test)

printf '\nThe suite passed on:\n'
printf '  %s\n' "${ran[@]}"
