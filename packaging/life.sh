#!/bin/sh
# What becomes of the services when the package comes, changes and goes. Scripts of both
# kinds of packages begin with this.
# Never opens the firewall, and does nothing where no service can run, as in a chroot.
set -e

STOCK=/usr/lib/systemd/system/qubes-firewall.service
PINS=/sys/fs/bpf/firewall-agent

has_systemd() {
    [ -d /run/systemd/system ]
}

# What runs is started anew; the programs in the kernel go on filtering meanwhile. In a
# template the unit's condition lets nothing run. Before the first time today's firewall
# runs; it opens everything when it is asked to stop, so it is not asked. Until the service
# manager has seen it end, only `restart` has the agent follow.
installed() {
    has_systemd || return 0
    systemctl daemon-reload
    how=try-restart
    if [ ! -d "$PINS" ] && systemctl --quiet is-active qubes-firewall.service; then
        systemctl kill --signal=KILL qubes-firewall.service
        how=restart
    fi
    # A service that does not start says so itself; the files are installed all the same.
    systemctl "$how" qubes-firewall.service || true
    systemctl try-restart firewall-agent.service || true
}

# Today's firewall follows where there is one. It would add its rules behind ours, so ours
# go first, and until its own are there nothing is forwarded. Elsewhere nobody follows, and
# what is in force stays.
removing() {
    systemctl --quiet disable firewall-agent.service
    has_systemd || return 0
    systemctl stop firewall-agent.service
    if [ -e "$STOCK" ] && [ -d "$PINS" ]; then
        systemctl stop qubes-firewall.service
        firewall-agent hand-over
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
    if [ -e "$STOCK" ] && systemctl --quiet is-enabled qubes-firewall.service; then
        # An administrator's drop-in may still name our program.
        systemctl start qubes-firewall.service || true
    fi
}

purged() {
    rm -rf /etc/firewall-agent /var/lib/firewall-agent
}
