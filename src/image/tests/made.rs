//! Packages that are made here: every form that is allowed, and what installing does with it.

use sha2::Digest as _;

use ::tar::EntryType;

use super::fixture::{Archive, Image, digest_of, gzip, layer_package};
use super::*;
use crate::image::listing::{Node, scan};

fn rootfs() -> Vec<u8> {
    Archive::new().dir("./", 0o755).file("app", b"#!/bin/sh\n").bytes()
}

/// Installs a service package in a store of its own.
fn install(package: &[u8]) -> (tempfile::TempDir, Store, Result<InstalledService, String>) {
    let dir = scratch();
    let store = Store::new(dir.path());
    let source = file_source(&dir.path().join("package"), package);
    let result = store.service(source).map(|(row, image)| {
        assert_eq!(store.store.load(&row).unwrap(), image);
        store.store.verify_service(&row, &|| false).unwrap();
        row
    });
    (dir, store, result)
}

#[test]
fn forms_of_a_package() {
    let mut digests = Vec::new();
    for (packed, inner, manifest_last) in [
        (false, false, false),
        (true, false, false),
        (false, true, false),
        (true, true, false),
        (true, true, true),
        (false, false, true),
    ] {
        let rootfs = if inner { gzip(&rootfs()) } else { rootfs() };
        let image = Image { manifest_last, ..Image::new(rootfs) };
        let package = if packed { gzip(&image.package()) } else { image.package() };
        let (_dir, store, row) = install(&package);
        let row = row.unwrap();
        assert_eq!(names(&row.path), [".package", "blobs", "manifest.json", "rootfs"]);
        // The provider's manifest is kept byte by byte; the blob of the root file system is not.
        let manifest = fs::read(row.path.join("manifest.json")).unwrap();
        assert_eq!(manifest, image.manifest().as_bytes());
        assert_eq!(row.manifest_digest, sha2::Sha256::digest(&manifest).to_vec());
        assert_eq!(names(&row.path.join("blobs/sha256")).len(), 2);
        assert_eq!(row.package_digest, Sha3_256::digest(&package).to_vec());
        assert_eq!((row.gid, row.unused_since_ms, row.confirmed), (GID, None, false));
        assert_eq!(store.content().len(), 1);
        digests.push(row.tree_digest);
    }
    digests.dedup();
    assert_eq!(digests.len(), 1, "{digests:?}");
}

#[test]
fn content_of_an_image() {
    let mut image = Image::new(rootfs());
    let (first, second) = (digest_of(b"first"), digest_of(b"second"));
    image.layers = vec![first.clone(), second.clone(), first.clone()];
    let dir = scratch();
    let store = Store::new(dir.path());
    let source = file_source(&dir.path().join("package"), &image.package());
    let (row, loaded) = store.service(source).unwrap();
    assert_eq!(loaded.rootfs, row.path.join("rootfs"));
    assert_eq!(loaded.layers.iter().map(Digest::as_str).collect::<Vec<_>>(), [first, second]);
    assert_eq!((loaded.image.os.as_str(), loaded.service.hostname.as_str()), ("linux", "here"));
    assert_eq!(loaded.image.entrypoint, ["/app"]);
    assert_eq!(row.key.to_string(), "svc 1.0.0");
}

#[test]
fn what_an_archive_becomes() {
    let archive = Archive::new()
        .file("implied/by/file", b"1")
        .dir("sticky", 0o3777)
        .member("sticky/setuid", EntryType::Regular, 0o6755, "", b"2")
        .dir("locked", 0o000)
        .file("locked/inside", b"3")
        .file("replaced", b"old")
        .hard("kept", "replaced")
        .file("replaced", b"new")
        .link("link", "/etc/passwd")
        .link("was-link", "/etc")
        .dir("was-link", 0o700)
        .file("was-link/f", b"4")
        .member("was-file", EntryType::Regular, 0o644, "", b"5")
        .link("was-file", "target")
        .file("d/.wh.gone", b"")
        .file("d/.wh.here", b"")
        .file("d/here", b"6")
        .file("e/.wh..wh..opq", b"")
        .file("e/f", b"7")
        .member("overlay-style", EntryType::Char, 0o000, "", b"");
    let (_dir, _store, row) = install(&Image::new(gzip(&archive.bytes())).package());
    let tree = row.unwrap().path.join("rootfs");
    let listing = scan(&tree, GID, &|| false).unwrap().0;
    let read = |path: &str| String::from_utf8(fs::read(tree.join(path)).unwrap()).unwrap();
    let mode = |path: &str| fs::symlink_metadata(tree.join(path)).unwrap().mode() & 0o7777;
    assert_eq!(mode(""), 0o755);
    assert_eq!(mode("implied/by"), 0o755);
    assert_eq!((mode("sticky"), mode("sticky/setuid")), (0o1777, 0o755));
    assert_eq!((mode("locked"), read("locked/inside").as_str()), (0, "3"));
    assert_eq!((read("replaced").as_str(), read("kept").as_str()), ("new", "old"));
    assert_eq!(fs::read_link(tree.join("link")).unwrap(), Path::new("/etc/passwd"));
    assert_eq!(fs::read_link(tree.join("was-file")).unwrap(), Path::new("target"));
    assert_eq!((mode("was-link"), read("was-link/f").as_str()), (0o700, "4"));
    assert_eq!(listing[&b"d/gone"[..]], Node::Whiteout);
    assert_eq!(listing[&b"overlay-style"[..]], Node::Whiteout);
    assert_eq!(names(&tree.join("d")), ["gone", "here"]);
    assert_eq!(read("d/here"), "6");
    assert!(matches!(listing[&b"e"[..]], Node::Directory { opaque: true, .. }));
    let stat = fs::symlink_metadata(tree.join("sticky")).unwrap();
    assert_eq!((stat.uid(), stat.gid(), stat.mtime()), (0, GID, 1_000_000));
}

#[test]
fn refused_members() {
    let check = |archive: Archive, expect: &str| {
        let (_dir, store, row) = install(&Image::new(archive.bytes()).package());
        assert_eq!(row.unwrap_err(), expect);
        assert!(store.content().is_empty(), "{:?}", store.content());
    };
    let refused = |name: &str, why: &str| format!("member \"{name}\" is refused: {why}");
    check(Archive::new().dir("d", 0o755).file("d", b""), &refused("d", "it replaces a directory"));
    check(
        Archive::new().file("f", b"").file("f/below", b""),
        &refused("f", "it lies below an entry that is no directory"),
    );
    check(
        Archive::new().file("../f", b""),
        &refused("../f", "the name leaves the target directory"),
    );
    check(Archive::new().link("l", ""), &refused("l", "bad target of a symbolic link"));
    check(
        Archive::new().link("a/.wh.x", "y"),
        &refused("a/.wh.x", "a whiteout marker must be a regular file"),
    );
    check(
        Archive::new().file("a/.wh.x", &[0; (64 << 10) + 1]),
        &refused("a/.wh.x", "a whiteout marker must be empty"),
    );
    check(
        Archive::new().file("a/.wh...", b""),
        &refused("a/.wh...", "the whiteout marker names nothing"),
    );
    check(
        Archive::new().file(".", b""),
        &refused(".", "only a directory can be the target directory"),
    );
    check(
        Archive::new().file("bad\nname", b""),
        &refused("bad\\nname", "file names with new lines are not supported"),
    );
}

#[test]
fn limits_of_an_archive() {
    let check = |archive: Archive, expect: Result<(), &str>| {
        let dir = scratch();
        let store = Store::with(dir.path(), |settings| {
            (settings.max_entries, settings.max_depth) = (5, 3);
        });
        let package = Image::new(archive.bytes()).package();
        let source = file_source(&dir.path().join("package"), &package);
        let result = store.service(source).map(drop);
        assert_eq!(result, expect.map_err(str::to_owned));
    };
    let files = |count: usize| (0..count).fold(Archive::new(), |a, n| a.file(&n.to_string(), b""));
    check(files(5), Ok(()));
    check(files(6), Err("root file system: more than 5 members"));
    // Directories that nobody names count, too.
    check(files(3).file("a/b", b""), Ok(()));
    check(files(3).file("a/b/c", b""), Err("root file system: more than 5 members"));
    check(Archive::new().dir("a/b/c", 0o755), Ok(()));
    check(
        Archive::new().dir("a/b/c/d", 0o755),
        Err("member \"a/b/c/d\" is refused: the directories are nested too deeply"),
    );
}

#[test]
fn the_deepest_tree_can_be_removed() {
    let dir = scratch();
    let store = Store::with(dir.path(), |settings| settings.max_depth = 1000);
    let install = |depth: usize| {
        let package = Image::new(Archive::new().deep(depth).bytes()).package();
        store.service(file_source(&dir.path().join("package"), &package))
    };
    let deepest = sys::tree::MAX_DEPTH - 4;
    let (row, _) = install(deepest).unwrap();
    store.store.remove(&row.path).unwrap();
    let error = install(deepest + 1).map(drop).unwrap_err();
    assert!(error.ends_with("the directories are nested too deeply"), "{error}");
    assert!(store.content().is_empty());
}

#[test]
fn members_of_a_package() {
    let check = |archive: Archive, expect: &str| {
        let (_dir, store, row) = install(&archive.bytes());
        assert_eq!(row.unwrap_err(), expect);
        assert!(store.content().is_empty());
    };
    let many = (0..1025).fold(Archive::new(), |archive, _| archive.dir("blobs", 0o755));
    check(many, "package: more than 1024 members");
    let manifest = Image::new(rootfs()).manifest();
    let twice = Archive::new().file("manifest.json", manifest.as_bytes());
    check(
        twice.file("./manifest.json", b"{}"),
        "member \"./manifest.json\" is refused: it occurs twice",
    );
    let large = vec![b' '; (1 << 20) + 1];
    check(
        Archive::new().file("manifest.json", &large),
        "manifest.json is larger than 1048576 bytes",
    );
    check(
        Archive::new().file("layer.json", b"{}"),
        "member \"layer.json\" is refused: it does not belong into a package",
    );
    check(Archive::new(), "manifest.json is missing");
    let mut image = Image::new(rootfs());
    image.service_config = " ".repeat((1 << 20) + 1);
    let name = digest_of(image.service_config.as_bytes());
    for manifest_last in [false, true] {
        image.manifest_last = manifest_last;
        let (_dir, store, row) = install(&image.package());
        let error = row.unwrap_err();
        let shown = if manifest_last { name.clone() } else { name.replace(':', "/") };
        assert!(error.ends_with(&format!("{shown} is larger than 1048576 bytes")), "{error}");
        assert!(store.content().is_empty());
    }
}

#[test]
fn damage_is_told_apart() {
    let dir = scratch();
    let store = Store::new(dir.path());
    let package = gzip(&Image::new(rootfs()).package());
    let path = dir.path().join("package");
    let check = |change: &dyn Fn(&mut Vec<u8>, &mut PackageSource), expect: &str| {
        let (mut content, mut source) = (package.clone(), file_source(&path, &package));
        change(&mut content, &mut source);
        sys::fs::write_plain(&path, &content, 0o600).unwrap();
        assert_eq!(store.service(source).map(drop).unwrap_err(), expect);
        assert!(store.content().is_empty());
    };
    check(&|content, _| content[100] ^= 1, "checksum sha256 mismatch");
    check(
        &|content, source| {
            content[100] ^= 1;
            source.sha3_256.clear();
        },
        "checksum sha512 mismatch",
    );
    let size = package.len();
    check(
        &|content, _| content.truncate(size - 1),
        &format!("file size mismatch: {size} bytes announced, {} found", size - 1),
    );
    check(&|_, source| source.sha3_512[0] ^= 1, "checksum sha512 mismatch");
    check(
        &|_, source| source.url = "http://127.0.0.1:1/p".to_owned(),
        "cannot get http://127.0.0.1:1/p: download failed: cannot connect to 127.0.0.1:1: \
         Connection refused (os error 111)",
    );
    check(
        &|_, source| {
            source.url = "http://[::1]:1/p".to_owned();
            source.sha3_256.clear();
            source.sha3_512.clear();
        },
        "a package from the network needs a checksum",
    );
}

#[test]
fn layers() {
    let dir = scratch();
    let store = Store::new(dir.path());
    let content = Archive::new()
        .dir("./", 0o755)
        .member("opt/tool", EntryType::Regular, 0o4755, "", b"tool")
        .file("opt/.wh.gone", b"")
        .bytes();
    let path = dir.path().join("package");
    for content in [content.clone(), gzip(&content)] {
        let (package, digest) = layer_package(&content);
        let target = dir.path().join("layers/sha256").join(&digest[7..]);
        // What a crash or the reference left there is not mixed with what is installed.
        fs::create_dir_all(target.join("leftover")).unwrap();
        fs::set_permissions(target.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
        let row = store.layer(&digest, file_source(&path, &package)).unwrap();
        assert_eq!((&row.path, row.os_version.as_str()), (&target, "1.0"));
        assert_eq!((row.layer_id.as_str(), row.digest.as_str()), ("layer0", digest.as_str()));
        assert_eq!(names(&target), ["opt"]);
        assert_eq!(names(&target.join("opt")), ["gone", "tool"]);
        let stat = fs::metadata(target.join("opt/tool")).unwrap();
        assert_eq!((stat.uid(), stat.gid(), stat.mode() & 0o7777), (0, 0, 0o755));
        assert_eq!(names(&dir.path().join("layers")), ["sha256"]);
        // Users of the host do not reach what is in it.
        let above = fs::metadata(target.parent().unwrap()).unwrap();
        assert_eq!((above.uid(), above.mode() & 0o7777), (0, 0o700));
    }
    let (package, digest) = layer_package(&content);
    let wrong = store.layer(&digest_of(b"other"), file_source(&path, &package)).unwrap_err();
    assert!(wrong.starts_with("layer.json names sha256:"), "{wrong}");
    let lying =
        Archive::new().file("layer.json", format!(r#"{{"digest": "{digest}"}}"#).as_bytes());
    let missing = store.layer(&digest, file_source(&path, &lying.bytes())).unwrap_err();
    assert_eq!(missing, format!("blob {digest} is missing"));
}

#[test]
fn loading_checks_cheaply_and_verifying_fully() {
    let dir = scratch();
    let store = Store::new(dir.path());
    let package = Image::new(rootfs()).package();
    let source = file_source(&dir.path().join("package"), &package);
    let check = |change: &dyn Fn(&InstalledService), load: Option<&str>, verify: &str| {
        let (row, _) = store.service(source.clone()).unwrap();
        change(&row);
        let loaded = store.store.load(&row).map(drop).map_err(|failure| failure.message);
        assert_eq!(loaded.err().as_deref(), load);
        let error = store.store.verify_service(&row, &|| false).unwrap_err().to_string();
        assert!(error.starts_with(verify), "{error}");
        store.store.remove(&row.path).unwrap();
    };
    let write = |row: &InstalledService, relative: &str, content: &[u8]| {
        sys::fs::write_plain(&row.path.join(relative), content, 0o644).unwrap();
    };
    let mismatch = "manifest checksum mismatch";
    check(&|row| write(row, "manifest.json", b"{}"), Some(mismatch), mismatch);
    let incorrect = "incorrect rootfs checksum";
    check(&|row| write(row, "rootfs/app", b"other"), None, "");
    check(&|row| fs::remove_file(row.path.join("rootfs/app")).unwrap(), None, incorrect);
    let missing = "root file system is missing";
    check(&|row| fs::remove_dir_all(row.path.join("rootfs")).unwrap(), Some(missing), missing);
    let config = digest_of(Image::new(rootfs()).image_config.as_bytes());
    let blob = format!("blobs/{}", config.replace(':', "/"));
    let wrong = format!("hash missmach: blob {config}");
    check(&|row| write(row, &blob, b"{}"), Some(&wrong), &wrong);
}

#[test]
fn images_of_the_reference_load() {
    let dir = scratch();
    let store = Store::new(dir.path());
    let path = dir.path().join("services/1175426968");
    let image = Image::new(rootfs());
    fs::create_dir_all(path.join("blobs/sha256")).unwrap();
    // As one file `app` with this content.
    let tree = digest_of(format!("{}\n", &digest_of(b"#!/bin/sh\n")[7..]).as_bytes());
    let rootfs = path.join("blobs").join(tree.replace(':', "/"));
    fs::create_dir(&rootfs).unwrap();
    let owned = |path: &Path| std::os::unix::fs::chown(path, Some(0), Some(GID)).unwrap();
    sys::fs::write_plain(&rootfs.join("app"), b"#!/bin/sh\n", 0o755).unwrap();
    owned(&rootfs);
    owned(&rootfs.join("app"));
    for config in [&image.image_config, &image.service_config] {
        let blob = path.join("blobs").join(digest_of(config.as_bytes()).replace(':', "/"));
        sys::fs::write_plain(&blob, config.as_bytes(), 0o644).unwrap();
    }
    let manifest = image.manifest().replace(&digest_of(&image.rootfs), &tree);
    sys::fs::write_plain(&path.join("manifest.json"), manifest.as_bytes(), 0o644).unwrap();
    let row = InstalledService {
        key: ServiceKey { id: ServiceId::new("svc"), version: "1.0.0".into() },
        provider_id: NetworkId::new("prov"),
        gid: GID,
        path: path.clone(),
        manifest_digest: sha2::Sha256::digest(&manifest).to_vec(),
        tree_digest: String::new(),
        package_digest: Vec::new(),
        size_bytes: 1,
        installed_at_ms: 0,
        unused_since_ms: None,
        confirmed: true,
    };
    let loaded = store.store.load(&row).unwrap();
    assert_eq!((loaded.rootfs, loaded.image.os.as_str()), (rootfs.clone(), "linux"));
    store.store.verify_service(&row, &|| false).unwrap();
    sys::fs::write_plain(&rootfs.join("app"), b"changed", 0o755).unwrap();
    assert_eq!(
        store.store.verify_service(&row, &|| false).unwrap_err().to_string(),
        "incorrect rootfs checksum"
    );
}

#[test]
fn only_packages_are_removed() {
    let dir = scratch();
    let store = Store::new(dir.path());
    fs::create_dir_all(dir.path().join("services/1/a")).unwrap();
    fs::create_dir_all(dir.path().join("other/a")).unwrap();
    fs::create_dir_all(dir.path().join("download/x.part")).unwrap();
    for path in ["other", "services", "services/1/a", ""] {
        let failure = store.store.remove(&dir.path().join(path)).unwrap_err();
        assert!(failure.message.ends_with("is no directory of this store"), "{failure}");
        assert!(!failure.transient);
    }
    store.store.remove(&dir.path().join("services/1")).unwrap();
    store.store.remove(&dir.path().join("services/1")).unwrap();
    let (there, gone) = (dir.path().join("services/2"), dir.path().join("services/3"));
    fs::create_dir(&there).unwrap();
    let known = [there.clone(), gone.clone(), dir.path().join("x/y")];
    let missing = store.store.tidy(&known, &Keep::All).unwrap();
    assert_eq!(missing, [gone, dir.path().join("x/y")]);
    assert!(there.is_dir());
    assert_eq!(store.store.tidy(&[], &Keep::All).unwrap(), [""; 0].map(PathBuf::from));
    assert_eq!(names(dir.path()), ["download", "layers", "other", "services"]);
    assert!(store.content().is_empty());
}
