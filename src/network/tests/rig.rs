//! A host of its own for each test: namespaces, an uplink, the net thread in it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, bounded};
use nix::errno::Errno;

use super::super::caps::NetCaps;
use super::super::channel::Channel;
use super::super::rtnl::{self, Link, LinkAddress, NewBridge, NewVeth};
use super::super::wire::Messages;
use super::super::{Error, NetHandle, NetThread, NetworkSettings, listing, naming, nft, rules};
use super::peer::{Pair, Peer};
use crate::model::desired::{FirewallRule, InstanceNetwork, NetworkParams};
use crate::model::event::Event;
use crate::model::failure::Failure;
use crate::model::id::{InstanceId, InstanceIdent, NetworkId, ServiceId, SubjectId};
use crate::model::service::Quotas;
use crate::model::status::{Alert, AlertPayload};
use crate::model::store::NetworkLinks;
use crate::model::traffic::TrafficRow;
use crate::ports::{Network, NetworkPlan};
use crate::sys::mount::{isolate, tmpfs};
use crate::sys::netlink::{Family, Netlink};
use crate::sys::netns::HostNs;
use crate::sys::testing::forbid_processes;
use crate::sys::thread::spawn_sized;
use crate::sys::time::monotonic;

/// For what must happen.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// For what must not happen: a dropped packet gives no sign of its own.
pub(super) const SILENCE: Duration = Duration::from_millis(300);
/// Address of the host towards the outside, and of a machine out there.
pub(super) const UPLINK: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
pub(super) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// Interface of the host towards it.
pub(super) const UPLINK_INDEX: u32 = 100;
const MACHINE_INDEX: u32 = 99;
const OUTSIDE_NAME: &str = "outside";

/// One host.
pub(super) struct Rig {
    pub(super) host: HostNs,
    pub(super) net: NetHandle,
    events: Receiver<Event>,
    /// What a database would hold, and what was removed from it.
    rows: RefCell<BTreeMap<Box<str>, TrafficRow>>,
    gone: RefCell<Vec<Box<str>>>,
    alerts: RefCell<Vec<String>>,
    /// Networks that stand at last.
    ready: RefCell<Vec<NetworkId>>,
    /// Networks that are not listed and still there.
    draining: RefCell<Vec<NetworkId>>,
    caps: Option<NetCaps>,
    /// How far the wall clock of the thread is ahead, in milliseconds.
    ahead_ms: Arc<AtomicI64>,
    /// What a database would hold of an earlier service manager.
    pub(super) stored_links: Vec<NetworkLinks>,
    thread: Option<JoinHandle<()>>,
    etc: tempfile::TempDir,
    pub(super) settings: NetworkSettings,
    ports: Cell<u16>,
}

/// Runs a test on a thread with namespaces of its own, or says why it cannot.
pub(super) fn on_a_host(test: &'static str, body: fn(&mut Rig)) {
    with_settings(test, NetworkSettings::default(), body);
}

pub(super) fn with_settings(test: &'static str, settings: NetworkSettings, body: fn(&mut Rig)) {
    with_caps(test, settings, None, body);
}

/// On a kernel that has no more than this.
pub(super) fn with_caps(
    test: &'static str,
    settings: NetworkSettings,
    caps: Option<NetCaps>,
    body: fn(&mut Rig),
) {
    with_refusals(test, settings, caps, &[], body);
}

/// On a kernel that has no more than this, and that cannot carry out these operations at first.
pub(super) fn with_refusals(
    test: &'static str,
    settings: NetworkSettings,
    caps: Option<NetCaps>,
    refusals: &'static [(&'static str, Errno)],
    body: fn(&mut Rig),
) {
    let thread = spawn_sized("net-test", 1024 * 1024, move || {
        if isolate().and_then(|()| tmpfs(Path::new("/run"), None, 0o755)).is_err() {
            println!("SKIP {test}: needs CAP_NET_ADMIN and CAP_SYS_ADMIN");
            return;
        }
        if settings.firewall && !has_nf_tables() {
            println!("SKIP {test}: kernel lacks nf_tables for inet");
            return;
        }
        let mut rig = Rig::new(settings, caps, refusals);
        body(&mut rig);
        rig.stop();
    });
    thread.unwrap().join().unwrap();
}

/// On a kernel without nf_tables for `inet`, or not at all.
pub(super) fn without_nf_tables(test: &'static str, body: fn(&mut Rig)) {
    let thread = spawn_sized("net-test", 1024 * 1024, move || {
        if isolate().and_then(|()| tmpfs(Path::new("/run"), None, 0o755)).is_err() {
            println!("SKIP {test}: needs CAP_NET_ADMIN and CAP_SYS_ADMIN");
            return;
        }
        if has_nf_tables() {
            println!("SKIP {test}: kernel has nf_tables for inet");
            return;
        }
        let mut rig = Rig::new(NetworkSettings::default(), None, &[]);
        body(&mut rig);
        rig.stop();
    });
    thread.unwrap().join().unwrap();
}

fn has_nf_tables() -> bool {
    touch_rules().is_ok()
}

/// Somebody makes and removes a table of his own.
pub(super) fn touch_rules() -> Result<(), Error> {
    let mut batch = nft::begin();
    nft::new_table(&mut batch, "theirs");
    nft::delete_table(&mut batch, "theirs");
    nft::end(&mut batch);
    Channel::open(Family::Netfilter)?.commit(&mut batch)
}

impl Rig {
    fn new(
        settings: NetworkSettings,
        caps: Option<NetCaps>,
        refusals: &[(&'static str, Errno)],
    ) -> Self {
        let mut channel = Channel::open(Family::Route).unwrap();
        let mut messages = Messages::new();
        rtnl::set_up(&mut messages, rtnl::LOOPBACK_INDEX);
        channel.execute(&mut messages).unwrap();
        let ahead_ms = Arc::default();
        let (net, events, thread) =
            start(settings.clone(), caps, refusals, &ahead_ms, vec![], vec![], &[]);
        Self {
            ahead_ms,
            stored_links: Vec::new(),
            rows: RefCell::default(),
            gone: RefCell::default(),
            alerts: RefCell::default(),
            ready: RefCell::default(),
            draining: RefCell::default(),
            caps,
            host: HostNs::open().unwrap(),
            net,
            events,
            thread: Some(thread),
            etc: tempfile::tempdir().unwrap(),
            settings,
            ports: Cell::new(1000),
        }
    }

    pub(super) fn stop(&mut self) {
        // As core does before the end.
        self.net.try_collect();
        self.net.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    /// Ends the net thread and starts another one, as a restart of the daemon does.
    pub(super) fn restart(&mut self) {
        self.restart_with(vec![], &[]);
    }

    /// The same with rows of the database and the instances that it knows.
    pub(super) fn restart_with(&mut self, rows: Vec<TrafficRow>, known: &[&NetworkPlan]) {
        self.stop();
        self.take_rows();
        let known: Vec<InstanceId> = known.iter().map(|plan| plan.id.clone()).collect();
        *self.rows.borrow_mut() = rows.iter().map(|row| (row.chain.clone(), row.clone())).collect();
        let (net, events, thread) = start(
            self.settings.clone(),
            self.caps,
            &[],
            &self.ahead_ms,
            self.stored_links.clone(),
            rows,
            &known,
        );
        (self.net, self.events, self.thread) = (net, events, Some(thread));
        // The first answer comes when the rules have been made anew.
        self.net.survey();
    }

    fn note(&self, event: Event) {
        match event {
            Event::Traffic { rows, gone } => {
                let rows = rows.into_iter().map(|row| (row.chain.clone(), row));
                self.rows.borrow_mut().extend(rows);
                self.gone.borrow_mut().extend(gone);
            }
            Event::Alert(Alert { payload: AlertPayload::Core { message, .. }, .. }) => {
                self.alerts.borrow_mut().push(message);
            }
            Event::TrafficCollected => {}
            Event::NetworkReady(id) => self.ready.borrow_mut().push(id),
            Event::NetworkGone(id) => self.draining.borrow_mut().retain(|other| *other != id),
            other => panic!("{other:?}"),
        }
    }

    fn take_rows(&self) {
        while let Ok(event) = self.events.try_recv() {
            self.note(event);
        }
    }

    /// It is this time for the daemon from now on.
    pub(super) fn set_clock(&self, wall_ms: i64) {
        self.ahead_ms.store(wall_ms - crate::sys::time::wall_ms(), Ordering::Relaxed);
    }

    /// What the database would hold now.
    pub(super) fn rows(&self) -> Vec<TrafficRow> {
        self.take_rows();
        self.rows.borrow().values().cloned().collect()
    }

    /// Waits until the database would hold this.
    pub(super) fn stored_rows(&self, expect: impl Fn(&[TrafficRow]) -> bool) -> Vec<TrafficRow> {
        loop {
            let rows = self.rows();
            if expect(&rows) {
                return rows;
            }
            self.note(self.events.recv_timeout(PATIENCE).unwrap());
        }
    }

    /// Names of rows that were removed.
    pub(super) fn gone(&self) -> Vec<Box<str>> {
        self.take_rows();
        self.gone.borrow().clone()
    }

    /// What the node has complained about.
    pub(super) fn alerts(&self) -> Vec<String> {
        // What the last request has caused is told before the next one is answered.
        self.net.survey();
        self.take_rows();
        self.alerts.borrow().clone()
    }

    /// Networks of which core has heard that they stand at last.
    pub(super) fn ready(&self) -> Vec<NetworkId> {
        self.take_rows();
        self.ready.borrow().clone()
    }

    /// Networks that are not listed and still there, by what core hears.
    pub(super) fn draining(&self) -> Vec<NetworkId> {
        self.take_rows();
        self.draining.borrow().clone()
    }

    /// Number of the last change of nf_tables.
    pub(super) fn generation(&self) -> u32 {
        let mut channel = Channel::open(Family::Netfilter).unwrap();
        channel.collect(&mut listing::get_generation(), listing::parse_generation).unwrap()[0]
    }

    pub(super) fn has_tbf(&self) -> bool {
        NetCaps::detect(&mut Channel::open(Family::Route).unwrap()).tbf
    }

    pub(super) fn has_vlans(&self) -> bool {
        NetCaps::detect(&mut Channel::open(Family::Route).unwrap()).vlan
    }

    /// Whether a connection to the outside comes about, however busy the machine is.
    pub(super) fn connects(&self, plan: &NetworkPlan) -> bool {
        self.connect_within(plan, PATIENCE).is_some()
    }

    /// A connection to the outside, if one comes about soon.
    pub(super) fn try_connect(&self, plan: &NetworkPlan) -> Option<Pair> {
        self.connect_within(plan, SILENCE)
    }

    fn connect_within(&self, plan: &NetworkPlan, limit: Duration) -> Option<Pair> {
        let port = self.take_port();
        let listener = self.outside().listen(port);
        let socket = SocketAddr::from((OUTSIDE, port));
        let client =
            self.instance(plan).inside(|| TcpStream::connect_timeout(&socket, limit)).ok()?;
        Some(Pair::new(client, listener.accept().unwrap().0))
    }

    /// The CM sends a list: id, subnet, address of the node.
    pub(super) fn update(&self, networks: &[(&str, &str, &str)]) -> Vec<(NetworkId, Failure)> {
        let params = |(id, subnet, ip): &(&str, &str, &str)| NetworkParams {
            id: NetworkId::new(id),
            subnet: (*subnet).to_owned(),
            ip: (*ip).to_owned(),
            vlan_id: 0,
        };
        self.update_params(networks.iter().map(params).collect())
    }

    pub(super) fn update_params(&self, list: Vec<NetworkParams>) -> Vec<(NetworkId, Failure)> {
        assert!(self.net.try_update(list));
        loop {
            match self.events.recv_timeout(PATIENCE).unwrap() {
                Event::NetworksUpdated { failed, draining } => {
                    *self.draining.borrow_mut() = draining;
                    return failed;
                }
                other => self.note(other),
            }
        }
    }

    /// Removes what is not in the list and waits until that is done.
    pub(super) fn keep(&self, ids: &[&InstanceId]) {
        assert!(self.net.try_keep(ids.iter().map(|id| (*id).clone()).collect()));
        self.net.survey();
    }

    /// Plan of instance `number` of a service.
    pub(super) fn plan(&self, network: &str, subnet: &str, ip: &str, number: u64) -> NetworkPlan {
        let id = InstanceId::new(&format!("00000000-0000-4000-8000-{number:012x}"));
        let etc_dir = self.etc.path().join(id.as_str());
        std::fs::create_dir_all(&etc_dir).unwrap();
        std::fs::create_dir_all(self.settings.run_dir.join("runtime").join(id.as_str())).unwrap();
        NetworkPlan {
            id,
            ident: InstanceIdent {
                service_id: ServiceId::new("svc"),
                subject_id: SubjectId::new("subj"),
                instance: number,
            },
            network_id: NetworkId::new(network),
            params: InstanceNetwork { subnet: subnet.into(), ip: ip.into(), ..Default::default() },
            hostname: String::new(),
            hosts: vec![],
            exposed_ports: vec![],
            quotas: Quotas::default(),
            etc_dir,
        }
    }

    pub(super) fn file(&self, plan: &NetworkPlan, name: &str) -> String {
        std::fs::read_to_string(plan.etc_dir.join(name)).unwrap()
    }

    /// A machine outside that the host reaches over its default route.
    pub(super) fn add_outside(&self) {
        self.add_outside_with_mtu(1500);
    }

    /// Its end of the link has the index 2, that of the host 100.
    pub(super) fn add_outside_with_mtu(&self, mtu: u32) {
        let (socket, namespace) = self
            .host
            .create(OUTSIDE_NAME, || {
                let namespace = std::fs::File::open("/proc/thread-self/ns/net")?;
                Ok((Netlink::for_few_requests(Family::Route)?, namespace))
            })
            .unwrap();
        let mut host = Channel::open(Family::Route).unwrap();
        let mut messages = Messages::new();
        let veth = NewVeth {
            index: 100,
            name: &naming::LinkName::try_from("uplink0").unwrap(),
            bridge: 0,
            mtu,
            peer_index: 2,
            peer_mac: naming::mac(OUTSIDE),
            peer_namespace: namespace.as_raw_fd(),
        };
        rtnl::new_veth(&mut messages, &veth);
        // Others announce what happens to their links.
        rtnl::set_group(&mut messages, 100, 0);
        let broadcast = Ipv4Addr::new(203, 0, 113, 255);
        let uplink = LinkAddress { index: 100, address: UPLINK, prefix: 24 };
        rtnl::new_address(&mut messages, &uplink, broadcast);
        host.execute(&mut messages).unwrap();
        let mut outside = Channel::new(socket);
        let mut messages = Messages::new();
        rtnl::set_up(&mut messages, 1);
        rtnl::new_address(
            &mut messages,
            &LinkAddress { index: 2, address: OUTSIDE, prefix: 24 },
            broadcast,
        );
        rtnl::set_up(&mut messages, 2);
        // Whoever wants to talk to the instances from outside goes over the host.
        rtnl::set_default_route(&mut messages, UPLINK, 2);
        outside.execute(&mut messages).unwrap();
        let mut messages = Messages::new();
        rtnl::set_default_route(&mut messages, OUTSIDE, 100);
        host.execute(&mut messages).unwrap();
    }

    /// A machine behind a port of a bridge, which nobody has configured.
    pub(super) fn add_machine(&self, name: &str, bridge: u32) -> Peer<'_> {
        let (namespace, socket) =
            self.host.unnamed(|| Netlink::for_few_requests(Family::Route)).unwrap();
        crate::sys::netns::give_name(name, namespace.as_fd()).unwrap();
        let mut messages = Messages::new();
        let veth = NewVeth {
            index: MACHINE_INDEX,
            name: &naming::LinkName::try_from(name).unwrap(),
            bridge,
            mtu: 1500,
            peer_index: 2,
            peer_mac: [2, 0, 0, 0, 0, 9],
            peer_namespace: namespace.as_raw_fd(),
        };
        rtnl::new_veth(&mut messages, &veth);
        rtnl::set_group(&mut messages, MACHINE_INDEX, 0);
        Channel::open(Family::Route).unwrap().execute(&mut messages).unwrap();
        let mut messages = Messages::new();
        rtnl::set_up(&mut messages, 2);
        Channel::new(socket).execute(&mut messages).unwrap();
        Peer { rig: self, name: Some(name.to_owned()) }
    }

    /// The cable is pulled.
    pub(super) fn remove_outside(&self) {
        self.delete_link(UPLINK_INDEX);
        crate::sys::netns::remove(OUTSIDE_NAME).unwrap();
    }

    pub(super) fn outside(&self) -> Peer<'_> {
        Peer { rig: self, name: Some(OUTSIDE_NAME.to_owned()) }
    }

    pub(super) fn node(&self) -> Peer<'_> {
        Peer { rig: self, name: None }
    }

    pub(super) fn instance(&self, plan: &NetworkPlan) -> Peer<'_> {
        Peer { rig: self, name: Some(plan.id.as_str().to_owned()) }
    }

    /// Where the bundle of an instance would be.
    pub(super) fn bundle(&self, plan: &NetworkPlan) -> PathBuf {
        self.settings.run_dir.join("runtime").join(plan.id.as_str())
    }

    /// A bridge of somebody else.
    pub(super) fn add_bridge(&self, index: u32, name: &str, alias: &str, ip: Option<Ipv4Addr>) {
        let mut messages = Messages::new();
        let name = &naming::LinkName::try_from(name).unwrap();
        let mac = [2, 0, 0, 0, 0, u8::try_from(index % 256).unwrap()];
        rtnl::new_bridge(&mut messages, &NewBridge { index, name, mac, mtu: 1500 });
        rtnl::set_group(&mut messages, index, 0);
        if !alias.is_empty() {
            rtnl::set_alias(&mut messages, index, alias);
        }
        if let Some(address) = ip {
            let address = LinkAddress { index, address, prefix: 16 };
            rtnl::new_address(&mut messages, &address, Ipv4Addr::BROADCAST);
        }
        Channel::open(Family::Route).unwrap().execute(&mut messages).unwrap();
    }

    /// Somebody gives a link another address.
    pub(super) fn add_address(&self, index: u32, address: Ipv4Addr, prefix: u8) {
        let mut messages = Messages::new();
        let address = LinkAddress { index, address, prefix };
        rtnl::new_address(&mut messages, &address, Ipv4Addr::BROADCAST);
        Channel::open(Family::Route).unwrap().execute(&mut messages).unwrap();
    }

    pub(super) fn delete_link(&self, index: u32) {
        let mut messages = Messages::new();
        rtnl::delete_link(&mut messages, index);
        Channel::open(Family::Route).unwrap().execute(&mut messages).unwrap();
    }

    pub(super) fn set_group(&self, index: u32, group: u32) {
        let mut messages = Messages::new();
        rtnl::set_group(&mut messages, index, group);
        Channel::open(Family::Route).unwrap().execute(&mut messages).unwrap();
    }

    /// Deletes our table, as an administrator's `nft flush ruleset` does.
    pub(super) fn flush_rules(&self) {
        let mut batch = nft::begin();
        nft::delete_table(&mut batch, rules::TABLE);
        nft::end(&mut batch);
        Channel::open(Family::Netfilter).unwrap().commit(&mut batch).unwrap();
    }

    /// Loads rules with the program `nft`; `None` = there is none.
    pub(super) fn nft(&self, rules: &str) -> Option<()> {
        let file = self.etc.path().join("rules");
        crate::sys::fs::write_plain(&file, rules.as_bytes(), 0o600).unwrap();
        let status = Command::new("nft").arg("-f").arg(&file).status().ok()?;
        assert!(status.success());
        Some(())
    }

    pub(super) fn nft_list(&self, what: &str) -> String {
        let words = what.split(' ');
        let child = Command::new("nft").arg("list").args(words).stdout(Stdio::piped()).spawn();
        let output = child.unwrap().wait_with_output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    pub(super) fn take_port(&self) -> u16 {
        self.ports.set(self.ports.get() + 1);
        self.ports.get()
    }

    /// Links of the host besides loopback and uplink.
    pub(super) fn links(&self) -> Vec<Link> {
        let mut links = rtnl::links(&mut Channel::open(Family::Route).unwrap()).unwrap();
        links.retain(|link| link.index > 100);
        links
    }

    /// Waits until the kernel has taken apart what was given up: only these links remain.
    pub(super) fn wait_for_links(&self, expect: &[&str]) {
        let end = monotonic() + PATIENCE;
        loop {
            let names: Vec<String> = self.links().into_iter().map(|link| link.name).collect();
            if names == expect {
                return;
            }
            assert!(monotonic() < end, "links {names:?} instead of {expect:?}");
            std::thread::yield_now();
        }
    }

    pub(super) fn namespaces(&self) -> Vec<String> {
        let mut names = crate::sys::netns::list().unwrap();
        names.retain(|name| name != OUTSIDE_NAME);
        names
    }

    /// Number of keys in one of our sets.
    pub(super) fn keys(&self, set: rules::Set) -> usize {
        let mut channel = Channel::open(Family::Netfilter).unwrap();
        let mut request = listing::list_elements(rules::TABLE, set.name());
        match channel.dump(&mut request, listing::parse_elements) {
            Ok(elements) => elements.iter().flatten().count(),
            // Flushed a moment ago.
            Err(Error::Kernel(refusal)) if refusal.errno == nix::errno::Errno::ENOENT => 0,
            Err(err) => panic!("{err}"),
        }
    }
}

fn start(
    settings: NetworkSettings,
    caps: Option<NetCaps>,
    refusals: &[(&'static str, Errno)],
    ahead_ms: &Arc<AtomicI64>,
    links: Vec<NetworkLinks>,
    rows: Vec<TrafficRow>,
    known: &[InstanceId],
) -> (NetHandle, Receiver<Event>, JoinHandle<()>) {
    let (mut thread, net) = NetThread::new(settings).unwrap();
    thread.restore(rows, known);
    thread.recognise(links);
    thread.pretend(caps);
    thread.refuse(refusals);
    thread.follow(ahead_ms.clone());
    let (sender, events) = bounded(1024);
    let thread = spawn_sized("net", 256 * 1024, move || {
        // True in every test: no program is ever run for networks.
        forbid_processes();
        thread.run(sender);
    })
    .unwrap();
    (net, events, thread)
}

/// A rule as the CM sends it.
pub(super) fn rule(source: &str, target: &str, port: u16) -> FirewallRule {
    FirewallRule {
        dst_ip: target.to_owned(),
        dst_port: port.to_string(),
        proto: "tcp".to_owned(),
        src_ip: source.to_owned(),
    }
}

/// Path of a namespace.
pub(super) fn namespace(plan: &NetworkPlan) -> PathBuf {
    crate::sys::netns::path(plan.id.as_str())
}
