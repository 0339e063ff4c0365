#!/bin/busybox sh
# First program of a guest of Xen: what its one program needs, which then obeys the console.
B=/bin/busybox
$B mount -t proc proc /proc
$B mount -t sysfs sys /sys
$B mount -t devtmpfs dev /dev
$B mkdir -p /run/netns /tmp
# The namespace that the guest is in has a name, as those of a rig have.
$B touch /run/netns/guest
$B mount -o bind /proc/self/ns/net /run/netns/guest
$B modprobe xen-netfront || echo "no xen-netfront"
$B modprobe af_packet 2>/dev/null
$B ip link set lo up
$B stty -F /dev/hvc0 raw -echo
exec /bin/xen guest </dev/hvc0 >/dev/hvc0 2>&1
