"""What the machines boot: a Debian kernel and a small root with systemd, made once and kept.

Each is made beside its place and renamed into it, so that one which was cut short is not taken for a whole one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

# Not the cloud flavour, which has no 9p; nor the one with debugging symbols.
KERNELS = r"^linux-image-6\.[0-9.]+\+?deb[0-9]+(\.[0-9]+)?-amd64$"


class Missing(Exception):
    """Something that cannot be had here; the sentence says what."""


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run it to its end: what it printed. Raises Missing with what it said when it fails, or is not there."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    except FileNotFoundError:
        raise Missing(f"{command[0]} is not installed; packaging/bootstrap test installs what is needed") from None
    if done.returncode != 0:
        raise Missing(f"{command[0]} failed with status {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


@contextlib.contextmanager
def being_made(place: Path) -> Iterator[Path | None]:
    """A folder that becomes `place` at the end of the block; None when `place` is there. One process at a time."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(place.with_name(f".{place.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if place.exists():
            yield None
            return
        for cut_short in place.parent.glob(f".{place.name}-*"):
            shutil.rmtree(cut_short)
        new = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}-"))
        new.chmod(0o755)
        try:
            yield new
            new.rename(place)
        finally:
            shutil.rmtree(new, ignore_errors=True)


def download_kernel(folder: Path) -> None:
    names = [line.split()[0] for line in run("apt-cache", "search", "--names-only", KERNELS).splitlines()]
    if not names:
        raise Missing("apt offers no Debian kernel (linux-image-6.…-amd64) here")
    newest = max(names, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])
    run("apt-get", "download", "-q", newest, cwd=folder)


def kernel(supplies: Path) -> Path:
    """The image of the newest Debian kernel that apt offers, with its modules beside it (120 MB)."""
    place = supplies / "kernel"
    with being_made(place) as new:
        if new is not None:
            try:
                download_kernel(new)
            except Missing:
                run("apt-get", "update", "-qq")  # its lists may be of old, or none
                download_kernel(new)
            (package,) = new.glob("*.deb")
            print(f"» unpacking {package.name}", flush=True)
            # Unpacked only: installing it would make a boot image that nobody needs.
            run("dpkg-deb", "--extract", package, new)
            package.unlink()
            if not (new / "lib").exists():
                (new / "lib").symlink_to("usr/lib")
            (version,) = (path.name for path in (new / "lib/modules").iterdir())
            run("/sbin/depmod", "-b", new, version)
    (image,) = (place / "boot").glob("vmlinuz-*")
    return image


SUITE = "trixie"  # its Python is recent enough
PACKAGES = "systemd,systemd-sysv,dbus,dbus-user-session,libpam-systemd,libseccomp2,libnftables1,procps,python3"
USER = "agent"  # uid 1000, with a manager of its own that is started at boot


def mirror() -> str:
    """Where this host's apt gets Debian's packages from."""
    form = "$(ORIGIN) $(COMPONENT) $(REPO_URI)"
    for line in run("apt-get", "indextargets", "--format", form, "Created-By: Packages").splitlines():
        origin, component, address = line.split()
        if (origin, component) == ("Debian", "main") and "security" not in address:
            return address
    raise Missing("apt has no source of Debian's own packages here, of which a root for systemd could be made")


def root(supplies: Path, wheel: Path) -> Path:
    """A root file system with systemd, Python and what osmoda's wheel requires (500 MB); the wheel's files are new."""
    place = supplies / f"root-{recipe(wheel)}"
    with being_made(place) as new:
        if new is not None:
            for other in supplies.glob("root-*"):
                shutil.rmtree(other)
            print(f"» making a root of Debian {SUITE}", flush=True)
            new.rmdir()
            # What it mounts on the way is nobody else's to see, least of all of tests that look for leftovers.
            alone = ("unshare", "--mount", "--propagation", "private")
            run(*alone, "mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", SUITE, new, mirror())
            (new / "lib/modules").mkdir(exist_ok=True)
            run("chroot", new, "useradd", "--create-home", "--uid", "1000", USER)
            (new / "var/lib/systemd/linger").mkdir(parents=True, exist_ok=True)
            (new / "var/lib/systemd/linger" / USER).touch()
            run("chroot", new, "python3", "-m", "venv", "--without-pip", "/opt/osmoda")
            print("» installing what osmoda requires into it", flush=True)
            install(new, wheel)
            run("chroot", new, "python3", "-m", "compileall", "-q", "/opt/osmoda/lib")
    packages = site_packages(place)
    # pip replaces nothing that is there, nor the folder of scripts.
    for old in (*packages.glob("osmoda"), *packages.glob("osmoda-*.dist-info"), *packages.glob("bin")):
        shutil.rmtree(old)
    install(place, wheel, "--no-deps")
    run("chroot", place, "python3", "-m", "compileall", "-q", f"/{packages.relative_to(place)}/osmoda")
    return place


def recipe(wheel: Path) -> str:
    """A digest of what a root is made of, osmoda itself left out: another needs another root."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
            lines = archive.read(metadata).decode().splitlines()
    except (OSError, zipfile.BadZipFile) as error:
        raise Missing(f"{wheel} is no wheel: {error}") from None
    requires = sorted(line for line in lines if line.startswith("Requires-Dist:"))
    lock = os.environ.get("PIP_CONSTRAINT", "")
    locked = Path(lock).read_text() if lock else ""
    return hashlib.sha256(repr((SUITE, PACKAGES, USER, requires, locked)).encode()).hexdigest()[:12]


def site_packages(root: Path) -> Path:
    (packages,) = (root / "opt/osmoda/lib").glob("python3.*/site-packages")
    return packages


def install(root: Path, wheel: Path, *options: str) -> None:
    """Put the wheel into the root's environment: from out here, where pip has its settings."""
    packages = site_packages(root)
    version = packages.parent.name.removeprefix("python")
    pip = [sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check", "install", "--root-user-action=ignore"]
    target = ["--python-version", version, "--only-binary", ":all:", "--no-compile", "--target", packages]
    run(*pip, *target, *options, wheel)
    for script in (packages / "bin").glob("osmoda-*"):
        script.replace(root / "opt/osmoda/bin" / script.name)
