//! The result: a table for people and one line of JSON for programs.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};

use super::Outcome;

/// How a bar counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Bar {
    /// A figure above it fails the bench.
    Hard,
    /// Depends on the machine and its load: only shown.
    Soft,
}

/// One figure; smaller is better for all of them.
#[derive(Clone, PartialEq, Debug)]
struct Row {
    about: String,
    name: String,
    /// As it stands in the table.
    metric: String,
    unit: &'static str,
    measured: f64,
    limits: Option<(f64, f64, Bar)>,
}

#[derive(Debug)]
pub(crate) struct Table {
    bench: &'static str,
    rows: Vec<Row>,
    /// What the next rows are about; empty = the daemon.
    about: String,
    /// Figures of an earlier run, by the names of their rows.
    earlier: Option<BTreeMap<String, f64>>,
}

impl Table {
    pub(crate) fn new(bench: &'static str) -> Self {
        Self { bench, rows: Vec::new(), about: String::new(), earlier: None }
    }

    /// Shows in one more column what has changed since the run that `keep` has kept in this file.
    pub(crate) fn compare_with(&mut self, file: &str) -> Outcome<()> {
        let text = fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
        let mut figures = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (number, name) = line.split_once('\t').ok_or(format!("{file}: {line:?}"))?;
            figures.insert(name.to_owned(), number.parse()?);
        }
        self.earlier = Some(figures);
        Ok(())
    }

    /// Writes the figures for `compare_with`, below lines that say where they come from.
    pub(crate) fn keep(&self, file: &str, origin: &str) -> Outcome<()> {
        let mut text = String::new();
        for line in origin.lines() {
            text += &format!("# {line}\n");
        }
        for row in &self.rows {
            text += &format!("{:.3}\t{}\n", row.measured, row.name);
        }
        fs::write(file, text)?;
        Ok(())
    }

    /// The rows from now on are about this.
    pub(crate) fn about(&mut self, about: &str) {
        self.about = about.to_owned();
    }

    /// A figure with its goal and its bar.
    pub(crate) fn judge(
        &mut self,
        metric: impl Into<String>,
        unit: &'static str,
        measured: f64,
        (goal, bar): (f64, f64),
        kind: Bar,
    ) {
        self.push(metric.into(), unit, measured, Some((goal, bar, kind)));
    }

    /// A figure to know.
    pub(crate) fn note(&mut self, metric: impl Into<String>, unit: &'static str, measured: f64) {
        self.push(metric.into(), unit, measured, None);
    }

    /// Shown at once: a long bench tells how far it is.
    fn push(
        &mut self,
        metric: String,
        unit: &'static str,
        measured: f64,
        limits: Option<(f64, f64, Bar)>,
    ) {
        // A row below another one has a name of its own only together with that.
        let above = self.rows.iter().rev().find(|row| !row.metric.starts_with(' '));
        let name = match (metric.strip_prefix("  "), above) {
            (Some(rest), Some(above)) => format!("{}: {rest}", above.metric),
            _ => metric.clone(),
        };
        let row = Row { name, about: self.about.clone(), metric, unit, measured, limits };
        let change = self.earlier.as_ref().map(|earlier| match earlier.get(&row.name) {
            Some(before) => format!("{:>+9.2}", row.measured - before),
            None => format!("{:>9}", "new"),
        });
        let change = change.unwrap_or_default();
        if self.rows.is_empty() {
            let last = if self.earlier.is_some() { "   change" } else { "" };
            println!("{:<58} {:>9} {:>9} {:>10} {last}", "metric", "goal", "bar", "now");
        }
        let (goal, bar, verdict) = match row.limits {
            None => (String::new(), String::new(), ""),
            Some((goal, bar, _)) => (figure(goal), figure(bar), row.verdict()),
        };
        let name = format!("{} [{}]", row.metric, row.unit);
        println!("{name:<58} {goal:>9} {bar:>9} {:>10} {change} {verdict}", figure(row.measured));
        self.rows.push(row);
    }

    /// Prints the JSON, writes it to `file`; false when a hard bar is missed.
    pub(crate) fn finish(self, file: Option<&str>) -> Outcome<bool> {
        let failed: Vec<_> = self.rows.iter().filter(|row| row.fails()).collect();
        let rows: Vec<Value> = self.rows.iter().map(Row::json).collect();
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let json = json!({
            "bench": self.bench,
            "passed": failed.is_empty(),
            "cpus": std::thread::available_parallelism().map_or(0, usize::from),
            "load": load.trim(),
            "rows": rows,
        });
        println!("{json}");
        if let Some(file) = file {
            fs::write(file, format!("{json}\n"))?;
        }
        for row in &failed {
            println!("FAILED: {} is above its bar", row.name);
        }
        Ok(failed.is_empty())
    }
}

impl Row {
    fn fails(&self) -> bool {
        self.limits.is_some_and(|(_, bar, kind)| kind == Bar::Hard && self.measured > bar)
    }

    fn verdict(&self) -> &'static str {
        match self.limits {
            None => "",
            Some((goal, ..)) if self.measured <= goal => "goal",
            Some((_, bar, _)) if self.measured <= bar => "pass",
            Some((_, _, Bar::Soft)) => "MISSED",
            Some((_, _, Bar::Hard)) => "FAILED",
        }
    }

    fn json(&self) -> Value {
        let mut json = json!({
            "metric": self.name,
            "about": self.about,
            "unit": self.unit,
            "measured": (self.measured * 1000.0).round() / 1000.0,
        });
        if let Some((goal, bar, kind)) = self.limits {
            json["goal"] = goal.into();
            json["bar"] = bar.into();
            json["pass"] = (self.measured <= bar).into();
            json["hard"] = (kind == Bar::Hard).into();
        }
        json
    }
}

fn figure(value: f64) -> String {
    if value == value.trunc() { format!("{value:.0}") } else { format!("{value:.2}") }
}
