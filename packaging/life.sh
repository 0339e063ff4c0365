#!/bin/sh
# What becomes of the services when the package comes, changes and goes. Scripts of both
# kinds of packages begin with this.
# Never opens the firewall, and does nothing where no service can run, as in a chroot.
set -e

FLAG=/run/qubes-service/ebpf-firewall
PINS=/sys/fs/bpf/firewall-agent

has_systemd() {
    [ -d /run/systemd/system ]
}

# What runs is started anew; the programs in the kernel go on filtering meanwhile. In a netvm
# whose flag is on it starts at once the first time, and takes over from today's firewall.
installed() {
    has_systemd || return 0
    systemctl daemon-reload
    how=try-restart
    if [ -e "$FLAG" ] && [ ! -d "$PINS" ]; then
        how=start
    fi
    # A service that does not start says so itself; the files are installed all the same.
    systemctl "$how" qubes-ebpf-firewall.service || true
    systemctl try-restart firewall-agent.service || true
}

# Today's firewall follows where ours took its turn. It would add its rules behind ours, so ours
# go first, and until its own are there nothing is forwarded. Elsewhere nobody follows, and
# what is in force stays.
removing() {
    systemctl --quiet disable firewall-agent.service
    has_systemd || return 0
    systemctl stop firewall-agent.service
    if systemctl --quiet is-active qubes-ebpf-firewall-takeover.service; then
        # This hands over.
        systemctl stop qubes-ebpf-firewall-takeover.service \
            qubes-ebpf-firewall-notify.socket qubes-ebpf-firewall-sockets.socket
        if [ -d "$PINS" ]; then
            firewall-agent hand-over
        fi
        systemctl start qubes-firewall.service || true
    elif [ -d "$PINS" ]; then
        echo "The firewall stays closed until the next boot: what its rules accept goes on," \
            "and nothing else is forwarded. To open it now: rm -r $PINS; nft delete table ip" \
            "qubes-firewall; nft delete table ip6 qubes-firewall; nft delete table inet" \
            "qubes-firewall-nat" >&2
        echo "In a Whonix gateway also: nft delete table inet qubes-firewall-strict;" \
            "nft delete table netdev qubes-firewall-answers" >&2
    fi
}

removed() {
    has_systemd || return 0
    systemctl daemon-reload
}

purged() {
    rm -rf /etc/firewall-agent /var/lib/firewall-agent /var/lib/private/firewall-agent
}
