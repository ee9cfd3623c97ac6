# The first program of the kernel lane's machine: makes the host's file system the root, and runs a job in it.
#
#   inside.sh ROOT WORD JOB KERNEL [PATH...]
#
# ROOT is where the host's file system is mounted, read-only and cached. A root of its own, not a chroot: there a
# kernel makes no user namespaces. What the job prints goes to the second serial line, and WORD with its status last.
# KERNEL is the folder with the kernel's modules, for what it loads by itself. PATHs of the host's temporary folders
# stay in view, which the machine has its own of.
set -eu
root=$1 word=$2 job=$3 kernel=$4
shift 4

for place in proc sys dev; do mount --rbind "/$place" "$root/$place"; done
kept=$(mktemp -d)
mkdir "$kept/paths" "$kept/kernel"
mount --bind "$root$kernel" "$kept/kernel"
cp "$root$job" "$kept/job"
number=0
for path in "$@"; do
    number=$((number + 1))
    mkdir "$kept/paths/$number"
    mount --bind "$root$path" "$kept/paths/$number"
done
for place in tmp var/tmp run; do mount -t tmpfs -o mode=1777 tmpfs "$root/$place"; done
chmod 755 "$root/run"
number=0
for path in "$@"; do
    number=$((number + 1))
    mkdir -p "$root$path"
    mount --move "$kept/paths/$number" "$root$path"
done
cp "$kept/job" "$root/run/job"
mkdir "$root/run/kernel" "$root/run/before"
mount --move "$kept/kernel" "$root/run/kernel"
printf '#!/bin/sh\nexec /sbin/modprobe -d /run/kernel "$@"\n' >"$root/run/modprobe"
chmod +x "$root/run/modprobe"
echo /run/modprobe >/proc/sys/kernel/modprobe
cd "$root"
pivot_root . run/before
exec chroot . sh -euc '
    cd /
    umount -l /run/before
    rmdir /run/before
    # Through a pipe: a program that sees a terminal behaves otherwise.
    { status=0; sh /run/job </dev/null || status=$?; printf "\n%s %s\n" "$1" "$status"; } 2>&1 | cat >/dev/ttyS1
' sh "$word"
