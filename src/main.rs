//! The program `aos_servicemanager`: brings the process into shape, reads command line and
//! configuration, takes the lock, and runs what was asked for. Everything else is in the library.

use std::error::Error;

use aos_servicemanager::cli::{self, Action, Invocation, Options};
use aos_servicemanager::config::Config;
use aos_servicemanager::model::status::chain;
use aos_servicemanager::runtime::remote;
use aos_servicemanager::{daemon, logger, sys};

#[path = "sys/program.rs"]
mod program;

/// Mode bits that new files never get.
const UMASK: u32 = 0o022;

const RUN_DIR_MODE: u32 = 0o700;
const LOCK_MODE: u32 = 0o600;

fn main() {
    if remote::run_errand(std::env::args_os().skip(1)) {
        program::exit(0);
    }
    program::without_thread_caches();
    program::one_cpu_for_grpc();
    let shaped = shape_process();
    program::exit(match cli::parse(std::env::args_os().skip(1)) {
        Ok(Invocation::Help) => {
            cli::print_usage();
            0
        }
        Ok(Invocation::Version) => {
            cli::print_version();
            0
        }
        Ok(Invocation::Run(options)) => run(&options, shaped),
        Err(error) => {
            cli::print_usage_error(&error);
            cli::EXIT_USAGE
        }
    })
}

/// Must come before the first thread, gRPC's included.
fn shape_process() -> std::io::Result<()> {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(UMASK));
    sys::thread::block_signals()?;
    sys::malloc::limit()
}

/// The exit code of a run with a log.
fn run(options: &Options, shaped: std::io::Result<()>) -> i32 {
    if let Err(error) = logger::start(options.journal) {
        cli::print_fatal(&format!("cannot start the log: {error}"));
        return cli::EXIT_FATAL;
    }
    logger::log_panics();
    match logged_run(options, shaped) {
        Ok(()) => {
            log::info!("ended");
            0
        }
        Err(error) => {
            log::error!("ended err={}", chain(&*error));
            cli::EXIT_FATAL
        }
    }
}

fn logged_run(options: &Options, shaped: std::io::Result<()>) -> Result<(), Box<dyn Error>> {
    let level = logger::parse_level(&options.level)?;
    log::set_max_level(level);
    if level == log::LevelFilter::Trace {
        sys::span::show();
    }
    shaped?;
    let config = Config::load(&options.config)?;
    let run_dir = config.run_dir.display();
    sys::fs::make_dirs(&config.run_dir, RUN_DIR_MODE)
        .map_err(|error| format!("cannot create {run_dir}: {error}"))?;
    let path = config.lock_file();
    let lock = sys::fs::try_lock(&path, LOCK_MODE)
        .map_err(|error| format!("cannot lock {}: {error}", path.display()))?;
    let Some(_lock) = lock else {
        return Err(format!("a daemon is running already: it holds {}", path.display()).into());
    };
    log::info!("start version={} config={}", cli::VERSION, options.config.display());
    match options.action {
        Action::Daemon => daemon::run(&config)?,
        Action::Reset => daemon::reset(&config)?,
        Action::StopInstances => daemon::stop_instances(&config)?,
    }
    Ok(())
}
