"""A host whose mounts are shared, as systemd makes all: what a sandbox mounts stays its own, and the host's stay out.

Root prepares trees for its sandboxes out here; a copy of a shared mount is its peer unless it is made private.
"""

from __future__ import annotations

import pytest

# $1 is a folder with `open` and `work`, $2 a profile that grants `work` and denies a file in it; the rest the command.
# First the control: in a namespace below, a mount on a copy of a shared tree shows out here.
SCRIPT = """
folder=$1 profile=$2
shift 2
seen() { grep -c "$folder/$1" /proc/self/mountinfo; }
mkdir "$folder/copy"
unshare --mount --propagation unchanged sh -c 'mount --rbind "$1/open" "$1/copy"' sh "$folder"
echo "control $(seen copy)"
umount "$folder/copy"
"$@" run --profile "$profile" --chdir "$folder/work" -- sh -c '
    echo ready >ready
    while [ ! -e go ]; do sleep 0.05; done
    ls later | wc -l >later-seen
' &
while [ ! -e "$folder/work/ready" ]; do kill -0 $! || exit 1; sleep 0.05; done
echo "during $(seen work)"
mount -t tmpfs tmpfs "$folder/work/later"
touch "$folder/work/later/secret"
touch "$folder/work/go"
wait $!
umount "$folder/work/later"
echo "after $(seen work)"
echo "of the host's mounts $(cat "$folder/work/later-seen")"
"""


def test_mounts_of_a_sandbox_and_of_a_host_with_shared_mounts_keep_apart(world):
    if not world.is_root:
        pytest.skip("an ordinary user makes no mounts, and prepares no trees")
    folder = world.tmp / "shared"
    (folder / "open").mkdir(parents=True)
    (folder / "work/later").mkdir(parents=True)
    (folder / "work/denied").write_text("secret\n")
    profile = world.tmp / "agent.toml"
    profile.write_text(
        f'schema = 1\ntier = 1\n[filesystem]\nwrite = ["{folder}/work"]\ndeny = ["{folder}/work/denied"]\n'
        'workspace = "none"\n'
    )
    command = world.osmoda_argv(command="osmoda-sandbox")
    namespace = ["unshare", "--mount", "--propagation", "shared", "sh", "-c", SCRIPT, "sh"]
    done = world.run([*namespace, folder, profile, *command], cwd=folder / "work")
    assert done.stdout.splitlines() == ["control 1", "during 0", "after 0", "of the host's mounts 0"], done.stderr
