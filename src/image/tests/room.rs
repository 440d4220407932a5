//! Space: reserve, eviction, full file systems.

use super::fixture::{Archive, Image, digest_of, gzip, layer_package};
use super::raw::file;
use super::*;
use crate::model::job::Evictable;

const MIB: usize = 1 << 20;

/// A service package with one file of so many MiB, packed to almost nothing.
fn package(mib: usize) -> Vec<u8> {
    let archive = Archive::new().file("big", &vec![0; mib * MIB]);
    gzip(&Image::new(gzip(&archive.bytes())).package())
}

fn evictable(row: &InstalledService) -> Evictable {
    let key = PackageKey::Service(row.key.clone());
    Evictable { key, path: row.path.clone(), size_bytes: row.size_bytes }
}

#[test]
fn the_reserve_is_kept_and_eviction_helps() {
    // Packing needs more stack than the thread has.
    let (small, large, fits, huge) = (package(4), package(6), package(1), package(9));
    in_private_tmp("room", 26 * MIB as u64, move || {
        let store = Store::new(&private("store"));
        let small = file_source(&private("small"), &small);
        let large = file_source(&private("large"), &large);
        let huge = file_source(&private("huge"), &huge);
        let (row, _) = store.service(small).unwrap();
        assert!(row.size_bytes >= 4 * MIB as u64, "{}", row.size_bytes);
        // 26 MiB, of which 16 are the reserve and 4 are in use.
        let (other, _) = store.service(file_source(&private("fits"), &fits)).unwrap();
        let error = store.service(large.clone()).map(drop).unwrap_err();
        assert!(error.starts_with("not enough space: "), "{error}");
        assert_eq!(store.content().len(), 2);

        let try_with = |evictable: Vec<Evictable>, source: &PackageSource| {
            let mut evicted = Vec::new();
            let package = service_package(source.clone());
            let plan = InstallPlan { package, evictable, used_bytes: 0, unfinished: Vec::new() };
            let result = store.store.install(&plan, &mut evicted, &|| false);
            (result.map_err(|failure| failure.message), evicted.len())
        };
        // It would not help, so nothing is evicted.
        let (result, evicted) = try_with(vec![evictable(&other)], &huge);
        assert!(result.unwrap_err().starts_with("not enough space: "));
        assert_eq!((evicted, other.path.is_dir()), (0, true));
        // Nothing outside of the store is ever removed, whatever the job says.
        let foreign = Evictable { path: private("large"), ..evictable(&row) };
        let (result, evicted) = try_with(vec![foreign], &large);
        assert!(result.is_err() && evicted == 0 && private("large").exists());
        // The first one is enough.
        let (result, evicted) = try_with(vec![evictable(&row), evictable(&other)], &large);
        result.unwrap();
        assert_eq!((evicted, row.path.exists(), other.path.is_dir()), (1, false, true));
        assert_eq!(store.content().len(), 2);
    });
}

#[test]
fn a_full_file_system_is_told_and_left_as_it_was() {
    let content = package(1);
    in_private_tmp("full", 24 * MIB as u64, move || {
        let store = Store::new(&private("store"));
        let source = file_source(&private("package"), &content);
        sys::fs::write_plain(&private("ballast"), &vec![1; 8 * MIB], 0o600).unwrap();
        let error = store.service(source.clone()).map(drop).unwrap_err();
        assert!(error.starts_with("not enough space: "), "{error}");
        assert!(store.content().is_empty(), "{:?}", store.content());
        fs::remove_file(private("ballast")).unwrap();
        store.service(source).map(drop).unwrap();
    });
}

#[test]
fn no_space_while_writing() {
    in_private_tmp("enospc", 26 * MIB as u64, || {
        // Somebody else takes the blocks between check and write.
        let store = Store::with(&private("store"), |settings| settings.reserve_percent = 0);
        let rootfs = Archive::new().file("big", &vec![1; 4 * MIB]).bytes();
        let content = Image::new(rootfs).package();
        // The package arrives through a reader that fills the disk meanwhile.
        let source = announce("test".to_owned(), &content);
        let filler = Filler { content: std::io::Cursor::new(content), left: 3 };
        let places = Places { services: private("store/services"), layers: private("l") };
        let mut evicted = Vec::new();
        let eviction = Eviction {
            candidates: &[],
            evicted: &mut evicted,
            places: &places,
            downloads: Path::new("/tmp/none"),
        };
        let source_of = download::Source::from_reader(filler);
        let Package::Service(wanted) = service_package(source) else { panic!("no service") };
        let limits =
            Limits { reserve_percent: 0, services_percent: 0, layers_percent: 0, used_bytes: 0 };
        let settings = &store.store.settings;
        let attempt = Attempt { settings, limits, eviction, halt: &|| false };
        let result = install::service_from(attempt, &wanted, source_of);
        let error = result.map(drop).unwrap_err().to_string();
        assert!(error.starts_with("not enough space: the disk is full, cannot write "), "{error}");
        assert!(store.content().is_empty(), "{:?}", store.content());
    });
}

/// Gives a package and takes all free space when some of it was read.
struct Filler {
    content: std::io::Cursor<Vec<u8>>,
    left: usize,
}

impl Read for Filler {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.left > 0 {
            self.left -= 1;
            if self.left == 0 {
                let mut file = fs::File::create(private("ballast")).unwrap();
                // More than the file system has, but never a whole disk.
                let mut zeros = std::io::repeat(1).take(64 * MIB as u64);
                std::io::copy(&mut zeros, &mut file).unwrap_err();
            }
        }
        self.content.read(buffer)
    }
}

/// Sizes in MiB: package files with one file each of these names.
fn install_within(
    store: &Store,
    mib: usize,
    used: &[&InstalledService],
    evictable_rows: &[&InstalledService],
) -> (Result<InstalledService, String>, usize) {
    let path = PathBuf::from(format!("/tmp/p{mib}"));
    let package = service_package(file_source(&path, &package(mib)));
    let evictable = evictable_rows.iter().map(|row| evictable(row)).collect();
    let used_bytes = used.iter().map(|row| row.size_bytes).sum();
    let mut evicted = Vec::new();
    let plan = InstallPlan { package, evictable, used_bytes, unfinished: Vec::new() };
    let result = store.store.install(&plan, &mut evicted, &|| false);
    let result = result.map_err(|failure| {
        assert!(failure.no_space, "{failure}");
        failure.message
    });
    let row = result.map(|installed| match installed {
        Installed::Service(row, _) => *row,
        Installed::Layer(_) => panic!("a layer"),
    });
    (row, evicted.len())
}

/// The case with the limit of the storage document, in other sizes.
#[test]
fn the_limit_of_a_directory() {
    on_large_stack("limit", 100 * MIB as u64, || {
        // 100 MiB, of which services may take 10.
        let store = Store::with(Path::new("/tmp/store"), |settings| settings.services_percent = 10);
        let (s1, _) = install_within(&store, 5, &[], &[]);
        let s1 = s1.unwrap();
        // Not beside it, and nothing may go.
        let (full, evicted) = install_within(&store, 6, &[&s1], &[]);
        assert!(full.unwrap_err().starts_with("not enough space: "));
        assert_eq!((evicted, s1.path.is_dir()), (0, true));
        let (s2, evicted) = install_within(&store, 6, &[&s1], &[&s1]);
        let s2 = s2.unwrap();
        assert_eq!((evicted, s1.path.exists()), (1, false));
        // It would not fit even without the other.
        let (huge, evicted) = install_within(&store, 11, &[&s2], &[&s2]);
        assert!(huge.unwrap_err().starts_with("not enough space: "));
        assert_eq!((evicted, s2.path.is_dir()), (0, true));
        let (s3, _) = install_within(&store, 7, &[&s2], &[&s2]);
        s3.unwrap();
        assert!(!s2.path.exists());
        assert_eq!(store.content().len(), 1);
    });
}

/// Blobs that come before the manifest wait in files, which count as long as they are there.
#[test]
fn what_waits_for_the_manifest_is_within_the_limit() {
    on_large_stack("staged", 100 * MIB as u64, || {
        // 100 MiB, of which services may take 10.
        let store = Store::with(Path::new("/tmp/store"), |settings| settings.services_percent = 10);
        let image = Image {
            manifest_last: true,
            ..Image::new(Archive::new().file("big", &vec![7; 4 * MIB]).bytes())
        };
        let good = image.package();
        // Archive and tree fit beside each other; in the end the tree alone counts.
        let (row, _) = store.service(file_source(Path::new("/tmp/good"), &good)).unwrap();
        let size_mib = row.size_bytes / MIB as u64;
        assert_eq!((size_mib, names(&row.path).len()), (4, 4), "{:?}", names(&row.path));
        store.store.remove(&row.path).unwrap();
        // Each of these would fit as well, and nobody needs them.
        let mut content = Vec::new();
        for letter in b'a'..b'd' {
            let blob = vec![letter; 3 * MIB];
            let name = format!("blobs/{}", digest_of(&blob).replace(':', "/"));
            content.extend(file(name.as_bytes(), &blob));
        }
        let bad = [content, good].concat();
        let error = store.service(file_source(Path::new("/tmp/bad"), &gzip(&bad))).map(drop);
        assert!(error.unwrap_err().starts_with("not enough space: "));
        assert!(store.content().is_empty(), "{:?}", store.content());
    });
}

#[test]
fn limits_that_exceed_the_partition_are_lowered() {
    on_large_stack("lowered", 40 * MIB as u64, || {
        let store = Store::with(Path::new("/tmp/store"), |settings| {
            (settings.services_percent, settings.layers_percent) = (10, 100);
        });
        // 10 of 110 parts of 40 MiB.
        let (row, _) = install_within(&store, 2, &[], &[]);
        row.unwrap();
        let (row, _) = install_within(&store, 4, &[], &[]);
        assert!(row.unwrap_err().starts_with("not enough space: "));
    });
}

/// Eviction of another directory's packages helps the partition, not the limit.
#[test]
fn packages_of_the_other_directory_make_room_on_the_partition() {
    on_large_stack("other", 32 * MIB as u64, || {
        let (bytes, digest) =
            layer_package(&gzip(&Archive::new().file("big", &vec![0; 6 * MIB]).bytes()));
        let limited =
            Store::with(Path::new("/tmp/store"), |settings| settings.services_percent = 20);
        let layer = limited.layer(&digest, file_source(Path::new("/tmp/layer"), &bytes)).unwrap();
        let install = |store: &Store, mib| {
            let package = service_package(file_source(Path::new("/tmp/service"), &package(mib)));
            let one = Evictable {
                key: PackageKey::Layer(layer.digest.clone()),
                path: layer.path.clone(),
                size_bytes: layer.size_bytes,
            };
            let plan = InstallPlan {
                package,
                evictable: vec![one],
                used_bytes: 0,
                unfinished: Vec::new(),
            };
            let mut evicted = Vec::new();
            let result = store.store.install(&plan, &mut evicted, &|| false).map(drop);
            (result.map_err(|failure| failure.message), evicted.len())
        };
        // 20 percent of 32 MiB are not enough for 8 whatever goes elsewhere.
        let (result, evicted) = install(&limited, 8);
        assert!(result.unwrap_err().starts_with("not enough space: "));
        assert_eq!((evicted, layer.path.is_dir()), (0, true));
        // 32 MiB, of which 16 are the reserve and 6 are in use.
        let (result, evicted) = install(&Store::new(Path::new("/tmp/store")), 12);
        assert_eq!((result, evicted, layer.path.exists()), (Ok(()), 1, false));
    });
}

#[test]
fn a_full_disk_is_cleared_and_the_attempt_repeated() {
    on_large_stack("again", 30 * MIB as u64, || {
        let store = Store::with(Path::new("/tmp/store"), |settings| settings.reserve_percent = 0);
        let (old, _) = install_within(&store, 4, &[], &[]);
        let old = old.unwrap();
        let rows = vec![evictable(&old)];
        let source = file_source(Path::new("/tmp/new"), &package(1));
        let plan = InstallPlan {
            package: service_package(source),
            evictable: rows,
            used_bytes: 0,
            unfinished: Vec::new(),
        };
        let mut evicted = Vec::new();
        assert!(store.store.make_way(&plan, &mut evicted).unwrap());
        assert_eq!((evicted.len(), old.path.exists()), (1, false));
        // Once only.
        assert!(!store.store.make_way(&plan, &mut evicted).unwrap());
    });
}

/// Somebody else takes all the room while a package is unpacked, at any moment of it.
#[test]
fn a_disk_that_becomes_full_at_any_moment() {
    on_large_stack("any-moment", 48 * MIB as u64, || {
        let ballast = Path::new("/tmp/ballast");
        let content = Image::new(Archive::new().file("new", &vec![3; MIB]).bytes()).package();
        let source = file_source(Path::new("/tmp/new"), &content);
        let mut repeated = 0;
        for moment in 1.. {
            let store = Store::with(Path::new("/tmp/store"), |settings| {
                settings.reserve_percent = 0;
            });
            // More than the reserve and the new package take.
            let old = Path::new("/tmp/store/services/1");
            fs::create_dir_all(old).unwrap();
            sys::fs::write_plain(&old.join("content"), &vec![1; 20 * MIB], 0o600).unwrap();
            let asked = std::cell::Cell::new(0);
            // Asked before each piece of the package.
            let meanwhile = || {
                asked.set(asked.get() + 1);
                if asked.get() == moment {
                    let mut file = fs::File::create(ballast).unwrap();
                    let mut ones = std::io::repeat(1).take(64 * MIB as u64);
                    std::io::copy(&mut ones, &mut file).unwrap_err();
                }
                false
            };
            let attempt = |evictable| {
                asked.set(0);
                let package = service_package(source.clone());
                let plan =
                    InstallPlan { package, evictable, used_bytes: 0, unfinished: Vec::new() };
                let mut evicted = Vec::new();
                let result = store.store.install(&plan, &mut evicted, &meanwhile);
                let _ = fs::remove_file(ballast);
                (result, evicted.len())
            };
            // Nothing may go: a clear error, and all is as it was.
            let (result, evicted) = attempt(Vec::new());
            let was_full = result.is_err();
            match result {
                Ok(Installed::Service(row, _)) => store.store.remove(&row.path).unwrap(),
                Ok(Installed::Layer(_)) => panic!("a layer"),
                Err(failure) => {
                    assert!(failure.no_space && !failure.transient, "{moment}: {failure}");
                    let clear = failure.message.starts_with("not enough space: ");
                    assert!(clear, "{moment}: {failure}");
                }
            }
            assert_eq!((store.content(), evicted), (vec!["services/1".to_owned()], 0), "{moment}");
            // Something may go: it goes, and the attempt succeeds, if need be by a second try.
            let key = service_package(PackageSource::default()).key();
            let old = Evictable { key, path: old.to_owned(), size_bytes: 20 * MIB as u64 };
            let (again, evicted) = attempt(vec![old]);
            let Installed::Service(row, _) = again.unwrap() else { panic!("a layer") };
            store.store.verify_service(&row, &|| false).unwrap();
            assert_eq!(evicted, usize::from(was_full), "{moment}");
            repeated += evicted;
            sys::fs::remove_tree(Path::new("/tmp/store")).unwrap();
            if !was_full {
                assert!(moment > 10 && repeated > 10, "{moment} {repeated}");
                return;
            }
        }
    });
}

#[test]
fn inodes_are_a_kind_of_room() {
    on_large_stack("inodes", 40 * MIB as u64, || {
        let dir = Path::new("/tmp/few");
        fs::create_dir(dir).unwrap();
        let (flags, options) = (nix::mount::MsFlags::empty(), "size=40m,nr_inodes=100");
        nix::mount::mount(Some("tmpfs"), dir, Some("tmpfs"), flags, Some(options)).unwrap();
        let store = Store::new(&dir.join("store"));
        let install = |files: u32| {
            let archive = (0..files).fold(Archive::new(), |a, n| a.file(&n.to_string(), b""));
            let content = Image::new(archive.bytes()).package();
            store.service(file_source(Path::new("/tmp/files"), &content)).map(|(row, _)| row)
        };
        let row = install(5).unwrap();
        let error = install(60).map(drop).unwrap_err();
        assert_eq!(error, "not enough space: no free inodes");
        assert_eq!(store.content().len(), 1);
        store.store.verify_service(&row, &|| false).unwrap();
    });
}

/// Packing needs more stack than a thread of ours has.
fn on_large_stack(name: &'static str, size_bytes: u64, test: impl FnOnce() + Send + 'static) {
    let thread = sys::thread::spawn_sized(name, 2 * MIB, move || {
        match isolate().and_then(|()| tmpfs(Path::new("/tmp"), Some(size_bytes), 0o1777)) {
            Ok(()) => test(),
            Err(error) => println!("SKIP {name}: no private mounts: {error}"),
        }
    });
    thread.unwrap().join().unwrap();
}
