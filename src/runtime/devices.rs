//! Host devices and groups of an instance: looked up at the moment of the start.
//!
//! Runs on exec threads. In: devices of the node configuration with the access that the service
//! asks for, names of groups. Out: device nodes and group ids. Paths are resolved, then opened
//! below `/dev` without following anything, so that what is checked is what is used. Not here: the
//! count of users (core) and the check of the access (`checks`).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, major, minor};

use crate::model::node::Device;
use crate::runtime::spec::{DeviceKind, DeviceNode};
use crate::sys::fs::{open_beneath, open_dir};

/// Nodes that one directory may stand for.
pub const MAX_NODES: usize = 64;
/// Longest path of a host device in bytes.
pub const MAX_PATH: usize = 255;
/// Deepest directory below a device directory.
pub const MAX_DEPTH: usize = 8;

/// Refused unless the integrator allows them: memory, kernel log, watchdogs, the console. A name
/// with `*` stands for all that begin so.
const REFUSED: [&str; 6] = ["mem", "kmem", "port", "kmsg", "console", "watchdog*"];

/// Why an instance cannot have a device or group.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("device {device} has the malformed path {path:?}")]
    Path { device: String, path: String },
    #[error("device {device}: cannot find {path}")]
    Find {
        device: String,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("device {device}: {path} leads out of the device directory")]
    Outside { device: String, path: PathBuf },
    #[error("device {device}: {path} is not a device node")]
    NotNode { device: String, path: PathBuf },
    #[error("device {device}: {path} is not for services, key allowedDevices permits it")]
    Refused { device: String, path: PathBuf },
    #[error("device {device}: {path} has more than {MAX_NODES} nodes or {MAX_DEPTH} levels")]
    TooMany { device: String, path: PathBuf },
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("unknown group {0:?}")]
    Group(String),
}

/// Where devices and groups are looked up.
#[derive(Clone, Debug)]
pub struct Places {
    /// `/dev`; another one in tests.
    pub dev: PathBuf,
    /// `/etc/group`; another one in tests.
    pub group_file: PathBuf,
    /// Host paths that are allowed although they are refused otherwise.
    pub allowed: Vec<String>,
}

impl Places {
    /// Those of this host, with what is allowed beyond the rules.
    pub fn host(allowed: Vec<String>) -> Self {
        Self { dev: PathBuf::from("/dev"), group_file: PathBuf::from("/etc/group"), allowed }
    }
}

/// The nodes behind the devices of a service, in order, with the access that it asks for.
pub fn resolve(devices: &[(Device, String)], places: &Places) -> Result<Vec<DeviceNode>, Error> {
    let mut nodes = Vec::new();
    if devices.is_empty() {
        return Ok(nodes);
    }
    let mounted = mounted_devices()?;
    for (device, permissions) in devices {
        let mut lookup = Lookup { device: &device.name, permissions, places, mounted: &mounted };
        for entry in &device.host_devices {
            lookup.entry(entry, &mut nodes)?;
        }
    }
    Ok(nodes)
}

/// Ids of host groups, in order.
pub fn groups<'a>(
    names: impl Iterator<Item = &'a str>,
    places: &Places,
) -> Result<Vec<u32>, Error> {
    let mut names = names.peekable();
    if names.peek().is_none() {
        return Ok(Vec::new());
    }
    // Without the name service switch: it may block, and it loads libraries into the daemon.
    let path = &places.group_file;
    let file =
        fs::read_to_string(path).map_err(|source| Error::Read { path: path.clone(), source })?;
    names.map(|name| gid(&file, name).ok_or_else(|| Error::Group(name.to_owned()))).collect()
}

fn gid(file: &str, name: &str) -> Option<u32> {
    file.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let mut fields = line.split(':');
        let found = !name.is_empty() && fields.next() == Some(name);
        fields.nth(1).filter(|_| found)?.parse().ok()
    })
}

/// `major:minor` of everything that is mounted.
fn mounted_devices() -> Result<BTreeSet<String>, Error> {
    let path = PathBuf::from("/proc/thread-self/mountinfo");
    let text = fs::read_to_string(&path).map_err(|source| Error::Read { path, source })?;
    Ok(text.lines().filter_map(|line| line.split(' ').nth(2)).map(str::to_owned).collect())
}

/// The lookup of one device of the node configuration.
struct Lookup<'a> {
    device: &'a str,
    permissions: &'a str,
    places: &'a Places,
    mounted: &'a BTreeSet<String>,
}

impl Lookup<'_> {
    /// One string `host[:container]`: a node, or all nodes of a directory.
    fn entry(&mut self, entry: &str, nodes: &mut Vec<DeviceNode>) -> Result<(), Error> {
        let (host, container) = entry.split_once(':').unwrap_or((entry, entry));
        if host.len() > MAX_PATH || !is_normal(host) || !is_normal(container) {
            return Err(Error::Path { device: self.name(), path: entry.to_owned() });
        }
        if !Path::new(host).starts_with(&self.places.dev) || Path::new(host) == self.places.dev {
            return Err(Error::Outside { device: self.name(), path: host.into() });
        }
        let real = fs::canonicalize(host).map_err(|source| self.find(Path::new(host), source))?;
        let stat = self.stat(&real)?;
        if kind(&stat).is_some() {
            return self.node(&real, container, &stat, nodes);
        }
        if file_type(&stat) != SFlag::S_IFDIR {
            return Err(Error::NotNode { device: self.name(), path: host.into() });
        }
        let limit = nodes.len() + MAX_NODES;
        self.directory(&real, Path::new(container), MAX_DEPTH, limit, nodes)
    }

    /// All nodes below a directory, in the order of their names; links are not followed.
    fn directory(
        &mut self,
        dir: &Path,
        container: &Path,
        depth: usize,
        limit: usize,
        nodes: &mut Vec<DeviceNode>,
    ) -> Result<(), Error> {
        let read = |source| Error::Read { path: dir.to_owned(), source };
        let entries: io::Result<Vec<_>> = fs::read_dir(dir).map_err(read)?.collect();
        let mut names: Vec<_> =
            entries.map_err(read)?.iter().map(fs::DirEntry::file_name).collect();
        names.sort();
        for name in names {
            let (path, inside) = (dir.join(&name), container.join(&name));
            let is_link = path.is_symlink();
            let stat = if is_link { None } else { Some(self.stat(&path)?) };
            match stat {
                Some(stat) if kind(&stat).is_some() => {
                    let Some(inside) = inside.to_str() else {
                        log::warn!("device name is not UTF-8, ignored path={}", path.display());
                        continue;
                    };
                    if nodes.len() == limit {
                        return Err(Error::TooMany { device: self.name(), path: dir.to_owned() });
                    }
                    self.node(&path, inside, &stat, nodes)?;
                }
                Some(stat) if file_type(&stat) == SFlag::S_IFDIR => {
                    if depth == 0 {
                        return Err(Error::TooMany { device: self.name(), path });
                    }
                    self.directory(&path, &inside, depth - 1, limit, nodes)?;
                }
                _ => log::warn!("not a device node, ignored path={}", path.display()),
            }
        }
        Ok(())
    }

    fn node(
        &self,
        host: &Path,
        container: &str,
        stat: &FileStat,
        nodes: &mut Vec<DeviceNode>,
    ) -> Result<(), Error> {
        let Some(kind) = kind(stat) else {
            return Err(Error::NotNode { device: self.name(), path: host.to_owned() });
        };
        let (major, minor) = (major(stat.st_rdev), minor(stat.st_rdev));
        let in_use =
            kind == DeviceKind::Block && self.mounted.contains(&format!("{major}:{minor}"));
        if (in_use || self.is_refused(host)) && !self.is_allowed(host) {
            return Err(Error::Refused { device: self.name(), path: host.to_owned() });
        }
        nodes.push(DeviceNode {
            path: container.to_owned(),
            kind,
            major,
            minor,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            permissions: self.permissions.to_owned(),
        });
        Ok(())
    }

    /// State of what is at a resolved path; fails when it was replaced by a link meanwhile.
    fn stat(&self, real: &Path) -> Result<FileStat, Error> {
        let outside = || Error::Outside { device: self.name(), path: real.to_owned() };
        let below = real.strip_prefix(&self.places.dev).map_err(|_| outside())?;
        let opened: io::Result<OwnedFd> = open_dir(&self.places.dev).and_then(|dev| {
            open_beneath(dev.as_fd(), below, OFlag::O_PATH | OFlag::O_NOFOLLOW, Mode::empty())
        });
        let fd = opened.map_err(|source| self.find(real, source))?;
        fstat(&fd).map_err(|errno| self.find(real, errno.into()))
    }

    fn is_refused(&self, host: &Path) -> bool {
        let Some(name) = host.strip_prefix(&self.places.dev).ok().and_then(Path::to_str) else {
            return true;
        };
        REFUSED.iter().any(|refused| match refused.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => name == *refused,
        })
    }

    fn is_allowed(&self, host: &Path) -> bool {
        self.places.allowed.iter().any(|allowed| Path::new(allowed) == host)
    }

    fn find(&self, path: &Path, source: io::Error) -> Error {
        Error::Find { device: self.name(), path: path.to_owned(), source }
    }

    fn name(&self) -> String {
        self.device.to_owned()
    }
}

fn file_type(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

fn kind(stat: &FileStat) -> Option<DeviceKind> {
    match file_type(stat) {
        SFlag::S_IFBLK => Some(DeviceKind::Block),
        SFlag::S_IFCHR => Some(DeviceKind::Char),
        SFlag::S_IFIFO => Some(DeviceKind::Fifo),
        _ => None,
    }
}

/// Absolute, and spelled as the kernel would: no empty component, no `.`, no `..`.
fn is_normal(path: &str) -> bool {
    let plain = Path::new(path)
        .components()
        .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    let rebuilt: PathBuf = Path::new(path).components().collect();
    plain
        && path.starts_with('/')
        && path != "/"
        && rebuilt.as_os_str() == path
        && !path.contains('\0')
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use nix::sys::stat::{makedev, mknod};
    use tempfile::TempDir;

    use super::*;
    use crate::sys::fs::write_plain;

    /// A device directory with nodes; `None` = no right to make nodes.
    fn dev() -> Option<(TempDir, Places)> {
        let dir = TempDir::new().unwrap();
        let dev = dir.path().canonicalize().unwrap().join("dev");
        fs::create_dir_all(dev.join("dir/sub")).unwrap();
        let make = |name: &str, kind: SFlag, mode: u32, number: (u64, u64)| {
            let path = dev.join(name);
            mknod(&path, kind, Mode::empty(), makedev(number.0, number.1)).ok()?;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).ok()
        };
        for (name, kind, mode, number) in [
            ("node", SFlag::S_IFCHR, 0o660, (1, 3)),
            ("dir/a", SFlag::S_IFCHR, 0o664, (1, 5)),
            ("dir/sub/b", SFlag::S_IFCHR, 0o4644, (1, 7)),
            ("block", SFlag::S_IFBLK, 0o600, (7, 77)),
            ("fifo", SFlag::S_IFIFO, 0o622, (0, 0)),
            ("mem", SFlag::S_IFCHR, 0o640, (1, 1)),
            ("watchdog0", SFlag::S_IFCHR, 0o640, (10, 130)),
        ] {
            if make(name, kind, mode, number).is_none() {
                println!("SKIP devices: needs CAP_MKNOD");
                return None;
            }
        }
        write_plain(&dev.join("file"), b"", 0o600).unwrap();
        write_plain(&dir.path().join("outside"), b"", 0o600).unwrap();
        write_plain(&dev.join("dir/text"), b"", 0o600).unwrap();
        symlink("node", dev.join("link")).unwrap();
        symlink("../node", dev.join("dir/link")).unwrap();
        symlink(dev.join("dir"), dev.join("dirlink")).unwrap();
        symlink("../outside", dev.join("escape")).unwrap();
        symlink("nothing", dev.join("dangling")).unwrap();
        let group_file = dir.path().join("group");
        write_plain(&group_file, b"root:x:0:\n#no:x:1:\nvideo:x:44:me,you\nbad\nodd:x:x:\n", 0o644)
            .unwrap();
        Some((dir, Places { dev, group_file, allowed: Vec::new() }))
    }

    fn of(places: &Places, entry: &str) -> Result<Vec<DeviceNode>, Error> {
        let entry = entry.replace("DEV", places.dev.to_str().unwrap());
        let device = Device { name: "d".into(), host_devices: vec![entry], ..Default::default() };
        resolve(&[(device, "rw".to_owned())], places)
    }

    /// `path kind major:minor mode` of each node, paths below the device directory shortened.
    fn text(places: &Places, nodes: &[DeviceNode]) -> String {
        let line = |node: &DeviceNode| {
            let path = node.path.replace(places.dev.to_str().unwrap(), "DEV");
            format!("{path} {:?} {}:{} {:o}", node.kind, node.major, node.minor, node.mode)
        };
        nodes.iter().map(line).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn nodes_links_and_directories() {
        let Some((_dir, places)) = dev() else { return };
        for (entry, expect) in [
            ("DEV/node", "DEV/node Char 1:3 660"),
            ("DEV/node:/dev/x", "/dev/x Char 1:3 660"),
            ("DEV/link", "DEV/link Char 1:3 660"),
            ("DEV/block", "DEV/block Block 7:77 600"),
            ("DEV/fifo", "DEV/fifo Fifo 0:0 622"),
            ("DEV/dir", "DEV/dir/a Char 1:5 664, DEV/dir/sub/b Char 1:7 4644"),
            ("DEV/dirlink:/dev/y", "/dev/y/a Char 1:5 664, /dev/y/sub/b Char 1:7 4644"),
        ] {
            assert_eq!(text(&places, &of(&places, entry).unwrap()), expect, "{entry}");
        }
        assert!(resolve(&[], &places).unwrap().is_empty());
    }

    #[test]
    fn what_is_no_device_of_a_service() {
        let Some((_dir, mut places)) = dev() else { return };
        for (entry, expect) in [
            ("DEV/file", "is not a device node"),
            ("DEV/missing", "cannot find"),
            ("DEV/dangling", "cannot find"),
            ("DEV/escape", "leads out"),
            ("/etc/passwd", "leads out"),
            ("DEV", "leads out"),
            ("DEV/../outside", "malformed"),
            ("DEV//node", "malformed"),
            ("DEV/node/", "malformed"),
            ("node", "malformed"),
            ("", "malformed"),
            ("DEV/node:", "malformed"),
            ("DEV/node:x", "malformed"),
            ("DEV/node:/dev/../x", "malformed"),
            ("DEV/node:/a:/b", "/a:/b"),
            ("DEV/mem", "is not for services"),
            ("DEV/watchdog0:/dev/harmless", "is not for services"),
        ] {
            let result = of(&places, entry);
            match result {
                Ok(nodes) => assert_eq!(nodes[0].path, expect, "{entry}"),
                Err(error) => assert!(error.to_string().contains(expect), "{entry}: {error}"),
            }
        }
        let long = format!("DEV/{}", "x".repeat(MAX_PATH));
        assert!(of(&places, &long).unwrap_err().to_string().contains("malformed"));
        places.allowed = vec![places.dev.join("mem").to_str().unwrap().to_owned()];
        assert_eq!(text(&places, &of(&places, "DEV/mem").unwrap()), "DEV/mem Char 1:1 640");
    }

    #[test]
    fn a_directory_has_bounds() {
        let Some((_dir, places)) = dev() else { return };
        let many = places.dev.join("many");
        fs::create_dir(&many).unwrap();
        let number = makedev(1, 3);
        for index in 0..MAX_NODES {
            mknod(&many.join(format!("{index:03}")), SFlag::S_IFCHR, Mode::empty(), number)
                .unwrap();
        }
        assert_eq!(of(&places, "DEV/many").unwrap().len(), MAX_NODES);
        mknod(&many.join("z"), SFlag::S_IFCHR, Mode::empty(), number).unwrap();
        assert!(of(&places, "DEV/many").unwrap_err().to_string().contains("more than"));
        let deep = places.dev.join("deep").join("d/".repeat(MAX_DEPTH));
        fs::create_dir_all(&deep).unwrap();
        assert_eq!(of(&places, "DEV/deep").unwrap().len(), 0);
        fs::create_dir(deep.join("d")).unwrap();
        assert!(of(&places, "DEV/deep").unwrap_err().to_string().contains("more than"));
    }

    #[test]
    fn a_mounted_block_device_is_refused() {
        let Some((_dir, places)) = dev() else { return };
        let mounted = mounted_devices().unwrap();
        let on_disk = mounted.iter().find(|number| !number.starts_with("0:"));
        let Some((major, minor)) = on_disk.and_then(|number| number.split_once(':')) else {
            println!("SKIP a_mounted_block_device_is_refused: nothing is mounted from a disk");
            return;
        };
        let number = makedev(major.parse().unwrap(), minor.parse().unwrap());
        mknod(&places.dev.join("disk"), SFlag::S_IFBLK, Mode::empty(), number).unwrap();
        assert!(matches!(of(&places, "DEV/disk"), Err(Error::Refused { .. })));
        // The same numbers as a character device are something else.
        mknod(&places.dev.join("tape"), SFlag::S_IFCHR, Mode::empty(), number).unwrap();
        assert!(of(&places, "DEV/tape").is_ok());
    }

    #[test]
    fn group_ids() {
        let Some((_dir, mut places)) = dev() else { return };
        let of = |names: &[&str], places: &Places| groups(names.iter().copied(), places);
        assert_eq!(of(&["video", "root", "video"], &places).unwrap(), [44, 0, 44]);
        for unknown in ["", "#no", "no", "bad", "odd", "x", "vide"] {
            let error = of(&["video", unknown], &places).unwrap_err();
            assert!(matches!(&error, Error::Group(name) if name == unknown), "{error}");
        }
        places.group_file = "/nonexistent".into();
        assert!(of(&[], &places).unwrap().is_empty());
        assert!(matches!(of(&["video"], &places), Err(Error::Read { .. })));
    }
}
