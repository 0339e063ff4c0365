#!/bin/busybox sh
# First program of the virtual machine: this machine's root, shared read-only, under a layer in memory.
B=/bin/busybox
$B mount -t proc proc /proc
$B mount -t sysfs sys /sys
$B mount -t devtmpfs dev /dev
for module in virtio_pci 9pnet_virtio 9p overlay; do
    $B modprobe $module 2>/dev/null
done
$B mount -t tmpfs -o mode=755,size=75% layer /o
$B mkdir -p /o/below /o/above /o/work /o/root
$B mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=262144,cache=loose root /o/below ||
    { echo "VM lacks its root"; $B poweroff -f; }
$B mount -t overlay -o lowerdir=/o/below,upperdir=/o/above,workdir=/o/work root /o/root ||
    { echo "VM lacks overlayfs"; $B poweroff -f; }
$B rm -rf /o/root/lib/modules
$B mkdir -p /o/root/lib/modules
$B cp -a /lib/modules/. /o/root/lib/modules/
$B cp /job.sh /guest.sh /o/root/
for place in proc sys dev; do
    $B mount --move /$place /o/root/$place
done
exec $B switch_root /o/root /bin/sh /guest.sh
