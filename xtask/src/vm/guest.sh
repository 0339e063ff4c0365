# First program of the guest's root: what a service manager would set up, then the job, then the end.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
mount -t tmpfs -o mode=755 run /run
mkdir -p /dev/shm /dev/pts /run/lock /run/tmp
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t devpts devpts /dev/pts
ln -sf /proc/self/fd /dev/fd
ln -sf fd/0 /dev/stdin
ln -sf fd/1 /dev/stdout
ln -sf fd/2 /dev/stderr
mount -t cgroup2 cgroup2 /sys/fs/cgroup 2>/dev/null
mount -t bpf bpf /sys/fs/bpf 2>/dev/null
mount -t securityfs securityfs /sys/kernel/security 2>/dev/null
ip link set lo up
hostname vm
export TMPDIR=/run/tmp
echo "VM up $(uname -r) $([ -e /sys/kernel/btf/vmlinux ] && echo with BTF || echo without BTF)"
setsid sh /job.sh </dev/null
echo "VM job ended with $?"
sync
exec busybox poweroff -f
