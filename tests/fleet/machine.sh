#!/bin/sh
# Make this machine able to run the fleet: packages, and a Docker engine that answers.
# Idempotent; a second run takes well under a second. Debian and Ubuntu, as root or with passwordless sudo.
# Anywhere else it says what is missing and exits 1.
set -eu

# "command package" pairs; `docker` alone proves nothing, because a client may be on PATH without an engine.
WANTED="
dockerd         docker.io
containerd      containerd
iptables        iptables
redis-server    redis-server
docker-registry docker-registry
haproxy         haproxy
setpriv         util-linux
openssl         openssl
mmdebstrap      mmdebstrap
ssh             openssh-client
ssh-keygen      openssh-client
strace          strace
busybox         busybox-static
systemd-analyze systemd
setsid          util-linux
"
LOG_DIR="${XDG_CACHE_HOME:-$HOME/.cache}/idm-gridcore"
PATH="$PATH:/usr/sbin:/sbin"

say() { echo "machine: $*"; }
fail() { echo "machine: $*" >&2; exit 1; }

if [ "$(id -u)" = 0 ]; then AS_ROOT=""; else AS_ROOT="sudo -n"; fi

engine_answers() { timeout 20 docker info >/dev/null 2>&1; }
engine_answers_root() { $AS_ROOT timeout 20 docker info >/dev/null 2>&1; }

missing() {
    echo "$WANTED" | while read -r command package; do
        [ -z "$command" ] || command -v "$command" >/dev/null 2>&1 || echo "$package"
    done | sort -u
    # ensurepip is what Debian leaves out of python3 and puts into python3-venv.
    python3 -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
    # Lets an ordinary user reach an engine that we started for them.
    [ "$(id -u)" = 0 ] || command -v setfacl >/dev/null 2>&1 || engine_answers || echo acl
    # The hosts are Debian, so their packages are checked with Debian's keys, on Ubuntu too.
    [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || echo debian-archive-keyring
    # From Debian 13 on the client is a package of its own.
    if ! command -v docker >/dev/null 2>&1 && apt-cache show docker-cli 2>/dev/null | grep -q ^Package; then
        echo docker-cli
    fi
}

may_install() {
    command -v apt-get >/dev/null 2>&1 && { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }
}

quietly() {
    mkdir -p "$LOG_DIR"
    $AS_ROOT env DEBIAN_FRONTEND=noninteractive "$@" >"$LOG_DIR/apt.log" 2>&1 && return 0
    tail -5 "$LOG_DIR/apt.log" >&2
    fail "$1 failed; all of it is in $LOG_DIR/apt.log"
}

install_missing() {
    packages="$(missing | tr '\n' ' ')"
    [ -n "${packages% }" ] || return 0
    may_install || fail "missing packages: ${packages% }. Install them (this needs apt-get and root), then run me again."
    quietly apt-get update -qq
    packages="$(missing | tr '\n' ' ')" # once more: only now is it known what the release offers
    brought=""
    for command in redis-server docker-registry haproxy; do
        command -v "$command" >/dev/null 2>&1 || brought="$brought $command"
    done
    say "installing: $packages"
    # shellcheck disable=SC2086  # one word a package
    quietly apt-get install -y -qq --no-install-recommends $packages
    # Tests start their own on free ports: what we brought in for its binary must not stand in the way.
    if [ -d /run/systemd/system ]; then
        for service in $brought; do
            $AS_ROOT systemctl disable --now --quiet "$service" || true
        done
    fi
}

# Only its programs, unpacked beside our logs: the package itself would leave a service running. No root needed.
fetch_prometheus() {
    command -v promtool >/dev/null 2>&1 && command -v prometheus >/dev/null 2>&1 && return 0
    target="$LOG_DIR/prometheus"
    [ -x "$target/usr/bin/promtool" ] && [ -x "$target/usr/bin/prometheus" ] && return 0
    command -v apt-get >/dev/null 2>&1 || return 0 # the tests say what is missing
    mkdir -p "$target"
    say "fetching Prometheus, for the tests of its alert rules (not installed)"
    unpack_prometheus && return 0
    # Nothing else may have been missing, so that nobody has asked yet what there is.
    if may_install; then quietly apt-get update -qq; fi
    unpack_prometheus || say "Prometheus cannot be fetched; see $LOG_DIR/prometheus.log"
}

unpack_prometheus() {
    (cd "$target" && apt-get download -qq prometheus && dpkg-deb -x prometheus_*.deb . && rm -f prometheus_*.deb) \
        >"$LOG_DIR/prometheus.log" 2>&1
}

wait_for_engine() {
    for _ in $(seq 60); do
        engine_answers_root && return 0
        sleep 0.5
    done
    return 1
}

start_engine() {
    engine_answers && return 0
    if ! { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }; then
        fail "no Docker engine answers this user. Start one, or join its group: sudo usermod -aG docker $(id -un)"
    fi
    if ! engine_answers_root; then
        mkdir -p "$LOG_DIR"
        if [ -d /run/systemd/system ]; then
            say "starting docker.service"
            $AS_ROOT systemctl start docker || fail "docker.service does not start: journalctl -u docker"
        else
            say "starting dockerd (log: $LOG_DIR/dockerd.log)"
            # A pid file of a dead engine would stop the new one.
            if [ -f /var/run/docker.pid ] && ! kill -0 "$(cat /var/run/docker.pid)" 2>/dev/null; then
                $AS_ROOT rm -f /var/run/docker.pid
            fi
            $AS_ROOT setsid dockerd >"$LOG_DIR/dockerd.log" 2>&1 </dev/null &
        fi
        wait_for_engine || fail "the Docker engine does not answer within 30 s; see $LOG_DIR/dockerd.log"
    fi
    # Somebody who may become root without a password gains nothing by this; it lasts until the engine restarts.
    [ -z "$AS_ROOT" ] || $AS_ROOT setfacl -m "u:$(id -un):rw" /var/run/docker.sock
    engine_answers || fail "the Docker engine runs, but this user may not use it: sudo usermod -aG docker $(id -un)"
}

install_missing
fetch_prometheus
start_engine
say "ready ($(docker version --format 'Docker Engine {{.Server.Version}}'))"
