//! What the cloud may put into the configuration of a container: names and mounts.
//!
//! Pure, any thread. In: texts of the service configuration and of the node configuration. Out:
//! the accepted value or the reason of the refusal. Host devices are checked where they are looked
//! up (`devices`), variables where they are merged (`env`).

use std::net::IpAddr;
use std::path::{Component, Path};

use crate::model::node::{Host, Mount};

/// Longest host name that the kernel takes.
pub const MAX_HOSTNAME: usize = 64;
/// Longest name in `hosts`.
pub const MAX_DNS_NAME: usize = 253;
/// Longest label of a host name.
pub const MAX_LABEL: usize = 63;

/// Sysctl keys of the IPC and UTS namespaces; `net.` and `fs.mqueue.` are namespaced as a whole.
const SYSCTL_KEYS: [&str; 9] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
    "kernel.domainname",
];
const SYSCTL_PREFIXES: [&str; 2] = ["net.", "fs.mqueue."];

/// Mount options of resources; one with `=` takes a value.
const MOUNT_OPTIONS: [&str; 15] = [
    "ro", "rw", "bind", "rbind", "nosuid", "nodev", "noexec", "relatime", "noatime", "size=",
    "mode=", "private", "rprivate", "slave", "rslave",
];
/// What the runtime itself puts there: nothing may be mounted over these.
const RESERVED_DESTINATIONS: [&str; 4] = ["/", "/sys", "/dev", "/proc"];

/// Why a value is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("malformed host name {0:?}")]
    Hostname(String),
    #[error("resource {resource} has a malformed host {ip:?} {hostname:?}")]
    Host { resource: String, ip: String, hostname: String },
    #[error("sysctl {0:?} does not belong to the namespaces of a container")]
    Sysctl(String),
    #[error("sysctl {0} has a value with control characters")]
    SysctlValue(String),
    #[error("device permissions {0:?} are not a subset of \"rwm\" with \"r\" or \"w\"")]
    Permissions(String),
    #[error("resource {resource} must not be mounted on {destination:?}")]
    Destination { resource: String, destination: String },
    #[error("resource {resource} has a mount of type {kind:?}, only bind and tmpfs are allowed")]
    MountType { resource: String, kind: String },
    #[error("resource {resource} has the mount option {option:?}, which is not allowed")]
    MountOption { resource: String, option: String },
    #[error("resource {resource} binds {source_path:?}, which is no absolute path")]
    Source { resource: String, source_path: String },
}

/// Host name of an instance (RFC 1123).
pub fn hostname(name: &str) -> Result<(), Error> {
    if is_name(name, MAX_HOSTNAME) { Ok(()) } else { Err(Error::Hostname(name.to_owned())) }
}

/// A line for `hosts`.
pub fn host(resource: &str, host: &Host) -> Result<(), Error> {
    if host.ip.parse::<IpAddr>().is_ok() && is_name(&host.hostname, MAX_DNS_NAME) {
        return Ok(());
    }
    let Host { ip, hostname } = host.clone();
    Err(Error::Host { resource: resource.to_owned(), ip, hostname })
}

fn is_name(name: &str, max: usize) -> bool {
    let label = |label: &str| {
        (1..=MAX_LABEL).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= max && name.split('.').all(label)
}

/// A kernel parameter: only those that the container's own namespaces hold.
pub fn sysctl(key: &str, value: &str) -> Result<(), Error> {
    // The kernel takes `/` for `.` too, so that a component may contain a dot (VLAN interfaces).
    let path = key.replace('/', ".");
    let whole = path.split('.').all(|part| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
    });
    let namespaced = SYSCTL_PREFIXES.iter().any(|prefix| path.starts_with(prefix))
        || SYSCTL_KEYS.contains(&path.as_str());
    if !whole || !namespaced {
        return Err(Error::Sysctl(key.to_owned()));
    }
    // Blanks and tabs separate the numbers of one value.
    if value.chars().any(|c| c.is_control() && c != '\t') {
        return Err(Error::SysctlValue(key.to_owned()));
    }
    Ok(())
}

/// Access to a device: each of `r`, `w`, `m` at most once. `m` (make nodes) is not granted.
pub fn permissions(text: &str) -> Result<String, Error> {
    let once = |c: char| text.matches(c).count() == 1;
    if text.is_empty() || !text.chars().all(|c| "rwm".contains(c) && once(c)) {
        return Err(Error::Permissions(text.to_owned()));
    }
    let granted: String = text.chars().filter(|&c| c != 'm').collect();
    if granted.is_empty() {
        return Err(Error::Permissions(text.to_owned()));
    }
    if granted != text {
        log::warn!("device permission m is not granted permissions={text}");
    }
    Ok(granted)
}

/// A mount of a resource, with its type filled in.
pub fn mount(resource: &str, mount: &Mount) -> Result<Mount, Error> {
    let resource = || resource.to_owned();
    let kind = if mount.kind.is_empty() { "bind" } else { mount.kind.as_str() };
    if !["bind", "tmpfs"].contains(&kind) {
        return Err(Error::MountType { resource: resource(), kind: kind.to_owned() });
    }
    if !may_mount_on(&mount.destination) {
        let destination = mount.destination.clone();
        return Err(Error::Destination { resource: resource(), destination });
    }
    if kind == "bind" && (!mount.source.starts_with('/') || mount.source.contains('\0')) {
        let source_path = mount.source.clone();
        return Err(Error::Source { resource: resource(), source_path });
    }
    if let Some(option) = mount.options.iter().find(|option| !is_option(option)) {
        return Err(Error::MountOption { resource: resource(), option: option.clone() });
    }
    Ok(Mount { kind: kind.to_owned(), ..mount.clone() })
}

/// Absolute, without `..`, and nothing that the runtime needs for itself.
fn may_mount_on(destination: &str) -> bool {
    let path = Path::new(destination);
    let plain = path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    // `Path` compares components: `/dev/`, `//dev` and `/dev/.` are `/dev`.
    path.is_absolute()
        && plain
        && !destination.contains('\0')
        && !RESERVED_DESTINATIONS.iter().any(|reserved| path == Path::new(reserved))
        && !path.starts_with("/proc")
}

fn is_option(option: &str) -> bool {
    MOUNT_OPTIONS.iter().any(|known| match known.strip_suffix('=') {
        Some(_) => option.strip_prefix(known).is_some_and(|value| {
            !value.is_empty() && value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'%')
        }),
        None => option == *known,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names() {
        for good in ["a", "fx-host", "a.b.c", "0", &"x".repeat(63), "xn--bcher-kva.example"] {
            assert_eq!(hostname(good), Ok(()), "{good:?}");
        }
        let long = [&"x".repeat(64), &format!("{0}.{0}", "x".repeat(32)), "", ".", "a..b", "a."];
        for bad in long.into_iter().chain(["-a", "a-", "a_b", "a b", "a\n", "a/b", "ä", "a\0"]) {
            assert!(hostname(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn lines_of_hosts() {
        let check = |ip: &str, hostname: &str| {
            host("res", &Host { ip: ip.into(), hostname: hostname.into() }).is_ok()
        };
        assert!(check("10.0.0.1", "server"));
        assert!(check("fe80::1", "a.very-long.example.org"));
        let long = vec!["x".repeat(MAX_LABEL); 4].join(".");
        assert!(check("::1", &long[..MAX_DNS_NAME]));
        assert!(!check("::1", &long[..=MAX_DNS_NAME]));
        assert!(!check("10.0.0", "server"));
        assert!(!check("10.0.0.1", "server\n6.6.6.6 bank"));
        assert!(!check("10.0.0.1\n6.6.6.6", "server"));
        assert!(!check("10.0.0.1", ""));
    }

    #[test]
    fn kernel_parameters() {
        for good in [
            "net.ipv4.ip_unprivileged_port_start",
            "net/ipv4/conf/eth0.100/forwarding",
            "fs.mqueue.msg_max",
            "kernel.shmmax",
            "kernel/sem",
        ] {
            assert_eq!(sysctl(good, "1 2\t3"), Ok(()), "{good:?}");
        }
        for bad in [
            "",
            "kernel.panic",
            "vm.swappiness",
            "kernel.hostname",
            "kernel.shmmaxx",
            "net",
            "net.",
            "net/../kernel/panic",
            "net..ipv4",
            "net.ipv4.a b",
            "NET.x",
            "fs.file-max",
            ".net.x",
        ] {
            assert!(sysctl(bad, "1").is_err(), "{bad:?}");
        }
        assert!(sysctl("net.x", "1\n2").is_err());
        assert!(sysctl("net.x", "\0").is_err());
    }

    #[test]
    fn device_permissions() {
        for (text, expect) in [
            ("r", Some("r")),
            ("rw", Some("rw")),
            ("wr", Some("wr")),
            ("rwm", Some("rw")),
            ("mr", Some("r")),
        ] {
            assert_eq!(permissions(text).ok().as_deref(), expect, "{text:?}");
        }
        for bad in ["", "m", "rr", "rwx", "R", "rw ", "rwmr"] {
            assert_eq!(permissions(bad), Err(Error::Permissions(bad.into())));
        }
    }

    fn of(destination: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
        Mount {
            destination: destination.into(),
            kind: kind.into(),
            source: source.into(),
            options: options.iter().map(|&option| option.into()).collect(),
        }
    }

    #[test]
    fn mounts_of_resources() {
        let filled = mount("res", &of("/run/fx", "", "/run/fx", &["bind", "ro"])).unwrap();
        assert_eq!(filled.kind, "bind");
        for good in ["/dev/log", "/sys/class/gpio", "/procs", "/etc/ssl", "/tmp/", "/a//b"] {
            assert!(mount("res", &of(good, "bind", "/x", &[])).is_ok(), "{good:?}");
        }
        for bad in [
            "",
            "/",
            "//",
            "a",
            "./a",
            "/dev",
            "/dev/",
            "/sys",
            "/proc",
            "/proc/1",
            "/proc/../x",
            "/a/../../b",
            "/..",
            "/dev/.",
            "/a\0",
        ] {
            let result = mount("res", &of(bad, "bind", "/x", &[]));
            assert!(matches!(result, Err(Error::Destination { .. })), "{bad:?} {result:?}");
        }
        for bad in ["proc", "sysfs", "cgroup", "overlay", "ext4"] {
            assert!(mount("res", &of("/a", bad, "/x", &[])).is_err(), "{bad:?}");
        }
        for bad in ["", "x", "tmpfs", "/a\0"] {
            assert!(mount("res", &of("/a", "bind", bad, &[])).is_err(), "{bad:?}");
        }
        assert!(mount("res", &of("/a", "tmpfs", "tmpfs", &["size=64k", "mode=1777"])).is_ok());
        for bad in
            ["suid", "dev", "exec", "remount", "size=", "size=1,dev", "mode=a/b", "shared", ""]
        {
            assert!(mount("res", &of("/a", "tmpfs", "tmpfs", &[bad])).is_err(), "{bad:?}");
        }
    }
}
