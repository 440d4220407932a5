use std::os::unix::fs::{FileTypeExt, PermissionsExt};

use tempfile::TempDir;

use super::*;
use crate::sys::fs::write_plain;
use crate::sys::thread::spawn;

/// Runs a test with mounts of its own; a host that does not allow this skips it.
fn in_private(name: &'static str, body: impl FnOnce(&Path) + Send + 'static) {
    let run = move || {
        let dir = TempDir::new().unwrap();
        if mount::isolate().is_err() {
            println!("SKIP {name}: needs CAP_SYS_ADMIN");
            return;
        }
        let path = dir.path().canonicalize().unwrap();
        body(&path);
        mount::unmount_below(&path).unwrap();
    };
    spawn("rootfs-test", run).unwrap().join().unwrap();
}

/// Makes a tree: `name/` = directory, `name>target` = link, otherwise a file that contains the name
/// of the tree.
fn tree(dir: &Path, entries: &[&str]) -> PathBuf {
    fs::create_dir_all(dir).unwrap();
    let content = dir.file_name().unwrap().as_encoded_bytes();
    for entry in entries {
        if let Some((name, target)) = entry.split_once('>') {
            symlink(target, dir.join(name)).unwrap();
            continue;
        }
        let path = dir.join(entry);
        fs::create_dir_all(if entry.ends_with('/') { &path } else { path.parent().unwrap() })
            .unwrap();
        if !entry.ends_with('/') {
            write_plain(&path, content, 0o644).unwrap();
        }
    }
    dir.to_owned()
}

/// All entries below a directory, sorted: `name/`, `name>target`, or `name=` and the content.
fn list(dir: &Path) -> String {
    fn walk(dir: &Path, prefix: &str, out: &mut Vec<String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = format!("{prefix}{}", path.file_name().unwrap().to_str().unwrap());
            let meta = fs::symlink_metadata(&path).unwrap();
            if meta.is_dir() {
                out.push(format!("{name}/"));
                walk(&path, &format!("{name}/"), out);
            } else if meta.is_symlink() {
                out.push(format!("{name}>{}", fs::read_link(&path).unwrap().display()));
            } else {
                out.push(format!("{name}={}", fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let mut out = Vec::new();
    walk(dir, "", &mut out);
    out.sort();
    out.join(" ")
}

fn host(root: &Path, whiteouts: &Path) -> HostView {
    let visible = ["bin", "lib", "usr", "absent"].map(OsString::from).into();
    fs::create_dir_all(whiteouts).unwrap();
    HostView { root: root.to_owned(), visible, whiteouts: whiteouts.to_owned() }
}

/// The layers of the cases below; the host has a link, directories and things that must not be
/// seen.
fn world(dir: &Path, on: &Path) -> (Vec<PathBuf>, HostView) {
    tree(
        &on.join("host"),
        &[
            "usr/bin/tool",
            "usr/lib/so",
            "usr/share/doc",
            "bin>usr/bin",
            "lib/host-lib",
            "etc/passwd",
            "root/.ssh/key",
            "file",
            "home/",
            "proc>nowhere",
        ],
    );
    let mounts = tree(&dir.join("mounts"), &["etc/hosts", "usr/share/extra/", "storage/"]);
    let service = tree(&dir.join("service"), &["app/main", "usr/bin/own", "usr/share/doc"]);
    let layer1 = tree(&dir.join("layer1"), &["app/main", "app/one", "opt/x", "lib/layer-lib"]);
    let layer2 = tree(&dir.join("layer2"), &["app/one", "app/two", "opt/x"]);
    (vec![mounts, service, layer1, layer2], host(&on.join("host"), &dir.join("whiteouts")))
}

const SEEN: &str = "app/ app/main=service app/one=layer1 app/two=layer2 bin>usr/bin etc/ \
    etc/hosts=mounts lib/ lib/host-lib=host lib/layer-lib=layer1 opt/ opt/x=layer1 storage/ usr/ \
    usr/bin/ usr/bin/own=service usr/bin/tool=host usr/lib/ usr/lib/so=host usr/share/ \
    usr/share/doc=service usr/share/extra/";

fn mounts_below(dir: &Path) -> usize {
    mount::mounts().unwrap().iter().filter(|entry| entry.target.starts_with(dir)).count()
}

#[test]
fn both_forms_show_the_same() {
    in_private("both_forms_show_the_same", |dir| {
        // Host and layers on one file system: split.
        let (layers, view) = world(&dir.join("one"), &dir.join("one"));
        let target = tree(&dir.join("one/rootfs"), &[]);
        assert!(needs_split(&distinct(&layers).unwrap(), &view).unwrap());
        mount(&layers, &view, &target).unwrap();
        assert_eq!(list(&target), SEEN);
        assert_eq!(mounts_below(&target), 3);

        // Layers on a tmpfs: whole.
        let volatile = tree(&dir.join("two"), &[]);
        mount::tmpfs(&volatile, None, 0o755).unwrap();
        let (layers, view) = world(&volatile, &dir.join("two-host"));
        let target = tree(&volatile.join("rootfs"), &[]);
        assert!(!needs_split(&distinct(&layers).unwrap(), &view).unwrap());
        mount(&layers, &view, &target).unwrap();
        assert_eq!(list(&target), SEEN);
        assert_eq!(mounts_below(&target), 1);
    });
}

#[test]
fn the_real_host_without_separate_mounts() {
    in_private("the_real_host_without_separate_mounts", |dir| {
        let visible = ["bin", "sbin", "lib", "lib64", "usr"].map(OsString::from).into();
        let whiteouts = tree(&dir.join("whiteouts"), &[]);
        let view = HostView { root: "/".into(), visible, whiteouts };
        let service = tree(&dir.join("service"), &["app/main"]);
        let mounts = tree(&dir.join("mounts"), &["proc/"]);
        let target = tree(&dir.join("rootfs"), &[]);
        mount(&[mounts, service], &view, &target).unwrap();
        for there in ["usr/bin/env", "bin/sh", "app/main", "proc"] {
            assert!(target.join(there).exists(), "{there}");
        }
        for hidden in ["etc", "root", "home", "tmp", "var", "work"] {
            assert!(!target.join(hidden).exists(), "{hidden}");
        }
        write_plain(&target.join("usr/x"), b"x", 0o600).unwrap_err();
        write_plain(&target.join("app/x"), b"x", 0o600).unwrap_err();
        let below = mount::mounts().unwrap();
        for entry in below.iter().filter(|entry| entry.target.starts_with(&target)) {
            for option in ["nosuid", "nodev"] {
                assert!(entry.options.split(',').any(|o| o == option), "{entry:?}");
            }
        }
    });
}

/// Mounts a layer that hides something of the host, in the split form and in the whole form.
fn check_hiding(dir: &Path, name: &str, change: impl Fn(&Path), expect: &str) {
    for form in ["split", "whole"] {
        let place = tree(&dir.join(name).join(form), &[]);
        let mut root = place.join("host");
        if form == "whole" {
            mount::tmpfs(&place, None, 0o755).unwrap();
            root = dir.join(name).join("host");
        }
        tree(&root, &["usr/tool", "lib/so", "bin/sh"]);
        let mounts = tree(&place.join("mounts"), &["usr/extra/"]);
        let layer = tree(&place.join("layer"), &["usr/own"]);
        change(&layer);
        let bottom = tree(&place.join("bottom"), &["usr/more", "lib/more"]);
        let view = host(&root, &place.join("whiteouts"));
        let target = tree(&place.join("rootfs"), &[]);
        mount(&[mounts, layer, bottom], &view, &target).unwrap();
        assert_eq!(list(&target), expect, "{name} {form}");
    }
}

#[test]
fn layers_may_hide_directories_of_the_host() {
    in_private("layers_may_hide_directories_of_the_host", |dir| {
        let usr = "usr/ usr/extra/ usr/more=bottom usr/own=layer usr/tool=host";
        check_hiding(
            dir,
            "nothing",
            |_| {},
            &format!("bin/ bin/sh=host lib/ lib/more=bottom lib/so=host {usr}"),
        );
        check_hiding(
            dir,
            "link",
            |layer| drop(tree(layer, &["lib>usr/lib"])),
            &format!("bin/ bin/sh=host lib>usr/lib {usr}"),
        );
        check_hiding(
            dir,
            "file",
            |layer| drop(tree(layer, &["lib"])),
            &format!("bin/ bin/sh=host lib=layer {usr}"),
        );
        let whiteout = |path: &Path| {
            mknod(path, SFlag::S_IFCHR, Mode::empty(), makedev(0, 0)).unwrap();
        };
        check_hiding(
            dir,
            "whiteout",
            |layer| {
                whiteout(&layer.join("lib"));
                whiteout(&layer.join("usr/tool"));
            },
            "bin/ bin/sh=host usr/ usr/extra/ usr/more=bottom usr/own=layer",
        );
        check_hiding(
            dir,
            "opaque",
            |layer| xattr::set(&layer.join("usr"), xattr::OPAQUE, b"y").unwrap(),
            "bin/ bin/sh=host lib/ lib/more=bottom lib/so=host usr/ usr/extra/ usr/own=layer",
        );
    });
}

#[test]
fn a_mounted_entry_of_the_host_is_seen() {
    in_private("a_mounted_entry_of_the_host_is_seen", |dir| {
        let root = tree(&dir.join("host"), &["usr/", "lib/so", "bin/sh"]);
        mount::tmpfs(&root.join("usr"), None, 0o755).unwrap();
        tree(&root, &["usr/tool"]);
        let place = tree(&dir.join("place"), &[]);
        mount::tmpfs(&place, None, 0o755).unwrap();
        let layers = ["mounts", "service"].map(|name| tree(&place.join(name), &[]));
        let target = tree(&place.join("rootfs"), &[]);
        mount(&layers, &host(&root, &place.join("whiteouts")), &target).unwrap();
        assert_eq!(list(&target), "bin/ bin/sh=host lib/ lib/so=host usr/ usr/tool=host");
    });
}

#[test]
fn many_layers() {
    // Data of the old call are cut at one page; packages have no more than 64 layers anyway.
    let most = if mount::overlay_takes_single_layers() { MAX_LAYERS - 2 } else { 200 };
    in_private("many_layers", move |dir| {
        for count in [40, 100, most] {
            for volatile in [false, true] {
                let place = tree(&dir.join(format!("{count}-{volatile}")), &[]);
                if volatile {
                    mount::tmpfs(&place, None, 0o755).unwrap();
                }
                let on = if volatile { dir.join(format!("host-{count}")) } else { place.clone() };
                let root = tree(&on.join("host"), &["usr/tool", "etc/x"]);
                let long = place.join("x".repeat(200));
                let layers: Vec<PathBuf> = (0..count)
                    .map(|n| tree(&long.join(format!("{n:064}")), &["same", &format!("own{n}")]))
                    .collect();
                let target = tree(&place.join("rootfs"), &[]);
                mount(&layers, &host(&root, &place.join("whiteouts")), &target).unwrap();
                assert_eq!(fs::read_dir(&target).unwrap().count(), count + 2);
                let same = fs::read_to_string(target.join("same")).unwrap();
                assert_eq!(same, format!("{:064}", 0));
            }
        }
    });
}

#[test]
fn too_many_layers_and_layers_that_are_named_twice() {
    let dir = TempDir::new().unwrap();
    let paths: Vec<PathBuf> =
        (0..MAX_LAYERS).map(|n| tree(&dir.path().join(n.to_string()), &[])).collect();
    assert!(distinct(&paths[..MAX_LAYERS - 2]).is_ok());
    assert!(matches!(distinct(&paths[..MAX_LAYERS - 1]), Err(Error::TooManyLayers)));
    symlink("0", dir.path().join("again")).unwrap();
    let twice = [&paths[1], &paths[0], &paths[1], &dir.path().join("again"), &paths[2]];
    let twice: Vec<PathBuf> = twice.into_iter().cloned().collect();
    assert_eq!(distinct(&twice).unwrap(), [&paths[1], &paths[0], &paths[2]]);
    assert!(matches!(distinct(&[dir.path().join("missing")]), Err(Error::Read { .. })));
}

#[test]
fn whiteouts_are_made_once_and_never_changed() {
    let dir = TempDir::new().unwrap();
    let root = tree(&dir.path().join("host"), &["usr/x", "etc/x", "file", "link>nowhere"]);
    let view = host(&root, &dir.path().join("whiteouts"));
    let Ok(first) = whiteouts(&view) else {
        println!("SKIP whiteouts_are_made_once_and_never_changed: needs CAP_MKNOD");
        return;
    };
    let names = |dir: &Path| {
        let mut names: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(&first), ["etc", "file", "link"]);
    for name in names(&first) {
        let meta = fs::symlink_metadata(first.join(name)).unwrap();
        assert!(meta.file_type().is_char_device() && meta.rdev() == 0);
    }
    let inode = fs::metadata(&first).unwrap().ino();
    assert_eq!(whiteouts(&view).unwrap(), first);
    assert_eq!(fs::metadata(&first).unwrap().ino(), inode);
    // A new entry of the host, and another choice: directories of their own.
    tree(&root, &["late/"]);
    let second = whiteouts(&view).unwrap();
    assert_eq!(names(&second), ["etc", "file", "late", "link"]);
    let mut wider = view.clone();
    wider.visible.insert("etc".into());
    assert_eq!(names(&whiteouts(&wider).unwrap()), ["file", "late", "link"]);
    assert_eq!(names(&first), ["etc", "file", "link"]);
    assert_eq!(fs::read_dir(&view.whiteouts).unwrap().count(), 3);
    assert_ne!(skeleton(&view, &visible(&view).unwrap()).unwrap(), first);
}

fn point(destination: &str, kind: &str, source: &Path, options: &[&str]) -> oci::Mount {
    oci::Mount {
        destination: destination.into(),
        kind: kind.into(),
        source: source.to_str().unwrap().into(),
        options: options.iter().map(|&option| option.to_owned()).collect(),
    }
}

/// Names and modes of everything below `mounts`.
fn modes(dir: &Path) -> String {
    fn walk(dir: &Path, prefix: &str, out: &mut Vec<String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = format!("{prefix}{}", path.file_name().unwrap().to_str().unwrap());
            let meta = fs::symlink_metadata(&path).unwrap();
            let slash = if meta.is_dir() { "/" } else { "" };
            out.push(format!("{name}{slash} {:o}", meta.permissions().mode() & 0o7777));
            if meta.is_dir() {
                walk(&path, &format!("{name}/"), out);
            }
        }
    }
    let mut out = Vec::new();
    walk(dir, "", &mut out);
    out.sort();
    out.join(", ")
}

/// A host of which nothing is seen.
fn nothing(dir: &Path) -> HostView {
    let (root, whiteouts) = (dir.to_owned(), dir.to_owned());
    HostView { root, visible: BTreeSet::new(), whiteouts }
}

#[test]
fn mount_points_stand_where_links_lead() {
    let dir = TempDir::new().unwrap();
    let entries = ["usr/lib/", "lib>usr/lib", "etc>usr", "bin>/usr/./bin/../sbin"];
    let view = host(&tree(&dir.path().join("host"), &entries), &dir.path().join("whiteouts"));
    let service = tree(
        &dir.path().join("service"),
        &[
            "var/",
            "var/run>/run",
            "up>../../../x/../y",
            "loop>loop",
            "one>two",
            "two>one/deeper",
            "opt/",
        ],
    );
    let layer = tree(&dir.path().join("layer"), &["opt>usr", "srv>up"]);
    let layers = [service, layer];
    let check = |path: &str, expect: &str| {
        assert_eq!(settle(Path::new(path), &layers, &view), Path::new(expect), "{path}");
    };
    check("lib/firmware", "usr/lib/firmware");
    check("bin/x", "usr/sbin/x");
    check("var/run/dbus/socket", "run/dbus/socket");
    check("usr/lib/x", "usr/lib/x");
    // Not seen by instances, hidden by a directory, a link to a link.
    check("etc/x", "etc/x");
    check("opt/x", "opt/x");
    check("srv/x", "y/x");
    check("new/path", "new/path");
    check("loop/x", "loop/x");
    assert!(settle(Path::new("one/x"), &layers, &view).ends_with("x"));

    let mounts = tree(&dir.path().join("mounts"), &[]);
    let mount = point("/lib/firmware", "bind", dir.path(), &[]);
    make_mount_points(&mounts, &[mount], &layers, &view, &[]).unwrap();
    assert_eq!(modes(&mounts), "usr/ 755, usr/lib/ 755, usr/lib/firmware/ 755");
}

#[test]
fn mount_points() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    write_plain(&file, b"x", 0o600).unwrap();
    symlink("file", dir.path().join("link")).unwrap();
    let check = |mount: oci::Mount, expect: &str| {
        let mounts = tree(&dir.path().join("mounts"), &[]);
        make_mount_points(&mounts, &[mount], &[], &nothing(dir.path()), &[]).unwrap();
        assert_eq!(modes(&mounts), expect);
        remove_tree(&mounts).unwrap();
    };
    let none = Path::new("");
    check(point("/proc", "proc", none, &[]), "proc/ 755");
    check(point("/tmp", "tmpfs", none, &["nosuid", "mode=1777"]), "tmp/ 1777");
    check(point("/dev/shm", "tmpfs", none, &["mode=4750"]), "dev/ 755, dev/shm/ 4750");
    check(point("/sys", "sysfs", none, &["mode=9", "mode=77777"]), "sys/ 755");
    check(point("/dev/pts", "devpts", none, &[]), "");
    check(point("/dev/mqueue", "mqueue", none, &[]), "");
    check(point("/sys/fs/cgroup", "cgroup", none, &[]), "");
    check(point("/a/b", "bind", dir.path(), &[]), "a/ 755, a/b/ 755");
    check(point("/a//./b/", "bind", &file, &[]), "a/ 755, a/b 644");
    check(point("/state.dat", "bind", &dir.path().join("link"), &[]), "state.dat 644");
}

#[test]
fn mount_points_that_cannot_be() {
    let dir = TempDir::new().unwrap();
    let mounts = tree(&dir.path().join("mounts"), &["file", "out>../outside", "dir/"]);
    let outside = tree(&dir.path().join("outside"), &[]);
    let source = dir.path();
    let make = |mount| make_mount_points(&mounts, &[mount], &[], &nothing(source), &[]);
    for bad in ["/", "", "relative", "/..", "/../outside/x", "/a/../../outside/x", "../x"] {
        let result = make(point(bad, "bind", source, &[]));
        assert!(matches!(result, Err(Error::Destination(_))), "{bad:?} {result:?}");
    }
    for bad in ["/out", "/out/x", "/file", "/file/x"] {
        let result = make(point(bad, "bind", source, &[]));
        assert!(matches!(result, Err(Error::MountPoint { .. })), "{bad:?} {result:?}");
    }
    let over_dir = point("/dir", "bind", &mounts.join("file"), &[]);
    assert!(matches!(make(over_dir), Err(Error::MountPoint { .. })));
    let missing = point("/x", "bind", &source.join("missing"), &[]);
    let error = make(missing).unwrap_err();
    assert!(error.to_string().contains("missing to be mounted on /x"), "{error}");
    assert_eq!(fs::read_dir(outside).unwrap().count(), 0);
}
