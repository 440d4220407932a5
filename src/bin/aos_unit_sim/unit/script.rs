//! The language of scripts and of the prompt: one command per line, words as in a shell.
//!
//! A line is words; `'…'`, `"…"` and `\` quote, `#` at the start of a word begins a comment. Words
//! of the form `key=value` after the first one are options, the others are arguments.

use std::time::Duration;

use super::words::{Args, unhex, words};

/// How long a `wait` waits when the script does not say.
pub const DEFAULT_LIMIT: Duration = Duration::from_secs(30);

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    #[error("a quote is not closed")]
    OpenQuote,
    #[error("unknown command {0:?}; `help` lists them")]
    UnknownCommand(String),
    #[error("{command}: {what} is missing")]
    Missing { command: String, what: &'static str },
    #[error("{command}: unexpected {word:?}")]
    Unexpected { command: String, word: String },
    #[error("{command}: {word:?} is not {expected}")]
    Invalid { command: String, word: String, expected: &'static str },
}

#[derive(Clone, PartialEq, Debug)]
pub enum Command {
    Layer(Layer),
    Service(Service),
    Instance(Instance),
    Network(Network),
    /// Forget all that the unit was told.
    Clear,
    /// Send networks and desired state.
    Run {
        force: bool,
    },
    /// Remove instances from the desired state (none = all) and send it.
    Stop(Vec<Selector>),
    Status,
    Logs(Logs),
    Stats,
    /// Show regular monitoring as a table for so long.
    Monitor(Duration),
    Config(Config),
    Env(Env),
    Link(Link),
    Iam(Switch),
    Cloud(Switch),
    RenewCert,
    UseCert {
        cert_url: String,
        key_url: String,
    },
    Fault {
        path: String,
        fault: FileFault,
    },
    /// Bytes sent as one message.
    Raw(Vec<u8>),
    Wait {
        condition: Condition,
        limit: Duration,
    },
    Sleep(Duration),
    Echo(String),
    Help,
    Quit,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Layer {
    pub name: String,
    pub dir: String,
    pub version: String,
    pub plain: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Service {
    pub id: String,
    /// Directory or program; empty with `package`.
    pub root: String,
    /// A ready-made package.
    pub package: Option<String>,
    /// Where it is said to be, instead of where it is.
    pub url: Option<String>,
    pub version: String,
    pub provider: String,
    pub gid: u32,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<String>,
    pub working_dir: String,
    pub ports: Vec<String>,
    pub stop_signal: Option<String>,
    /// JSON text, or a file that holds it.
    pub config: Option<String>,
    pub image_config: Option<String>,
    pub layers: Vec<String>,
    pub plain: bool,
}

/// How a value is found that the unit can choose itself.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Choice {
    #[default]
    Auto,
    None,
    Given(String),
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Instance {
    pub service: String,
    pub subject: String,
    /// Index of the first one.
    pub index: u64,
    pub count: u64,
    pub uid: Option<u32>,
    pub priority: u64,
    pub ip: Choice,
    pub storage: Choice,
    pub state: Choice,
    /// `ip:port:proto` that the instance may reach outside its network.
    pub rules: Vec<String>,
    pub dns: Vec<String>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Network {
    pub id: String,
    pub subnet: String,
    pub ip: String,
    pub vlan: u64,
}

/// `service[/subject[/index]]`; `*` or nothing = any.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Selector {
    pub service: Option<String>,
    pub subject: Option<String>,
    pub index: Option<u64>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Logs {
    pub kind: LogKind,
    /// Ages: from so long ago until so long ago.
    pub from: Option<Duration>,
    pub till: Option<Duration>,
    /// Save the answer there and do not print it.
    pub to: Option<String>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LogKind {
    System,
    Instance(Selector),
    Crash(Selector),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Config {
    Get,
    Check { file: String, version: String },
    Set { file: String, version: String },
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Env {
    Clear,
    Add { selector: Selector, variables: Vec<(String, String)>, ttl: Option<Duration> },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Switch {
    Up,
    Down,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Link {
    Up,
    Down,
    /// End the stream regularly and go on listening.
    End,
    Refuse(String),
    Silent,
    Accept,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileFault {
    Break(u64),
    Status(u16),
    Slow(u32),
    Hang,
    Clear,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Condition {
    /// A stream with its first message.
    Connected,
    /// And a full status.
    Registered,
    Disconnected,
    Active(Selector),
    Failed(Selector),
    Inactive(Selector),
    Gone(Selector),
    /// A full status since the last `run`.
    Full,
    /// The answers to all requests of a kind.
    Config,
    Stats,
    Env,
    Logs,
    /// A printed line that contains the text.
    Text(String),
}

impl Selector {
    /// Reads `service[/subject[/index]]`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('/').map(|p| (p != "*" && !p.is_empty()).then(|| p.to_owned()));
        let service = parts.next().flatten();
        let subject = parts.next().flatten();
        let index = match parts.next().flatten() {
            Some(text) => Some(text.parse().ok()?),
            None => None,
        };
        parts.next().is_none().then_some(Self { service, subject, index })
    }

    pub fn matches(&self, service: &str, subject: &str, index: u64) -> bool {
        self.service.as_deref().is_none_or(|s| s == service)
            && self.subject.as_deref().is_none_or(|s| s == subject)
            && self.index.is_none_or(|i| i == index)
    }
}

impl std::fmt::Display for Selector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.service.as_deref().unwrap_or("*"))?;
        if self.subject.is_some() || self.index.is_some() {
            write!(f, "/{}", self.subject.as_deref().unwrap_or("*"))?;
        }
        self.index.map_or(Ok(()), |index| write!(f, "/{index}"))
    }
}

/// Reads one line; `None` = nothing but blanks or a comment.
pub fn parse(line: &str) -> Result<Option<Command>, Error> {
    let words = words(line)?;
    let Some((command, rest)) = words.split_first() else { return Ok(None) };
    let mut args = Args::new(command, rest);
    let parsed = match command.as_str() {
        "layer" => layer(&mut args)?,
        "service" => service(&mut args)?,
        "instance" => instance(&mut args)?,
        "network" => network(&mut args)?,
        "clear" => Command::Clear,
        "run" => match args.next().as_deref() {
            None => Command::Run { force: false },
            Some("force") => Command::Run { force: true },
            Some(other) => return Err(args.invalid(other, "`force` or nothing")),
        },
        "stop" => {
            let mut selectors = Vec::new();
            while let Some(selector) = args.selector()? {
                selectors.push(selector);
            }
            Command::Stop(selectors)
        }
        "status" => Command::Status,
        "logs" => logs(&mut args)?,
        "stats" => Command::Stats,
        "monitor" => match args.next() {
            None => Command::Monitor(DEFAULT_LIMIT),
            Some(text) => Command::Monitor(args.duration(&text)?),
        },
        "config" => config(&mut args)?,
        "env" => return env(command, rest).map(Some),
        "link" => link(&mut args)?,
        "iam" => Command::Iam(args.switch()?),
        "cloud" => Command::Cloud(args.switch()?),
        "cert" => match args.required("`renew` or `use`")?.as_str() {
            "renew" => Command::RenewCert,
            "use" => Command::UseCert {
                cert_url: args.required("the URL of a certificate")?,
                key_url: args.required("the URL of its key")?,
            },
            other => return Err(args.invalid(other, "`renew` or `use`")),
        },
        "fault" => fault(&mut args)?,
        "raw" => {
            let text = args.required("a message in hexadecimal digits")?;
            Command::Raw(unhex(&text).ok_or_else(|| args.invalid(&text, "hexadecimal digits"))?)
        }
        "wait" => wait(&mut args)?,
        "sleep" => {
            let text = args.required("a duration")?;
            Command::Sleep(args.duration(&text)?)
        }
        "echo" => return Ok(Some(Command::Echo(rest.join(" ")))),
        "help" => Command::Help,
        "quit" | "exit" => Command::Quit,
        _ => return Err(Error::UnknownCommand(command.clone())),
    };
    args.finish()?;
    Ok(Some(parsed))
}

fn layer(args: &mut Args) -> Result<Command, Error> {
    Ok(Command::Layer(Layer {
        name: args.required("a name")?,
        dir: args.required("a directory")?,
        version: args.option("version").unwrap_or_else(|| "1.0.0".to_owned()),
        plain: args.plain()?,
    }))
}

fn service(args: &mut Args) -> Result<Command, Error> {
    let package = args.option("package");
    let id = args.required("an id")?;
    let root = match &package {
        Some(_) => String::new(),
        None => args.required("a directory or program")?,
    };
    Ok(Command::Service(Service {
        id,
        root,
        package,
        url: args.option("url"),
        version: args.option("version").unwrap_or_else(|| "1.0.0".to_owned()),
        provider: args.option("provider").unwrap_or_else(|| "provider".to_owned()),
        gid: args.number("gid")?.unwrap_or(5000),
        entrypoint: args.options("entrypoint"),
        cmd: args.options("cmd"),
        env: args.options("env"),
        working_dir: args.option("dir").unwrap_or_default(),
        ports: args.options("port"),
        stop_signal: args.option("stop-signal"),
        config: args.option("config"),
        image_config: args.option("image-config"),
        layers: args.options("layer"),
        plain: args.plain()?,
    }))
}

fn instance(args: &mut Args) -> Result<Command, Error> {
    Ok(Command::Instance(Instance {
        service: args.required("a service")?,
        subject: args.option("subject").unwrap_or_else(|| "subject".to_owned()),
        index: args.number("index")?.unwrap_or(0),
        count: args.number("count")?.unwrap_or(1),
        uid: args.number("uid")?,
        priority: args.number("priority")?.unwrap_or(0),
        ip: args.choice("ip"),
        storage: args.choice("storage"),
        state: args.choice("state"),
        rules: args.options("rule"),
        dns: args.options("dns"),
    }))
}

fn network(args: &mut Args) -> Result<Command, Error> {
    Ok(Command::Network(Network {
        id: args.required("a provider")?,
        subnet: args.required("a subnet such as 10.9.0.0/24")?,
        ip: args.required("the address of the node")?,
        vlan: args.number("vlan")?.unwrap_or(0),
    }))
}

fn logs(args: &mut Args) -> Result<Command, Error> {
    let first = args.required("`system`, `crash` or a service")?;
    let kind = match first.as_str() {
        "system" => LogKind::System,
        "crash" => LogKind::Crash(args.selector()?.unwrap_or_default()),
        text => LogKind::Instance(args.selector_of(text)?),
    };
    let mut age = |key| args.option(key).map(|text| args.duration(&text)).transpose();
    let (from, till) = (age("from")?, age("till")?);
    Ok(Command::Logs(Logs { kind, from, till, to: args.option("to") }))
}

fn config(args: &mut Args) -> Result<Command, Error> {
    let action = args.required("`get`, `check` or `set`")?;
    if action == "get" {
        return Ok(Command::Config(Config::Get));
    }
    let file = args.required("a file")?;
    let version = args.next().unwrap_or_else(|| "1.0.0".to_owned());
    match action.as_str() {
        "check" => Ok(Command::Config(Config::Check { file, version })),
        "set" => Ok(Command::Config(Config::Set { file, version })),
        other => Err(args.invalid(other, "`get`, `check` or `set`")),
    }
}

/// All words but the first one and `ttl=` are variables.
fn env(command: &str, words: &[String]) -> Result<Command, Error> {
    let args = Args::new(command, &[]);
    let (first, rest) = words.split_first().ok_or_else(|| args.missing("`clear` or a service"))?;
    if first == "clear" {
        return Ok(Command::Env(Env::Clear));
    }
    let selector = args.selector_of(first)?;
    let mut variables = Vec::new();
    let mut ttl = None;
    for word in rest {
        match word.split_once('=') {
            Some(("ttl", text)) => ttl = Some(args.duration(text)?),
            Some((name, value)) => variables.push((name.to_owned(), value.to_owned())),
            None => return Err(args.invalid(word, "NAME=VALUE")),
        }
    }
    Ok(Command::Env(Env::Add { selector, variables, ttl }))
}

fn link(args: &mut Args) -> Result<Command, Error> {
    const ACTIONS: &str = "`up`, `down`, `end`, `refuse`, `silent` or `accept`";
    let action = match args.required(ACTIONS)?.as_str() {
        "up" => Link::Up,
        "down" => Link::Down,
        "end" => Link::End,
        "refuse" => Link::Refuse(args.next().unwrap_or_else(|| "already exist".to_owned())),
        "silent" => Link::Silent,
        "accept" => Link::Accept,
        other => return Err(args.invalid(other, ACTIONS)),
    };
    Ok(Command::Link(action))
}

fn fault(args: &mut Args) -> Result<Command, Error> {
    const KINDS: &str = "break=BYTES, status=CODE, slow=BYTES_PER_SECOND, `hang` or `clear`";
    let path = args.required("the path of a file")?;
    let fault = if let Some(bytes) = args.number("break")? {
        FileFault::Break(bytes)
    } else if let Some(code) = args.number("status")? {
        FileFault::Status(code)
    } else if let Some(rate) = args.number("slow")? {
        FileFault::Slow(rate)
    } else {
        match args.required(KINDS)?.as_str() {
            "hang" => FileFault::Hang,
            "clear" => FileFault::Clear,
            other => return Err(args.invalid(other, KINDS)),
        }
    };
    Ok(Command::Fault { path, fault })
}

fn wait(args: &mut Args) -> Result<Command, Error> {
    let what = args.required("a condition")?;
    let condition = match what.as_str() {
        "connected" => Condition::Connected,
        "registered" => Condition::Registered,
        "disconnected" => Condition::Disconnected,
        "active" => Condition::Active(args.condition_selector()?),
        "failed" => Condition::Failed(args.condition_selector()?),
        "inactive" => Condition::Inactive(args.condition_selector()?),
        "gone" => Condition::Gone(args.condition_selector()?),
        "full" => Condition::Full,
        "config" => Condition::Config,
        "stats" => Condition::Stats,
        "env" => Condition::Env,
        "logs" => Condition::Logs,
        "text" => Condition::Text(args.required("a text")?),
        other => return Err(args.invalid(other, "a condition")),
    };
    let limit = match args.next() {
        Some(text) => args.duration(&text)?,
        None => DEFAULT_LIMIT,
    };
    Ok(Command::Wait { condition, limit })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selector(text: &str) -> Selector {
        Selector::parse(text).unwrap()
    }

    #[test]
    fn selectors() {
        for text in ["*", "web", "web/user", "web/user/3", "*/user", "web/*/0"] {
            assert_eq!(selector(text).to_string(), text);
        }
        assert_eq!(Selector::parse("web/user/x"), None);
        assert_eq!(Selector::parse("a/b/0/c"), None);
        assert!(selector("web/*/0").matches("web", "any", 0));
        assert!(!selector("web/*/0").matches("web", "any", 1));
    }

    #[test]
    fn commands() {
        let check =
            |line: &str, expect: Command| assert_eq!(parse(line), Ok(Some(expect)), "{line}");
        check(
            "layer base ./dir version=2.0.0 compression=plain",
            Command::Layer(Layer {
                name: "base".into(),
                dir: "./dir".into(),
                version: "2.0.0".into(),
                plain: true,
            }),
        );
        check(
            "service web ./root entrypoint=/bin/sh cmd=-c cmd='exec x=1' env=A=b port=80/tcp \
             layer=base gid=7",
            Command::Service(Service {
                id: "web".into(),
                root: "./root".into(),
                version: "1.0.0".into(),
                provider: "provider".into(),
                gid: 7,
                entrypoint: vec!["/bin/sh".into()],
                cmd: vec!["-c".into(), "exec x=1".into()],
                env: vec!["A=b".into()],
                ports: vec!["80/tcp".into()],
                layers: vec!["base".into()],
                ..Service::default()
            }),
        );
        check(
            "instance web count=2 ip=none storage=data state=auto",
            Command::Instance(Instance {
                service: "web".into(),
                subject: "subject".into(),
                count: 2,
                ip: Choice::None,
                storage: Choice::Given("data".into()),
                ..Instance::default()
            }),
        );
        check("run", Command::Run { force: false });
        check("run force", Command::Run { force: true });
        check("stop", Command::Stop(vec![]));
        check("stop a b/c", Command::Stop(vec![selector("a"), selector("b/c")]));
        let wait = |condition, secs| Command::Wait { condition, limit: Duration::from_secs(secs) };
        check("wait connected", wait(Condition::Connected, 30));
        check("wait active web 5s", wait(Condition::Active(selector("web")), 5));
        check("wait active 5s", wait(Condition::Active(selector("*")), 5));
        check("wait text 'a b' 1s", wait(Condition::Text("a b".into()), 1));
        check("env clear", Command::Env(Env::Clear));
        check(
            "env web A=1 b=2=3 ttl=1m",
            Command::Env(Env::Add {
                selector: selector("web"),
                variables: vec![("A".into(), "1".into()), ("b".into(), "2=3".into())],
                ttl: Some(Duration::from_secs(60)),
            }),
        );
        check("link refuse", Command::Link(Link::Refuse("already exist".into())));
        check(
            "logs crash web from=1h",
            Command::Logs(Logs {
                kind: LogKind::Crash(selector("web")),
                from: Some(Duration::from_secs(3600)),
                till: None,
                to: None,
            }),
        );
        check(
            "logs system to=/tmp/x",
            Command::Logs(Logs {
                kind: LogKind::System,
                from: None,
                till: None,
                to: Some("/tmp/x".into()),
            }),
        );
        check("monitor", Command::Monitor(DEFAULT_LIMIT));
        check("monitor 5s", Command::Monitor(Duration::from_secs(5)));
        check(
            "fault /a.tar break=10",
            Command::Fault { path: "/a.tar".into(), fault: FileFault::Break(10) },
        );
        check("raw 0aff", Command::Raw(vec![10, 255]));
        check("echo a  'b  c'", Command::Echo("a b  c".into()));
        assert_eq!(parse("  # comment"), Ok(None));
    }

    #[test]
    fn mistakes_are_named() {
        let check = |line: &str, expect: &str| {
            assert_eq!(parse(line).unwrap_err().to_string(), expect, "{line}");
        };
        check("frobnicate", "unknown command \"frobnicate\"; `help` lists them");
        check("layer base", "layer: a directory is missing");
        check("run twice", "run: \"twice\" is not `force` or nothing");
        check("status now", "status: unexpected \"now\"");
        check("instance web color=red", "instance: unexpected \"color=red\"");
        check("instance web index=-1", "instance: \"-1\" is not a number in range");
        check("sleep 5", "sleep: \"5\" is not a duration such as 500ms, 30s or 2m");
        check("wait sunshine", "wait: \"sunshine\" is not a condition");
        check("env web A", "env: \"A\" is not NAME=VALUE");
        check("raw 0af", "raw: \"0af\" is not hexadecimal digits");
    }
}
