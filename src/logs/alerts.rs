//! Log lines that become alerts: which, for whom, in which words.
//!
//! Thread `log-in`. In: messages of the journal, the kernel, instances and the daemon itself, with
//! whose they are. Out: [`AlertOutput`]. Nothing in here logs above debug: what it would say about
//! a failure to deliver could become the next alert. Where messages come from is not here.

use std::sync::Arc;
use std::time::Duration;

use regex_lite::Regex;

use crate::logs::ident::StoredIdent;
use crate::logs::throttle::{Source, Throttle, Verdict};
use crate::model::event::Exit;
use crate::model::id::InstanceId;
use crate::model::status::{Alert, AlertPayload};
use crate::ports::Now;

/// Longest text of an alert in bytes; the cloud takes four times as much.
pub(crate) const TEXT_MAX: usize = 8 * 1024;
/// Longest filter expression in bytes, and memory that one may take.
const FILTER_MAX: usize = 4 * 1024;
const FILTER_BYTES: usize = 256 * 1024;

/// Configuration of what becomes an alert.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AlertSettings {
    /// Regular expressions; system messages that one matches are no alerts.
    pub filter: Vec<String>,
    /// Syslog level of messages about an instance that become alerts, and of more urgent ones.
    pub service_priority: u8,
    /// The same for all other messages.
    pub system_priority: u8,
    /// Messages of the kernel too; `None` = where there is no journal.
    pub kernel: Option<bool>,
}

/// Where alerts go. May wait.
pub trait AlertOutput {
    fn alert(&self, alert: Alert);
    /// Everything before this has been handed over. The text comes back at the next start.
    fn position(&self, text: Box<str>);
}

/// For runs that serve nobody: what comes is dropped.
impl AlertOutput for () {
    fn alert(&self, _: Alert) {}
    fn position(&self, _: Box<str>) {}
}

/// Makes alerts.
pub(crate) struct Alerts<'a> {
    output: &'a dyn AlertOutput,
    pub(crate) settings: &'a AlertSettings,
    filters: Vec<Regex>,
    throttle: Throttle,
    /// Messages so far that were alerts by their content, and those that were sent.
    judged: u64,
    sent: u64,
}

impl std::fmt::Debug for Alerts<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Alerts").field("throttle", &self.throttle).finish_non_exhaustive()
    }
}

impl<'a> Alerts<'a> {
    pub(crate) fn new(settings: &'a AlertSettings, output: &'a dyn AlertOutput) -> Self {
        let filters = settings.filter.iter().filter_map(|text| filter(text)).collect();
        Self { output, settings, filters, throttle: Throttle::new(), judged: 0, sent: 0 }
    }

    /// A message of something on this node that is neither an instance nor one of our components.
    pub(crate) fn system(&mut self, message: &[u8], time_ms: i64, now: Now) {
        let text = clean(message);
        if !self.filters.iter().any(|filter| filter.is_match(&text)) {
            self.push(&Source::System, None, text, time_ms, now);
        }
    }

    pub(crate) fn core(&mut self, component: &str, message: &[u8], time_ms: i64, now: Now) {
        self.push(&Source::Core(component.into()), None, clean(message), time_ms, now);
    }

    /// A message of or about an instance.
    pub(crate) fn instance(
        &mut self,
        (id, who): (&InstanceId, &StoredIdent),
        message: &[u8],
        time_ms: i64,
        now: Now,
    ) {
        self.push(&Source::Instance(id.clone()), Some(who), clean(message), time_ms, now);
    }

    fn push(
        &mut self,
        source: &Source,
        who: Option<&StoredIdent>,
        mut text: String,
        time_ms: i64,
        now: Now,
    ) {
        if text.trim().is_empty() {
            return;
        }
        self.judged += 1;
        let Verdict::Send { repeated } = self.throttle.judge(source, &text, now.mono) else {
            return;
        };
        if repeated > 0 {
            text.push_str(&format!(" (repeated {repeated} times)"));
        }
        self.send(source, who, text, time_ms);
    }

    /// Messages so far that were alerts by their content, and those of them that were sent.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.judged, self.sent)
    }

    fn send(&mut self, source: &Source, who: Option<&StoredIdent>, message: String, time_ms: i64) {
        let payload = match (source, who) {
            (Source::System, _) => AlertPayload::System { message },
            (Source::Core(component), _) => {
                AlertPayload::Core { component: component.to_string(), message }
            }
            (Source::Instance(_), Some(who)) => AlertPayload::Instance {
                ident: who.ident(),
                service_version: Arc::from(who.version.as_str()),
                message,
            },
            // Nobody would know whose it is.
            (Source::Instance(_), None) => return,
        };
        self.sent += 1;
        self.output.alert(Alert { time_ms, payload });
    }

    /// Reports what was suppressed, when it is time to; `who` knows the instances.
    pub(crate) fn report<'i>(
        &mut self,
        now: Now,
        who: impl Fn(&InstanceId) -> Option<&'i StoredIdent>,
    ) {
        for (source, count) in self.throttle.due(now.mono) {
            let who = if let Source::Instance(id) = &source { who(id) } else { None };
            self.send(&source, who, format!("{count} more messages were suppressed"), now.wall_ms);
        }
    }

    /// When `report` has something to do, CLOCK_MONOTONIC.
    pub(crate) fn next_report(&self) -> Option<Duration> {
        self.throttle.next_report()
    }

    pub(crate) fn position(&self, text: Box<str>) {
        self.output.position(text);
    }
}

/// An expression that can be used; an empty one would match everything.
fn filter(text: &str) -> Option<Regex> {
    if text.is_empty() {
        return None;
    }
    if text.len() > FILTER_MAX {
        log::warn!("alert filter left out, it is too long bytes={}", text.len());
        return None;
    }
    let made = regex_lite::RegexBuilder::new(text).size_limit(FILTER_BYTES).build();
    made.inspect_err(|err| log::warn!("alert filter left out filter={text:?} err={err}")).ok()
}

/// Text that may go into an alert: valid, without control characters, not too long.
fn clean(message: &[u8]) -> String {
    let message = &message[..message.len().min(TEXT_MAX + 4)];
    let text = String::from_utf8_lossy(message);
    let is_kept = |c: char| !c.is_control() || matches!(c, '\t' | '\n');
    let mut text: String = text.chars().map(|c| if is_kept(c) { c } else { ' ' }).collect();
    if text.len() > TEXT_MAX {
        let end = (0..=TEXT_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

/// What there is to say about the end of a container, with levels, in the words of systemd.
pub(crate) fn end_of(unit: &str, exit: Exit) -> Vec<(u8, String)> {
    let (level, how, result) = match exit {
        Exit::Code(0) => return vec![(6, format!("{unit}: Deactivated successfully."))],
        Exit::Code(code) | Exit::CodeAfterKills(code) => {
            let result = if exit == Exit::Code(code) { "exit-code" } else { "oom-kill" };
            (5, format!("code=exited, status={code}/{}", code_name(code)), result)
        }
        Exit::Signal(number) => {
            let (kind, result) =
                if dumps(number) { ("dumped", "core-dump") } else { ("killed", "signal") };
            (4, format!("code={kind}, status={number}/{}", signal_name(number)), result)
        }
        Exit::OutOfMemory => (4, "code=killed, status=9/KILL".to_owned(), "oom-kill"),
        Exit::Lost => (4, "code=unknown, status=unknown".to_owned(), "resources"),
    };
    vec![
        (level, format!("{unit}: Main process exited, {how}")),
        (4, format!("{unit}: Failed with result '{result}'.")),
    ]
}

/// What there is to say when an instance has reached its start limit.
pub(crate) fn given_up(unit: &str) -> Vec<(u8, String)> {
    vec![
        (4, format!("{unit}: Start request repeated too quickly.")),
        (3, format!("Failed to start {unit}.")),
    ]
}

fn code_name(code: i32) -> &'static str {
    if code == 1 { "FAILURE" } else { "n/a" }
}

/// By default these leave a core file.
fn dumps(signal: i32) -> bool {
    use nix::libc::{SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGQUIT, SIGSEGV, SIGSYS, SIGTRAP};
    [SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGQUIT, SIGSEGV, SIGSYS, SIGTRAP].contains(&signal)
}

fn signal_name(number: i32) -> &'static str {
    let known = nix::sys::signal::Signal::try_from(number).ok();
    known.and_then(|signal| signal.as_str().strip_prefix("SIG")).unwrap_or("n/a")
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Keeps what it gets.
    #[derive(Debug, Default)]
    pub(crate) struct Collected {
        pub(crate) alerts: Mutex<Vec<Alert>>,
        pub(crate) positions: Mutex<Vec<Box<str>>>,
    }

    impl AlertOutput for Collected {
        fn alert(&self, alert: Alert) {
            self.alerts.lock().unwrap().push(alert);
        }

        fn position(&self, text: Box<str>) {
            self.positions.lock().unwrap().push(text);
        }
    }

    impl Collected {
        /// What the alerts say, with a word for whose they are.
        pub(crate) fn texts(&self) -> Vec<String> {
            let alerts = self.alerts.lock().unwrap();
            alerts.iter().map(|alert| text(&alert.payload)).collect()
        }
    }

    fn text(payload: &AlertPayload) -> String {
        match payload {
            AlertPayload::System { message } => format!("system: {message}"),
            AlertPayload::Core { component, message } => format!("{component}: {message}"),
            AlertPayload::Instance { ident, service_version, message } => {
                format!("{} {service_version}: {message}", ident.service_id.as_str())
            }
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn settings() -> AlertSettings {
        AlertSettings {
            filter: Vec::new(),
            service_priority: 4,
            system_priority: 3,
            kernel: Some(false),
        }
    }

    #[test]
    fn harmful_bytes() {
        let check = |message: &[u8], expect: &str| {
            let (settings, output) = (settings(), Collected::default());
            Alerts::new(&settings, &output).core("c", message, 5, Now::default());
            let texts = output.texts();
            let text = texts.first().map_or("", |text| text.strip_prefix("c: ").unwrap());
            assert_eq!(text, expect, "{message:?}");
        };
        check(b"plain", "plain");
        check(b"a\xff\xfeb\xe2\x82", "a\u{fffd}\u{fffd}b\u{fffd}");
        check(b"a\x1b[31m\0b\tc\nd\x7f\xc2\x85", "a [31m b\tc\nd  ");
        check(b"", "");
        check(b" \n\0\x01", "");
        check(&vec![b'x'; 1 << 20], &"x".repeat(TEXT_MAX));
        let long = format!("{}€", "x".repeat(TEXT_MAX - 1));
        check(long.as_bytes(), &"x".repeat(TEXT_MAX - 1));
        // Each replacement is longer than what it stands for.
        check(&vec![0xff; 1 << 20], &"\u{fffd}".repeat(TEXT_MAX / 3));
    }

    #[test]
    fn filters() {
        let check = |filters: &[&str], message: &str, is_alert: bool| {
            let filter = filters.iter().map(|text| (*text).to_owned()).collect();
            let settings = AlertSettings { filter, ..settings() };
            let output = Collected::default();
            let mut alerts = Alerts::new(&settings, &output);
            alerts.system(message.as_bytes(), 5, Now::default());
            assert_eq!(output.texts().len(), usize::from(is_alert), "{filters:?}");
            // They concern system messages alone.
            alerts.core("c", message.as_bytes(), 5, Now::default());
            assert_eq!(output.texts().len(), usize::from(is_alert) + 1);
        };
        check(&[], "a message", true);
        check(&["mess"], "a message", false);
        check(&["^mess"], "a message", true);
        check(&["x", r"(?i)MESS\w+$"], "a message", false);
        check(&[r"^a [[:alpha:]]{7}$"], "a message", false);
        check(&["", "[", "(?P<", "a{2,1}", "*", r"\8"], "a message", true);
        check(&["[", "message"], "a message", false);
        // Neither memory nor time without bounds.
        let long = "x".repeat(FILTER_MAX + 1);
        check(&[&long], "a message", true);
        check(&["((((a{100}){100}){100}){100})"], "a message", true);
        check(&["(a*)*(a*)*(a*)*b"], &"a".repeat(5000), true);
    }

    #[test]
    fn repetitions_and_suppressed_messages_are_told() {
        let (settings, output) = (settings(), Collected::default());
        let mut alerts = Alerts::new(&settings, &output);
        let at = |ms| Now { mono: Duration::from_millis(ms), ..Now::default() };
        let ident = crate::logs::tests::plan("i1").instance.ident.clone();
        let who = StoredIdent::new(&ident, "1.0.0");
        let id = InstanceId::new("i1");
        for ms in 0..500 {
            alerts.instance((&id, &who), format!("error {ms}").as_bytes(), 5, at(ms));
        }
        alerts.instance((&id, &who), b"error 5", 5, at(60_000));
        let words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"];
        for word in words.iter().flat_map(|word| ["a", "b"].map(|more| format!("{word}{more}"))) {
            alerts.instance((&id, &who), word.as_bytes(), 5, at(60_001));
        }
        let texts = output.texts();
        assert_eq!(
            texts[..2],
            ["service-i1 1.0.0: error 0", "service-i1 1.0.0: error 5 (repeated 499 times)"]
        );
        assert_eq!(texts.len(), 2 + 9);
        assert_eq!(alerts.next_report(), Some(Duration::from_millis(120_001)));
        alerts.report(at(120_000), |_| Some(&who));
        assert_eq!(output.texts().len(), 11);
        alerts.report(at(120_001), |_| Some(&who));
        assert_eq!(output.texts()[11], "service-i1 1.0.0: 11 more messages were suppressed");
        assert_eq!(alerts.next_report(), None);
    }

    /// 10 000 different lines a second for a minute, by a clock that the test sets.
    #[test]
    fn a_flood_makes_a_bounded_number_and_none_is_uncounted() {
        const LINES: u64 = 600_000;
        let (settings, output) = (settings(), Collected::default());
        let mut alerts = Alerts::new(&settings, &output);
        let at = |n: u64| Now { mono: Duration::from_micros(n * 100), ..Now::default() };
        let ident = crate::logs::tests::plan("i1").instance.ident.clone();
        let who = StoredIdent::new(&ident, "1.0.0");
        let id = InstanceId::new("i1");
        let mut of_system = 0;
        for n in 0..LINES {
            let word: String = n.to_string().bytes().map(|b| char::from(b + 49)).collect();
            if n % 10 == 0 {
                of_system += 1;
                alerts.system(word.as_bytes(), 5, at(n));
            } else {
                alerts.instance((&id, &who), word.as_bytes(), 5, at(n));
            }
            if alerts.next_report().is_some_and(|due| due <= at(n).mono) {
                alerts.report(at(n), |_| Some(&who));
            }
        }
        alerts.report(at(2 * LINES), |_| Some(&who));
        let texts = output.texts();
        let check = |source: &str, lines: u64| {
            let of_source: Vec<&str> =
                texts.iter().filter_map(|text| text.strip_prefix(source)).collect();
            let told = |text: &str| {
                let count = text.strip_suffix(" more messages were suppressed")?;
                Some(count.parse::<u64>().unwrap())
            };
            let reported: Vec<u64> = of_source.iter().filter_map(|text| told(text)).collect();
            let (suppressed, reports) = (reported.iter().sum::<u64>(), reported.len());
            let sent = of_source.len() - reports;
            // Ten at once, then one in six seconds; and one report a minute.
            assert!((19..=20).contains(&sent), "{source} {sent}");
            assert!((1..=2).contains(&reports), "{source} {reports}");
            assert_eq!(suppressed + u64::try_from(sent).unwrap(), lines);
        };
        check("system: ", of_system);
        check("service-i1 1.0.0: ", LINES - of_system);
        assert_eq!(alerts.next_report(), None);
    }

    #[test]
    fn ends_in_words() {
        let check = |exit: Exit, expect: &[(u8, &str)]| {
            let found = end_of("u", exit);
            let found: Vec<(u8, &str)> =
                found.iter().map(|(l, text)| (*l, text.as_str())).collect();
            assert_eq!(found, expect);
        };
        check(Exit::Code(0), &[(6, "u: Deactivated successfully.")]);
        let failed = (4, "u: Failed with result 'exit-code'.");
        check(
            Exit::Code(1),
            &[(5, "u: Main process exited, code=exited, status=1/FAILURE"), failed],
        );
        check(Exit::Code(77), &[(5, "u: Main process exited, code=exited, status=77/n/a"), failed]);
        check(
            Exit::Signal(11),
            &[
                (4, "u: Main process exited, code=dumped, status=11/SEGV"),
                (4, "u: Failed with result 'core-dump'."),
            ],
        );
        check(
            Exit::Signal(15),
            &[
                (4, "u: Main process exited, code=killed, status=15/TERM"),
                (4, "u: Failed with result 'signal'."),
            ],
        );
        check(
            Exit::OutOfMemory,
            &[
                (4, "u: Main process exited, code=killed, status=9/KILL"),
                (4, "u: Failed with result 'oom-kill'."),
            ],
        );
        check(
            Exit::CodeAfterKills(137),
            &[
                (5, "u: Main process exited, code=exited, status=137/n/a"),
                (4, "u: Failed with result 'oom-kill'."),
            ],
        );
        let given_up = given_up("u");
        assert_eq!(given_up[0].1, "u: Start request repeated too quickly.");
        assert_eq!(given_up[1], (3, "Failed to start u.".to_owned()));
    }
}
