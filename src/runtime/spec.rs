//! From the plan of a start to the OCI configuration of the container.
//!
//! Pure, runs on exec threads. In: the plan, the settings of the daemon and what was looked up on
//! the host for this start (`Resolved`). Out: an `oci::Spec`; `bundle` writes it. The order of the
//! changes is that of the reference, because a later variable or mount replaces an earlier one.
//! Not here: host devices (`devices`), mount points and the root file system (`rootfs`).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::model::id::InstanceId;
use crate::model::job::StartPlan;
use crate::model::node::Resource;
use crate::model::service::{ImageConfig, Quotas};
use crate::runtime::env::Env;
use crate::runtime::{checks, env, oci};

/// Period of the CPU quota in microseconds.
pub const CPU_PERIOD_US: u64 = 100_000;
/// Smallest CPU quota by DMIPS in microseconds; the kernel takes no smaller one.
pub const MIN_CPU_QUOTA_US: u64 = 1000;
/// Largest CPU quota in microseconds that the kernel takes.
pub const MAX_CPU_QUOTA_US: u64 = (1 << 44) - 1;
/// Most processes that the kernel takes as a limit; it cannot have more.
pub const MAX_PIDS: u64 = 1 << 22;
/// Open files of a service without `noFileLimit`.
pub const DEFAULT_OPEN_FILES: u64 = 1024;
/// Host name of a service that names none, as in the reference.
pub const DEFAULT_HOSTNAME: &str = "runc";
/// Place of the state file in an instance.
pub const STATE_DESTINATION: &str = "/state.dat";
/// Place of the storage directory in an instance.
pub const STORAGE_DESTINATION: &str = "/storage";

const BASE_ENV: [(&str, &str); 2] =
    [("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"), ("TERM", "xterm")];

/// Name and number of the capabilities that a service may have.
const CAPABILITIES: [(&str, u32); 3] =
    [("CAP_AUDIT_WRITE", 29), ("CAP_KILL", 5), ("CAP_NET_BIND_SERVICE", 10)];

/// Destination, type, source and options.
const BASE_MOUNTS: [(&str, &str, &str, &[&str]); 7] = [
    ("/proc", "proc", "proc", &[]),
    ("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
    (
        "/dev/pts",
        "devpts",
        "devpts",
        &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
    ),
    ("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
    ("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
];

const MASKED_PATHS: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/proc/scsi",
];

const READONLY_PATHS: &[&str] =
    &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What is the same for all instances while the daemon runs.
#[derive(Clone, Debug)]
pub struct SpecSettings {
    /// Root of the volatile files.
    pub run_dir: PathBuf,
    /// Control group below which the groups of the instances stand, absolute.
    pub cgroup_parent: String,
    /// OCI seccomp object for all instances.
    pub seccomp: Option<Arc<serde_json::Value>>,
    pub host: HostLimits,
}

/// What the daemon can give to a container.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostLimits {
    /// Bounding set of the daemon: bit n is capability n.
    pub bounding: u64,
    /// Highest `RLIMIT_NOFILE` that may be set.
    pub max_open_files: u64,
    /// Highest `RLIMIT_NPROC` that may be set.
    pub max_processes: u64,
    /// OOM score of containers: 0, or the own one where that cannot be lowered.
    pub oom_score_adj: i32,
    /// The host runs cgroup v2 only.
    pub cgroup_v2: bool,
}

/// What was looked up on the host for one start.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Resolved {
    /// CPUs that are online.
    pub cpus: u64,
    /// Entries of `/etc` that the instance shares with the host: name and existing source.
    pub etc: Vec<(String, PathBuf)>,
    /// Nodes of the service's devices in the order of the plan.
    pub devices: Vec<DeviceNode>,
    /// Ids of the groups of devices and resources, in order.
    pub gids: Vec<u32>,
    /// State file; `None` = the instance has none.
    pub state: Option<PathBuf>,
    /// Storage directory; `None` = the instance has none.
    pub storage: Option<PathBuf>,
    /// Bind sources of resources that are device nodes.
    pub device_sources: Vec<String>,
}

/// A device node of the host and how the instance sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceNode {
    /// Path in the container.
    pub path: String,
    pub kind: DeviceKind,
    pub major: u64,
    pub minor: u64,
    /// Permission bits of the host node, 12 bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Access as the service asks for it, unchecked.
    pub permissions: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceKind {
    Block,
    Char,
    Fifo,
}

/// Why there can be no container for a plan.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("unsupported OS in image config {0}")]
    UnsupportedOs(String),
    #[error("image config has neither Entrypoint nor Cmd")]
    NoCommand,
    #[error("working directory {0:?} of the image is not an absolute path")]
    WorkingDir(String),
    #[error("image config has a NUL character in its command")]
    NulInCommand,
    #[error("path {0:?} is not valid UTF-8")]
    NotUtf8(PathBuf),
    #[error("malformed seccomp profile: {0}")]
    Seccomp(String),
    #[error(transparent)]
    Refused(#[from] checks::Error),
    #[error(transparent)]
    Env(#[from] env::Error),
}

/// Directory of an instance's bundle.
pub fn bundle_dir(run_dir: &Path, id: &InstanceId) -> PathBuf {
    run_dir.join("runtime").join(id.as_str())
}

/// Control group of an instance, absolute below the root of every hierarchy.
pub fn cgroup_path(parent: &str, id: &InstanceId) -> String {
    format!("{}/aos-service@{id}.service", parent.trim_end_matches('/'))
}

/// Makes the configuration of the container.
pub fn build(
    plan: &StartPlan,
    settings: &SpecSettings,
    resolved: &Resolved,
) -> Result<oci::Spec, Error> {
    let mut spec = base(plan, settings)?;
    let mut env = own_env(plan)?;
    add_etc(&mut spec, &resolved.etc)?;
    add_state_and_storage(&mut spec, resolved)?;
    apply_image(&mut spec, &mut env, &plan.image.image)?;
    apply_service(&mut spec, plan)?;
    apply_quotas(&mut spec, plan, settings, resolved.cpus);
    add_devices(&mut spec, &resolved.devices)?;
    add_groups(&mut spec, &resolved.gids);
    for resource in &plan.resources {
        add_resource(&mut spec, &mut env, resource, &resolved.device_sources)?;
    }
    env.merge(&plan.overrides)?;
    spec.process.env = env.into_entries();
    Ok(spec)
}

/// The configuration before anything is known of the service.
fn base(plan: &StartPlan, settings: &SpecSettings) -> Result<oci::Spec, Error> {
    let rootfs = bundle_dir(&settings.run_dir, &plan.id).join("rootfs");
    let capabilities: Vec<&str> = CAPABILITIES
        .iter()
        .filter(|(_, number)| settings.host.bounding & (1 << number) != 0)
        .map(|(name, _)| *name)
        .collect();
    let open_files = DEFAULT_OPEN_FILES.min(settings.host.max_open_files);
    let process = oci::Process {
        user: oci::User {
            uid: plan.instance.uid,
            gid: plan.service.gid,
            additional_gids: Vec::new(),
        },
        args: Vec::new(),
        env: Vec::new(),
        cwd: "/".to_owned(),
        capabilities: oci::Capabilities {
            bounding: capabilities.clone(),
            effective: capabilities.clone(),
            permitted: capabilities,
        },
        rlimits: vec![rlimit("RLIMIT_NOFILE", open_files)],
        no_new_privileges: true,
        oom_score_adj: settings.host.oom_score_adj,
    };
    Ok(oci::Spec {
        oci_version: oci::VERSION,
        process,
        root: oci::Root { path: text(&rootfs)? },
        hostname: DEFAULT_HOSTNAME.to_owned(),
        mounts: base_mounts(),
        linux: base_linux(plan, settings),
    })
}

fn base_mounts() -> Vec<oci::Mount> {
    let mount = |&(destination, kind, source, options): &(&str, &str, &str, &[&str])| oci::Mount {
        destination: destination.to_owned(),
        kind: kind.to_owned(),
        source: source.to_owned(),
        options: options.iter().map(|&option| option.to_owned()).collect(),
    };
    BASE_MOUNTS.iter().map(mount).collect()
}

fn base_linux(plan: &StartPlan, settings: &SpecSettings) -> oci::Linux {
    let namespace = |kind| oci::Namespace { kind, path: None };
    let network = Some(format!("/run/netns/{}", plan.id));
    let mut namespaces = vec![
        namespace("pid"),
        oci::Namespace { kind: "network", path: network },
        namespace("ipc"),
        namespace("uts"),
        namespace("mount"),
    ];
    if settings.host.cgroup_v2 {
        namespaces.push(namespace("cgroup"));
    }
    let deny_all = oci::DeviceRule {
        allow: false,
        kind: None,
        major: None,
        minor: None,
        access: "rwm".to_owned(),
    };
    oci::Linux {
        sysctl: Default::default(),
        resources: oci::Resources { devices: vec![deny_all], memory: None, cpu: None, pids: None },
        cgroups_path: cgroup_path(&settings.cgroup_parent, &plan.id),
        namespaces,
        devices: Vec::new(),
        seccomp: settings.seccomp.clone(),
        masked_paths: MASKED_PATHS,
        readonly_paths: READONLY_PATHS,
    }
}

fn own_env(plan: &StartPlan) -> Result<Env, Error> {
    let ident = &plan.instance.ident;
    let mut env = Env::default();
    for (name, value) in BASE_ENV {
        env.set(name, value)?;
    }
    env.set("AOS_SERVICE_ID", ident.service_id.as_str())?;
    env.set("AOS_SUBJECT_ID", ident.subject_id.as_str())?;
    env.set("AOS_INSTANCE_INDEX", &ident.instance.to_string())?;
    env.set("AOS_INSTANCE_ID", plan.id.as_str())?;
    if let Some(secret) = plan.secret.as_deref().filter(|secret| !secret.is_empty()) {
        env.set("AOS_SECRET", secret)?;
    }
    Ok(env)
}

fn add_etc(spec: &mut oci::Spec, etc: &[(String, PathBuf)]) -> Result<(), Error> {
    for (name, source) in etc {
        spec.mounts.push(bind(&format!("/etc/{name}"), source, "ro")?);
    }
    Ok(())
}

fn add_state_and_storage(spec: &mut oci::Spec, resolved: &Resolved) -> Result<(), Error> {
    if let Some(state) = &resolved.state {
        put_mount(spec, bind(STATE_DESTINATION, state, "rw")?);
    }
    if let Some(storage) = &resolved.storage {
        put_mount(spec, bind(STORAGE_DESTINATION, storage, "rw")?);
    }
    Ok(())
}

fn apply_image(spec: &mut oci::Spec, env: &mut Env, image: &ImageConfig) -> Result<(), Error> {
    if !image.os.eq_ignore_ascii_case("linux") {
        return Err(Error::UnsupportedOs(image.os.clone()));
    }
    let args: Vec<String> = image.entrypoint.iter().chain(&image.cmd).cloned().collect();
    if args.is_empty() {
        return Err(Error::NoCommand);
    }
    if args.iter().any(|arg| arg.contains('\0')) {
        return Err(Error::NulInCommand);
    }
    spec.process.args = args;
    if !image.working_dir.is_empty() {
        if !image.working_dir.starts_with('/') || image.working_dir.contains('\0') {
            return Err(Error::WorkingDir(image.working_dir.clone()));
        }
        spec.process.cwd = image.working_dir.clone();
    }
    env.merge(&image.env)?;
    Ok(())
}

fn apply_service(spec: &mut oci::Spec, plan: &StartPlan) -> Result<(), Error> {
    let service = &plan.image.service;
    if !service.hostname.is_empty() {
        checks::hostname(&service.hostname)?;
        spec.hostname = service.hostname.clone();
    }
    for (key, value) in &service.sysctl {
        checks::sysctl(key, value)?;
    }
    spec.linux.sysctl = service.sysctl.clone();
    Ok(())
}

fn apply_quotas(spec: &mut oci::Spec, plan: &StartPlan, settings: &SpecSettings, cpus: u64) {
    let quotas = &plan.image.service.quotas;
    let resources = &mut spec.linux.resources;
    resources.cpu = cpu_quota(quotas, plan.max_dmips, cpus)
        .map(|quota| oci::Cpu { quota: signed(quota), period: CPU_PERIOD_US });
    resources.memory = quotas.ram_bytes.map(|bytes| oci::Limit { limit: signed(bytes) });
    resources.pids = quotas.pids.map(|pids| oci::Limit { limit: signed(pids.min(MAX_PIDS)) });
    if quotas.cpu_dmips.is_some() && resources.cpu.is_none() {
        log::info!("DMIPS of the node unknown, no CPU quota instance={}", plan.id);
    }
    if let Some(pids) = quotas.pids {
        put_rlimit(
            spec,
            "RLIMIT_NPROC",
            clamp(plan, "pidsLimit", pids, settings.host.max_processes),
        );
    }
    if let Some(files) = quotas.open_files {
        let files = clamp(plan, "noFileLimit", files, settings.host.max_open_files);
        put_rlimit(spec, "RLIMIT_NOFILE", files);
    }
    if let Some(bytes) = quotas.tmp_bytes {
        let options = ["nosuid", "strictatime", "mode=1777", &format!("size={bytes}")];
        put_mount(
            spec,
            oci::Mount {
                destination: "/tmp".to_owned(),
                kind: "tmpfs".to_owned(),
                source: "tmpfs".to_owned(),
                options: options.map(str::to_owned).to_vec(),
            },
        );
    }
}

/// CPU time per period in microseconds; `None` = not limited, or the size of the node is unknown.
pub fn cpu_quota(quotas: &Quotas, max_dmips: u64, cpus: u64) -> Option<u64> {
    let all = u128::from(CPU_PERIOD_US) * u128::from(cpus);
    let share =
        |part: u64, of: u64| u128::from(part).saturating_mul(all).checked_div(u128::from(of));
    let quota = match (quotas.cpu_dmips, quotas.cpu_percent) {
        (Some(dmips), _) => share(dmips, max_dmips)?.max(u128::from(MIN_CPU_QUOTA_US)),
        (None, Some(percent)) => share(percent, 100)?,
        (None, None) => return None,
    };
    Some(u64::try_from(quota).unwrap_or(u64::MAX).min(MAX_CPU_QUOTA_US))
}

fn clamp(plan: &StartPlan, quota: &str, wanted: u64, highest: u64) -> u64 {
    if wanted > highest {
        log::warn!(
            "limit lowered to what the host allows instance={} {quota}={wanted} allowed={highest}",
            plan.id
        );
    }
    wanted.min(highest)
}

fn add_devices(spec: &mut oci::Spec, nodes: &[DeviceNode]) -> Result<(), Error> {
    for node in nodes {
        if spec.linux.devices.iter().any(|device| device.path == node.path) {
            continue;
        }
        let access = checks::permissions(&node.permissions)?;
        let kind = match node.kind {
            DeviceKind::Block => "b",
            DeviceKind::Char => "c",
            DeviceKind::Fifo => "p",
        };
        spec.linux.devices.push(oci::Device {
            path: node.path.clone(),
            kind,
            major: node.major,
            minor: node.minor,
            file_mode: node.mode,
            uid: node.uid,
            gid: node.gid,
        });
        // Control groups know no FIFOs.
        if node.kind != DeviceKind::Fifo {
            spec.linux.resources.devices.push(oci::DeviceRule {
                allow: true,
                kind: Some(kind),
                major: Some(node.major),
                minor: Some(node.minor),
                access,
            });
        }
    }
    Ok(())
}

fn add_groups(spec: &mut oci::Spec, gids: &[u32]) {
    let additional = &mut spec.process.user.additional_gids;
    for gid in gids {
        if !additional.contains(gid) {
            additional.push(*gid);
        }
    }
}

fn add_resource(
    spec: &mut oci::Spec,
    env: &mut Env,
    resource: &Resource,
    device_sources: &[String],
) -> Result<(), Error> {
    for host in &resource.hosts {
        checks::host(&resource.name, host)?;
    }
    for mount in &resource.mounts {
        let mount = checks::mount(&resource.name, mount)?;
        let mut options = mount.options;
        if mount.kind == "bind" {
            // A node of the cloud's choice must not become a device or a way to other rights.
            let harden: &[&str] = if device_sources.contains(&mount.source) {
                &["nosuid"]
            } else {
                &["nosuid", "nodev"]
            };
            add_options(&mut options, harden);
            if !options.iter().any(|option| option == "bind" || option == "rbind") {
                options.insert(0, "bind".to_owned());
            }
        }
        let (destination, kind, source) = (mount.destination, mount.kind, mount.source);
        put_mount(spec, oci::Mount { destination, kind, source, options });
    }
    env.merge_resource(&resource.name, &resource.env)?;
    Ok(())
}

fn add_options(options: &mut Vec<String>, more: &[&str]) {
    for &option in more {
        if !options.iter().any(|old| old == option) {
            options.push(option.to_owned());
        }
    }
}

fn bind(destination: &str, source: &Path, access: &str) -> Result<oci::Mount, Error> {
    Ok(oci::Mount {
        destination: destination.to_owned(),
        kind: "bind".to_owned(),
        source: text(source)?,
        options: vec!["bind".to_owned(), access.to_owned()],
    })
}

/// A mount takes the place of one with the same destination.
fn put_mount(spec: &mut oci::Spec, mount: oci::Mount) {
    match spec.mounts.iter_mut().find(|old| old.destination == mount.destination) {
        Some(old) => *old = mount,
        None => spec.mounts.push(mount),
    }
}

fn rlimit(kind: &'static str, limit: u64) -> oci::Rlimit {
    oci::Rlimit { kind, hard: limit, soft: limit }
}

/// A limit takes the place of one of the same type.
fn put_rlimit(spec: &mut oci::Spec, kind: &'static str, limit: u64) {
    let rlimits = &mut spec.process.rlimits;
    match rlimits.iter_mut().find(|old| old.kind == kind) {
        Some(old) => *old = rlimit(kind, limit),
        None => rlimits.push(rlimit(kind, limit)),
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn text(path: &Path) -> Result<String, Error> {
    path.to_str().map(str::to_owned).ok_or_else(|| Error::NotUtf8(path.to_owned()))
}

/// Checks the text of a seccomp profile and reduces it to the architecture of this program:
/// each further one costs several milliseconds per start.
pub fn seccomp_profile(text: &str) -> Result<Arc<serde_json::Value>, Error> {
    let mut profile: serde_json::Value =
        serde_json::from_str(text).map_err(|error| Error::Seccomp(error.to_string()))?;
    let Some(object) = profile.as_object_mut() else {
        return Err(Error::Seccomp("it is no object".to_owned()));
    };
    if !object.get("defaultAction").is_some_and(serde_json::Value::is_string) {
        return Err(Error::Seccomp("defaultAction is missing".to_owned()));
    }
    object.insert("architectures".to_owned(), serde_json::json!([NATIVE_ARCHITECTURE]));
    Ok(Arc::new(profile))
}

#[cfg(target_arch = "x86_64")]
const NATIVE_ARCHITECTURE: &str = "SCMP_ARCH_X86_64";
#[cfg(target_arch = "aarch64")]
const NATIVE_ARCHITECTURE: &str = "SCMP_ARCH_AARCH64";
#[cfg(target_arch = "arm")]
const NATIVE_ARCHITECTURE: &str = "SCMP_ARCH_ARM";
#[cfg(target_arch = "riscv64")]
const NATIVE_ARCHITECTURE: &str = "SCMP_ARCH_RISCV64";

#[cfg(test)]
pub(crate) mod tests;
