# Says what a host is, one `key=value` a line; an empty value means "not there".
PATH=$PATH:/usr/local/bin:/usr/local/sbin:/usr/sbin:/sbin:/snap/bin

for candidate in $interpreters; do
    python=$(command -v "$candidate") && break
done
if [ -n "$python" ]; then
    echo "interpreter=$python"
    "$python" -c '
import platform, struct, sys
print("python=%d.%d" % sys.version_info[:2])
print("machine=%s/%d" % (platform.machine(), struct.calcsize("P") * 8))'
fi

# A docker command alone proves nothing: the engine must be installed, or answer.
engine=$(timeout 10 docker version --format '{{.Server.Os}}/{{.Server.Arch}}' 2>/dev/null) || engine=
echo "engine=$engine"
echo "docker=$(command -v dockerd || echo "$engine")"
echo "apt=$(command -v apt-get)"
echo "systemd=$(test -d /run/systemd/system && echo yes)"
echo "memory=$(awk '$1 == "MemTotal:" {print int($2 / 1024)}' /proc/meminfo)"
