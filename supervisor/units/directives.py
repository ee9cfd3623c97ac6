"""One table of every directive that a unit can have: how it is taken in, or why it is refused.

It is complete with regard to systemd's own list (`systemd --dump-configuration-items`, versions 252 and 257), so that
a directive that is in neither can be called unknown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from osmoda.supervisor.units import draft, listening, osmoda_section, service_values, values
from osmoda.supervisor.units.commands import commands
from osmoda.supervisor.units.conditions import TESTS
from osmoda.supervisor.units.draft import (
    choice,
    condition,
    directive,
    installed_names,
    only,
    scalar,
    strings,
    unit_names,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from osmoda.supervisor.units.draft import Draft, Handler
    from osmoda.supervisor.units.syntax import Assignment

type How = Literal["supported", "default only", "confinement", "without effect", "refused"]


@dataclass(frozen=True, slots=True)
class Rule:
    """What becomes of a directive. `reason` says why it is refused, or why nothing but its default is supported."""

    how: How
    handle: Handler | None = None
    reason: str = ""


def supported(handle: Handler) -> Rule:
    return Rule("supported", handle)


def default_only(parse: Callable[[str], Any], default: object, reason: str) -> Rule:
    """What may be written only as it holds anyway."""
    return Rule("default only", only(parse, default, reason), reason)


def no(reason: str) -> Rule:
    """A switch that has to stay off."""
    return default_only(values.boolean, False, reason)


def _none(_: Draft, assignment: Assignment) -> None:
    """An action that has to stay "none"."""
    if assignment.value not in ("none", ""):
        raise ValueError("is not supported, only none: an agent does not decide on the host")


def _ignored(_: Draft, assignment: Assignment) -> None:
    """Its value is not read: whatever it says changes nothing about what runs, or how."""


def each(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


def refused(reason: str, names: str) -> dict[str, Rule]:
    return each(names, Rule("refused", None, reason))


WITHOUT_EFFECT = Rule("without effect", _ignored)
NO_ACTION = Rule("default only", _none, "an agent does not decide on the host")
_RESOLVED = directive("confinement", resolve=True)
_AS_WRITTEN = directive("confinement", resolve=False)


def _conditions(prefix: str) -> Iterable[tuple[str, Rule]]:
    for name, (form, _) in TESTS.items():
        yield prefix + name, supported(condition(form))


_OTHER_CONDITIONS = """
PathIsEncrypted NeedsUpdate FirstBoot Firmware Virtualization KernelVersion Version Credential Security Capability
ACPower Memory CPUFeature CPUs User Group ControlGroupController OSRelease MemoryPressure CPUPressure IOPressure
KernelModuleLoaded
"""

_START_LIMIT = {
    "StartLimitIntervalSec": supported(scalar("start_limit_interval", values.seconds)),
    "StartLimitInterval": supported(scalar("start_limit_interval", values.seconds)),
    "StartLimitBurst": supported(scalar("start_limit_burst", values.unsigned)),
    **each("StartLimitAction FailureAction", NO_ACTION),
    "RebootArgument": WITHOUT_EFFECT,
}

_UNIT: dict[str, Rule] = {
    "Description": supported(draft.text("description")),
    "Documentation": supported(strings("documentation", str)),
    **each("SourcePath CollectMode", WITHOUT_EFFECT),
    "Requires": supported(unit_names("requires")),
    "Requisite": supported(unit_names("requisite")),
    "Wants": supported(unit_names("wants")),
    **each("BindsTo BindTo", supported(unit_names("binds_to"))),
    "PartOf": supported(unit_names("part_of")),
    "Conflicts": supported(unit_names("conflicts")),
    "Before": supported(unit_names("before")),
    "After": supported(unit_names("after")),
    "DefaultDependencies": supported(scalar("default_dependencies", values.boolean)),
    **_START_LIMIT,
    **each("SuccessAction JobTimeoutAction", NO_ACTION),
    **each("FailureActionExitStatus SuccessActionExitStatus JobTimeoutRebootArgument", WITHOUT_EFFECT),
    **each(
        "JobTimeoutSec JobRunningTimeoutSec",
        default_only(values.microseconds, None, "TimeoutStartSec= bounds a start"),
    ),
    **each(
        """StopWhenUnneeded RefuseManualStart RefuseManualStop AllowIsolate OnFailureIsolate SurviveFinalKillSignal""",
        no("whoever may command the supervisor may start and stop every unit"),
    ),
    "IgnoreOnIsolate": WITHOUT_EFFECT,
    **each("OnSuccessJobMode OnFailureJobMode", WITHOUT_EFFECT),
    **refused(
        "no unit starts or stops another by its own end",
        """Upholds OnSuccess OnFailure PropagatesReloadTo PropagateReloadTo ReloadPropagatedFrom PropagateReloadFrom
        PropagatesStopTo StopPropagatedFrom""",
    ),
    **refused("no two agents share a namespace", "JoinsNamespaceOf"),
    **refused("systemd itself ignores it since version 231", "RequiresOverridable RequisiteOverridable"),
    **refused("mounts are no units of this supervisor", "RequiresMountsFor WantsMountsFor"),
    **dict(_conditions("Condition")),
    **dict(_conditions("Assert")),
    **refused(
        "this condition is not evaluated",
        " ".join(prefix + name for prefix in ("Condition", "Assert") for name in _OTHER_CONDITIONS.split()),
    ),
}

# systemd.exec(5) and systemd.resource-control(5). Specifiers are resolved where systemd resolves them.
_CONFINEMENT: dict[str, Rule] = {
    **each(
        """RootDirectory RootImage RootImageOptions RootHash RootHashSignature RootVerity ExtensionDirectories
        ExtensionImages MountImages SupplementaryGroups ReadWriteDirectories ReadOnlyDirectories InaccessibleDirectories
        ReadWritePaths ReadOnlyPaths InaccessiblePaths ExecPaths NoExecPaths ExecSearchPath BindPaths BindReadOnlyPaths
        TemporaryFileSystem NetworkNamespacePath IPCNamespacePath RuntimeDirectory StateDirectory CacheDirectory
        LogsDirectory ConfigurationDirectory SetCredential SetCredentialEncrypted LoadCredential LoadCredentialEncrypted
        ImportCredential PAMName SELinuxContext AppArmorProfile SmackProcessLabel Slice DeviceAllow IPIngressFilterPath
        IPEgressFilterPath BPFProgram OpenFile""",
        Rule("confinement", _RESOLVED),
    ),
    **each(
        """RootImagePolicy RootEphemeral ExtensionImagePolicy MountImagePolicy SetLoginEnvironment Nice OOMScoreAdjust
        CoredumpFilter IOSchedulingClass IOSchedulingPriority CPUSchedulingPolicy CPUSchedulingPriority
        CPUSchedulingResetOnFork CPUAffinity NUMAPolicy NUMAMask UMask DynamicUser RemoveIPC SecureBits
        CapabilityBoundingSet AmbientCapabilities TimerSlackNSec NoNewPrivileges KeyringMode ProtectProc ProcSubset
        SystemCallFilter SystemCallArchitectures SystemCallErrorNumber SystemCallLog MemoryDenyWriteExecute
        RestrictNamespaces RestrictRealtime RestrictSUIDSGID RestrictAddressFamilies LockPersonality RestrictFileSystems
        LimitCPU LimitFSIZE LimitDATA LimitSTACK LimitCORE LimitRSS LimitNOFILE LimitAS LimitNPROC LimitMEMLOCK
        LimitLOCKS LimitSIGPENDING LimitMSGQUEUE LimitNICE LimitRTPRIO LimitRTTIME PrivateTmp PrivateDevices
        ProtectKernelTunables ProtectKernelModules ProtectKernelLogs ProtectClock ProtectControlGroups PrivateNetwork
        PrivateUsers PrivateMounts PrivateIPC PrivatePIDs PrivateBPF ProtectSystem ProtectHome MountFlags MountAPIVFS
        BindLogSockets Personality RuntimeDirectoryPreserve RuntimeDirectoryMode StateDirectoryMode CacheDirectoryMode
        LogsDirectoryMode ConfigurationDirectoryMode IgnoreSIGPIPE ProtectHostname MemoryKSM AllowedCPUs
        StartupAllowedCPUs AllowedMemoryNodes StartupAllowedMemoryNodes CPUAccounting CPUWeight StartupCPUWeight
        CPUShares StartupCPUShares CPUQuota CPUQuotaPeriodSec MemoryAccounting MemoryMin DefaultMemoryMin
        DefaultMemoryLow DefaultStartupMemoryLow MemoryLow StartupMemoryLow MemoryHigh StartupMemoryHigh MemoryMax
        StartupMemoryMax MemorySwapMax StartupMemorySwapMax MemoryZSwapMax StartupMemoryZSwapMax MemoryZSwapWriteback
        MemoryLimit DevicePolicy IOAccounting IOWeight StartupIOWeight IODeviceWeight IOReadBandwidthMax
        IOWriteBandwidthMax IOReadIOPSMax IOWriteIOPSMax IODeviceLatencyTargetSec BlockIOAccounting BlockIOWeight
        StartupBlockIOWeight BlockIODeviceWeight BlockIOReadBandwidth BlockIOWriteBandwidth TasksAccounting TasksMax
        Delegate DelegateSubgroup DisableControllers IPAccounting IPAddressAllow IPAddressDeny ManagedOOMSwap
        ManagedOOMMemoryPressure ManagedOOMMemoryPressureLimit ManagedOOMMemoryPressureDurationSec ManagedOOMPreference
        OOMPolicy SocketBindAllow SocketBindDeny RestrictNetworkInterfaces MemoryPressureThresholdSec
        MemoryPressureWatch NFTSet CoredumpReceive""",
        Rule("confinement", _AS_WRITTEN),
    ),
}

_TERMINAL = "an agent has no terminal"
_LABELS = "SyslogFacility SyslogLevel SyslogLevelPrefix"
_PROCESS: dict[str, Rule] = {
    "WorkingDirectory": supported(service_values.working_directory),
    "User": supported(draft.parsed_text("user", values.account)),
    "Group": supported(draft.parsed_text("group", values.account)),
    "Environment": supported(service_values.environment),
    "EnvironmentFile": supported(service_values.environment_file),
    "PassEnvironment": supported(strings("pass_environment", service_values.variable)),
    "UnsetEnvironment": supported(strings("unset_environment", service_values.variable_or_assignment, unescape=True)),
    "StandardInput": supported(service_values.standard_input),
    "StandardOutput": supported(service_values.output("standard_output")),
    "StandardError": supported(service_values.output("standard_error")),
    "SyslogIdentifier": supported(draft.text("syslog_identifier")),
    **each(_LABELS, WITHOUT_EFFECT),
    **refused("input comes from a file, or there is none", "StandardInputText StandardInputData"),
    **refused(_TERMINAL, "TTYPath TTYRows TTYColumns UtmpIdentifier UtmpMode"),
    **each("TTYReset TTYVHangup TTYVTDisallocate", no(_TERMINAL)),
    **refused(
        "lines of all agents are kept alike",
        """LogLevelMax LogRateLimitIntervalSec LogRateLimitBurst LogExtraFields LogFilterPatterns LogNamespace""",
    ),
    **refused("there is no clean verb", "TimeoutCleanSec"),
    **_CONFINEMENT,
}

_MODE_OF_TIMEOUT = default_only(str, "terminate", "what is late gets KillSignal=")
_SERVICE: dict[str, Rule] = {
    "Type": supported(service_values.service_type),
    "ExitType": default_only(str, "main", "a service ends with its main process"),
    "RemainAfterExit": supported(scalar("remain_after_exit", values.boolean)),
    "ExecCondition": supported(commands("exec_condition")),
    "ExecStartPre": supported(commands("exec_start_pre")),
    "ExecStart": supported(commands("exec_start")),
    "ExecStartPost": supported(commands("exec_start_post")),
    "ExecReload": supported(commands("exec_reload")),
    "ExecStop": supported(commands("exec_stop")),
    "ExecStopPost": supported(commands("exec_stop_post")),
    "Restart": supported(
        choice("restart", "no", "always", "on-success", "on-failure", "on-abnormal", "on-abort", "on-watchdog")
    ),
    "RestartMode": default_only(str, "normal", "a restart passes through the stopped state"),
    "RestartSec": supported(scalar("restart_sec", values.seconds)),
    "RestartSteps": supported(scalar("restart_steps", values.unsigned)),
    "RestartMaxDelaySec": supported(scalar("restart_max_delay", values.seconds)),
    "TimeoutSec": supported(service_values.timeouts("timeout_start", "timeout_stop")),
    "TimeoutStartSec": supported(service_values.timeouts("timeout_start")),
    "TimeoutStopSec": supported(service_values.timeouts("timeout_stop")),
    "TimeoutAbortSec": supported(service_values.timeout_abort),
    **each("TimeoutStartFailureMode TimeoutStopFailureMode", _MODE_OF_TIMEOUT),
    "RuntimeMaxSec": supported(scalar("runtime_max", values.seconds)),
    "RuntimeRandomizedExtraSec": default_only(values.microseconds, 0, "RuntimeMaxSec= holds as it is"),
    "WatchdogSec": supported(scalar("watchdog", service_values.watchdog)),
    **_START_LIMIT,
    "SuccessExitStatus": supported(service_values.exit_statuses("success")),
    "RestartPreventExitStatus": supported(service_values.exit_statuses("restart_prevent")),
    "RestartForceExitStatus": supported(service_values.exit_statuses("restart_force")),
    "NotifyAccess": supported(choice("notify_access", "none", "main", "exec", "all")),
    "Sockets": supported(strings("sockets", service_values.socket_name)),
    "KillMode": supported(service_values.kill_mode),
    "KillSignal": supported(scalar("kill_signal", values.signal_number)),
    "RestartKillSignal": supported(scalar("restart_kill_signal", values.signal_number)),
    "FinalKillSignal": supported(scalar("final_kill_signal", values.signal_number)),
    "WatchdogSignal": default_only(values.signal_number, 6, "the watchdog sends SIGABRT"),
    "SendSIGKILL": supported(scalar("send_sigkill", values.boolean)),
    "SendSIGHUP": supported(scalar("send_sighup", values.boolean)),
    **each("PermissionsStartOnly RootDirectoryStartOnly", no("all commands run in the one sandbox")),
    "NonBlocking": no("sockets are handed over as they are"),
    "GuessMainPID": WITHOUT_EFFECT,
    "FileDescriptorStoreMax": default_only(values.unsigned, 0, "the supervisor keeps no descriptors of agents"),
    "FileDescriptorStorePreserve": WITHOUT_EFFECT,
    **refused("only Type=forking has a file of its process id", "PIDFile"),
    **refused("only Type=dbus has a name on the bus", "BusName"),
    **refused("only Type=notify-reload reloads by a signal; ExecReload= does", "ReloadSignal RefreshOnReload"),
    **refused("an agent has no device of USB gadgets", "USBFunctionDescriptors USBFunctionStrings"),
    **_PROCESS,
}

_INSTALL: dict[str, Rule] = {
    "WantedBy": supported(installed_names("wanted_by")),
    "RequiredBy": supported(installed_names("required_by")),
    "Also": supported(installed_names("also")),
    "Alias": supported(installed_names("alias")),
    "DefaultInstance": supported(service_values.default_instance),
    **refused("no unit is started again because another runs", "UpheldBy"),
}

_OSMODA: dict[str, Rule] = {
    "Profile": supported(draft.parsed_text("profile", osmoda_section.profile)),
    "Tier": supported(scalar("tier", osmoda_section.tier)),
    "Serve": supported(osmoda_section.serve),
    "HealthCheck": supported(osmoda_section.health_check),
    "HealthInterval": supported(scalar("health_interval", osmoda_section.span)),
    "HealthTimeout": supported(scalar("health_timeout", osmoda_section.span)),
    "HealthStartPeriod": supported(scalar("health_start_period", osmoda_section.period)),
    "HealthRetries": supported(scalar("health_retries", osmoda_section.retries)),
    "RestartGroup": supported(osmoda_section.restart_group),
    "Workspace": supported(osmoda_section.workspace),
    "Pool": supported(scalar("pool", osmoda_section.pool)),
}

_SOCKET: dict[str, Rule] = {
    "ListenStream": supported(listening.listen("stream")),
    "ListenDatagram": supported(listening.listen("datagram")),
    "ListenSequentialPacket": supported(listening.listen("sequential-packet")),
    "BindIPv6Only": supported(scalar("ipv6_only", listening.ipv6_only)),
    "Backlog": supported(scalar("backlog", values.unsigned)),
    "SocketUser": supported(draft.parsed_text("user", values.account)),
    "SocketGroup": supported(draft.parsed_text("group", values.account)),
    "SocketMode": supported(scalar("mode", values.mode)),
    "DirectoryMode": supported(scalar("directory_mode", values.mode)),
    "Accept": no("one process serves all connections"),
    "RemoveOnStop": supported(scalar("remove_on_stop", values.boolean)),
    "Symlinks": supported(strings("symlinks", values.absolute_path)),
    "FileDescriptorName": supported(draft.parsed_text("descriptor_name", listening.descriptor_name)),
    "Service": supported(draft.parsed_text("service", service_values.service_name)),
    "KeepAlive": supported(scalar("keep_alive", values.boolean)),
    "NoDelay": supported(scalar("no_delay", values.boolean)),
    "ReusePort": supported(scalar("reuse_port", values.boolean)),
    "FreeBind": supported(scalar("free_bind", values.boolean)),
    "PassCredentials": supported(scalar("pass_credentials", values.boolean)),
    **each(
        """FlushPending Writable Transparent Broadcast PassSecurity PassPacketInfo SELinuxContextFromNet
        PassFileDescriptorsToExec""",
        no("sockets listen and are handed over, nothing else"),
    ),
    **each("MaxConnections MaxConnectionsPerSource", WITHOUT_EFFECT),
    **refused(
        "only sockets of streams, datagrams and packets are handed over",
        "ListenFIFO ListenNetlink ListenSpecial ListenMessageQueue ListenUSBFunction",
    ),
    **refused(
        "a socket is made without running a program", "ExecStartPre ExecStartPost ExecStopPre ExecStopPost TimeoutSec"
    ),
    **refused(
        "this option of sockets is not set",
        """SocketProtocol BindToDevice KeepAliveTimeSec KeepAliveIntervalSec KeepAliveProbes DeferAcceptSec Priority
        ReceiveBuffer SendBuffer IPTOS IPTTL Mark PipeSize Timestamping TCPCongestion MessageQueueMaxMessages
        MessageQueueMessageSize SmackLabel SmackLabelIPIn SmackLabelIPOut""",
    ),
    **refused(
        "the service has its own start limit",
        "TriggerLimitIntervalSec TriggerLimitBurst PollLimitIntervalSec PollLimitBurst",
    ),
    **refused("no process of a socket unit is there that it could hold for", " ".join(_PROCESS)),
    **refused(
        "no process of a socket unit is there that it could hold for",
        "SendSIGKILL SendSIGHUP KillMode KillSignal RestartKillSignal FinalKillSignal WatchdogSignal",
    ),
}

SERVICE: Mapping[str, Mapping[str, Rule]] = {
    "Unit": _UNIT,
    "Service": _SERVICE,
    "Install": _INSTALL,
    "X-Osmoda": _OSMODA,
}
SOCKET: Mapping[str, Mapping[str, Rule]] = {"Unit": _UNIT, "Socket": _SOCKET, "Install": _INSTALL}
