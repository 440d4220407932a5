//! Entrances for the fuzz targets: one function for each parser of what instances, the kernel and
//! the CM send. Only in tests and in builds for fuzzing; see `image::fuzzing`.

use std::path::PathBuf;

use super::packet::{self, Answer, Unfit};
use super::plan::Attachment;
use super::wire::{self, Message};
use super::{channel, listing, rtnl};
use crate::model::desired::{FirewallRule, InstanceNetwork};
use crate::model::id::{InstanceId, InstanceIdent, NetworkId, ServiceId, SubjectId};
use crate::model::node::Host;
use crate::model::service::Quotas;
use crate::ports::NetworkPlan;

type Entrance = fn(&[u8]);

/// All entrances by the names of their targets.
pub const TARGETS: [(&str, Entrance); 3] =
    [("dns", dns), ("netlink", netlink), ("network_plan", network_plan)];

/// A packet that an instance sends to the name responder, and every answer to it.
pub fn dns(input: &[u8]) {
    let refusal = packet::bare_refusal(input, packet::FORMAT_ERROR);
    assert_eq!(packet::parse(&refusal), Err(Unfit::Silent));
    let Ok(query) = packet::parse(input) else { return };
    let _ = packet::reverse_address(&query.name);
    let answers = [
        query.answer(None),
        query.answer(Some(&Answer::Address([172, 17, 0, 2].into()))),
        query.answer(Some(&Answer::Name(query.name.clone()))),
        query.refuse(packet::NO_SUCH_NAME),
        query.truncated(),
    ];
    for answer in answers {
        // Nobody takes an answer for a question, and the sender takes it for the answer to his.
        assert_eq!(packet::parse(&answer), Err(Unfit::Silent));
        assert!(packet::answers(&answer, packet::id(input), query.question));
        assert!(answer.len() <= input.len() + 300, "{} bytes", answer.len());
    }
    assert!(query.payload() >= 512);
}

/// A datagram of the kernel: routing, rules, acknowledgements.
pub fn netlink(input: &[u8]) {
    for message in wire::messages(input) {
        parse_all(&message);
    }
}

fn parse_all(message: &Message<'_>) {
    let _ = (rtnl::parse_link(message), rtnl::parse_address(message), rtnl::parse_route(message));
    let _ = (rtnl::parse_notice(message), channel::error_of(message));
    let _ = (listing::parse_chain(message), listing::parse_rule(message));
    let _ = (listing::parse_set(message), listing::parse_elements(message));
    let _ = (listing::parse_object(message), listing::parse_notice(message));
    let _ = listing::parse_generation(message);
}

/// The texts of an instance's network: subnet, address, host name, line for `hosts`, name server,
/// rule and exposed ports, one a line.
pub fn network_plan(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let mut lines = text.split('\n').map(str::to_owned);
    let mut line = || lines.next().unwrap_or_default();
    let plan = NetworkPlan {
        id: InstanceId::new("instance"),
        ident: InstanceIdent {
            service_id: ServiceId::new(&line()),
            subject_id: SubjectId::new(&line()),
            instance: 0,
        },
        network_id: NetworkId::new("net1"),
        params: InstanceNetwork {
            subnet: line(),
            ip: line(),
            dns_servers: vec![line()],
            rules: vec![FirewallRule {
                dst_ip: line(),
                dst_port: line(),
                proto: line(),
                src_ip: line(),
            }],
        },
        hostname: line(),
        hosts: vec![Host { ip: line(), hostname: line() }],
        exposed_ports: vec![line(), line()],
        quotas: Quotas::default(),
        etc_dir: PathBuf::new(),
    };
    let Ok(attachment) = Attachment::check(&plan) else { return };
    // These become lines of files that the instance reads.
    let plain = |text: &str| !text.contains(['\n', '\r', ' ', '\t', '\0', '#']);
    assert!(attachment.hostname.as_deref().is_none_or(plain), "{:?}", attachment.hostname);
    for host in &attachment.hosts {
        assert!(plain(&host.ip) && host.hostname.split(' ').all(plain), "{host:?}");
    }
}

#[cfg(test)]
#[test]
fn corpus() {
    crate::sys::testing::replay(&TARGETS);
}
