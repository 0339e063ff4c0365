# Makes the tree of a distribution the root, in namespaces of its own and under a layer in memory,
# and runs a job there that ends at the latest when standard input does.
# Never mounts anything where others see it, and leaves no process.
set -eu
stage=$1 name=$2 tree=$3 checkout=$4 job=$5
layer=$tree/mnt

case $stage in
first)
    mount --make-rprivate /
    mount -t tmpfs -o mode=755 layer "$layer"
    mkdir "$layer/above" "$layer/work" "$layer/root" "$layer/cgroup"
    # Machines with a service manager need cgroups of version 2, and nobody else's.
    mount -t cgroup2 cgroup "$layer/cgroup"
    cgroup=$layer/cgroup/firewall-$name
    mkdir -p "$cgroup"
    status=0
    unshare --pid --fork --kill-child --net --ipc --uts sh "$0" second "$name" "$tree" "$checkout" "$job" || status=$?
    find "$cgroup" -depth -type d -exec rmdir {} +
    exit $status
    ;;
second)
    echo 0 >"$layer/cgroup/firewall-$name/cgroup.procs"
    exec unshare --mount --cgroup sh "$0" third "$name" "$tree" "$checkout" "$job"
    ;;
esac

root=$layer/root
mount -t overlay -o "lowerdir=$tree,upperdir=$layer/above,workdir=$layer/work" root "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sys "$root/sys"
mount -t cgroup2 cgroup "$root/sys/fs/cgroup"
mount -t bpf -o mode=700 bpf "$root/sys/fs/bpf"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=755 run "$root/run"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
mkdir -p "$root$checkout"
mount --bind "$checkout" "$root$checkout"
cp "$job" "$root/run/job"
cd "$root"
mkdir run/outside
pivot_root . run/outside
cd /
umount -l /run/outside
rmdir /run/outside
hostname "$name"
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin HOME=/root LANG=C.UTF-8 TMPDIR=/tmp
ip link set lo up
exec 3<&0
sh /run/job </dev/null 3<&- &
job=$!
# This is the first process of its namespace: when it ends, all others do.
{ cat <&3 >/dev/null; kill -KILL $job; } &
exec 3<&-
wait $job
