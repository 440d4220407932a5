//! Names of instances, and the content of the files `hosts` and `resolv.conf` byte for byte.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};

use super::error::Error;
use crate::model::id::{InstanceId, InstanceIdent, NetworkId};
use crate::model::node::Host;

/// Longest name and label of the DNS.
const MAX_NAME_BYTES: usize = 253;
const MAX_LABEL_BYTES: usize = 63;
const HOST_RESOLV_CONF: &str = "/etc/resolv.conf";

/// Names by which the CM knows an instance on all nodes: `instance.subject.service`, for instance 0
/// also `subject.service`.
pub(super) fn canonical(ident: &InstanceIdent) -> impl Iterator<Item = String> {
    let InstanceIdent { service_id, subject_id, instance } = ident;
    let first = (*instance == 0).then(|| format!("{subject_id}.{service_id}"));
    std::iter::once(format!("{instance}.{subject_id}.{service_id}")).chain(first)
}

/// Names of an instance in their order: host name, the canonical ones, then every name with a dot
/// once more inside its network.
pub(super) fn of_instance(
    ident: &InstanceIdent,
    hostname: Option<&str>,
    network: &NetworkId,
) -> Vec<String> {
    let mut names: Vec<String> = hostname.map(str::to_owned).into_iter().collect();
    names.extend(canonical(ident));
    let qualified: Vec<String> = names
        .iter()
        .filter(|name| name.contains('.'))
        .map(|name| format!("{name}.{network}"))
        .collect();
    names.extend(qualified);
    names
}

/// What stands before the domain; the domain itself is an empty name in it.
pub(super) fn strip_domain<'a>(name: &'a str, domain: &str) -> Option<&'a str> {
    let rest = name.strip_suffix(domain)?;
    if rest.is_empty() { Some(rest) } else { rest.strip_suffix('.') }
}

/// By which the responder of a network knows an instance: its names, then its id, in lower case and
/// without the domain, which is the id of the network. The domain itself may be the name of an
/// instance.
pub(super) fn keys(id: &InstanceId, names: &[String], network: &NetworkId) -> Vec<Box<str>> {
    let domain = network.as_str().to_ascii_lowercase();
    let key = |name: &str| -> Box<str> {
        let name = name.to_ascii_lowercase();
        strip_domain(&name, &domain).filter(|short| !short.is_empty()).unwrap_or(&name).into()
    };
    names.iter().map(String::as_str).chain([id.as_str()]).map(key).collect()
}

/// A host name goes into files that programs parse: letters, digits, `-`, `_` and single dots.
pub(super) fn check_hostname(name: &str) -> Result<(), Error> {
    if is_hostname(name) {
        return Ok(());
    }
    Err(Error::invalid("hostname", name, "must consist of labels of letters, digits, - and _"))
}

/// An additional line of `hosts`: one address, one or more names.
pub(super) fn check_host(host: &Host) -> Result<(), Error> {
    if host.ip.parse::<IpAddr>().is_err() {
        return Err(Error::invalid("host address", &host.ip, "must be an IP address"));
    }
    let mut names = host.hostname.split(' ').filter(|name| !name.is_empty()).peekable();
    if names.peek().is_none() {
        return Err(Error::invalid("hostname", &host.hostname, "must not be empty"));
    }
    names.try_for_each(check_hostname)
}

fn is_hostname(name: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= MAX_LABEL_BYTES
            && !label.starts_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    name.len() <= MAX_NAME_BYTES && name.split('.').all(label)
}

/// Content of `hosts`. A network id that is no host name would spoil its line and is left out.
pub(super) fn hosts_file<'a>(
    address: Option<Ipv4Addr>,
    network: &NetworkId,
    hostname: Option<&str>,
    more: impl Iterator<Item = &'a Host>,
) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    let network = Some(network.as_str()).filter(|id| is_hostname(id));
    let names: Vec<&str> = network.into_iter().chain(hostname).collect();
    if let (Some(address), false) = (address, names.is_empty()) {
        line(&mut text, &address.to_string(), &names.join(" "));
    }
    for host in more {
        line(&mut text, &host.ip, &host.hostname);
    }
    text
}

/// Content of `resolv.conf`.
pub(super) fn resolv_conf(servers: &[IpAddr]) -> String {
    let mut text = String::new();
    for server in servers {
        line(&mut text, "nameserver", &server.to_string());
    }
    text
}

fn line(text: &mut String, key: &str, value: &str) {
    writeln!(text, "{key}\t{value}").expect("a String takes everything");
}

/// Where name servers of an instance come from, best first.
#[derive(Clone, Copy, Debug)]
pub(super) struct ServerSources<'a> {
    /// Address of our responder, if it runs.
    pub(super) responder: Option<Ipv4Addr>,
    /// Servers that the CM names.
    pub(super) cm: &'a [IpAddr],
    /// Servers of the host.
    pub(super) host: &'a [IpAddr],
    /// Servers of the configuration.
    pub(super) fallback: &'a [IpAddr],
}

/// Responder and servers of the CM; if there are none, those of the host that an instance can
/// reach; if there are none, the configured ones.
pub(super) fn name_servers(sources: &ServerSources<'_>) -> Vec<IpAddr> {
    let mut servers: Vec<IpAddr> = sources.responder.map(IpAddr::V4).into_iter().collect();
    servers.extend(sources.cm.iter().filter(|ip| Some(**ip) != sources.responder.map(IpAddr::V4)));
    if servers.is_empty() {
        servers.extend(sources.host.iter().filter(|ip| !ip.is_loopback() && !ip.is_unspecified()));
    }
    if servers.is_empty() {
        servers.extend(sources.fallback);
    }
    servers
}

/// Name servers of the host; none if it has no such file.
pub(super) fn host_servers() -> Vec<IpAddr> {
    parse_servers(&std::fs::read_to_string(HOST_RESOLV_CONF).unwrap_or_default())
}

/// Name servers in the text of a `resolv.conf`.
fn parse_servers(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok()).flatten()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::{ServiceId, SubjectId};

    fn host(ip: &str, hostname: &str) -> Host {
        Host { ip: ip.to_owned(), hostname: hostname.to_owned() }
    }

    #[test]
    fn names_of_an_instance() {
        let check = |instance, hostname: &str, expect: &[&str]| {
            let ident = InstanceIdent {
                service_id: ServiceId::new("svc"),
                subject_id: SubjectId::new("s1"),
                instance,
            };
            let hostname = Some(hostname).filter(|name| !name.is_empty());
            assert_eq!(of_instance(&ident, hostname, &NetworkId::new("net1")), expect);
        };
        check(0, "cam", &["cam", "0.s1.svc", "s1.svc", "0.s1.svc.net1", "s1.svc.net1"]);
        check(1, "", &["1.s1.svc", "1.s1.svc.net1"]);
        check(2, "a.b", &["a.b", "2.s1.svc", "a.b.net1", "2.s1.svc.net1"]);
    }

    #[test]
    fn hostnames() {
        let long_label = "a".repeat(64);
        let long = vec!["a".repeat(60); 5].join(".");
        for (name, expect) in [
            ("cam", true),
            ("Cam-1_x.example", true),
            ("", false),
            ("a b", false),
            ("a\n10.0.0.1\tbank", false),
            ("a\tb", false),
            ("a#b", false),
            ("-a", false),
            ("a..b", false),
            (".a", false),
            ("a.", false),
            ("ä", false),
            (&long_label, false),
            (&long, false),
        ] {
            assert_eq!(check_hostname(name).is_ok(), expect, "{name:?}");
        }
        for (ip, names, expect) in [
            ("10.0.0.100", "wwwivi", true),
            ("fd00::1", "a b", true),
            ("10.0.0.300", "a", false),
            ("10.0.0.1\n1.1.1.1", "a", false),
            ("10.0.0.1", "", false),
            ("10.0.0.1", "a\nb", false),
        ] {
            assert_eq!(check_host(&host(ip, names)).is_ok(), expect, "{ip:?} {names:?}");
        }
    }

    #[test]
    fn hosts_bytes() {
        let check = |address: Option<[u8; 4]>,
                     network: &str,
                     hostname: &str,
                     more: &[Host],
                     expect: &str| {
            let hostname = Some(hostname).filter(|name| !name.is_empty());
            let network = NetworkId::new(network);
            let text = hosts_file(address.map(Ipv4Addr::from), &network, hostname, more.iter());
            let fixed = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";
            assert_eq!(text, format!("{fixed}{expect}"));
        };
        let address = Some([172, 17, 0, 2]);
        check(address, "net1", "cam", &[], "172.17.0.2\tnet1 cam\n");
        check(address, "net1", "", &[], "172.17.0.2\tnet1\n");
        let ivi = [host("10.0.0.100", "wwwivi"), host("10.0.0.5", "a b")];
        check(address, "net1", "", &ivi, "172.17.0.2\tnet1\n10.0.0.100\twwwivi\n10.0.0.5\ta b\n");
        check(address, "net 1", "cam", &[], "172.17.0.2\tcam\n");
        check(address, "net 1", "", &[], "");
        check(None, "net1", "cam", &[], "");
    }

    #[test]
    fn resolv_conf_bytes() {
        let check = |responder: Option<[u8; 4]>, cm: &[&str], host: &[&str], expect: &str| {
            let parse = |list: &[&str]| -> Vec<IpAddr> {
                list.iter().map(|text| text.parse().unwrap()).collect()
            };
            let sources = ServerSources {
                responder: responder.map(Ipv4Addr::from),
                cm: &parse(cm),
                host: &parse(host),
                fallback: &parse(&["8.8.8.8"]),
            };
            assert_eq!(resolv_conf(&name_servers(&sources)), expect);
        };
        let bridge = Some([172, 17, 0, 1]);
        check(
            bridge,
            &["10.0.0.1"],
            &["9.9.9.9"],
            "nameserver\t172.17.0.1\nnameserver\t10.0.0.1\n",
        );
        check(bridge, &["172.17.0.1"], &[], "nameserver\t172.17.0.1\n");
        check(None, &["10.0.0.1"], &["9.9.9.9"], "nameserver\t10.0.0.1\n");
        check(None, &[], &["127.0.0.53", "9.9.9.9", "::1"], "nameserver\t9.9.9.9\n");
        check(None, &[], &["127.0.0.53"], "nameserver\t8.8.8.8\n");
    }

    #[test]
    fn servers_of_the_host() {
        let text = "# x\nsearch a\nnameserver 1.1.1.1\n nameserver\tfe80::1%eth0\nnameserver\n\
                    nameserver ::1 # y\nnameservers 2.2.2.2\n";
        let expect: Vec<IpAddr> = vec!["1.1.1.1".parse().unwrap(), "::1".parse().unwrap()];
        assert_eq!(parse_servers(text), expect);
    }
}
