"""What the agreement is checked with: units out of Debian packages, and a small root with systemd; made once, kept.

The packages are unpacked in memory, and of them only service units are kept, outside the repository.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import subprocess
import tarfile
import tempfile
from pathlib import Path

from tests.vm.supplies import SUITE, Missing, being_made, mirror, run

# Small ones that hold service units; together 33 MB.
PACKAGES: list[str] = """
acpid adjtimex anacron anytun apache2 apcupsd arpwatch at atftpd atop auditd autofs autosuspend
avahi-daemon bacula-director bacula-fd bacula-sd bandwidthd beanstalkd bind9 bolt borgmatic
btrfsmaintenance buildbot-worker burp certbot cfengine3 charon-systemd chrony clamav-daemon
clamav-freshclam clevis-systemd cloud-init colord connman conntrackd cron cups-browsed daemontools-run dbus
ddclient debomatic dkimpy-milter dmeventd dnsmasq dnsproxy e2fsprogs earlyoom espeakup etckeeper exabgp
fake-hwclock fancontrol fastd fcgiwrap fort-validator fprintd freeipmi-bmc-watchdog freeipmi-ipmidetect
fwknop-server ganglia-monitor gearman-job-server geoclue-2.0 gmetad gpm gpsd graphite-carbon greylistd
gssproxy haveged hdapsd hitch i8kutils ifupdown iio-sensor-proxy iodine ipmiutil irqbalance
jitterentropy-rngd jool-tools kea-ctrl-agent knockd knot-resolver knxd krb5-admin-server krb5-kdc ladvd
laptop-mode-tools lcd4linux lcdproc libvirt-daemon-system lightdm lighttpd lirc lldpd lm-sensors logiops
logrotate low-memory-monitor lxcfs mandos mbpfan mcollective mdadm memcached micro-httpd minidlna minissdpd
miniupnpd miredo moosefs-chunkserver mopidy mpdscribble msmtp-mta multipath-tools munin-node nbd-client
netscript-2.4 networkd-dispatcher nfdump nfs-common nfs-kernel-server nftables nginx-common ngircd nrpe-ng
nsca-ng-server nscd ntpsec nullmailer numad nvme-cli oddjob open-iscsi opendkim opendmarc openntpd opensm
opensmtpd owhttpd owserver pcscd pesign pgbouncer plymouth polkitd postgresql-common postgrey postsrsd
power-profiles-daemon powertop prelude-manager prometheus-xmpp-alerts psad qemu-guest-agent quota radicale
radvd rasdaemon ratbagd razercfg rdnssd redis-sentinel redis-server resolvconf rng-tools5 rpcbind
rpki-client rtkit sane-utils ser2net shadowsocks-libev shairport-sync slurmd slurmdbd sniproxy snmpd
snmptrapd softflowd spice-vdagent sshguard sslh sssd-kcm strongswan-starter stubby stunnel4
switcheroo-control sysstat systemd-container systemd-coredump systemd-cron systemd-homed
systemd-journal-remote systemd-oomd systemd-resolved systemd-timesyncd systemd-userdbd
systemd-zram-generator tang targetcli-fb tgt thermald thinkfan tinc tinyproxy tlp tpm2-abrmd
transmission-daemon trousers tuned tuptime ufw ulogd2 unattended-upgrades unscd upower uptimed
usb-modeswitch usbguard usbmuxd usbrelayd uuid-runtime vnstat vpnc vsftpd waagent watchdog wireguard-tools
wsdd wsdd2 xrdp yaws zram-tools
""".split()  # noqa: SIM905
IN_ROOT = "systemd,systemd-sysv,dbus"
_UNIT = re.compile(r"\./(?:usr/)?lib/systemd/system/([^/]+\.service)")


def units(supplies: Path) -> Path:
    """A folder with the service units of PACKAGES, as they stand in the packages that apt offers."""
    place = supplies / f"units-{hashlib.sha256(' '.join(PACKAGES).encode()).hexdigest()[:12]}"
    with being_made(place) as new:
        if new is not None:
            print(f"» downloading {len(PACKAGES)} packages", flush=True)
            with tempfile.TemporaryDirectory(dir=supplies) as folder:
                _download(Path(folder))
                for package in sorted(Path(folder).glob("*.deb")):
                    _unpack(package, new)
    return place


def _download(folder: Path) -> None:
    # The user that apt would rather download as can write here.
    folder.chmod(0o777)
    try:
        run("apt-get", "download", "-q", *PACKAGES, cwd=folder)
    except Missing:
        run("apt-get", "update", "-qq")  # its lists may be of old, or none
        # Another release of Debian may lack some.
        known = run("apt-cache", "show", "--no-all-versions", "--quiet", *PACKAGES).splitlines()
        there = {line.removeprefix("Package: ") for line in known if line.startswith("Package: ")}
        run("apt-get", "download", "-q", *sorted(there), cwd=folder)


def _unpack(package: Path, folder: Path) -> None:
    archive = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        for member in files:
            match = _UNIT.fullmatch(member.name)
            if match and member.isfile():
                content = files.extractfile(member)
                assert content is not None
                (folder / match[1]).write_bytes(content.read())


def root(supplies: Path) -> Path:
    """A root file system of Debian with systemd (150 MB)."""
    place = supplies / f"systemd-{SUITE}"
    with being_made(place) as new:
        if new is not None:
            print(f"» making a root of Debian {SUITE} with systemd", flush=True)
            new.rmdir()
            alone = ("unshare", "--mount", "--propagation", "private")
            run(*alone, "mmdebstrap", "--quiet", "--variant=minbase", f"--include={IN_ROOT}", SUITE, new, mirror())
            # So that what is called after the host is known.
            (new / "etc/machine-id").write_text(f"{os.urandom(16).hex()}\n")
    return place
