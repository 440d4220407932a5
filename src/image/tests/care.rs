//! Damage of installed packages, and packages whose row is lost.

use std::os::unix::fs::symlink;
use std::sync::Arc;

use nix::sys::stat::{SFlag, makedev};

use super::fixture::{Archive, Image, layer_package};
use super::*;
use crate::model::job::StartPlan;

const ALL: Keep = Keep::All;

fn package(text: &str) -> Vec<u8> {
    let rootfs = Archive::new().dir("./", 0o755).file("app", text.as_bytes()).dir("d/", 0o755);
    Image::new(rootfs.file("d/deep", b"deep").bytes()).package()
}

/// A store with one service and one layer, and what their rows were made from.
struct Filled {
    dir: tempfile::TempDir,
    store: Store,
    service: (PackageSource, InstalledService, ServiceImage),
    layer: (PackageSource, InstalledLayer),
}

impl Filled {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        let source = file_source(&dir.path().join("package"), &package("text"));
        let (row, image) = store.service(source.clone()).unwrap();
        let (bytes, digest) = layer_package(&Archive::new().file("lib", b"lib").bytes());
        let layer_source = file_source(&dir.path().join("layer"), &bytes);
        let layer = store.layer(&digest, layer_source.clone()).unwrap();
        Self { dir, store, service: (source, row, image), layer: (layer_source, layer) }
    }

    fn plan(&self) -> StartPlan {
        let mut plan = crate::runtime::spec::tests::plan();
        let mut image = self.service.2.clone();
        image.layers = vec![self.layer.1.digest.clone()];
        (plan.service, plan.image) = (Arc::new(self.service.1.clone()), Arc::new(image));
        plan.layers = vec![self.layer.1.path.clone()];
        plan
    }

    /// Rows are lost, and the packages cannot come from anywhere else either.
    fn lose_sources(&self) {
        fs::remove_file(self.dir.path().join("package")).unwrap();
        fs::remove_file(self.dir.path().join("layer")).unwrap();
    }

    fn service_row(&self) -> Row {
        Row::Service(Arc::new(self.service.1.clone()))
    }
}

#[test]
fn the_cheap_check_sees_what_was_touched() {
    let filled = Filled::new();
    let check = |filled: &Filled| {
        let failure = filled.store.store.check(&filled.plan()).err()?;
        Some((failure.damaged.unwrap().to_string(), failure.message))
    };
    assert_eq!(check(&filled), None);
    let path = &filled.service.1.path;
    // Touched, but right: it is read anew.
    let manifest = fs::read(path.join("manifest.json")).unwrap();
    sys::fs::write_plain(&path.join("manifest.json"), &manifest, 0o644).unwrap();
    assert_eq!(check(&filled), None);
    fs::rename(path.join("rootfs"), path.join("elsewhere")).unwrap();
    let lost = Some(("service svc 1.0.0".to_owned(), "root file system is missing".to_owned()));
    assert_eq!(check(&filled), lost);
    fs::rename(path.join("elsewhere"), path.join("rootfs")).unwrap();
    assert_eq!(check(&filled), None);
    sys::fs::write_plain(&path.join("manifest.json"), b"{}", 0o644).unwrap();
    let (key, message) = check(&filled).unwrap();
    assert_eq!(
        (key.as_str(), message.as_str()),
        ("service svc 1.0.0", "manifest checksum mismatch")
    );
    sys::fs::write_plain(&path.join("manifest.json"), &manifest, 0o644).unwrap();
    fs::remove_dir_all(&filled.layer.1.path).unwrap();
    let (key, message) = check(&filled).unwrap();
    assert_eq!(key, format!("layer {}", filled.layer.1.digest));
    assert_eq!(message, "the layer is missing");
}

#[test]
fn the_full_check_sees_everything() {
    let filled = Filled::new();
    let layer_row = Row::Layer(filled.layer.1.clone());
    let verify = |row: &Row| {
        filled.store.store.verify(row, &|| false).map(drop).map_err(|f| (f.message, f.transient))
    };
    assert_eq!(verify(&filled.service_row()), Ok(()));
    assert_eq!(verify(&layer_row), Ok(()));
    let wrong = Err(("incorrect rootfs checksum".to_owned(), false));
    let deep = filled.service.1.path.join("rootfs/d/deep");
    sys::fs::write_plain(&deep, b"deeq", 0o644).unwrap();
    assert_eq!(verify(&filled.service_row()), wrong);
    sys::fs::write_plain(&deep, b"deep", 0o644).unwrap();
    assert_eq!(verify(&filled.service_row()), Ok(()));
    fs::set_permissions(&deep, fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(verify(&filled.service_row()), wrong);
    fs::remove_file(filled.layer.1.path.join("lib")).unwrap();
    assert_eq!(verify(&layer_row), wrong);
    fs::remove_dir_all(&filled.layer.1.path).unwrap();
    assert_eq!(verify(&layer_row), Err(("the layer is missing".to_owned(), false)));
    // A layer of an earlier release has nothing to compare with.
    let old = InstalledLayer { tree_digest: String::new(), ..filled.layer.1.clone() };
    fs::create_dir(&old.path).unwrap();
    assert_eq!(verify(&Row::Layer(old)), Ok(()));
}

/// What stands in the place of an installed file is neither followed nor waited for.
#[test]
fn things_in_the_place_of_installed_files() {
    let filled = Filled::new();
    let (row, path) = (filled.service_row(), &filled.service.1.path);
    let blobs = path.join("blobs/sha256");
    let blob = blobs.join(names(&blobs).swap_remove(0));
    let mknod = |path: &Path, kind, device| {
        nix::sys::stat::mknod(path, kind, Mode::S_IRUSR | Mode::S_IWUSR, device).unwrap();
    };
    type Make<'a> = &'a dyn Fn(&Path);
    let things: [(&str, Make<'_>); 4] = [
        ("FIFO", &|path| mknod(path, SFlag::S_IFIFO, 0)),
        ("endless device", &|path| mknod(path, SFlag::S_IFCHR, makedev(1, 5))),
        ("link", &|path| symlink("/dev/zero", path).unwrap()),
        ("directory", &|path| fs::create_dir(path).unwrap()),
    ];
    let aside = filled.dir.path().join("aside");
    for file in [path.join("manifest.json"), blob, path.join("rootfs/app")] {
        fs::rename(&file, &aside).unwrap();
        for (what, make) in &things {
            make(&file);
            let failure = filled.store.store.verify(&row, &|| false).unwrap_err();
            assert!(!failure.transient, "{what} at {}: {failure}", file.display());
            let is_read = !file.ends_with("app");
            let loaded = filled.store.store.load(&filled.service.1);
            assert_eq!(loaded.is_err(), is_read, "{what} at {}", file.display());
            sys::fs::remove_tree(&file).unwrap();
        }
        fs::rename(&aside, &file).unwrap();
        filled.store.store.verify(&row, &|| false).unwrap();
    }
}

#[test]
fn what_lost_its_row_is_taken_again() {
    let filled = Filled::new();
    let before = filled.store.content();
    filled.store.store.tidy(&[], &ALL).unwrap();
    assert_eq!(filled.store.content(), before);
    filled.lose_sources();
    let (row, image) = filled.store.service(filled.service.0.clone()).unwrap();
    let old = &filled.service.1;
    assert_eq!(row, InstalledService { installed_at_ms: row.installed_at_ms, ..old.clone() });
    assert_eq!(image, filled.service.2);
    let digest = filled.layer.1.digest.to_string();
    let layer = filled.store.layer(&digest, filled.layer.0.clone()).unwrap();
    let installed_at_ms = layer.installed_at_ms;
    assert_eq!(layer, InstalledLayer { installed_at_ms, ..filled.layer.1.clone() });
    assert_eq!(filled.store.content(), before);
}

#[test]
fn only_what_is_wanted_stays() {
    let filled = Filled::new();
    let of = |source: &PackageSource| Keep::Packages(vec![source.sha3_256.clone()]);
    filled.store.store.tidy(&[], &of(&filled.service.0)).unwrap();
    assert!(filled.service.1.path.is_dir() && !filled.layer.1.path.exists());
    assert_eq!(filled.store.content().len(), 1, "{:?}", filled.store.content());
    filled.store.store.tidy(&[], &Keep::Packages(Vec::new())).unwrap();
    assert!(filled.store.content().is_empty());

    let filled = Filled::new();
    filled.store.store.tidy(&[], &of(&filled.layer.0)).unwrap();
    assert!(!filled.service.1.path.exists() && filled.layer.1.path.is_dir());
    // What has a row stays, whatever lies beside it.
    fs::remove_file(
        filled.layer.1.path.with_file_name(format!(".package-{}", filled.layer.1.digest.hex())),
    )
    .unwrap();
    let known = [filled.layer.1.path.clone()];
    filled.store.store.tidy(&known, &Keep::Packages(Vec::new())).unwrap();
    assert!(filled.layer.1.path.is_dir());
    filled.store.store.tidy(&[], &ALL).unwrap();
    assert!(!filled.layer.1.path.exists(), "nobody knows what it is");
}

#[test]
fn what_is_damaged_is_not_taken_again() {
    let filled = Filled::new();
    let altered = filled.service.1.path.join("rootfs/app");
    sys::fs::write_plain(&altered, b"evil", 0o644).unwrap();
    let (row, _) = filled.store.service(filled.service.0.clone()).unwrap();
    assert_ne!(row.path, filled.service.1.path);
    assert!(!filled.service.1.path.exists());
    sys::fs::write_plain(&filled.layer.1.path.join("lib"), b"evil", 0o644).unwrap();
    let digest = filled.layer.1.digest.to_string();
    filled.store.layer(&digest, filled.layer.0.clone()).unwrap();
    assert_eq!(fs::read(filled.layer.1.path.join("lib")).unwrap(), b"lib");
    // Another version, another group, another file: all of them are other packages.
    let other = file_source(&filled.dir.path().join("other"), &package("other"));
    let (other, _) = filled.store.service(other).unwrap();
    assert_ne!(other.path, row.path);
}

#[test]
fn a_layer_cannot_pretend_to_be_another_package() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path());
    let forged = Archive::new().file(".package", br#"{"package":"00"}"#).bytes();
    let (bytes, digest) = layer_package(&forged);
    let source = file_source(&dir.path().join("layer"), &bytes);
    let layer = store.layer(&digest, source).unwrap();
    fs::remove_file(layer.path.with_file_name(format!(".package-{}", layer.digest.hex()))).unwrap();
    store.store.tidy(&[], &ALL).unwrap();
    assert!(!layer.path.exists());
}
