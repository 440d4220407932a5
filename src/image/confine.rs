//! Gives up what the fetch thread does not need, before it touches the first package.
//!
//! Fetch thread, once. Packages are foreign data and are parsed as root; whatever goes wrong there,
//! the thread can write below the directories of the store only, has the few capabilities that
//! unpacking takes, and leaves the disk to others. Each of the three works without the others:
//! what a kernel does not know is logged and missed. Not here: time and space limits.

use std::path::Path;

use crate::image::ImageSettings;
use crate::sys::rights::{self, Capability};

/// Owner, mode and marks of what is unpacked, and the places of others below the store.
const CAPABILITIES: [Capability; 5] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Mknod,
    Capability::SysAdmin,
];

/// Confines the calling thread. The directories must exist.
pub fn confine(settings: &ImageSettings) {
    if let Err(error) = rights::idle_io() {
        log::warn!("cannot lower the I/O priority of installs err={error}");
    }
    let all = [
        &settings.services_dir,
        &settings.layers_dir,
        &settings.download_dir,
        &settings.extract_dir,
    ];
    // `extractDir` is only emptied, and may never have existed.
    let directories: Vec<&Path> =
        all.into_iter().map(|path| path.as_path()).filter(|path| path.is_dir()).collect();
    match rights::write_only_beneath(&directories) {
        Ok(true) => {}
        Ok(false) => log::info!("installs are not confined by Landlock: the kernel has none"),
        Err(error) => log::warn!("cannot confine installs by Landlock err={error}"),
    }
    if let Err(error) = rights::keep_capabilities(&CAPABILITIES) {
        log::warn!("cannot give up capabilities for installs err={error}");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io;

    use super::*;
    use crate::image::tests::{Store, everything_package};
    use crate::sys::thread;

    /// With what is left of its rights the thread can do all of its work, and nothing else.
    #[test]
    fn installs_work_and_the_rest_of_the_host_is_out_of_reach() {
        let done = thread::spawn("confined", || {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::new(dir.path());
            let settings = store.settings();
            for place in [&settings.services_dir, &settings.layers_dir, &settings.download_dir] {
                fs::create_dir_all(place).unwrap();
            }
            let source = everything_package(dir.path());
            let outside = dir.path().join("outside");
            fs::File::create(&outside).unwrap();
            confine(settings);
            let (row, _) = store.service(source).unwrap();
            store.store.verify_service(&row, &|| false).unwrap();
            crate::image::staging::discard(&row.path).unwrap();
            let part = settings.download_dir.join("x.part");
            fs::File::create(&part).unwrap().set_len(5).unwrap();
            crate::image::part::retain(&settings.download_dir, &[]);
            assert!(!part.exists());
            if rights::has_landlock() {
                let refused = |result: io::Result<()>| {
                    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
                };
                refused(fs::OpenOptions::new().write(true).open(&outside).map(drop));
                refused(fs::File::create(dir.path().join("new")).map(drop));
                refused(fs::remove_file(&outside));
                refused(fs::create_dir("/tmp/aos-confined"));
            } else {
                println!(
                    "SKIP installs_work_and_the_rest_of_the_host_is_out_of_reach: no Landlock"
                );
            }
            // Capabilities that no package needs are gone.
            let status = fs::read_to_string("/proc/thread-self/status").unwrap();
            let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
            let effective = u64::from_str_radix(effective.unwrap().trim(), 16).unwrap();
            let wanted = CAPABILITIES.iter().fold(0, |mask, one| mask | 1 << (*one as u64));
            assert_eq!(effective & !wanted, 0);
            dir.keep()
        });
        fs::remove_dir_all(done.unwrap().join().unwrap()).unwrap();
    }
}
