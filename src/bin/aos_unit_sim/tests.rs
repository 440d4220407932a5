//! The servers and the session against a client that behaves as a service manager.

use std::collections::VecDeque;
use std::fs;
use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use aos_servicemanager::cm::wire::v4::servicemanager as wire;
use aos_servicemanager::iam::wire::v5::common::InstanceIdent;
use aos_servicemanager::iam::wire::v5::iamanager as iam;
use aos_servicemanager::iam::wire::version::version::APIVersion;
use futures_util::{SinkExt, TryStreamExt};
use grpcio::{
    CallOption, ChannelBuilder, ChannelCredentialsBuilder, Client, ClientDuplexReceiver,
    ClientDuplexSender, EnvBuilder, Environment, Error, Method, MethodType, RpcStatusCode,
    WriteFlags,
};
use protobuf::Message;
use protobuf::well_known_types::empty::Empty;
use wire::smincoming_messages::SMIncomingMessage as In;
use wire::smoutgoing_messages::SMOutgoingMessage as Out;

use crate::print::Printer;
use crate::session::{Input, Manners, Session, Verdict};
use crate::unit::certs::Identity;
use crate::unit::cm::{Admission, CmEvent};
use crate::unit::iam::Fault;
use crate::unit::server::{method, wait};
use crate::unit::world::{Event, Options, World};

const LIMIT: Duration = Duration::from_secs(10);

static REGISTER: Method<Vec<u8>, Vec<u8>> =
    method(MethodType::Duplex, "/servicemanager.v4.SMService/RegisterSM");

fn environment() -> Arc<Environment> {
    static ENV: OnceLock<Arc<Environment>> = OnceLock::new();
    ENV.get_or_init(|| Arc::new(EnvBuilder::new().cq_count(1).build())).clone()
}

/// A client of one port; with the certificate that IAM hands out, or without.
fn client(dir: &Path, port: u16, with_cert: bool) -> Client {
    let certs = dir.join("certs");
    let ca = fs::read(certs.join("ca.pem")).unwrap();
    let mut credentials = ChannelCredentialsBuilder::new().root_cert(ca);
    if with_cert {
        let identity = Identity { cert: certs.join("sm-1.pem"), key: certs.join("sm-1.key") };
        let (cert, key) = identity.read().unwrap();
        credentials = credentials.cert(cert, key);
    }
    // With retries C-core can forget a send that meets the end of its stream.
    let channel = ChannelBuilder::new(environment())
        .enable_retry(false)
        .set_credentials(credentials.build())
        .connect(&format!("127.0.0.1:{port}"));
    Client::new(channel)
}

fn code(error: &Error) -> Option<(RpcStatusCode, &str)> {
    match error {
        Error::RpcFailure(status) => Some((status.code(), status.message())),
        _ => None,
    }
}

/// The service manager's end of a stream.
struct Peer {
    tx: ClientDuplexSender<Vec<u8>>,
    rx: ClientDuplexReceiver<Vec<u8>>,
    _client: Client,
}

impl Peer {
    /// Opens a stream and sends the first message.
    fn register(dir: &Path, port: u16) -> Self {
        let client = client(dir, port, true);
        let (tx, rx) = client.duplex_streaming(&REGISTER, CallOption::default()).unwrap();
        let mut peer = Self { tx, rx, _client: client };
        let mut status = wire::NodeConfigStatus::new();
        status.node_id = "node0".into();
        peer.send(Out::NodeConfigStatus(status));
        peer
    }

    fn send(&mut self, message: Out) {
        let mut outer = wire::SMOutgoingMessages::new();
        outer.SMOutgoingMessage = Some(message);
        let bytes = outer.write_to_bytes().unwrap();
        let _ = wait(self.tx.send((bytes, WriteFlags::default())));
    }

    fn bytes(&mut self) -> Result<Option<Vec<u8>>, Error> {
        wait(self.rx.try_next())
    }

    fn message(&mut self) -> In {
        let bytes = self.bytes().unwrap().unwrap();
        wire::SMIncomingMessages::parse_from_bytes(&bytes).unwrap().SMIncomingMessage.unwrap()
    }

    /// Statuses of a desired state: `active`, but `failed` for a service called `bad`.
    fn statuses(run: &wire::RunInstances) -> Vec<wire::InstanceStatus> {
        let status = |info: &wire::InstanceInfo| {
            let mut status = wire::InstanceStatus::new();
            status.instance = info.instance.clone();
            status.service_version = "1.0.0".into();
            let bad = info.instance.service_id == "bad";
            status.run_state = if bad { "failed" } else { "active" }.into();
            status
        };
        run.instances.iter().map(status).collect()
    }

    /// Behaves as a service manager until the stream ends.
    fn serve(mut self) {
        self.send(Out::RunInstancesStatus(wire::RunInstancesStatus::new()));
        while let Ok(Some(bytes)) = self.bytes() {
            let message = wire::SMIncomingMessages::parse_from_bytes(&bytes).unwrap();
            match message.SMIncomingMessage {
                Some(In::RunInstances(run)) => {
                    let mut full = wire::RunInstancesStatus::new();
                    full.instances = Self::statuses(&run);
                    self.send(Out::RunInstancesStatus(full));
                }
                Some(In::GetAverageMonitoring(_)) => {
                    self.send(Out::AverageMonitoring(wire::AverageMonitoring::new()));
                }
                Some(In::InstanceLogRequest(request)) => {
                    let mut log = wire::LogData::new();
                    log.log_id = request.log_id;
                    (log.part, log.part_count, log.status) = (1, 1, "empty".into());
                    self.send(Out::Log(log));
                }
                _ => {}
            }
        }
    }
}

fn world(dir: &Path) -> (World, Receiver<Event>) {
    let (sender, events) = mpsc::channel();
    let unit = World::start(&Options::new(dir), move |event| drop(sender.send(event))).unwrap();
    (unit, events)
}

/// The next event of the CM.
fn cm_event(events: &Receiver<Event>) -> CmEvent {
    loop {
        if let Event::Cm(event) = events.recv_timeout(LIMIT).unwrap() {
            return event;
        }
    }
}

#[test]
fn cm_speaks_and_listens() {
    let dir = tempfile::tempdir().unwrap();
    let (unit, events) = world(dir.path());
    let mut peer = Peer::register(dir.path(), unit.cm.port());
    let CmEvent::Opened { common_name, .. } = cm_event(&events) else { panic!("not opened") };
    assert_eq!(common_name.as_deref(), Some("node0"));
    let CmEvent::Message { message, .. } = cm_event(&events) else { panic!("no message") };
    assert!(matches!(message.SMOutgoingMessage, Some(Out::NodeConfigStatus(_))));
    assert!(matches!(peer.message(), In::ConnectionStatus(_)));

    unit.cm.send(In::RunInstances(unit.catalog.run_instances(false))).unwrap();
    assert!(matches!(peer.message(), In::RunInstances(_)));
    unit.cm.send_bytes(vec![0xff, 0xff]).unwrap();
    assert_eq!(peer.bytes().unwrap(), Some(vec![0xff, 0xff]));
    wait(peer.tx.send((vec![0xff], WriteFlags::default()))).unwrap();
    let CmEvent::Malformed { bytes, .. } = cm_event(&events) else { panic!("not malformed") };
    assert_eq!(bytes, [0xff]);

    let _ = wait(peer.tx.close()); // the answer may overtake its own end
    assert_eq!(peer.bytes().unwrap(), None);
    let CmEvent::Closed { link, reason } = cm_event(&events) else { panic!("not closed") };
    assert_eq!((link, reason.as_str()), (1, "end of stream"));
    assert!(!unit.cm.is_connected());
}

#[test]
fn cm_ends_refuses_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let (mut unit, events) = world(dir.path());
    let port = unit.cm.port();
    let mut peer = Peer::register(dir.path(), port);
    peer.message();
    unit.cm.end_stream(Some((RpcStatusCode::INTERNAL, "go away".into()))).unwrap();
    let error = peer.bytes().unwrap_err();
    assert_eq!(code(&error), Some((RpcStatusCode::INTERNAL, "go away")));

    unit.cm.set_admission(Admission::Refuse(RpcStatusCode::UNKNOWN, "already exist".into()));
    let error = Peer::register(dir.path(), port).bytes().unwrap_err();
    assert_eq!(code(&error), Some((RpcStatusCode::UNKNOWN, "already exist")));

    unit.cm.set_admission(Admission::Accept);
    let mut peer = Peer::register(dir.path(), port);
    peer.message();
    unit.cm.down();
    assert!(peer.bytes().is_err());
    assert!(Peer::register(dir.path(), port).bytes().is_err());
    unit.cm.up().unwrap();
    assert_eq!(unit.cm.port(), port);
    Peer::register(dir.path(), port).message();
    let refused = events.try_iter().any(|e| matches!(e, Event::Cm(CmEvent::Refused { .. })));
    assert!(refused);
}

#[test]
fn nobody_enters_without_a_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let (unit, _events) = world(dir.path());
    for port in [unit.cm.port(), unit.iam.protected_port()] {
        let client = client(dir.path(), port, false);
        let (_tx, mut rx) = client.duplex_streaming(&REGISTER, CallOption::default()).unwrap();
        let error = wait(rx.try_next()).unwrap_err();
        assert_eq!(code(&error).unwrap().0, RpcStatusCode::UNAVAILABLE);
    }
}

/// A unary call with messages.
fn call<R: Message>(
    client: &Client,
    path: &'static str,
    request: &impl Message,
) -> Result<R, Error> {
    let method = method(MethodType::Unary, path);
    let bytes = request.write_to_bytes().unwrap();
    let answer = client.unary_call(&method, &bytes, CallOption::default().timeout(LIMIT))?;
    Ok(R::parse_from_bytes(&answer).unwrap())
}

#[test]
fn iam_answers() {
    const CERT: &str = "/iamanager.v5.IAMPublicService/GetCert";
    let dir = tempfile::tempdir().unwrap();
    let (mut unit, _events) = world(dir.path());
    let public = client(dir.path(), unit.iam.public_port(), false);
    let empty = Empty::new();
    let version: APIVersion =
        call(&public, "/iamanager.IAMVersionService/GetAPIVersion", &empty).unwrap();
    assert_eq!(version.version, 5);
    let node: iam::NodeInfo =
        call(&public, "/iamanager.v5.IAMPublicService/GetNodeInfo", &empty).unwrap();
    assert_eq!((node.node_id.as_str(), node.max_dmips), ("node0", 10_000));
    assert!(node.partitions.iter().all(|p| p.total_size > 0));
    let mut request = iam::GetCertRequest::new();
    request.type_ = "sm".into();
    let cert: iam::CertInfo = call(&public, CERT, &request).unwrap();
    assert!(cert.cert_url.ends_with("/certs/sm-1.pem"), "{}", cert.cert_url);

    static CHANGED: Method<Vec<u8>, Vec<u8>> =
        method(MethodType::ServerStreaming, "/iamanager.v5.IAMPublicService/SubscribeCertChanged");
    let subscription = request.write_to_bytes().unwrap();
    let mut changes =
        public.server_streaming(&CHANGED, &subscription, CallOption::default()).unwrap();
    let _: iam::CertInfo = call(&public, CERT, &request).unwrap(); // the subscription is there
    unit.renew_cert().unwrap();
    let change = wait(changes.try_next()).unwrap().unwrap();
    let change = iam::CertInfo::parse_from_bytes(&change).unwrap();
    assert!(change.key_url.ends_with("/certs/sm-2.key"), "{}", change.key_url);
    unit.iam.break_subscriptions(RpcStatusCode::INTERNAL, "not found");
    assert!(wait(changes.try_next()).is_err());

    let failing = Fault::Status(RpcStatusCode::UNKNOWN, "no certificate".into());
    unit.iam.set_fault("GetCert", Some(failing));
    let error = call::<iam::CertInfo>(&public, CERT, &request).unwrap_err();
    assert_eq!(code(&error), Some((RpcStatusCode::UNKNOWN, "no certificate")));
    unit.iam.set_fault("GetCert", None);
    call::<iam::CertInfo>(&public, CERT, &request).unwrap();
    let path = "/iamanager.v5.IAMPublicService/Unheard";
    let error = call::<Empty>(&public, path, &empty).unwrap_err();
    assert_eq!(code(&error).unwrap().0, RpcStatusCode::UNIMPLEMENTED);
}

#[test]
fn iam_keeps_registrations() {
    const REGISTER: &str = "/iamanager.v5.IAMPermissionsService/RegisterInstance";
    const UNREGISTER: &str = "/iamanager.v5.IAMPermissionsService/UnregisterInstance";
    let dir = tempfile::tempdir().unwrap();
    let (mut unit, _events) = world(dir.path());
    let protected = client(dir.path(), unit.iam.protected_port(), true);
    let mut instance = InstanceIdent::new();
    (instance.service_id, instance.subject_id) = ("web".into(), "user".into());
    let mut register = iam::RegisterInstanceRequest::new();
    register.instance = Some(instance.clone()).into();
    let mut granted = iam::Permissions::new();
    granted.permissions.insert("*".into(), "rw".into());
    register.permissions.insert("vis".into(), granted);
    let secret = |client: &Client| {
        call::<iam::RegisterInstanceResponse>(client, REGISTER, &register).unwrap().secret
    };
    assert_eq!(secret(&protected), "secret-1");
    assert_eq!(secret(&protected), "secret-1");
    assert_eq!(unit.iam.secret("web", "user", 0).as_deref(), Some("secret-1"));

    let public = client(dir.path(), unit.iam.public_port(), false);
    let mut request = iam::PermissionsRequest::new();
    (request.secret, request.functional_server_id) = ("secret-1".into(), "vis".into());
    let path = "/iamanager.v5.IAMPublicPermissionsService/GetPermissions";
    let answer: iam::PermissionsResponse = call(&public, path, &request).unwrap();
    assert_eq!(answer.permissions.permissions["*"], "rw");

    let mut unregister = iam::UnregisterInstanceRequest::new();
    unregister.instance = Some(instance).into();
    call::<Empty>(&protected, UNREGISTER, &unregister).unwrap();
    let error = call::<Empty>(&protected, UNREGISTER, &unregister).unwrap_err();
    assert_eq!(code(&error).unwrap().0, RpcStatusCode::INTERNAL);
    assert_eq!(secret(&protected), "secret-2");
    unit.iam.down();
    unit.iam.up().unwrap();
    assert_eq!(unit.iam.secret("web", "user", 0), None);
}

/// Runs a script against a service manager that connects at once.
fn script(lines: &[&str]) -> Verdict {
    let dir = tempfile::tempdir().unwrap();
    let (sender, input) = mpsc::channel();
    let events = sender.clone();
    let unit = World::start(&Options::new(dir.path()), move |event| {
        let _ = events.send(Input::Unit(event));
    })
    .unwrap();
    let peer: JoinHandle<()> = {
        let (dir, port) = (dir.path().to_owned(), unit.cm.port());
        thread::spawn(move || Peer::register(&dir, port).serve())
    };
    fs::write(dir.path().join("prog"), "x").unwrap();
    let prog = dir.path().join("prog").display().to_string();
    let lines: VecDeque<String> = lines.iter().map(|l| l.replace("PROG", &prog)).collect();
    sender.send(Input::End).unwrap();
    let verdict = Session::new(unit, input, lines, Printer::Nowhere, Manners::default()).run();
    peer.join().unwrap();
    verdict
}

#[test]
fn scripts_pass() {
    let verdict = script(&[
        "# the whole life of an instance",
        "service good PROG",
        "service bad PROG",
        "instance good count=2",
        "wait registered 10s",
        "run",
        "wait active good 10s",
        "wait text 'full status: 2 instances' 10s",
        "instance bad",
        "run",
        "wait failed bad 10s",
        "wait active good/*/1 10s",
        "stats",
        "wait stats 10s",
        "logs good",
        "wait logs 10s",
        "status",
        "stop bad",
        "wait gone bad 10s",
        "stop",
        "wait gone 10s",
        "link down",
        "wait disconnected 10s",
        "quit",
        "never executed",
    ]);
    assert_eq!(verdict, Verdict::Good);
}

#[test]
fn scripts_fail() {
    let check = |lines: &[&str]| assert_eq!(script(lines), Verdict::Failed, "{lines:?}");
    check(&["frobnicate"]);
    check(&["wait active"]);
    check(&["service bad PROG", "instance bad", "wait registered", "run", "wait active bad 50ms"]);
    check(&["service s PROG layer=unknown"]);
    check(&["service s /does/not/exist"]);
    check(&["wait connected", "stop nothing"]);
    check(&["wait connected", "wait disconnected 10ms"]);
    check(&["config set /does/not/exist"]);
}
