# Boots a root file system as a container in which nothing of the host's changes: what is written to it is in memory.
#
#   container.sh ROOT SHARED UNIT GROUP...
#
# To be run in a mount namespace of its own. SHARED is seen inside as /shared, UNIT is what systemd starts. GROUPs are
# control groups for all of it.
set -eu
root=$1 shared=$2 unit=$3
shift 3
for group in "$@"; do echo $$ >"$group/cgroup.procs"; done

# What nspawn keeps of a container ends with this namespace, too.
mount -t tmpfs tmpfs /run
mkdir /run/upper /run/work /run/container
mount -t overlay -o "lowerdir=$root,upperdir=/run/upper,workdir=/run/work" overlay /run/container
# They make units of what a container has not, and take half a second each time that systemd reads its units again.
rm -f /run/container/usr/lib/systemd/system-generators/*
# No new proc can be mounted in a user namespace as long as anything covers a part of the one that is there.
cat >/run/container/container-init <<'END'
#!/bin/sh
sed -n 's,^[^ ]* \(/proc/[^ ]*\) .*,\1,p' /proc/mounts | sort -r | while read -r cover; do umount "$cover"; done
exec /usr/lib/systemd/systemd "$@"
END
chmod 755 /run/container/container-init

# cgroup v2, whatever the host has beside it. Sandboxes need all capabilities, and calls that nspawn's filter refuses.
export UNIFIED_CGROUP_HIERARCHY=1 SYSTEMD_NSPAWN_API_VFS_WRITABLE=1
exec systemd-nspawn --quiet --directory=/run/container --register=no --keep-unit --private-network --link-journal=no \
    --console=pipe --kill-signal=SIGRTMIN+3 --capability=all --system-call-filter=@known --bind="$shared:/shared" \
    /container-init "systemd.unit=$unit"
