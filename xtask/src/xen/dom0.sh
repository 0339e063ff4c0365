# Makes a dom0 of this machine's root, with Xen's programs as they were unpacked, and runs the checks.
# $XEN: where those are. $CHECKS: what to run.
export PATH="$XEN/usr/lib/xen-4.17/bin:$PATH:$XEN/usr/sbin:$XEN/usr/bin"
export LD_LIBRARY_PATH="$XEN/usr/lib/x86_64-linux-gnu:$XEN/usr/lib/xen-4.17/lib/x86_64-linux-gnu"
hostname dom0
# Programs of Xen look for each other where a package would have put them.
[ -e /usr/lib/xen-4.17 ] || ln -s "$XEN/usr/lib/xen-4.17" /usr/lib/xen-4.17
mkdir -p /etc/xen /run/xen /run/xenstored /run/lock/xl /run/xen-hotplug
mkdir -p /var/lib/xenstored /var/lib/xen/dump /var/log/xen
[ -e /etc/xen/xl.conf ] || : >/etc/xen/xl.conf
for module in xenfs xen-evtchn xen-gntdev xen-gntalloc xen-privcmd; do
    modprobe $module || { echo "VM lacks the module $module"; exit 1; }
done
mount -t xenfs xenfs /proc/xen || { echo "VM lacks xenfs"; exit 1; }
mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
xenstored --pid-file /run/xenstored.pid && xenstore-read / >/dev/null || { echo "VM lacks xenstored"; exit 1; }
xen-init-dom0 || { echo "VM lacks a dom0"; exit 1; }
xenconsoled --pid-file=/run/xenconsoled.pid || { echo "VM lacks xenconsoled"; exit 1; }
# As many queues as a guest has processors, however many dom0 has.
modprobe xen-netback max_queues=4 || { echo "VM lacks xen-netback"; exit 1; }
eval "exec $CHECKS"
