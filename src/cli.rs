//! The command line, Go style: flags, usage text, version line.
//!
//! Runs on main before anything else exists. `parse` is pure: arguments in, `Invocation` out. The
//! only place of the daemon that prints by itself; everything else goes through the log.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// Exit code of a usage error.
pub const EXIT_USAGE: i32 = 2;
/// Exit code of every other error.
pub const EXIT_FATAL: i32 = 1;

/// Release of this build: `AOS_VERSION` of the build environment, else the package's.
pub const VERSION: &str = match option_env!("AOS_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};

const DEFAULT_CONFIG: &str = "aos_servicemanager.cfg";
const DEFAULT_LEVEL: &str = "info";

/// Manual page and completion are made from it, too.
const USAGE: &str = include_str!("usage.txt");

/// What the command line asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Invocation {
    /// `-h`, `-help`
    Help,
    /// `-version`
    Version,
    Run(Options),
}

/// Everything that needs the configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    pub config: PathBuf,
    /// As given; an unknown level is found by the logger, after the log output was chosen.
    pub level: String,
    pub journal: bool,
    pub action: Action,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    Daemon,
    /// `-reset`; wins over `-stop-instances`, which it includes.
    Reset,
    StopInstances,
}

/// A command line that cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UsageError {
    #[error("flag provided but not defined: -{name}")]
    Unknown { name: String },
    #[error("flag needs an argument: -{name}")]
    NoValue { name: String },
    #[error("invalid boolean value {value:?} for -{name}: true or false are allowed")]
    NoBool { name: &'static str, value: String },
    #[error("bad flag syntax: {argument}")]
    Syntax { argument: String },
}

/// Reads the arguments without the program name.
///
/// One or two dashes, a value after `=` or as the next argument, booleans only with `=`; the first
/// argument that is no flag, or `--`, ends the flags and the rest is ignored. The last occurrence
/// of a flag wins.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Invocation, UsageError> {
    let mut args = args.into_iter();
    let mut flags = Flags::default();
    while let Some(argument) = args.next() {
        match split(&argument)? {
            Argument::End => break,
            Argument::Help => return Ok(Invocation::Help),
            Argument::Flag(flag, value) => flags.set(flag, value, &mut args)?,
        }
    }
    Ok(flags.invocation())
}

/// Prints the usage text that was asked for.
pub fn print_usage() {
    say(std::io::stdout(), USAGE);
}

/// Prints what is wrong with the command line, then the usage text, to stderr.
pub fn print_usage_error(error: &UsageError) {
    say(std::io::stderr(), &format!("{error}\n{USAGE}"));
}

/// Prints the version line.
pub fn print_version() {
    say(std::io::stdout(), &format!("Version: {VERSION}\n"));
}

/// Prints, to stderr, why there is not even a log.
pub fn print_fatal(text: &str) {
    say(std::io::stderr(), &format!("{text}\n"));
}

/// Nobody can be told when the text cannot be written.
fn say(mut out: impl Write, text: &str) {
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[derive(Clone, Copy)]
enum Flag {
    Config,
    Level,
    Reset,
    StopInstances,
    Version,
    Journal,
}

impl Flag {
    const ALL: [(&'static str, Self); 6] = [
        ("c", Self::Config),
        ("v", Self::Level),
        ("reset", Self::Reset),
        ("stop-instances", Self::StopInstances),
        ("version", Self::Version),
        ("j", Self::Journal),
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Config => "c",
            Self::Level => "v",
            Self::Reset => "reset",
            Self::StopInstances => "stop-instances",
            Self::Version => "version",
            Self::Journal => "j",
        }
    }
}

enum Argument {
    End,
    Help,
    /// With the value after `=`, if there is one.
    Flag(Flag, Option<OsString>),
}

fn split(argument: &OsStr) -> Result<Argument, UsageError> {
    let bytes = argument.as_bytes();
    let name = match bytes {
        b"--" => return Ok(Argument::End),
        [b'-', b'-', name @ ..] | [b'-', name @ ..] if !name.is_empty() => name,
        _ => return Ok(Argument::End),
    };
    if matches!(name[0], b'-' | b'=') {
        return Err(UsageError::Syntax { argument: argument.to_string_lossy().into_owned() });
    }
    let (name, value) = match name.iter().position(|&b| b == b'=') {
        Some(at) => (&name[..at], Some(OsString::from_vec(name[at + 1..].to_vec()))),
        None => (name, None),
    };
    if let Some((_, flag)) = Flag::ALL.iter().find(|(known, _)| known.as_bytes() == name) {
        return Ok(Argument::Flag(*flag, value));
    }
    match name {
        b"h" | b"help" => Ok(Argument::Help),
        _ => Err(UsageError::Unknown { name: String::from_utf8_lossy(name).into_owned() }),
    }
}

#[derive(Default)]
struct Flags {
    config: Option<OsString>,
    level: Option<OsString>,
    reset: bool,
    stop_instances: bool,
    version: bool,
    journal: bool,
}

impl Flags {
    fn set(
        &mut self,
        flag: Flag,
        value: Option<OsString>,
        args: &mut impl Iterator<Item = OsString>,
    ) -> Result<(), UsageError> {
        match flag {
            Flag::Config => self.config = Some(text(flag, value, args)?),
            Flag::Level => self.level = Some(text(flag, value, args)?),
            Flag::Reset => self.reset = boolean(flag, value)?,
            Flag::StopInstances => self.stop_instances = boolean(flag, value)?,
            Flag::Version => self.version = boolean(flag, value)?,
            Flag::Journal => self.journal = boolean(flag, value)?,
        }
        Ok(())
    }

    fn invocation(self) -> Invocation {
        if self.version {
            return Invocation::Version;
        }
        let level = self.level.unwrap_or_else(|| DEFAULT_LEVEL.into());
        Invocation::Run(Options {
            config: self.config.unwrap_or_else(|| DEFAULT_CONFIG.into()).into(),
            level: level.to_string_lossy().into_owned(),
            journal: self.journal,
            action: match (self.reset, self.stop_instances) {
                (true, _) => Action::Reset,
                (false, true) => Action::StopInstances,
                (false, false) => Action::Daemon,
            },
        })
    }
}

fn text(
    flag: Flag,
    value: Option<OsString>,
    args: &mut impl Iterator<Item = OsString>,
) -> Result<OsString, UsageError> {
    value
        .or_else(|| args.next())
        .ok_or_else(|| UsageError::NoValue { name: flag.name().to_owned() })
}

fn boolean(flag: Flag, value: Option<OsString>) -> Result<bool, UsageError> {
    let Some(value) = value else { return Ok(true) };
    match value.as_bytes() {
        b"1" | b"t" | b"T" | b"true" | b"TRUE" | b"True" => Ok(true),
        b"0" | b"f" | b"F" | b"false" | b"FALSE" | b"False" => Ok(false),
        _ => Err(UsageError::NoBool {
            name: flag.name(),
            value: value.to_string_lossy().into_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(config: &str, level: &str, journal: bool, action: Action) -> String {
        let options = Options { config: config.into(), level: level.into(), journal, action };
        format!("{:?}", Invocation::Run(options))
    }

    fn check(line: &str, expect: &str) {
        let args = line.split_whitespace().map(|a| OsString::from(a.replace('~', "")));
        let got = match parse(args) {
            Ok(invocation) => format!("{invocation:?}"),
            Err(error) => error.to_string(),
        };
        assert_eq!(got, expect, "{line}");
    }

    #[test]
    fn flags_that_run() {
        use Action::{Daemon, Reset, StopInstances};
        #[rustfmt::skip]
        let cases = [
            ("", run(DEFAULT_CONFIG, "info", false, Daemon)),
            ("-c f", run("f", "info", false, Daemon)),
            ("--c f", run("f", "info", false, Daemon)),
            ("-c=f", run("f", "info", false, Daemon)),
            ("--c=f", run("f", "info", false, Daemon)),
            ("-c=", run("", "info", false, Daemon)),
            ("-c=a=b", run("a=b", "info", false, Daemon)),
            ("-c -j", run("-j", "info", false, Daemon)),
            ("-c f -c g", run("g", "info", false, Daemon)),
            ("-v debug -j", run(DEFAULT_CONFIG, "debug", true, Daemon)),
            ("-v=DEBUG", run(DEFAULT_CONFIG, "DEBUG", false, Daemon)),
            ("-v nonsense", run(DEFAULT_CONFIG, "nonsense", false, Daemon)),
            ("-j=false", run(DEFAULT_CONFIG, "info", false, Daemon)),
            ("-j=T", run(DEFAULT_CONFIG, "info", true, Daemon)),
            ("-j -j=0", run(DEFAULT_CONFIG, "info", false, Daemon)),
            ("-j false -c f", run(DEFAULT_CONFIG, "info", true, Daemon)),
            ("-j -- -c f", run(DEFAULT_CONFIG, "info", true, Daemon)),
            ("-j - -c f", run(DEFAULT_CONFIG, "info", true, Daemon)),
            ("-j ~ -c f", run(DEFAULT_CONFIG, "info", true, Daemon)),
            ("word -bogus", run(DEFAULT_CONFIG, "info", false, Daemon)),
            ("-c /etc/aos/aos_servicemanager.cfg -v debug -j",
                run("/etc/aos/aos_servicemanager.cfg", "debug", true, Daemon)),
            ("-reset", run(DEFAULT_CONFIG, "info", false, Reset)),
            ("--reset=1 -c f", run("f", "info", false, Reset)),
            ("-stop-instances", run(DEFAULT_CONFIG, "info", false, StopInstances)),
            ("-stop-instances -reset", run(DEFAULT_CONFIG, "info", false, Reset)),
            ("-reset=false -stop-instances", run(DEFAULT_CONFIG, "info", false, StopInstances)),
        ];
        for (line, expect) in cases {
            check(line, &expect);
        }
    }

    #[test]
    fn flags_that_end_or_fail() {
        #[rustfmt::skip]
        let cases = [
            ("-version", "Version"),
            ("--version=true -c f", "Version"),
            ("-c f -version -reset", "Version"),
            ("-h", "Help"),
            ("--help", "Help"),
            ("-h=x", "Help"),
            ("-version -h", "Help"),
            ("-bogus", "flag provided but not defined: -bogus"),
            ("-version -bogus=1", "flag provided but not defined: -bogus"),
            ("-C f", "flag provided but not defined: -C"),
            ("-bogus -h", "flag provided but not defined: -bogus"),
            ("-c", "flag needs an argument: -c"),
            ("-j -v", "flag needs an argument: -v"),
            ("-j=yes", "invalid boolean value \"yes\" for -j: true or false are allowed"),
            ("-reset=", "invalid boolean value \"\" for -reset: true or false are allowed"),
            ("---c f", "bad flag syntax: ---c"),
            ("-=f", "bad flag syntax: -=f"),
            ("--=f", "bad flag syntax: --=f"),
        ];
        for (line, expect) in cases {
            check(line, expect);
        }
    }

    #[test]
    fn path_that_is_no_text_is_kept() {
        let path = OsString::from_vec(b"/tmp/\xff".to_vec());
        let args = [OsString::from("-c"), path.clone()];
        let Ok(Invocation::Run(options)) = parse(args) else { panic!("not a run") };
        assert_eq!(options.config, PathBuf::from(path));
    }

    #[test]
    fn usage_names_every_flag() {
        for (name, _) in Flag::ALL {
            assert!(USAGE.contains(&format!("  -{name}")), "{name}");
        }
    }
}
