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

# All at once, on each interpreter with agents and without: those with agents mostly wait for containers and for
# time to pass, and they share nothing but the engine. One is shown as it goes, the others once they are done.
# All hundred kills of the hub happen on one interpreter.
ALONE=(tests/unit tests/contract tests/integration --ignore=tests/integration/agent)
AGENTS=(tests/integration/agent)
said=$(mktemp -d)
# Redis and SQLite wait for the disk at each write, and the agents' tests keep it busy with images for seconds.
# So what needs no engine keeps its files in memory, where there is room and programs may run.
memory=$(mktemp -d -p /dev/shm gc.XXXX 2>/dev/null || mktemp -d) # short: the path of a socket has its limit
if [ "$(df --output=avail -k "$memory" | tail -1)" -lt 1000000 ] || ! { cp /bin/true "$memory" && "$memory/true"; }; then
  rm -rf "$memory"
  memory=$(mktemp -d)
fi
declare -A meanwhile=()
trap 'for pid in "${meanwhile[@]}"; do kill "$pid" 2>/dev/null || true; done; wait; rm -rf "$said" "$memory"' EXIT

begin() { # NAME COMMAND…
  "${@:2}" >"$said/$1" 2>&1 &
  meanwhile[$1]=$!
}
finish() { # NAME TITLE
  local result=0
  step "meanwhile: $2"
  wait "${meanwhile[$1]}" || result=$?
  unset "meanwhile[$1]"
  cat "$said/$1"
  [ "$result" -eq 0 ]
}

TESTS=(-m pytest --durations=10)
begin agents $python "${TESTS[@]}" "${AGENTS[@]}"
if [ -n "$newest" ]; then
  GRIDCORE_KILL_ROUNDS=20 TMPDIR=$memory begin newest .venv-newest/bin/python "${TESTS[@]}" "${ALONE[@]}"
  begin newest-agents .venv-newest/bin/python "${TESTS[@]}" "${AGENTS[@]}"
fi
step "unit, contract and integration tests on $(name_of $python)"
TMPDIR=$memory $python "${TESTS[@]}" "${ALONE[@]}"
finish agents "agents, on $(name_of $python)"
ran+=("$(name_of $python): unit, contract, integration, fleet, molecule")
if [ -n "$newest" ]; then
  finish newest "unit, contract and integration tests on $(name_of .venv-newest/bin/python)"
  finish newest-agents "agents, on $(name_of .venv-newest/bin/python)"
  ran+=("$(name_of .venv-newest/bin/python): unit, contract, integration")
fi
# From 3.12 on a server that stops waits for open requests: the tests marked `shutdown` must run there, too.
newer_than_311='import sys; sys.exit(sys.version_info < (3, 12))'
if ! $python -c "$newer_than_311" && [ -z "$newest" ]; then
  echo "no CPython 3.12 or newer on this machine: shutdown with held requests was not run there"
fi

# Two fleets and a host at once. Chaos counts the seconds of each recovery, so it waits until only one fleet is left.
begin fleet $python "${TESTS[@]}" tests/fleet --ignore=tests/fleet/test_hubs.py --ignore=tests/fleet/test_chaos.py
begin molecule env -C ansible PATH="$PWD/.venv/bin:$PATH" molecule test
step "several hubs on hosts of their own, behind a load balancer"
$python "${TESTS[@]}" tests/fleet/test_hubs.py
finish molecule "Molecule: hub and agent on one systemd host"
step "chaos in a real fleet"
$python "${TESTS[@]}" tests/fleet/test_chaos.py
finish fleet "a real fleet over SSH"

printf '\nThe suite passed on:\n'
printf '  %s\n' "${ran[@]}"
