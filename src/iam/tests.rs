//! The iam thread against an IAM double with a public and a protected server.

use std::cell::RefCell;
use std::path::Path;
use std::sync::{Condvar, Mutex};
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, bounded};
use grpcio::{RpcStatusCode, ServiceBuilder};
use protobuf::Message;

use super::*;
use crate::iam::watch::{INBOX_CAPACITY, WAITING_LIMIT, Watching};
use crate::iam::wire::v5::iamanager as messages;
use crate::model::event::{Event, IamCommand, IamEvent};
use crate::model::failure::Failure;
use crate::model::id::{InstanceId, InstanceIdent, ServiceId, SubjectId};
use crate::model::job::Permissions;
use crate::rpc::InboxSender;
use crate::rpc::double::{
    Authority, Gate, LONG, Reply, Running, StreamCall, env, with_stream, with_unary,
};
use crate::sys::thread::spawn;

/// How the double behaves, and what it was asked.
#[derive(Default)]
struct Behaviour {
    urls: Option<(String, String)>,
    /// Names of the clients and services of protected calls.
    registered: Vec<(String, String)>,
    removed: Vec<String>,
    silent: bool,
    /// Registrations end without an error and without an answer.
    mute: bool,
    refusal: Option<&'static str>,
    max_dmips: u64,
}

#[derive(Default)]
struct Script {
    behaviour: Mutex<Behaviour>,
    asked: Condvar,
}

impl Script {
    fn set(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.behaviour.lock().unwrap());
    }

    /// Waits until the double has been asked for what `seen` looks for.
    fn until(&self, seen: impl Fn(&Behaviour) -> bool) {
        let behaviour = self.behaviour.lock().unwrap();
        let waited = self.asked.wait_timeout_while(behaviour, LONG, |b| !seen(b)).unwrap();
        assert!(!waited.1.timed_out(), "the double is not asked");
    }

    fn node_info(&self) -> Reply {
        let info = messages::NodeInfo {
            node_id: "node0".to_owned(),
            max_dmips: self.behaviour.lock().unwrap().max_dmips,
            ..Default::default()
        };
        Reply::Message(info.write_to_bytes().unwrap())
    }

    fn cert(&self, request: &[u8]) -> Reply {
        let request = messages::GetCertRequest::parse_from_bytes(request).unwrap();
        assert_eq!(request.type_, "sm");
        match self.behaviour.lock().unwrap().urls.clone() {
            None => Reply::Refused(RpcStatusCode::INTERNAL, "not found"),
            Some((cert_url, key_url)) => {
                let info = messages::CertInfo { cert_url, key_url, ..Default::default() };
                Reply::Message(info.write_to_bytes().unwrap())
            }
        }
    }

    fn register(&self, client: &str, request: &[u8]) -> Reply {
        let request = messages::RegisterInstanceRequest::parse_from_bytes(request).unwrap();
        let service = request.instance.service_id.clone();
        let mut behaviour = self.behaviour.lock().unwrap();
        behaviour.registered.push((client.to_owned(), service.clone()));
        self.asked.notify_all();
        match behaviour.refusal {
            Some(text) => Reply::Refused(RpcStatusCode::INTERNAL, text),
            None if behaviour.silent => Reply::Silence,
            None if behaviour.mute => Reply::Nothing,
            None => {
                let secret = format!("secret of {service}");
                let answer = messages::RegisterInstanceResponse { secret, ..Default::default() };
                Reply::Message(answer.write_to_bytes().unwrap())
            }
        }
    }

    fn unregister(&self, request: &[u8]) -> Reply {
        let request = messages::UnregisterInstanceRequest::parse_from_bytes(request).unwrap();
        let mut behaviour = self.behaviour.lock().unwrap();
        behaviour.removed.push(request.instance.service_id.clone());
        self.asked.notify_all();
        match behaviour.silent {
            true => Reply::Silence,
            false => Reply::Refused(RpcStatusCode::INTERNAL, "not found"),
        }
    }
}

struct Bed {
    authority: Authority,
    script: Arc<Script>,
    public: Running,
    protected: Running,
    public_gate: Gate,
    protected_gate: Gate,
    subscriptions: Receiver<StreamCall>,
    certs: Arc<Certificates>,
    events: Receiver<Event>,
    /// Removals that are over, and whether IAM has answered them.
    removals: RefCell<Vec<bool>>,
    inbox: InboxSender<IamCommand>,
    thread: Option<JoinHandle<()>>,
}

impl Bed {
    /// Nobody reaches IAM yet. Without `subscribing` it is of a release that cannot do that.
    fn new(subscribing: bool, call: Duration) -> Self {
        Self::with_timing(
            subscribing,
            Timing {
                call,
                pause: (Duration::from_millis(20), Duration::from_millis(200)),
                ..Timing::default()
            },
        )
    }

    fn with_timing(subscribing: bool, timing: Timing) -> Self {
        let authority = Authority::new();
        let script = Arc::new(Script::default());
        script.set(|b| {
            b.urls = Some(authority.urls("node"));
            b.max_dmips = 10_000;
        });
        let (calls, subscriptions) = bounded(16);
        let (s, t) = (script.clone(), script.clone());
        let mut builder =
            with_unary(ServiceBuilder::new(), v5::GET_NODE_INFO, move |_, _| t.node_info());
        builder = with_unary(builder, v5::GET_CERT, move |_, request| s.cert(request));
        if subscribing {
            builder = with_stream(builder, v5::SUBSCRIBE_CERT_CHANGED, calls);
        }
        let public = authority.server(builder.build(), false);
        let (s, t) = (script.clone(), script.clone());
        let mut builder = with_unary(ServiceBuilder::new(), v5::REGISTER_INSTANCE, {
            move |client, request| s.register(client, request)
        });
        builder = with_unary(builder, v5::UNREGISTER_INSTANCE, move |_, r| t.unregister(r));
        let protected = authority.server(builder.build(), true);
        let (public_gate, protected_gate) = (Gate::new(), Gate::new());
        protected_gate.open(protected.port);
        let settings = Settings {
            public_url: public_gate.target(),
            protected_url: protected_gate.target(),
            ca_cert: authority.ca_file(),
            cert_type: "sm".to_owned(),
            timing,
        };
        let certs = Certificates::new(settings.clone(), env(), Tokens::default());
        let (events_in, events) = bounded(2048);
        let (inbox, commands) = rpc::inbox(INBOX_CAPACITY);
        let watching = Watching {
            settings,
            env: env(),
            certs: certs.clone(),
            inbox: commands,
            events: events_in,
        };
        let thread = spawn("iam", move || watching.run()).unwrap();
        Self {
            authority,
            script,
            public,
            protected,
            public_gate,
            protected_gate,
            subscriptions,
            certs,
            events,
            removals: RefCell::default(),
            inbox,
            thread: Some(thread),
        }
    }

    fn up() -> Self {
        let bed = Self::new(true, CALL_LIMIT);
        bed.public_gate.open(bed.public.port);
        bed.comes_up(false);
        bed
    }

    fn event(&self) -> IamEvent {
        loop {
            match self.events.recv_timeout(LONG).expect("an event") {
                Event::Iam(IamEvent::Unregistered { ask: 9, done }) => {
                    self.removals.borrow_mut().push(done);
                }
                Event::Iam(event) => return event,
                other => panic!("{other:?}"),
            }
        }
    }

    fn comes_up(&self, expect_restarted: bool) {
        match self.event() {
            IamEvent::NodeInfo(info) => {
                assert_eq!((info.node_id.as_str(), info.max_dmips), ("node0", 10_000));
            }
            other => panic!("{other:?}"),
        }
        match self.event() {
            IamEvent::Up { restarted } => assert_eq!(restarted, expect_restarted),
            other => panic!("{other:?}"),
        }
    }

    fn goes_down(&self) {
        match self.event() {
            IamEvent::Down => {}
            other => panic!("{other:?}"),
        }
    }

    fn subscription(&self) -> StreamCall {
        self.subscriptions.recv_timeout(LONG).expect("a subscription")
    }

    fn send(&self, command: IamCommand) {
        self.inbox.send(command).unwrap();
    }

    fn register(&self, name: &str) {
        self.send(register(name));
    }

    fn registered(&self) -> (String, Result<Arc<str>, Failure>) {
        match self.event() {
            IamEvent::Registered { id, ask: 7, result } => (id.as_str().to_owned(), result),
            other => panic!("{other:?}"),
        }
    }

    fn secret(&self, name: &str) {
        let (id, result) = self.registered();
        assert_eq!((id.as_str(), result.unwrap().as_ref()), (name, &*format!("secret of {name}")));
    }

    fn stop(&mut self) {
        let _ = self.inbox.send(IamCommand::Stop);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.stop();
    }
}

fn ident(name: &str) -> InstanceIdent {
    InstanceIdent {
        service_id: ServiceId::new(name),
        subject_id: SubjectId::new("subject"),
        instance: 0,
    }
}

/// The instance is called as its service.
fn register(name: &str) -> IamCommand {
    let permissions = Arc::new(Permissions::new());
    IamCommand::Register { id: InstanceId::new(name), ask: 7, ident: ident(name), permissions }
}

fn unregister(name: &str) -> IamCommand {
    IamCommand::Unregister { id: InstanceId::new(name), ask: 9, ident: ident(name) }
}

#[test]
fn an_instance_gets_its_secret_over_mutual_tls() {
    let bed = Bed::up();
    bed.register("a");
    bed.register("b");
    bed.secret("a");
    bed.secret("b");
    bed.send(unregister("a"));
    bed.script.until(|b| b.removed == ["a"]);
    let asked = std::mem::take(&mut bed.script.behaviour.lock().unwrap().registered);
    assert_eq!(asked, [("node".into(), "a".into()), ("node".into(), "b".into())]);
}

#[test]
fn what_is_asked_while_iam_is_away_is_answered_when_it_comes() {
    let bed = Bed::new(true, CALL_LIMIT);
    bed.register("a");
    bed.register("b");
    bed.register("a"); // again: asked once
    bed.send(unregister("b")); // not wanted any more
    bed.public_gate.open(bed.public.port);
    bed.comes_up(false);
    bed.secret("a");
    bed.register("c");
    bed.secret("c");
    let services: Vec<_> =
        bed.script.behaviour.lock().unwrap().registered.iter().map(|r| r.1.clone()).collect();
    assert_eq!(services, ["a", "c"]);
}

#[test]
fn more_than_every_instance_cannot_wait() {
    let bed = Bed::new(true, CALL_LIMIT);
    for index in 0..=WAITING_LIMIT {
        bed.register(&format!("instance{index}"));
    }
    let (id, result) = bed.registered();
    assert_eq!(id, format!("instance{WAITING_LIMIT}"));
    assert_eq!(result.unwrap_err().message, "too many registrations wait for IAM");
}

#[test]
fn more_removals_than_instances_are_forgotten() {
    let bed = Bed::new(true, CALL_LIMIT);
    for index in 0..=WAITING_LIMIT {
        bed.send(unregister(&format!("instance{index}")));
    }
    bed.register("last");
    bed.public_gate.open(bed.public.port);
    bed.comes_up(false);
    bed.secret("last");
    assert_eq!(bed.script.behaviour.lock().unwrap().removed.len(), WAITING_LIMIT);
    let mut expect = vec![false];
    expect.resize(WAITING_LIMIT + 1, true);
    assert_eq!(*bed.removals.borrow(), expect);
}

#[test]
fn a_node_that_changes_is_noticed() {
    let node_info = Duration::from_millis(50);
    let bed = Bed::with_timing(true, Timing { node_info, ..Timing::default() });
    bed.public_gate.open(bed.public.port);
    bed.comes_up(false);
    bed.script.set(|b| b.max_dmips = 7);
    match bed.event() {
        IamEvent::NodeInfo(info) => assert_eq!(info.max_dmips, 7),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_idle_connection_is_not_used_again() {
    let idle = Duration::ZERO;
    let bed = Bed::with_timing(true, Timing { idle, ..Timing::default() });
    bed.public_gate.open(bed.public.port);
    bed.comes_up(false);
    bed.register("a");
    bed.secret("a");
    let urls = bed.authority.urls("renewed");
    bed.script.set(|b| b.urls = Some(urls)); // IAM does not tell
    bed.register("b");
    assert!(matches!(bed.event(), IamEvent::CertChanged));
    bed.secret("b");
    assert_eq!(bed.script.behaviour.lock().unwrap().registered[1].0, "renewed");
}

#[test]
fn a_refusal_is_an_answer() {
    let bed = Bed::up();
    bed.script.set(|b| b.refusal = Some("no such functional server"));
    bed.register("a");
    let failure = bed.registered().1.unwrap_err();
    assert!(!failure.transient);
    assert!(failure.message.contains("no such functional server"), "{failure}");
    bed.script.set(|b| b.refusal = None);
    bed.register("a");
    bed.secret("a");
}

#[test]
fn an_end_without_an_answer_is_a_refusal() {
    let bed = Bed::up();
    bed.script.set(|b| b.mute = true);
    bed.register("a");
    let failure = bed.registered().1.unwrap_err();
    assert!(failure.message.contains("it has no message"), "{failure}");
    bed.script.set(|b| b.mute = false);
    bed.register("a");
    bed.secret("a");
}

#[test]
fn an_iam_that_went_away_may_have_forgotten_everything() {
    let bed = Bed::up();
    bed.public_gate.close();
    bed.goes_down();
    bed.register("a");
    bed.public_gate.open(bed.public.port);
    bed.comes_up(true);
    bed.secret("a");
}

#[test]
fn a_protected_server_that_is_away_is_tried_again() {
    let bed = Bed::up();
    bed.protected_gate.close();
    bed.register("a");
    bed.send(unregister("b"));
    bed.protected_gate.open(bed.protected.port);
    bed.secret("a");
    bed.protected_gate.close(); // behind the back of an idle connection
    bed.protected_gate.open(bed.protected.port);
    bed.register("c");
    bed.secret("c");
}

#[test]
fn a_silent_iam_delays_a_registration_and_forgets_a_removal() {
    // With the time that a new connection needs on a busy machine.
    let bed = Bed::new(true, Duration::from_secs(2));
    bed.public_gate.open(bed.public.port);
    bed.comes_up(false);
    bed.script.set(|b| b.silent = true);
    bed.register("a");
    bed.script.until(|b| b.registered.len() >= 2);
    bed.script.set(|b| b.silent = false);
    bed.secret("a");
    bed.script.set(|b| b.silent = true);
    bed.send(unregister("a"));
    bed.register("b");
    // The connection was in use before: that attempt is free, then two count.
    bed.script.until(|b| b.registered.iter().any(|r| r.1 == "b"));
    assert_eq!(bed.script.behaviour.lock().unwrap().removed, ["a", "a", "a"]);
    bed.script.set(|b| b.silent = false);
    bed.secret("b");
    assert_eq!(*bed.removals.borrow(), [false]);
}

#[test]
fn a_certificate_is_new_when_its_content_is() {
    let bed = Bed::up();
    let mut subscription = bed.subscription();
    let changed = |subscription: &mut StreamCall| {
        subscription.send(&v5::cert_request("sm")); // the content is not looked at
    };
    changed(&mut subscription);
    bed.register("a"); // comes after the comparison
    bed.secret("a");
    let urls = bed.authority.urls("node"); // other content behind the same URLs
    assert_eq!(bed.script.behaviour.lock().unwrap().urls, Some(urls));
    changed(&mut subscription);
    assert!(matches!(bed.event(), IamEvent::CertChanged));
    let urls = bed.authority.urls("renewed");
    bed.script.set(|b| b.urls = Some(urls));
    changed(&mut subscription);
    assert!(matches!(bed.event(), IamEvent::CertChanged));
    bed.register("b");
    bed.secret("b");
    let client = bed.script.behaviour.lock().unwrap().registered.last().unwrap().0.clone();
    assert_eq!(client, "renewed");
}

#[test]
fn a_change_that_nobody_told_is_found_after_a_reconnect() {
    let bed = Bed::up();
    bed.public_gate.close();
    bed.goes_down();
    let urls = bed.authority.urls("renewed");
    bed.script.set(|b| b.urls = Some(urls));
    bed.public_gate.open(bed.public.port);
    assert!(matches!(bed.event(), IamEvent::NodeInfo(_)));
    assert!(matches!(bed.event(), IamEvent::CertChanged));
    assert!(matches!(bed.event(), IamEvent::Up { restarted: true }));
}

#[test]
fn a_change_before_the_first_subscription_is_found() {
    let bed = Bed::new(true, CALL_LIMIT);
    // The CM's thread has got another certificate.
    bed.certs.first.set(1).unwrap();
    bed.public_gate.open(bed.public.port);
    assert!(matches!(bed.event(), IamEvent::NodeInfo(_)));
    assert!(matches!(bed.event(), IamEvent::CertChanged));
    assert!(matches!(bed.event(), IamEvent::Up { restarted: false }));
    // That is told once.
    bed.public_gate.close();
    bed.goes_down();
    bed.public_gate.open(bed.public.port);
    bed.comes_up(true);
}

#[test]
fn an_iam_that_cannot_be_subscribed_to_is_up_all_the_same() {
    let bed = Bed::new(false, CALL_LIMIT);
    bed.public_gate.open(bed.public.port);
    bed.comes_up(false);
    bed.register("a");
    bed.secret("a");
}

#[test]
fn a_node_without_certificate_is_told_about_and_waits_with_its_secrets() {
    let bed = Bed::new(true, CALL_LIMIT);
    bed.script.set(|b| b.urls = None);
    bed.public_gate.open(bed.public.port);
    bed.comes_up(false);
    bed.register("a");
    let urls = bed.authority.urls("node");
    bed.script.set(|b| b.urls = Some(urls));
    assert!(matches!(bed.event(), IamEvent::CertChanged));
    bed.secret("a");
}

#[test]
fn a_wish_to_stop_is_heard_during_a_call() {
    let mut bed = Bed::up();
    bed.script.set(|b| b.silent = true);
    bed.register("a");
    bed.script.until(|b| b.registered.len() == 1);
    bed.stop();
}

#[test]
fn the_certificate_comes_from_the_files_that_iam_names() {
    let bed = Bed::up();
    let get = || rpc::wait(bed.certs.certificate(), LONG).unwrap();
    let first = get().unwrap();
    assert_eq!(get().unwrap(), first);
    bed.script.set(|b| b.urls = Some(("file:///none".to_owned(), "file:///none".to_owned())));
    let error = get().unwrap_err();
    assert!(matches!(&error, rpc::Error::Read { path, .. } if path == Path::new("/none")));
    bed.script.set(|b| b.urls = None);
    assert!(get().unwrap_err().to_string().contains("not found"));
    bed.public_gate.close();
    assert!(get().unwrap_err().is_unreachable());
}
