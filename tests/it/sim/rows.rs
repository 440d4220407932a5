//! The database of the simulation: a snapshot to which changes are applied.

use aos_servicemanager::model::store::{Change, Snapshot};

pub fn change(rows: &mut Snapshot, change: Change) {
    match change {
        Change::PutService(row) => {
            rows.services.retain(|r| r.key != row.key);
            rows.services.push(row);
        }
        Change::RemoveService(key) => rows.services.retain(|r| r.key != key),
        Change::PutLayer(row) => {
            rows.layers.retain(|r| r.digest != row.digest);
            rows.layers.push(row);
        }
        Change::RemoveLayer(digest) => rows.layers.retain(|r| r.digest != digest),
        Change::PutWanted(row) => {
            rows.wanted.retain(|r| r.package.key() != row.package.key());
            rows.wanted.push(row);
        }
        Change::RemoveWanted(key) => rows.wanted.retain(|r| r.package.key() != key),
        Change::PutInstance(row) => {
            rows.instances.retain(|r| r.id != row.id);
            rows.instances.push(row);
        }
        Change::RemoveInstance(id) => rows.instances.retain(|r| r.id != id),
        Change::SetLeaving(list) => rows.leaving = list,
        Change::SetRefused(list) => rows.refused = list,
        Change::SetNetworks(networks) => rows.networks = networks,
        Change::SetNodeInfo(node) => rows.node_info = Some(node),
        Change::SetEnvOverrides(list) => rows.env_overrides = list,
        Change::SetAlertPosition(text) => rows.alert_position = Some(text),
        Change::SetOffline(offline) => rows.offline = Some(offline),
        Change::PutTraffic(counters) => {
            rows.traffic.retain(|r| counters.iter().all(|c| c.chain != r.chain));
            rows.traffic.extend(counters);
        }
        Change::RemoveTraffic(chains) => rows.traffic.retain(|r| !chains.contains(&r.chain)),
    }
}
