//! Certificates and keys in a PKCS#11 token, through the OpenSSL engine that Debian has.

// A test prepares its files and runs tools by itself.
#![allow(clippy::disallowed_methods)]

use std::fs;
use std::process::Command;

use crate::common::need::require;
use crate::common::unit::{Setup, Unit};

const LIBRARY: &str = "/usr/lib/softhsm/libsofthsm2.so";
const PIN: &str = "1234";
const SETTING: &str = "SOFTHSM2_CONF";

/// A unit whose daemon has a token of its own, with the key of the certificate `sm-2` in it.
struct Token {
    unit: Unit,
    /// Of the certificate, a file.
    cert_file: String,
}

impl Token {
    fn new() -> Self {
        let unit = Setup::new().set("pkcs11Module", LIBRARY).start();
        fs::create_dir(unit.path("tokens")).unwrap();
        let setting = format!("directories.tokendir = {}\n", unit.path("tokens").display());
        fs::write(unit.path("softhsm.conf"), setting).unwrap();
        fs::write(unit.path("pin"), PIN).unwrap();
        fs::write(unit.path("pin-line"), format!("{PIN}\n")).unwrap();
        let mut token = Self { unit, cert_file: String::new() };
        token.tool("softhsm2-util", "--init-token --free --label aoscore --pin 1234 --so-pin 5678");
        let first = token.unit.path("certs/sm-1.pem");
        token.start_daemon();
        token.unit.say("wait registered");
        token.unit.sleeper("one");
        token.unit.say("run");
        token.unit.say("wait active one");
        // Before that nobody hears of changes.
        token.unit.expect("subscribed to certificate");
        token.unit.say("cert renew");
        token.unit.expect("stream 2 from");
        assert!(first.exists());
        let key = token.unit.path("certs/sm-2.key").display().to_string();
        token.tool(
            "softhsm2-util",
            &format!("--import {key} --token aoscore --label sm --id 2c389a11 --pin 1234"),
        );
        token.cert_file = token.unit.path("certs/sm-2.pem").display().to_string();
        token.tool(
            "pkcs11-tool",
            &format!(
                "--module {LIBRARY} --login --pin 1234 --token-label aoscore \
                 --write-object {} --type cert --label sm --id 2c389a11",
                token.cert_file
            ),
        );
        token
    }

    fn start_daemon(&mut self) {
        let setting = self.unit.path("softhsm.conf").display().to_string();
        self.unit.start_daemon_with(&[(SETTING, &setting)]);
    }

    fn tool(&self, program: &str, arguments: &str) {
        let mut command = Command::new(program);
        command.args(arguments.split_whitespace());
        let output = command.env(SETTING, self.unit.path("softhsm.conf")).output().unwrap();
        assert!(output.status.success(), "{program}: {output:?}");
    }

    /// `query` is what follows the names of the object.
    fn url(&self, query: &str) -> String {
        format!("pkcs11:token=aoscore;object=sm;id=%2C%38%9A%11?{query}")
    }

    fn url_with_file(&self, pin: &str) -> String {
        self.url(&format!("module-path={LIBRARY}&pin-source={}", self.unit.path(pin).display()))
    }

    /// Hands out these URLs; the daemon connects anew.
    fn changes_to(&mut self, cert_url: &str, key_url: &str) {
        self.unit.look();
        self.unit.say(&format!("cert use '{cert_url}' '{key_url}'"));
        self.unit.expect(" from");
        self.unit.say("wait registered");
    }
}

#[test]
fn certificates_move_between_files_and_tokens_while_instances_run() {
    require!(root, memory, runc, busybox, token);
    let mut token = Token::new();
    let pid = token.unit.pid_of("one/subject/0");
    let cert_file = format!("file://{}", token.cert_file);
    let key_file = cert_file.replace(".pem", ".key");
    let (in_token, pin_source) = (token.url_with_file("pin-line"), token.url_with_file("pin"));
    // Each changes what OpenSSL is given; the same certificate from another place is no change.
    token.changes_to(&cert_file, &in_token);
    token.changes_to(&in_token, &key_file);
    token.changes_to(&pin_source, &pin_source);
    token.changes_to(&cert_file, &key_file);
    token.changes_to(&in_token, &in_token);
    assert_eq!(token.unit.pid_of("one/subject/0"), pid);
    // A daemon that knows nothing but the token.
    token.unit.kill_daemon();
    token.unit.look();
    token.start_daemon();
    token.unit.expect("one/subject/0 version 1.0.0 active");
    assert_eq!(token.unit.pid_of("one/subject/0"), pid);
    token.unit.stop_daemon();
    token.unit.nothing_left();
}

#[test]
fn a_refused_pin_is_tried_once() {
    require!(root, memory, runc, busybox, token);
    let mut token = Token::new();
    let wrong = token.url("pin-value=9999");
    token.unit.say(&format!("cert use '{wrong}' '{wrong}'"));
    token.unit.expect_log("C_Login of PKCS#11 library");
    token.unit.say("link end");
    token.unit.expect_log("the token has refused this PIN; it is not tried again");
    // What else can be wrong is said as clearly.
    let missing = "pkcs11:token=aoscore;object=none?pin-value=1234";
    token.unit.say(&format!("cert use '{missing}' '{missing}'"));
    token.unit.expect_log("there is no certificate");
    let foreign = "pkcs11:token=other;object=sm?pin-value=1234";
    token.unit.say(&format!("cert use '{foreign}' '{foreign}'"));
    token.unit.expect_log("no slot holds this token");
    let log = token.unit.daemon().output.all();
    let tries = log.iter().filter(|line| line.contains("C_Login of")).count();
    assert_eq!(tries, 1, "{log:#?}");
    assert!(!log.iter().any(|line| line.contains("9999")), "the PIN is in the log");
    // The right one still works.
    let right = token.url("pin-value=1234");
    token.changes_to(&right, &right);
    token.unit.stop_daemon();
    token.unit.nothing_left();
}
