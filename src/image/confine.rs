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
        all.iter().map(|path| path.as_path()).filter(|path| path.is_dir()).collect();
    match rights::write_only_beneath(&directories) {
        Ok(true) => {}
        Ok(false) => log::info!("installs are not confined by Landlock: the kernel has none"),
        Err(error) => log::warn!("cannot confine installs by Landlock err={error}"),
    }
    if let Err(error) = rights::keep_capabilities(&CAPABILITIES) {
        log::warn!("cannot give up capabilities for installs err={error}");
    }
}
