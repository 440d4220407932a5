//! Where the time between a request and its last status goes, from the spans that the daemon logs
//! with `-v trace`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Outcome, Unit, median, milliseconds, percentile};

/// Parts of a start in their order, who does them, and what they are.
const PARTS: [(&str, &str); 12] = [
    ("store", "core: rows and their commit"),
    ("start", "exec: one start, all that follows"),
    ("check", "exec: is the image still there"),
    ("prepare", "exec: bundle directory"),
    ("sink", "exec: where the output goes"),
    ("attach", "exec: waits for the network"),
    ("network", "net: one group of instances"),
    ("build", "exec: mounts and config.json"),
    ("create", "exec: waits for the runtime's create"),
    ("run", "exec: waits for the runtime's start"),
    ("spawn", "main: one process"),
    ("send", "cm-tx: one message"),
];

/// One line of the trace; times in CLOCK_MONOTONIC.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Piece {
    name: String,
    at: Duration,
    took: Duration,
}

impl Piece {
    fn parse(line: &str) -> Option<Self> {
        let field =
            |key: &str| line.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        let time = |key| field(key)?.parse().ok().map(Duration::from_micros);
        let name = field("name")?.to_owned();
        Some(Self { name, at: time("at_us")?, took: time("took_us")? })
    }

    fn end(&self) -> Duration {
        self.at + self.took
    }
}

/// Starts `count` instances and prints what took how long; the daemon runs with `-v trace`.
pub(crate) fn show(unit: &mut Unit, count: usize) -> Outcome<()> {
    let from = unit.log()?.len();
    let took = unit.run(count)?;
    // Then the last message of the start is in the log, too.
    unit.stop()?;
    let log = unit.log()?;
    let text = log.get(from..).unwrap_or_default();
    let pieces: Vec<Piece> = text.lines().filter_map(Piece::parse).collect();
    let mut requests = pieces.iter().filter(|piece| piece.name == "request").map(|piece| piece.at);
    let (Some(begun), Some(end)) = (requests.next(), requests.next()) else {
        return Err("the trace lacks the requests".into());
    };
    let mut named: BTreeMap<&str, Vec<&Piece>> = BTreeMap::new();
    for piece in pieces.iter().filter(|piece| (begun..end).contains(&piece.at)) {
        named.entry(&piece.name).or_default().push(piece);
    }

    let moment = |name: &str, of: fn(&Piece) -> Duration| -> Vec<Duration> {
        let found = named.get(name).into_iter().flatten();
        found.map(|piece| of(piece).saturating_sub(begun)).collect()
    };
    let span = |times: Vec<Duration>| {
        let ends = [times.iter().min(), times.iter().max()];
        ends.map(|time| milliseconds(time.copied().unwrap_or_default()))
    };
    println!("--- {count} instances: {:.1} ms as the CM sees it; ms after the request:", {
        milliseconds(took)
    });
    let moments: [(&str, [f64; 2]); 4] = [
        ("start ordered", span(moment("ordered", |piece| piece.at))),
        ("start begun", span(moment("start", |piece| piece.at))),
        ("start done", span(moment("start", Piece::end))),
        ("message sent", span(moment("send", Piece::end))),
    ];
    for (name, [first, last]) in moments {
        println!("{name:<16} first {first:>8.1}  last {last:>8.1}");
    }
    println!("{:<10} {:>6} {:>10} {:>10} {:>10}", "span", "times", "all ms", "p50 ms", "max ms");
    for (name, what) in PARTS {
        let times: Vec<Duration> =
            named.get(name).into_iter().flatten().map(|piece| piece.took).collect();
        let all = milliseconds(times.iter().sum());
        let (half, most) = (milliseconds(median(&times)), milliseconds(percentile(&times, 1.0)));
        println!("{name:<10} {:>6} {all:>10.1} {half:>10.2} {most:>10.2}  {what}", times.len());
    }
    Ok(())
}
