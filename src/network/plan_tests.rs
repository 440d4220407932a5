//! Bad and good input of the checks.

use super::*;
use crate::model::desired::InstanceNetwork;
use crate::model::id::{ServiceId, SubjectId};
use crate::model::service::Quotas;

fn params(id: &str, subnet: &str, ip: &str) -> NetworkParams {
    NetworkParams { id: NetworkId::new(id), subnet: subnet.into(), ip: ip.into(), vlan_id: 0 }
}

fn rule(dst_ip: &str, dst_port: &str, proto: &str) -> FirewallRule {
    let [dst_ip, dst_port, proto] = [dst_ip, dst_port, proto].map(str::to_owned);
    FirewallRule { dst_ip, dst_port, proto, src_ip: "172.17.0.2".to_owned() }
}

fn plan(change: impl FnOnce(&mut NetworkPlan)) -> NetworkPlan {
    let mut plan = NetworkPlan {
        id: InstanceId::new("i1"),
        ident: InstanceIdent {
            service_id: ServiceId::new("svc"),
            subject_id: SubjectId::new("s1"),
            instance: 0,
        },
        network_id: NetworkId::new("net1"),
        params: InstanceNetwork {
            subnet: "172.17.0.0/16".to_owned(),
            ip: "172.17.0.2".to_owned(),
            dns_servers: vec![],
            rules: vec![],
        },
        hostname: String::new(),
        hosts: vec![],
        exposed_ports: vec![],
        quotas: Quotas::default(),
        etc_dir: PathBuf::new(),
    };
    change(&mut plan);
    plan
}

#[test]
fn subnets() {
    let check = |text: &str, expect: &str| {
        let result = Subnet::parse(text).map(|subnet| subnet.to_string());
        match result {
            Ok(subnet) => assert_eq!(subnet, expect, "{text}"),
            Err(error) => assert_eq!(error.to_string(), format!("network parameter {expect}")),
        }
    };
    check("172.17.0.0/16", "172.17.0.0/16");
    check("10.0.0.0/8", "10.0.0.0/8");
    check("10.1.2.4/30", "10.1.2.4/30");
    check("", "subnet \"\": must be an address and a prefix length");
    check("172.17.0.0", "subnet \"172.17.0.0\": must be an address and a prefix length");
    check("172.17.0.1/16", "subnet \"172.17.0.1/16\": host bits must be zero");
    check("0.0.0.0/0", "subnet \"0.0.0.0/0\": prefix length must be 8 to 30");
    check("10.0.0.0/31", "subnet \"10.0.0.0/31\": prefix length must be 8 to 30");
    check("10.0.0.0/+8", "subnet \"10.0.0.0/+8\": prefix length must be a number");
    check("10.0.0.0/", "subnet \"10.0.0.0/\": prefix length must be a number");
    check("10.0.0/8", "subnet \"10.0.0\": must be an IPv4 address");
    check("fd00::/64", "subnet \"fd00::\": IPv6 is not supported");
}

#[test]
fn addresses_in_a_subnet() {
    let subnet = Subnet::parse("172.17.4.0/22").unwrap();
    for (address, expect) in [
        ([172, 17, 4, 1], true),
        ([172, 17, 7, 254], true),
        ([172, 17, 5, 0], true),
        ([172, 17, 4, 0], false),
        ([172, 17, 7, 255], false),
        ([172, 17, 8, 1], false),
    ] {
        assert_eq!(subnet.check_host(Ipv4Addr::from(address)).is_ok(), expect, "{address:?}");
    }
    assert_eq!(subnet.first(), Ipv4Addr::new(172, 17, 4, 1));
    let inner = Subnet::parse("172.17.5.0/24").unwrap();
    let beside = Subnet::parse("172.17.8.0/22").unwrap();
    assert!(subnet.overlaps(&inner) && inner.overlaps(&subnet) && !subnet.overlaps(&beside));
    let everything = Subnet::of_route(Ipv4Addr::UNSPECIFIED, 0);
    assert!(everything.overlaps(&inner) && everything.contains(Ipv4Addr::BROADCAST));
}

#[test]
fn lists_of_networks() {
    let check = |list: &[NetworkParams], good: &[&str], bad: &[(&str, &str)]| {
        let (wanted, failed) = check_networks(list, |_| false);
        let names: Vec<String> = wanted.iter().map(|w| format!("{} {}", w.id, w.gateway)).collect();
        assert_eq!(names, good);
        let reasons: Vec<(&str, String)> =
            failed.iter().map(|(id, error)| (id.as_str(), error.to_string())).collect();
        assert_eq!(reasons.len(), bad.len(), "{reasons:?}");
        for ((id, text), (expect, part)) in reasons.iter().zip(bad) {
            assert_eq!(id, expect);
            assert!(text.contains(part), "{text}");
        }
    };
    check(&[], &[], &[]);
    // The last one of an id wins, errors of one do not stop others.
    check(
        &[
            params("a", "172.17.0.0/16", "172.17.0.1"),
            params("b", "nonsense", "172.18.0.1"),
            params("a", "172.17.0.0/16", "172.17.0.9"),
        ],
        &["a 172.17.0.9"],
        &[("b", "must be an address and a prefix")],
    );
    check(&[params("a", "172.17.0.0/16", "172.18.0.1")], &[], &[("a", "outside of the subnet")]);
    check(&[params("a", "172.17.0.0/16", "172.17.0.0")], &[], &[("a", "is the network or")]);
    check(&[params("a", "172.17.0.0/16", "::1")], &[], &[("a", "IPv6 is not supported")]);
    check(&[params("", "172.17.0.0/16", "172.17.0.1")], &[], &[("", "must not be empty")]);
    check(&[params("a\nb", "172.17.0.0/16", "172.17.0.1")], &[], &[("a\nb", "control")]);
    check(
        &[params("a", "172.17.0.0/16", "172.17.0.1"), params("b", "172.17.4.0/24", "172.17.4.1")],
        &["a 172.17.0.1"],
        &[("b", "overlaps network a with 172.17.0.0/16")],
    );
}

#[test]
fn who_has_the_addresses_keeps_them() {
    let list =
        [params("a", "172.17.0.0/16", "172.17.0.1"), params("b", "172.17.4.0/24", "172.17.4.1")];
    let (wanted, failed) = check_networks(&list, |network| network.id.as_str() == "b");
    assert_eq!((wanted[0].id.as_str(), failed[0].0.as_str()), ("b", "a"));
    assert!(failed[0].1.to_string().contains("overlaps network b with 172.17.4.0/24"));
}

#[test]
fn no_more_networks_than_the_limit() {
    let list: Vec<NetworkParams> = (0..=MAX_NETWORKS)
        .map(|n| {
            let base = format!("10.{}.{}", n / 256, n % 256);
            params(&format!("n{n:03}"), &format!("{base}.0/24"), &format!("{base}.1"))
        })
        .collect();
    let (wanted, failed) = check_networks(&list, |_| false);
    assert_eq!((wanted.len(), failed.len()), (MAX_NETWORKS, 1));
}

#[test]
fn bad_instances() {
    let check = |change: fn(&mut NetworkPlan), expect: &str| {
        let error = Attachment::check(&plan(change)).unwrap_err().to_string();
        assert!(error.contains(expect), "{error}");
    };
    check(|p| p.id = InstanceId::new("../x"), "instance id \"../x\": is no plain name");
    check(|p| p.network_id = NetworkId::new(""), "network id \"\"");
    check(|p| p.params.subnet.clear(), "subnet \"\"");
    check(|p| p.params.ip.clear(), "ip \"\": must be an IPv4 address");
    check(|p| p.params.ip = "172.17.0.2/16".into(), "must be an IPv4 address");
    check(|p| p.params.ip = "fd00::2".into(), "IPv6 is not supported");
    check(|p| p.params.ip = "172.18.0.2".into(), "outside of the subnet");
    check(|p| p.params.ip = "172.17.255.255".into(), "network or broadcast address");
    check(|p| p.hostname = "a b".into(), "hostname \"a b\"");
    check(|p| p.hostname = "x\n1.2.3.4 bank".into(), "hostname");
    check(
        |p| p.hosts = vec![Host { ip: "1.2.3".into(), hostname: "a".into() }],
        "host address \"1.2.3\"",
    );
    for (port, expect) in [
        ("80/tcp/x", "unsupported ExposedPorts format"),
        ("80/sctp", "protocol \"sctp\": must be tcp or udp"),
        ("0", "port \"0\": must be 1 to 65535"),
        ("65536", "must be 1 to 65535"),
        ("+80", "must be 1 to 65535"),
        ("", "must be 1 to 65535"),
        ("90-80", "range ends before it begins"),
        ("1-1025", "exposed port \"1-1025\": makes more than 1024 ports"),
        ("1-600,700-1300", "more than 1024 ports"),
    ] {
        let plan = plan(|p| p.exposed_ports = vec![port.to_owned()]);
        let error = Attachment::check(&plan).unwrap_err().to_string();
        assert!(error.contains(expect), "{port}: {error}");
    }
    for (rule, expect) in [
        (rule("172.18.0.0/16", "80", "tcp"), "dst_ip"),
        (rule("172.18.0.2", "", "tcp"), "port \"\""),
        (rule("172.18.0.2", "80", "icmp"), "protocol \"icmp\""),
        (rule("172.18.0.2", "0", ""), "port \"0\": must be 1 to 65535"),
        (rule("172.18.0.2", "80,", ""), "port \"\": must be 1 to 65535"),
        (rule("172.18.0.2", "90:80", ""), "port \"90:80\": range ends before it begins"),
        (rule("172.18.0.2", "1:1025", ""), "dst_port \"1:1025\": makes more than 1024 ports"),
    ] {
        let error = Attachment::check(&plan(|p| p.params.rules = vec![rule])).unwrap_err();
        assert!(error.to_string().contains(expect), "{error}");
    }
    let many = vec![rule("172.18.0.2", "80", "tcp"); MAX_ENDPOINTS + 1];
    let large = ["1-512", "1001-1512", "2000"].map(|ports| rule("172.18.0.2", ports, "tcp"));
    for rules in [many, large.into()] {
        let error = Attachment::check(&plan(|p| p.params.rules = rules)).unwrap_err();
        assert!(error.to_string().contains("more than 1024"), "{error}");
    }
}

#[test]
fn good_instances() {
    let checked = Attachment::check(&plan(|p| {
        p.exposed_ports = ["80", "53/udp", "8000-8002/TCP", "90:91,80"].map(str::to_owned).into();
        p.params.rules = vec![rule("172.18.0.2", "80", ""), rule("172.18.0.2", "80", "tcp")];
        p.params.dns_servers = ["10.0.0.1", "x", "10.0.0.1", ""].map(str::to_owned).into();
        p.hostname = "cam".to_owned();
    }))
    .unwrap();
    let ports: Vec<(u8, u16)> = checked.exposed.iter().map(|e| (e.protocol, e.port)).collect();
    assert_eq!(ports, [(6, 80), (6, 90), (6, 91), (6, 8000), (6, 8001), (6, 8002), (17, 53)]);
    let http = Endpoint { protocol: 6, port: 80 };
    assert_eq!(checked.allowed, [(Ipv4Addr::new(172, 18, 0, 2), http)]);
    assert_eq!(checked.dns_servers, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
    assert_eq!(checked.names[0], "cam");
    let targets = ["8000:8001", "8001-8002,80"];
    let rules = targets.map(|ports| rule("172.18.0.2", ports, "udp"));
    let ranges = Attachment::check(&plan(|p| p.params.rules = rules.into())).unwrap();
    let ports = ranges.allowed.iter().map(|(_, endpoint)| (endpoint.protocol, endpoint.port));
    assert_eq!(ports.collect::<Vec<_>>(), [(17, 80), (17, 8000), (17, 8001), (17, 8002)]);
    let all = vec![rule("172.18.0.2", "1-1000", ""), rule("172.18.0.2", "2001:2024", "")];
    let all = Attachment::check(&plan(|p| p.params.rules = all)).unwrap();
    assert_eq!(all.allowed.len(), MAX_ENDPOINTS);
    let exactly = Attachment::check(&plan(|p| p.exposed_ports = vec!["1-1024".to_owned()]));
    assert_eq!(exactly.unwrap().exposed.len(), MAX_ENDPOINTS);
    let nothing = Attachment::check(&plan(|p| p.params = InstanceNetwork::default())).unwrap();
    assert_eq!(nothing.address, None);
}
