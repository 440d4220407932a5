//! The command line.

use std::path::PathBuf;

use serde_json::Value;

use crate::session::Manners;
use crate::unit::script::{self, Command};
use crate::unit::world::Options;

#[derive(Debug)]
pub(crate) enum Action {
    Help,
    Version,
    Pack(Box<Pack>),
    Unit(Box<Args>),
}

/// `pack layer …` or `pack service …`.
#[derive(Debug)]
pub(crate) struct Pack {
    pub(crate) out: PathBuf,
    pub(crate) command: Command,
}

#[derive(Debug)]
pub(crate) struct Args {
    pub(crate) options: Options,
    pub(crate) commands: Commands,
    /// Read commands from stdin after those of a script.
    pub(crate) stay: bool,
    pub(crate) manners: Manners,
}

/// Where the commands come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Commands {
    Stdin,
    File(PathBuf),
    Given(Vec<String>),
}

/// Reads the arguments after the program's name.
pub(crate) fn parse(words: impl Iterator<Item = String>) -> Result<Action, String> {
    let words: Vec<String> = words.collect();
    if words.first().is_some_and(|word| word == "pack") {
        return pack(&words[1..]);
    }
    let mut args = Args {
        options: Options::new(&PathBuf::from("aos_unit")),
        commands: Commands::Stdin,
        stay: false,
        manners: Manners::default(),
    };
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let (flag, inline) = match word.split_once('=') {
            Some((flag, value)) => (flag.to_owned(), Some(value.to_owned())),
            None => (word, None),
        };
        let mut value = || {
            inline.clone().or_else(|| words.next()).ok_or_else(|| format!("{flag} needs a value"))
        };
        let options = &mut args.options;
        match flag.as_str() {
            "-h" | "-help" | "--help" => return Ok(Action::Help),
            "-version" | "--version" => return Ok(Action::Version),
            "--dir" => options.dir = value()?.into(),
            "--listen" => options.listen = value()?,
            "--name" => options.name = value()?,
            "--iam-port" => options.iam_public_port = number(&flag, &value()?)?,
            "--iam-protected-port" => options.iam_protected_port = number(&flag, &value()?)?,
            "--cm-port" => options.cm_port = number(&flag, &value()?)?,
            "--http-port" => options.http_port = number(&flag, &value()?)?,
            "--node" => options.node_id = value()?,
            "--node-type" => options.node_type = value()?,
            "--max-dmips" => options.max_dmips = number(&flag, &value()?)?,
            "--runners" => options.runners = value()?,
            "--by-file" => options.by_file = true,
            "--set" => options.set.push(member(&value()?)?),
            "--script" => args.commands = Commands::File(value()?.into()),
            "-e" | "--exec" => {
                let line = value()?;
                match &mut args.commands {
                    Commands::Given(lines) => lines.push(line),
                    other => *other = Commands::Given(vec![line]),
                }
            }
            "--stay" => args.stay = true,
            "--keep-going" => args.manners.keep_going = true,
            "-q" | "--quiet" => args.manners.quiet = true,
            _ => return Err(format!("unknown flag {flag}")),
        }
    }
    Ok(Action::Unit(Box::new(args)))
}

/// `pack layer NAME DIR …`: the words of the script's command, and `out=DIRECTORY`.
fn pack(words: &[String]) -> Result<Action, String> {
    let mut out = PathBuf::from(".");
    let mut command = Vec::new();
    for word in words {
        match word.strip_prefix("out=") {
            Some(dir) => out = dir.into(),
            // Each argument of the shell is one word again.
            None => command.push(format!("'{}'", word.replace('\'', "'\\''"))),
        }
    }
    match script::parse(&command.join(" ")) {
        Ok(Some(command @ (Command::Layer(_) | Command::Service(_)))) => {
            Ok(Action::Pack(Box::new(Pack { out, command })))
        }
        Ok(_) => Err("pack takes `layer …` or `service …`".to_owned()),
        Err(e) => Err(e.to_string()),
    }
}

fn number<T: std::str::FromStr>(flag: &str, text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{flag}: {text:?} is not a number in range"))
}

/// `key=value` for the configuration file; what is not JSON is taken as a string.
fn member(text: &str) -> Result<(String, Value), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("--set: {text:?} has no `=`"))?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
    Ok((key.to_owned(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Result<Action, String> {
        parse(text.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn flags_set_options() {
        let Ok(Action::Unit(args)) = words(
            "--dir /d --cm-port=7 --set keepInstancesOnExit=true --set a.b=5s -e run -e quit -q",
        ) else {
            panic!("refused")
        };
        assert_eq!(args.options.dir, PathBuf::from("/d"));
        assert_eq!(args.options.cm_port, 7);
        assert_eq!(
            args.options.set,
            [
                ("keepInstancesOnExit".to_owned(), Value::Bool(true)),
                ("a.b".to_owned(), Value::String("5s".to_owned())),
            ]
        );
        assert_eq!(args.commands, Commands::Given(vec!["run".to_owned(), "quit".to_owned()]));
        assert!(args.manners.quiet);
        assert!(matches!(words("--help"), Ok(Action::Help)));
    }

    #[test]
    fn packages_by_themselves() {
        let Ok(Action::Pack(pack)) = words("pack layer base it's/dir out=/o") else {
            panic!("refused")
        };
        assert_eq!(pack.out, PathBuf::from("/o"));
        assert!(matches!(pack.command, Command::Layer(layer) if layer.dir == "it's/dir"));
    }

    #[test]
    fn mistakes_are_named() {
        let check = |text: &str, expect: &str| assert_eq!(words(text).unwrap_err(), expect);
        check("--bogus", "unknown flag --bogus");
        check("--dir", "--dir needs a value");
        check("--cm-port 70000", "--cm-port: \"70000\" is not a number in range");
        check("--set x", "--set: \"x\" has no `=`");
        check("pack run", "pack takes `layer …` or `service …`");
    }
}
