//! What an operator far away gets to see: figures, alerts and logs with the right content, as an
//! independent peer receives them.

use std::fs;

use crate::common::need::{self, require};
use crate::common::unit::{Setup, Unit};
use crate::common::wait_until;

/// Rules that every node and every instance breaks at once: a tenth of a thousandth of the RAM.
const ALERT_RULES: &str = r#"{"ram":{"minTimeout":"0s","minThreshold":0.00001,"maxThreshold":0.0001},"partitions":[{"name":"no-such-partition","maxThreshold":1}],"cpu":{"minThreshold":9,"maxThreshold":1}}"#;

/// A service that is busybox with a script, with a service configuration.
fn service(unit: &mut Unit, id: &str, script: &str, config: &str) {
    let busybox = need::program("busybox").unwrap();
    unit.say(&format!(
        "service {id} {busybox} entrypoint=/busybox cmd=sh cmd=-c cmd='{script}' config='{config}'"
    ));
    unit.say(&format!("instance {id}"));
}

/// The number behind a word of a line.
fn figure(line: &str, word: &str) -> u64 {
    let mut words = line.split_whitespace().skip_while(|w| *w != word).skip(1);
    let number = words.next().and_then(|w| w.parse().ok());
    number.unwrap_or_else(|| panic!("no number behind {word} in {line:?}"))
}

/// Asks for a log until its saved text is as wanted; the text.
fn log(unit: &mut Unit, request: &str, good: impl Fn(&str) -> bool) -> String {
    let file = unit.path("answer.log");
    let mut text = String::new();
    wait_until(request, || {
        let _ = fs::remove_file(&file);
        unit.say(&format!("logs {request} to={}", file.display()));
        unit.say("wait logs");
        text = fs::read_to_string(&file).unwrap_or_default();
        good(&text)
    });
    text
}

/// Lines of a log that end with one of these texts, in their order.
fn ends<'a>(text: &str, wanted: &[&'a str]) -> Vec<&'a str> {
    let known = |line: &str| wanted.iter().copied().find(|end| line.trim_end().ends_with(end));
    text.lines().filter_map(known).collect()
}

fn write(unit: &Unit, name: &str, text: &str) -> std::path::PathBuf {
    let path = unit.path(name);
    let mut file = fs::File::create(&path).unwrap();
    std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
    path
}

#[test]
fn figures_reach_the_cm() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().set("monitoring.pollPeriod", "1s").registered();
    service(&mut unit, "busy", "while :; do :; done", "{}");
    service(&mut unit, "idle", "exec /busybox sleep 10000", "{}");
    unit.say("run");
    unit.say("wait active");
    // The average is asked for, the table shows every poll.
    let of = |lines: &[String], who: &str| {
        lines.iter().find(|line| line.trim_start().starts_with(who)).cloned().unwrap_or_default()
    };
    let (mut busy, mut idle, mut node) = Default::default();
    wait_until("figures of both instances", || {
        unit.look();
        unit.say("stats");
        unit.say("wait stats");
        let lines = unit.seen();
        (busy, idle) = (of(&lines, "busy/subject/0 ram "), of(&lines, "idle/subject/0 ram "));
        let is_node = |line: &&String| line.contains("average monitoring: node ram ");
        node = lines.iter().find(is_node).cloned().unwrap_or_default();
        busy.contains(" cpu ") && figure(&busy, "cpu") > 0 && figure(&idle, "ram") > 0
    });
    // The unit says 10000 DMIPS; one instance that computes uses at most one of the processors. A
    // loaded machine reads its counter some time after the clock.
    let cpus = std::thread::available_parallelism().unwrap().get() as u64;
    assert!(figure(&busy, "cpu") <= 10_000 / cpus * 3 / 2, "{busy}");
    assert!(figure(&idle, "cpu") < figure(&busy, "cpu"), "{idle} {busy}");
    assert!(figure(&node, "cpu") <= 10_000 && figure(&node, "ram") > 1 << 20, "{node}");
    for word in ["storage", "state", "download", "upload"] {
        figure(&busy, word);
    }
    unit.look();
    unit.say("monitor 3s");
    let lines = unit.seen();
    let heads = lines.iter().filter(|line| line.contains("RAM  DMIPS")).count();
    assert!(heads >= 1, "{lines:?}");
    assert!(!of(&lines, "busy/subject/0 ").is_empty(), "{lines:?}");
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn alerts_reach_the_cm_also_after_it_was_away() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().set("monitoring.pollPeriod", "1s").registered();
    let config = format!(r#"{{"nodeType": "main", "alertRules": {ALERT_RULES}}}"#);
    let good = write(&unit, "good.json", &config);
    let bad = write(
        &unit,
        "bad.json",
        r#"{"nodeType": "main", "devices": [{"name": "camera", "hostDevices": ["/dev/no-such"]}]}"#,
    );
    unit.say(&format!("config set {} 2.0.0", good.display()));
    unit.say("wait config");
    let line = unit.expect("systemQuotaAlert: ram ");
    assert!(line.ends_with(" raise") && figure(&line, "ram") > 1 << 20, "{line}");

    // While nobody listens an instance breaks its rules.
    let rules = format!(r#"{{"alertRules": {ALERT_RULES}}}"#);
    service(&mut unit, "web", "exec /busybox sleep 10000", &rules);
    unit.say("run");
    unit.say("wait active");
    let line = unit.expect("instanceQuotaAlert: web/subject/0 ram ");
    assert!(line.ends_with(" raise") && figure(&line, "ram") > 0, "{line}");
    unit.say("link down");
    unit.say("wait disconnected");
    let pid = unit.pid_of("web/subject/0");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    unit.look();
    unit.say("link up");
    unit.say("wait registered 60s");
    unit.say("wait active web 60s");

    unit.say(&format!("config check {} 3.0.0", bad.display()));
    unit.expect("resourceValidateAlert: camera: device /dev/no-such is not present on system");
    unit.say("wait config");
    service(
        &mut unit,
        "film",
        "exec /busybox sleep 1",
        r#"{"devices":[{"name":"camera","permissions":"r"}]}"#,
    );
    unit.say("run");
    unit.expect("deviceAllocateAlert: film/subject/0 camera: ");
    unit.stop_daemon();
    unit.nothing_left();
}

#[test]
fn logs_of_all_kinds_reach_the_cm() {
    require!(root, memory, runc, busybox);
    let unit = Setup::new().set("logging.backend", "store");
    let mut unit = unit.set("logging.systemLogFiles", r#"["syslog.txt"]"#).start();
    let now = "Jan  1 00:00:01";
    let file = write(
        &unit,
        "syslog.txt",
        &format!("{now} node kernel: the first line\n{now} node sshd[7]: the second line\n"),
    );
    let config = fs::read_to_string(unit.config()).unwrap();
    let config = config.replace("\"syslog.txt\"", &format!("\"{}\"", file.display()));
    write(&unit, "aos_servicemanager.cfg", &config);
    unit.start_daemon();
    unit.say("wait registered");

    let quick =
        r#"{"runParameters":{"startInterval":"500ms","startBurst":2,"restartInterval":"100ms"}}"#;
    service(
        &mut unit,
        "talker",
        "for n in 1 2 3; do echo line $n; done; printf \"bad \\377 bytes\\n\"; exec /busybox sleep 9999",
        "{}",
    );
    service(&mut unit, "crasher", "echo before the end; exec /busybox sh -c \"exit 7\"", quick);
    unit.say("run");
    unit.say("wait active talker");
    unit.say("wait failed crasher");

    let text = log(&mut unit, "talker", |text| text.contains("bytes"));
    let lines = ["line 1", "line 2", "line 3", "bad \u{fffd} bytes"];
    assert_eq!(ends(&text, &lines), lines, "{text}");
    assert!(!text.contains("before the end"), "somebody else's: {text}");
    let text = log(&mut unit, "crash crasher", |text| text.contains("before the end"));
    assert!(text.contains('7'), "the exit code is not told: {text}");
    assert!(!text.contains("line 1"), "somebody else's: {text}");
    let text = log(&mut unit, "system", |text| text.contains("the second line"));
    let lines = ["the first line", "the second line"];
    assert_eq!(ends(&text, &lines), lines, "{text}");

    unit.look();
    unit.say("logs nobody");
    unit.say("wait logs");
    unit.expect("status absent");
    unit.say("logs talker from=1s till=1h");
    unit.say("wait logs");
    unit.stop_daemon();
    unit.nothing_left();
}
