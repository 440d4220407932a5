//! Monitoring as a table: the node, then its instances, a column for each partition.

use aos_servicemanager::cm::wire::v4::servicemanager as wire;
use protobuf::MessageField;

use super::render::ident;

/// One row; cells are right-aligned but for the first one.
type Row = Vec<String>;

/// The lines of the table. `max_dmips` is what the node is known to have; 0 = unknown.
pub fn lines(sample: &wire::InstantMonitoring, max_dmips: u64) -> Vec<String> {
    let node = sample.node_monitoring.as_ref();
    let instances = sample.instances_monitoring.iter();
    let all = node.into_iter().chain(instances.filter_map(|i| i.monitoring_data.as_ref()));
    let mut partitions: Vec<&str> = Vec::new();
    for partition in all.flat_map(|data| &data.partitions) {
        if !partitions.contains(&partition.name.as_str()) {
            partitions.push(&partition.name);
        }
    }
    let heads = ["", "RAM", "DMIPS", "CPU", "received", "sent"].into_iter();
    let mut rows: Vec<Row> =
        vec![heads.chain(partitions.iter().copied()).map(str::to_owned).collect()];
    rows.push(row("node".to_owned(), &sample.node_monitoring, &partitions, max_dmips));
    let mut instances: Vec<Row> = sample
        .instances_monitoring
        .iter()
        .map(|i| row(ident(&i.instance), &i.monitoring_data, &partitions, max_dmips))
        .collect();
    // Their order in the message means nothing; in a table that is redrawn they shall stay put.
    instances.sort();
    rows.append(&mut instances);
    aligned(&rows)
}

fn row(
    name: String,
    data: &MessageField<wire::MonitoringData>,
    partitions: &[&str],
    max_dmips: u64,
) -> Row {
    let Some(data) = data.as_ref() else { return vec![name, "no data".to_owned()] };
    let mut row = vec![
        name,
        bytes(data.ram),
        data.cpu.to_string(),
        share(data.cpu, max_dmips),
        bytes(data.download),
        bytes(data.upload),
    ];
    for name in partitions {
        let found = data.partitions.iter().find(|partition| partition.name == *name);
        row.push(found.map_or_else(|| "-".to_owned(), |partition| bytes(partition.used_size)));
    }
    row
}

fn share(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    let tenths = u128::from(part) * 1000 / u128::from(whole);
    format!("{}.{} %", tenths / 10, tenths % 10)
}

/// With a unit of which there are less than 1024.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut tenths = u128::from(count) * 10 / 1024;
    let mut unit = UNITS[0];
    for next in &UNITS[1..] {
        if tenths < 10 * 1024 {
            break;
        }
        tenths /= 1024;
        unit = next;
    }
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

fn aligned(rows: &[Row]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Row| {
        let mut text = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            match column {
                0 => text += &format!("{cell:<width$}"),
                _ => text += &format!("  {cell:>width$}"),
            }
        }
        text.trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use aos_servicemanager::cm::wire::v4::common;

    use super::*;

    fn data(ram: u64, cpu: u64, partitions: &[(&str, u64)]) -> MessageField<wire::MonitoringData> {
        let mut data = wire::MonitoringData::new();
        (data.ram, data.cpu, data.download) = (ram, cpu, 2048);
        for (name, used_size) in partitions {
            let mut usage = wire::PartitionUsage::new();
            (usage.name, usage.used_size) = ((*name).to_owned(), *used_size);
            data.partitions.push(usage);
        }
        Some(data).into()
    }

    fn instance(
        service: &str,
        data: MessageField<wire::MonitoringData>,
    ) -> wire::InstanceMonitoring {
        let mut instance = wire::InstanceMonitoring::new();
        let mut ident = common::InstanceIdent::new();
        (ident.service_id, ident.subject_id) = (service.into(), "user".into());
        (instance.instance, instance.monitoring_data) = (Some(ident).into(), data);
        instance
    }

    #[test]
    fn node_and_instances() {
        let mut sample = wire::InstantMonitoring::new();
        sample.node_monitoring = data(3 << 30, 2500, &[("var", 5 << 20)]);
        sample.instances_monitoring = vec![
            instance("web", data(1 << 20, 12, &[("storage", 1023)])),
            instance("db", MessageField::none()),
        ];
        let expect = [
            "                RAM  DMIPS     CPU  received  sent      var  storage",
            "node        3.0 GiB   2500  25.0 %   2.0 KiB   0 B  5.0 MiB        -",
            "db/user/0   no data",
            "web/user/0  1.0 MiB     12   0.1 %   2.0 KiB   0 B        -   1023 B",
        ];
        let lines = lines(&sample, 10_000);
        assert_eq!(lines, expect);
    }

    #[test]
    fn sizes_and_shares() {
        for (count, expect) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1023.9 KiB"),
            (1 << 20, "1.0 MiB"),
            (u64::MAX, "16383.9 PiB"),
        ] {
            assert_eq!(bytes(count), expect);
        }
        assert_eq!([share(1, 0), share(5, 1000), share(1000, 1000)], ["-", "0.5 %", "100.0 %"]);
    }
}
