//! The files `hosts` and `resolv.conf` of an instance, in a directory that its root file system has
//! as its topmost lower layer. What they say stands in `names`.
//!
//! Runs on the net thread.

use std::net::IpAddr;
use std::path::Path;

use log::error;

use super::attach::Place;
use super::domain::{Attached, Domain};
use super::error::Error;
use super::names::{self, ServerSources};
use super::plan::Attachment;
use crate::model::id::{InstanceId, NetworkId};
use crate::sys;

const FILE_MODE: u32 = 0o644;

impl Domain {
    /// Writes both for a new instance.
    pub(super) fn write_files(
        &self,
        attachment: &Attachment,
        place: Option<&Place>,
    ) -> Result<(), Error> {
        let more = self.settings.hosts.iter().chain(&attachment.hosts);
        let address = place.map(|place| place.address);
        let hostname = attachment.hostname.as_deref();
        let hosts = names::hosts_file(address, &attachment.network, hostname, more);
        write(&attachment.etc_dir, "hosts", &hosts)?;
        let resolv_conf = self.resolv_conf(&attachment.network, &attachment.dns_servers);
        write(&attachment.etc_dir, "resolv.conf", &resolv_conf)
    }

    fn resolv_conf(&self, network: &NetworkId, cm: &[IpAddr]) -> String {
        // The servers of the host are the last resort; most instances do without the file.
        let host = if cm.is_empty() { names::host_servers() } else { Vec::new() };
        names::resolv_conf(&names::name_servers(&ServerSources {
            responder: self.dns.responder(network),
            cm,
            host: &host,
            fallback: &self.settings.dns_fallback,
        }))
    }

    /// The name servers of an instance may have changed. In place: the file is a lower layer of a
    /// mounted overlay.
    pub(super) fn rewrite_resolv_conf(&self, id: &InstanceId, instance: &Attached) {
        let text = self.resolv_conf(&instance.network, &instance.dns_servers);
        let path = instance.etc_dir.join("resolv.conf");
        if std::fs::read_to_string(&path).is_ok_and(|present| present == text) {
            return;
        }
        if let Err(err) = sys::fs::write_plain(&path, text.as_bytes(), FILE_MODE) {
            error!("cannot rewrite {} instance={id} err={err}", path.display());
        }
    }
}

fn write(directory: &Path, name: &str, text: &str) -> Result<(), Error> {
    let path = directory.join(name);
    sys::fs::write_volatile(&path, text.as_bytes(), FILE_MODE).map_err(|source| Error::File {
        operation: "write",
        path,
        source,
    })
}
