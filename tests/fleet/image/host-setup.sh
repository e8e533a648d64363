#!/bin/sh
# Runs on the controller while the host image is made (mmdebstrap --customize-hook); $1 is the image's root.
set -eu
root="$1"

# Each host makes its own at its first boot, as a cloned disk should.
: >"$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id" "$root"/etc/ssh/ssh_host_* # the harness brings a host key for every host

# What a host in a container has no use for, and what would make `systemctl is-system-running` degraded or slow.
for unit in getty.target console-getty.service systemd-udevd.service systemd-udev-trigger.service \
    systemd-logind.service systemd-networkd-wait-online.service apt-daily.timer apt-daily-upgrade.timer \
    e2scrub_all.timer fstrim.timer dpkg-db-backup.timer systemd-firstboot.service \
    sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount \
    sys-fs-fuse-connections.mount dev-hugepages.mount dev-mqueue.mount; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
chroot "$root" systemctl --quiet enable ssh.service docker.service
chroot "$root" systemctl --quiet disable docker-registry.service # there for the machine that becomes the hub

mkdir -p "$root/etc/ssh/sshd_config.d" "$root/root/.ssh"
chmod 700 "$root/root/.ssh"
printf 'PermitRootLogin prohibit-password\nPasswordAuthentication no\nUseDNS no\nMaxStartups 100\n' \
    >"$root/etc/ssh/sshd_config.d/fleet.conf"
# sshd keeps PAM out of the way: no session scopes, faster log-ins.
sed -i 's/^UsePAM yes/UsePAM no/' "$root/etc/ssh/sshd_config"

# The inner engine's containers go below the host's own cgroup: then pausing or killing the host takes them along.
# It is an option, not a line of /etc/docker/daemon.json, because that file belongs to the `docker` role.
mkdir -p "$root/etc/systemd/system/docker.service.d" "$root/usr/local/lib"
cat >"$root/usr/local/lib/fleet-docker-options" <<'SCRIPT'
#!/bin/sh
# cgroup v1 names the host in every hierarchy; with v2 PID 1 sits in init.scope below it.
path=$(sed -n 's/^[0-9]*:freezer://p' /proc/1/cgroup)
[ -n "$path" ] || path=$(sed -n 's/^0:://p' /proc/1/cgroup | sed 's,/init.scope$,,')
echo "DOCKER_OPTS=--cgroup-parent=$path/inner --exec-opt native.cgroupdriver=cgroupfs --storage-driver=overlay2" \
    >/run/fleet-docker.env
SCRIPT
chmod 755 "$root/usr/local/lib/fleet-docker-options"
cat >"$root/etc/systemd/system/docker.service.d/fleet.conf" <<'UNIT'
[Unit]
StartLimitIntervalSec=0
[Service]
ExecStartPre=/usr/local/lib/fleet-docker-options
# Newer engines want to switch IPv6 off in every container, and /proc/sys cannot be written in here.
Environment=DOCKER_ALLOW_IPV6_ON_IPV4_INTERFACE=1
EnvironmentFile=
EnvironmentFile=-/run/fleet-docker.env
UNIT
