//! Inboxes, waits, addresses and unary calls; streams are tested where they are used.

use grpcio::ServiceBuilder;

use super::*;
use crate::rpc::double::{Authority, LONG, Reply, env, with_unary};

#[test]
fn addresses_without_a_host_mean_this_one() {
    let check = |target: &str, expect: &str| {
        let text = normalise(target).unwrap_or_else(|error| error.to_string());
        assert_eq!(text, expect);
    };
    check("aosiam:8090", "aosiam:8090");
    check(":8090", "localhost:8090");
    check("dns:///:8090", "dns:///localhost:8090");
    check("dns:///aosiam:8090", "dns:///aosiam:8090");
    check(" 10.0.0.1:8093 ", "10.0.0.1:8093");
    check("ipv4:127.0.0.1:1", "ipv4:127.0.0.1:1");
    check("", r#"bad address "": is empty"#);
    check("dns:///", r#"bad address "dns:///": is empty"#);
    check("a\0b:1", r#"bad address "a\0b:1": contains a NUL byte"#);
}

#[test]
fn a_command_wakes_a_thread_that_waits_for_something_else() {
    let (sender, inbox) = inbox::<u32>(4);
    thread::scope(|scope| {
        let waiting =
            scope.spawn(|| inbox.wait_with(&mut std::future::pending::<()>(), Some(now() + LONG)));
        sender.send(7).unwrap();
        assert!(matches!(waiting.join().unwrap(), Woken::Command(7)));
    });
}

#[test]
fn the_end_of_the_last_sender_wakes_the_thread() {
    let (sender, inbox) = inbox::<u32>(1);
    let other = sender.clone();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| inbox.wait(Some(now() + LONG)));
        drop(sender);
        drop(other);
        assert!(matches!(waiting.join().unwrap(), Woken::Closed));
    });
}

#[test]
fn commands_go_before_a_future_that_is_done() {
    let (sender, inbox) = inbox::<u32>(1);
    sender.try_send(1).unwrap();
    assert!(matches!(sender.try_send(2), Err(TrySendError::Full(2))));
    let mut done = std::future::ready(9);
    assert!(matches!(inbox.wait_with(&mut done, None), Woken::Command(1)));
    assert!(matches!(inbox.wait_with(&mut done, None), Woken::Done(9)));
}

#[test]
fn deadlines_end_a_wait() {
    let (_sender, inbox) = inbox::<u32>(1);
    assert!(matches!(inbox.wait(Some(now())), Woken::TimedOut));
    assert!(wait(std::future::pending::<()>(), Duration::ZERO).is_none());
    assert_eq!(wait(std::future::ready(1), Duration::ZERO), Some(1));
}

#[test]
fn errors_tell_an_unreachable_peer_from_one_that_refuses() {
    let check = |code: RpcStatusCode, unreachable: bool| {
        let error = Error::Status { call: "/x/Y", code, message: String::new() };
        assert_eq!(error.is_unreachable(), unreachable, "{code:?}");
        assert_eq!(error.is_unimplemented(), code == RpcStatusCode::UNIMPLEMENTED);
    };
    check(RpcStatusCode::UNAVAILABLE, true);
    check(RpcStatusCode::DEADLINE_EXCEEDED, true);
    check(RpcStatusCode::CANCELLED, true);
    check(RpcStatusCode::UNKNOWN, false);
    check(RpcStatusCode::INTERNAL, false);
    check(RpcStatusCode::UNIMPLEMENTED, false);
}

#[test]
fn answers_of_unary_calls() {
    const PATH: &str = "/x.Y/Z";
    let authority = Authority::new();
    let service = with_unary(ServiceBuilder::new(), PATH, |_, request| match request {
        b"echo" => Reply::Message(request.to_vec()),
        b"empty" => Reply::Message(Vec::new()),
        b"refuse" => Reply::Refused(RpcStatusCode::INTERNAL, "not found"),
        b"nothing" => Reply::Nothing,
        _ => Reply::Silence,
    });
    let server = authority.server(service.build(), false);
    let target = format!("127.0.0.1:{}", server.port);
    let connection =
        Connection::new(&env(), &target, &authority.ca_file(), None, Keepalive::default()).unwrap();
    let ask = |path, request: &str, limit| {
        let answer = connection.unary(path, request.as_bytes().to_vec(), limit).unwrap();
        wait(answer, LONG).expect("an end")
    };
    let check = |request: &str, expect: Result<&str, &str>| {
        let answer = ask(PATH, request, LONG).map_err(|error| error.to_string());
        assert_eq!(answer, expect.map(|a| a.as_bytes().to_vec()).map_err(str::to_owned));
    };
    check("echo", Ok("echo"));
    check("empty", Ok(""));
    check("refuse", Err("/x.Y/Z: 13-INTERNAL: not found"));
    check("nothing", Err("/x.Y/Z: the answer is malformed: it has no message"));
    check("echo", Ok("echo"));
    assert!(ask("/x.Y/Other", "echo", LONG).unwrap_err().is_unimplemented());
    let late = ask(PATH, "silence", Duration::from_millis(100)).unwrap_err();
    assert!(late.is_unreachable(), "{late}");
}
