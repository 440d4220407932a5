//! cm-rx and cm-tx against a CM double over mutual TLS.

use std::sync::Mutex;
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, bounded};
use grpcio::RpcStatusCode;
use protobuf::Message;

use super::*;
use crate::cm::wire::v4::servicemanager as messages;
use crate::model::command::CmCommand;
use crate::model::status::{
    Alert, AlertPayload, CmReport, LogPart, MonitoringData, NodeConfigStatus, NodeMonitoring,
};
use crate::rpc::double::{Authority, DuplexCall, Gate, LONG, Running, duplex_service, env};
use crate::rpc::{InboxSender, Keepalive};
use crate::sys::thread::spawn;

/// A limit that the test waits for; what has to be done within it is done on a busy machine too.
const SHORT: Duration = Duration::from_secs(2);

#[derive(Debug)]
struct Given(Mutex<Result<Certificate, RpcStatusCode>>);

impl CertSource for Given {
    fn certificate(&self) -> Pending<Certificate> {
        let given = self.0.lock().unwrap().clone();
        Box::pin(async move {
            given.map_err(|code| rpc::Error::Status { call: "cert", code, message: String::new() })
        })
    }
}

/// Both threads and the CM, which nobody reaches at first.
struct Bed {
    authority: Authority,
    certs: Arc<Given>,
    gate: Gate,
    server: Running,
    calls: Receiver<DuplexCall>,
    events: Receiver<Event>,
    rx: InboxSender<CmRxCommand>,
    tx: Sender<CmTxCommand>,
    /// Samples that came back.
    spare: Receiver<NodeMonitoring>,
    threads: Vec<JoinHandle<()>>,
}

impl Bed {
    fn new(timing: Timing, send_limit: Duration) -> Self {
        let (mut bed, receiving) = Self::without_receiver(timing, send_limit);
        bed.threads.insert(0, spawn("cm-rx", move || receiving.run()).unwrap());
        bed
    }

    /// Nobody runs cm-rx yet.
    fn without_receiver(timing: Timing, send_limit: Duration) -> (Self, Receiving) {
        let authority = Authority::new();
        let gate = Gate::new();
        let (service, calls) = duplex_service(v4::PATH);
        let server = authority.server(service, true);
        let certs = Arc::new(Given(Mutex::new(Ok(authority.certificate("node")))));
        let (events_in, events) = bounded(256);
        let (rx, rx_inbox) = rpc::inbox(INBOX_CAPACITY);
        let (tx, tx_inbox) = bounded(sender::INBOX_CAPACITY);
        let receiving = Receiving {
            settings: Settings {
                url: gate.target(),
                ca_cert: authority.ca_file(),
                reconnect_cap: Duration::from_secs(10),
                allow_root_uid: false,
                timing,
            },
            env: env(),
            certs: certs.clone(),
            inbox: rx_inbox,
            events: events_in.clone(),
            tx: tx.clone(),
        };
        let (spare_in, spare) = bounded(1);
        let sending = move || sender::run(send_limit, &tx_inbox, &events_in, &spare_in);
        let threads = vec![spawn("cm-tx", sending).unwrap()];
        let bed = Self { authority, certs, gate, server, calls, events, rx, tx, spare, threads };
        (bed, receiving)
    }

    fn ready() -> Self {
        let bed = Self::new(Timing::default(), sender::SEND_LIMIT);
        bed.open();
        bed
    }

    /// Lets the thread reach the CM, and does not wait for its next attempt.
    fn open(&self) {
        self.gate.open(self.server.port);
        self.rx.send(CmRxCommand::Reconnect).unwrap();
    }

    fn event(&self) -> Event {
        self.events.recv_timeout(LONG).expect("an event")
    }

    fn no_event(&self) {
        assert!(self.events.is_empty(), "{:?}", self.events.try_recv());
    }

    fn connected(&self) -> Session {
        match self.event() {
            Event::CmConnected { session } => session,
            other => panic!("{other:?}"),
        }
    }

    fn lost(&self, lost: Session) {
        match self.event() {
            Event::CmLost { session } => assert_eq!(session, lost),
            other => panic!("{other:?}"),
        }
    }

    fn call(&self) -> DuplexCall {
        self.calls.recv_timeout(LONG).expect("a stream")
    }

    fn report(&self, session: Session, report: CmReport) {
        self.tx.send(CmTxCommand::Report { session, report }).unwrap();
    }

    /// The whole registration, from the new stream to the first message of the CM.
    fn registered(&self) -> (Session, DuplexCall) {
        let session = self.connected();
        self.report(session, hello());
        let mut call = self.greeted();
        call.send(&online());
        self.accepted(session);
        self.heard(session);
        (session, call)
    }

    /// The stream on which the node has introduced itself.
    fn greeted(&self) -> DuplexCall {
        loop {
            let mut call = self.call();
            // An attempt that was broken off by `open` may have left a call.
            let Some(Ok(message)) = call.recv() else { continue };
            assert_eq!(kind(&message), "node_config_status");
            return call;
        }
    }

    fn accepted(&self, accepted: Session) {
        match self.event() {
            Event::CmAccepted { session } => assert_eq!(session, accepted),
            other => panic!("{other:?}"),
        }
    }

    fn heard(&self, expect: Session) {
        match self.event() {
            Event::Cm { session, command: CmCommand::ConnectionStatus { online: true } } => {
                assert_eq!(session, expect);
            }
            other => panic!("{other:?}"),
        }
    }

    fn hears_request(&self, expect: Session) {
        match self.event() {
            Event::Cm { session, command: CmCommand::RunInstances(_) } => {
                assert_eq!(session, expect);
            }
            other => panic!("{other:?}"),
        }
    }

    fn log_part(&self, session: Session, size: usize) -> Receiver<Result<(), String>> {
        let (reply, answer) = bounded(1);
        let part = LogPart { data: vec![7; size], ..LogPart::default() };
        self.tx.send(CmTxCommand::LogPart { session, part, reply }).unwrap();
        let (text_in, text) = bounded(1);
        let result = answer.recv_timeout(LONG).expect("an answer");
        text_in.send(result.map_err(|failure| failure.message)).unwrap();
        text
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _ = self.rx.send(CmRxCommand::Stop);
        let _ = self.tx.send(CmTxCommand::Stop);
        self.gate.close();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn hello() -> CmReport {
    CmReport::NodeConfigStatus(NodeConfigStatus {
        node_id: "node".to_owned(),
        ..NodeConfigStatus::default()
    })
}

fn alert(message: &str) -> CmReport {
    let payload = AlertPayload::System { message: message.to_owned() };
    CmReport::Alert(Alert { time_ms: 0, payload })
}

fn sample(ram_bytes: u64) -> CmTxCommand {
    let node = MonitoringData { ram_bytes, ..MonitoringData::default() };
    CmTxCommand::Monitoring(NodeMonitoring { node, instances: Vec::new() })
}

/// `run_instances {}`
fn run_nothing() -> Vec<u8> {
    let mut message = messages::SMIncomingMessages::new();
    message.set_run_instances(messages::RunInstances::new());
    message.write_to_bytes().unwrap()
}

/// `connection_status { CONNECTED }`
fn online() -> Vec<u8> {
    vec![0x52, 0x02, 0x08, 0x01]
}

fn parsed(message: &[u8]) -> messages::SMOutgoingMessages {
    messages::SMOutgoingMessages::parse_from_bytes(message).unwrap()
}

fn kind(message: &[u8]) -> &'static str {
    let message = parsed(message);
    match () {
        () if message.has_node_config_status() => "node_config_status",
        () if message.has_run_instances_status() => "run_instances_status",
        () if message.has_instant_monitoring() => "instant_monitoring",
        () if message.has_alert() => "alert",
        () if message.has_log() => "log",
        () => "other",
    }
}

#[test]
fn a_node_registers_and_hears_the_cm() {
    let bed = Bed::ready();
    let (session, mut call) = bed.registered();
    assert_eq!(call.client, "node");
    assert_eq!(session, Session(1));
    bed.report(session, alert("one"));
    assert_eq!(kind(&call.message()), "alert");
    assert!(matches!(bed.event(), Event::AlertSent { session: Session(1) }));
    call.send(b"\xff garbage");
    call.send(&[0x7a, 0x00]); // a member that does not exist
    call.send(&online());
    bed.heard(session);
}

#[test]
fn a_stream_that_the_cm_ends_is_followed_by_another() {
    let bed = Bed::ready();
    let (first, call) = bed.registered();
    call.end();
    bed.lost(first);
    bed.rx.send(CmRxCommand::Reconnect).unwrap(); // not to wait for the pause
    let (second, call) = bed.registered();
    assert_eq!(second, Session(2));
    call.fail(RpcStatusCode::UNKNOWN, "connection for node ID node already exist");
    bed.lost(second);
}

#[test]
fn a_cm_that_comes_late_is_found_without_help() {
    let bed = Bed::new(Timing::default(), sender::SEND_LIMIT);
    bed.gate.open(bed.server.port);
    bed.registered();
}

#[test]
fn core_does_not_hear_of_attempts_that_reach_nobody() {
    let bed = Bed::new(Timing::default(), sender::SEND_LIMIT);
    *bed.certs.0.lock().unwrap() = Err(RpcStatusCode::INTERNAL);
    bed.rx.send(CmRxCommand::Reconnect).unwrap();
    *bed.certs.0.lock().unwrap() = Ok(bed.authority.certificate("node"));
    bed.open();
    assert_eq!(bed.registered().0, Session(1));
}

#[test]
fn a_renewed_certificate_makes_a_new_stream_and_an_equal_one_does_not() {
    let bed = Bed::ready();
    let (first, mut call) = bed.registered();
    bed.rx.send(CmRxCommand::Reconnect).unwrap();
    call.send(&online());
    bed.heard(first);

    *bed.certs.0.lock().unwrap() = Ok(bed.authority.certificate("renewed"));
    bed.rx.send(CmRxCommand::Reconnect).unwrap();
    assert!(call.recv().is_none(), "the CM sees a clean end");
    call.end();
    bed.lost(first);
    let (second, call) = bed.registered();
    assert_eq!((second, call.client.as_str()), (Session(2), "renewed"));
}

#[test]
fn what_comes_while_a_stream_ends_counts() {
    let bed = Bed::ready();
    let end = |wish: CmRxCommand| {
        let (session, mut call) = bed.registered();
        *bed.certs.0.lock().unwrap() = Ok(bed.authority.certificate("renewed"));
        bed.rx.send(wish).unwrap();
        assert!(call.recv().is_none(), "the CM sees a clean end");
        call.send(&run_nothing());
        call.send(&run_nothing());
        call.end();
        bed.hears_request(session);
        bed.hears_request(session);
        bed.lost(session);
    };
    end(CmRxCommand::Resynchronise);
    bed.rx.send(CmRxCommand::Reconnect).unwrap(); // not to wait for the pause
    end(CmRxCommand::Reconnect); // the certificate is another one each time
    let (session, mut call) = bed.registered();
    call.send(&run_nothing());
    call.fail(RpcStatusCode::UNAVAILABLE, "the CM begins anew");
    bed.hears_request(session);
    bed.lost(session);
}

#[test]
fn a_certificate_that_cannot_be_had_does_not_end_the_stream() {
    let bed = Bed::ready();
    let (session, mut call) = bed.registered();
    *bed.certs.0.lock().unwrap() = Err(RpcStatusCode::INTERNAL);
    bed.rx.send(CmRxCommand::Reconnect).unwrap();
    call.send(&online());
    bed.heard(session);
    bed.report(session, alert("still here"));
    assert_eq!(kind(&call.message()), "alert");
}

#[test]
fn while_iam_is_away_the_last_certificate_serves() {
    let bed = Bed::ready();
    let (first, call) = bed.registered();
    *bed.certs.0.lock().unwrap() = Err(RpcStatusCode::UNAVAILABLE);
    call.end();
    bed.lost(first);
    assert_eq!(bed.registered().1.client, "node");
}

#[test]
fn messages_above_the_usual_limit_are_taken_up_to_ours() {
    let bed = Bed::ready();
    let (session, mut call) = bed.registered();
    let unknown = |size: u32| {
        let mut message = vec![0x7a]; // a member that does not exist, of five bytes of length
        message.extend((0..5u32).map(|at| {
            let digit = u8::try_from(size >> (7 * at) & 0x7f).unwrap();
            if at < 4 { digit | 0x80 } else { digit }
        }));
        message.resize(message.len() + size as usize, 0);
        message
    };
    call.send(&unknown(5 << 20));
    call.send(&online());
    bed.heard(session);
    let _ = call.offer(&unknown(u32::try_from(rpc::RECEIVE_LIMIT_BYTES).unwrap()));
    bed.lost(session);
}

#[test]
fn a_cm_that_stays_silent_is_left() {
    let timing = Timing { first_message: SHORT, ..Timing::default() };
    let bed = Bed::new(timing, sender::SEND_LIMIT);
    bed.open();
    let session = bed.connected();
    bed.report(session, hello());
    let mut call = bed.greeted();
    bed.lost(session);
    // Cancelled, which its server hears as an error or as the end.
    assert!(matches!(call.recv(), Some(Err(_)) | None), "the old stream goes on");
    assert_eq!(bed.connected(), Session(2));
}

#[test]
fn a_cm_that_vanishes_without_a_word_is_noticed() {
    let keepalive = Keepalive { time: SHORT, timeout: SHORT };
    let bed = Bed::new(Timing { keepalive, ..Timing::default() }, sender::SEND_LIMIT);
    bed.open();
    let (session, _call) = bed.registered();
    bed.gate.freeze();
    bed.lost(session);
}

#[test]
fn a_cut_connection_is_noticed() {
    let bed = Bed::ready();
    let (session, _call) = bed.registered();
    bed.gate.close();
    bed.lost(session);
    bed.open();
    assert_eq!(bed.registered().0, Session(2));
}

#[test]
fn a_cm_that_takes_nothing_loses_its_stream() {
    let bed = Bed::new(Timing::default(), SHORT);
    bed.open();
    let (session, _call) = bed.registered();
    bed.gate.freeze();
    let failure = loop {
        if let Err(failure) = bed.log_part(session, 1 << 20).recv().unwrap() {
            break failure;
        }
    };
    assert!(failure.contains("no answer within 2000 ms"), "{failure}");
    bed.lost(session);
    let failure = bed.log_part(session, 1).recv().unwrap().unwrap_err();
    assert_eq!(failure, "the stream to the CM has ended");
}

#[test]
fn nothing_goes_before_the_registration_or_on_another_stream() {
    let bed = Bed::ready();
    let session = bed.connected();
    bed.tx.send(sample(1)).unwrap();
    assert!(bed.log_part(session, 1).recv().unwrap().is_err());
    bed.report(Session(0), alert("of an older stream"));
    bed.report(Session(9), alert("of another stream"));
    bed.report(session, hello());
    bed.report(session, CmReport::RunStatus(Vec::new()));
    let mut call = bed.greeted();
    assert_eq!(kind(&call.message()), "run_instances_status");
    bed.no_event();
}

#[test]
fn only_the_newest_sample_is_sent() {
    let bed = Bed::ready();
    let (session, mut call) = bed.registered();
    bed.gate.freeze();
    // More than all buffers on the way take: the thread is blocked until the gate is open again.
    for _ in 0..10 {
        let part = LogPart { data: vec![7; 4_000_000], ..LogPart::default() };
        let reply = bounded(1).0;
        bed.tx.send(CmTxCommand::LogPart { session, part, reply }).unwrap();
    }
    for ram_bytes in 1..=20 {
        bed.tx.send(sample(ram_bytes)).unwrap();
    }
    bed.gate.open(bed.server.port);
    for _ in 0..10 {
        assert_eq!(kind(&call.message()), "log");
    }
    let ram = |message: &[u8]| parsed(message).instant_monitoring().node_monitoring.ram;
    assert_eq!(ram(&call.message()), 20);
    // One that was not needed any more came back.
    let spare = bed.spare.recv_timeout(LONG).unwrap();
    assert!((1..=20).contains(&spare.node.ram_bytes), "{spare:?}");
    bed.tx.send(sample(21)).unwrap();
    assert_eq!(ram(&call.message()), 21);
}

#[test]
fn parts_of_a_log_are_answered_when_they_have_left() {
    let bed = Bed::ready();
    let (session, mut call) = bed.registered();
    assert_eq!(bed.log_part(session, 500 << 10).recv().unwrap(), Ok(()));
    let message = parsed(&call.message());
    assert_eq!((message.log().data.len(), message.log().status.as_str()), (500 << 10, "ok"));
    let failure = bed.log_part(session, v4::MESSAGE_LIMIT_BYTES).recv().unwrap().unwrap_err();
    assert!(failure.contains("larger than the peer accepts"), "{failure}");
    assert_eq!(bed.log_part(session, 1).recv().unwrap(), Ok(()));
    assert_eq!(kind(&call.message()), "log");
}

#[test]
fn who_asks_learns_which_stream_is_there() {
    let bed = Bed::ready();
    let is_open = |session| {
        let (reply, answer) = bounded(1);
        bed.tx.send(CmTxCommand::IsOpen { session, reply }).unwrap();
        answer.recv_timeout(LONG).expect("an answer")
    };
    let (session, call) = bed.registered();
    assert!(is_open(session) && !is_open(Session(0)));
    call.end();
    bed.lost(session);
    assert!(!is_open(session));
}

#[test]
fn a_wish_to_stop_ends_the_stream_cleanly_after_what_was_queued() {
    let mut bed = Bed::ready();
    let (session, mut call) = bed.registered();
    bed.report(session, alert("last words"));
    bed.rx.send(CmRxCommand::Stop).unwrap();
    assert_eq!(kind(&call.message()), "alert");
    assert!(call.recv().is_none(), "the CM sees a clean end");
    call.end();
    assert!(matches!(bed.event(), Event::AlertSent { .. }));
    bed.lost(session);
    bed.threads.remove(0).join().unwrap();
}

#[test]
fn a_cm_that_does_not_end_its_half_is_left_in_the_end() {
    let mut bed = Bed::ready();
    let (session, mut call) = bed.registered();
    bed.rx.send(CmRxCommand::Stop).unwrap();
    assert!(call.recv().is_none());
    bed.lost(session);
    bed.threads.remove(0).join().unwrap();
}

#[test]
fn a_wish_to_stop_is_heard_while_nobody_is_reached() {
    let mut bed = Bed::new(Timing::default(), sender::SEND_LIMIT);
    bed.rx.send(CmRxCommand::Stop).unwrap();
    bed.threads.remove(0).join().unwrap();
    bed.no_event();
}

#[test]
fn pauses_grow_to_the_cap_and_vary() {
    let bed = Bed::new(Timing::default(), sender::SEND_LIMIT);
    let receiving = Receiving {
        settings: Settings {
            url: String::new(),
            ca_cert: PathBuf::new(),
            reconnect_cap: Duration::from_secs(4),
            allow_root_uid: false,
            timing: Timing::default(),
        },
        env: env(),
        certs: bed.certs.clone(),
        inbox: rpc::inbox(1).1,
        events: bounded(1).0,
        tx: bounded(1).0,
    };
    let pauses: Vec<_> = (0..5).map(|failures| receiving.pause(failures).as_secs()).collect();
    assert_eq!(pauses, [1, 2, 4, 4, 4]);
    for _ in 0..100 {
        let pause = varied(Duration::from_secs(10));
        assert!((8..=12).contains(&pause.as_secs()), "{pause:?}");
    }
}

#[test]
fn pauses_begin_anew_after_a_long_stream_however_it_ended() {
    let check = |settled: Duration, first_message: Duration, wish: Option<CmRxCommand>| {
        let timing = Timing { settled, first_message, ..Timing::default() };
        let (bed, receiving) = Bed::without_receiver(timing, sender::SEND_LIMIT);
        bed.gate.open(bed.server.port);
        let attempt = move || {
            let dialect: Arc<dyn Dialect> = Arc::new(v4::V4 { allow_root_uid: false });
            match receiving.attempt(&dialect, &mut Progress::default()) {
                End::Lost(lost) => lost.settled,
                _ => panic!("not lost"),
            }
        };
        std::thread::scope(|scope| {
            let ended = scope.spawn(attempt);
            let session = bed.connected();
            bed.report(session, hello());
            let mut call = bed.greeted();
            if let Some(wish) = wish {
                bed.rx.send(wish).unwrap();
                assert!(call.recv().is_none());
                call.end();
            }
            ended.join().unwrap()
        })
    };
    assert!(check(Duration::ZERO, LONG, Some(CmRxCommand::Resynchronise)));
    assert!(check(Duration::ZERO, SHORT, None));
    assert!(!check(LONG, LONG, Some(CmRxCommand::Resynchronise)));
    assert!(!check(LONG, SHORT, None));
}

#[test]
fn a_stream_that_still_exists_at_the_cm_gets_time_to_end() {
    let check = |message: &str, expect: Option<Duration>| {
        let code = RpcStatusCode::UNKNOWN;
        let error = rpc::Error::Status { call: v4::PATH, code, message: message.to_owned() };
        match End::lost(&error) {
            End::Lost(lost) => assert_eq!(lost.pause, expect),
            _ => panic!("lost"),
        }
    };
    check("connection for node ID n already exist [x.go:1]", Some(ALREADY_EXISTS_PAUSE));
    check("anything else", None);
}
