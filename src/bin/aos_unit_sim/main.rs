//! `aos_unit_sim`: a simulated unit for integrators and tests. See `help.txt`.
//!
//! The main thread executes commands (`session.rs`); the servers of `unit/` have threads of their
//! own, and one more reads commands from stdin. All of them send to the main thread.
#![allow(clippy::print_stderr, clippy::disallowed_methods)] // not a part of the daemon

mod args;
mod print;
mod session;
#[cfg(test)]
mod tests;
mod unit;

use std::collections::VecDeque;
use std::io::{self, BufRead, IsTerminal};
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::{self, Sender};
use std::{fs, thread};

use args::{Action, Args, Commands};
use print::Printer;
use session::{Input, Session, Verdict};
use unit::world::World;

const HELP: &str = include_str!("help.txt");

/// A wrong command line.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let result = match args::parse(std::env::args().skip(1)) {
        Ok(Action::Help) => {
            Printer::Stdout.text(HELP);
            return ExitCode::SUCCESS;
        }
        Ok(Action::Version) => {
            Printer::Stdout.text(&format!("Version: {}\n", env!("CARGO_PKG_VERSION")));
            return ExitCode::SUCCESS;
        }
        Ok(Action::Pack(pack)) => pack_only(&pack),
        Ok(Action::Unit(args)) => run_unit(&args),
        Err(e) => {
            eprintln!("aos_unit_sim: {e}\nTry `aos_unit_sim --help`.");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match result {
        Ok(Verdict::Good) => ExitCode::SUCCESS,
        Ok(Verdict::Failed) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("aos_unit_sim: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run_unit(args: &Args) -> Result<Verdict, String> {
    let lines = match &args.commands {
        Commands::File(path) => read_script(path)?,
        Commands::Given(lines) => lines.iter().cloned().collect(),
        Commands::Stdin => VecDeque::new(),
    };
    let (sender, input) = mpsc::channel();
    let events = sender.clone();
    let unit = World::start(&args.options, move |event| {
        let _ = events.send(Input::Unit(event)); // the session may be over
    })
    .map_err(session::chain)?;
    Printer::Stdout.line("unit", &format!("configuration {}", unit.config_file.display()));
    Printer::Stdout.line(
        "unit",
        &format!(
            "IAM public port {}, protected port {}, CM port {}",
            unit.iam.public_port(),
            unit.iam.protected_port(),
            unit.cm.port()
        ),
    );
    if let Some(files) = &unit.files {
        Printer::Stdout.line("unit", &format!("packages at http://{}/", files.address()));
    }
    let mut manners = args.manners;
    if args.commands == Commands::Stdin || args.stay {
        // Who types sees what went wrong, and goes on.
        manners.keep_going |= io::stdin().is_terminal();
        read_stdin(sender)?;
    } else {
        let _ = sender.send(Input::End);
    }
    Ok(Session::new(unit, input, lines, Printer::Stdout, manners).run())
}

fn read_script(path: &Path) -> Result<VecDeque<String>, String> {
    let text =
        fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    Ok(text.lines().map(str::to_owned).collect())
}

fn read_stdin(sender: Sender<Input>) -> Result<(), String> {
    let reader = move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(Input::Line(line)).is_err() {
                return;
            }
        }
        let _ = sender.send(Input::End);
    };
    let spawned = thread::Builder::new().name("sim-stdin".to_owned()).spawn(reader);
    spawned.map(|_| ()).map_err(|e| format!("cannot start a thread: {e}"))
}

/// Builds one package and tells what the CM has to say about it.
fn pack_only(pack: &args::Pack) -> Result<Verdict, String> {
    let mut catalog = unit::catalog::Catalog::new(&pack.out, unit::catalog::Offer::File);
    let line = match &pack.command {
        unit::script::Command::Layer(layer) => catalog.add_layer(layer),
        unit::script::Command::Service(service) => catalog.add_service(service),
        _ => return Ok(Verdict::Failed),
    };
    Printer::Stdout.text(&format!("{}\n", line.map_err(session::chain)?));
    Ok(Verdict::Good)
}
