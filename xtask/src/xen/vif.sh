#!/bin/sh
# Sets up the vif of a guest as Qubes OS does (vif-route-qubes): a permanent neighbour and a host route
# for each address. Called by `xl`.
export LC_ALL=C
echo "$1 $vif" >>/run/vif.log
[ "$1" = online ] || exit 0
mac=$(xenstore-read "$XENBUS_PATH/mac")
number=${vif#vif}
metric=$((32752 - ${number%%.*}))
echo 1 >"/proc/sys/net/ipv4/conf/$vif/proxy_arp"
ip link set "$vif" up
for address in $(xenstore-read "$XENBUS_PATH/ip"); do
    ip neighbour replace "$address" lladdr "$mac" dev "$vif" nud permanent
    ip route replace "$address" dev "$vif" metric $metric
done
ip address add 10.137.0.1/32 dev "$vif"
ip address add fd09::1/128 dev "$vif" nodad
xenstore-write "$XENBUS_PATH/hotplug-status" connected
