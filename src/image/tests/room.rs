//! Space: reserve, eviction, full file systems.

use super::fixture::{Archive, Image, gzip};
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
            let plan = InstallPlan { package: service_package(source.clone()), evictable };
            let result = store.store.install(&plan, &mut evicted);
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
        let eviction = Eviction { candidates: &[], evicted: &mut evicted, places: &places };
        let source_of = download::Source::from_reader(filler);
        let Package::Service(wanted) = service_package(source) else { panic!("no service") };
        let result = install::service_from(&store.store.settings, &wanted, eviction, source_of);
        let error = result.map(drop).unwrap_err().to_string();
        assert!(error.starts_with("not enough space: "), "{error}");
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
