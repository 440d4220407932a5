//! What the README quotes is what the sources say: texts of statuses, alerts and log lines, flags,
//! keys of the configuration, and the tests that its comparison names.

use std::fs;
use std::path::{Path, PathBuf};

use crate::tidy;

fn path(below: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(below)
}

/// The part under a heading, without those under deeper ones.
fn section(heading: &str) -> String {
    let readme = fs::read_to_string(path("README.md")).unwrap();
    let mut lines = readme.lines().skip_while(|line| line.trim_start_matches('#') != heading);
    assert!(lines.next().is_some(), "the README has no part {heading}");
    lines.take_while(|line| !line.starts_with('#')).flat_map(|line| [line, "\n"]).collect()
}

/// The cells of the rows of all tables in a part, without the heads.
fn rows(section: &str) -> Vec<Vec<String>> {
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect()
    };
    let lines: Vec<&str> = section.lines().collect();
    let is_rule = |line: &str| line.starts_with("|--");
    let is_head = |index: usize| lines.get(index + 1).is_some_and(|next| is_rule(next));
    let rows = lines.iter().enumerate().filter(|(_, line)| line.starts_with('|'));
    rows.filter(|(index, line)| !is_rule(line) && !is_head(*index))
        .map(|(_, line)| cells(line))
        .collect()
}

/// What stands between backquotes.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// The sources of the daemon as one text, with texts of several lines joined.
fn sources() -> String {
    let all: Vec<String> = tidy::sources().into_iter().map(|source| source.code).collect();
    let mut joined = String::new();
    for line in all.join("\n").lines() {
        match line.strip_suffix('\\') {
            Some(begun) => joined.push_str(begun.trim_start()),
            None => {
                joined.push_str(line.trim_start());
                joined.push('\n');
            }
        }
    }
    joined
}

/// Fails with what is quoted and is not in the sources. `…` and a number `n` stand for anything.
fn quotes_stand_in_the_sources(texts: &[&str]) {
    let sources = sources();
    let known = |part: &str| sources.contains(part);
    let mut missing = Vec::new();
    for text in texts {
        let parts = text.split('…').map(|part| part.strip_suffix(" n").unwrap_or(part));
        let parts = parts.map(|part| part.trim_matches(|c: char| c == ' ' || c == '\''));
        missing.extend(parts.filter(|part| !known(part)).map(|part| format!("{text}: {part}")));
    }
    assert!(missing.is_empty(), "the README quotes what the sources do not say: {missing:#?}");
}

#[test]
fn texts_of_statuses_and_alerts() {
    for heading in [" When something does not run", " Alerts"] {
        let rows = rows(&section(heading));
        assert!(rows.len() > 5, "{heading}");
        let texts: Vec<&str> = rows.iter().flat_map(|row| quoted(&row[0])).collect();
        quotes_stand_in_the_sources(&texts);
    }
}

#[test]
fn lines_of_the_log() {
    let section = section(" The log");
    let rows = rows(&section);
    // What operators follow, as the beginning of a message.
    let followed = rows.iter().find(|row| row[0] == "`info`").unwrap();
    let sources = sources();
    for word in quoted(&followed[1]) {
        let call = |prefix: &str| format!("info!(\"{prefix}{word}");
        let found = sources.contains(&call("")) || sources.contains(&format!("info!(\n\"{word}"));
        assert!(found, "no message at level info begins with {word}");
    }
    let (_, frequent) = section.split_once("Frequent ones:").unwrap();
    let texts = quoted(frequent);
    assert!(texts.len() > 5, "{texts:?}");
    quotes_stand_in_the_sources(&texts);
}

#[test]
fn texts_of_the_recovery() {
    let section = section(" Recovery");
    let rows = rows(&section);
    let texts: Vec<&str> = rows.iter().flatten().flat_map(|cell| quoted(cell)).collect();
    let texts: Vec<&str> = texts.into_iter().filter(|text| text.contains(' ')).collect();
    assert!(texts.len() > 1, "{texts:?}");
    quotes_stand_in_the_sources(&texts);
}

#[test]
fn flags_are_those_of_the_usage() {
    let usage = fs::read_to_string(path("src/usage.txt")).unwrap();
    let lines = usage.lines().filter_map(|line| line.strip_prefix("  -"));
    let word = |line: &str| line.split([' ', '\t']).next().unwrap().to_owned();
    let mut usage: Vec<String> = lines.map(word).collect();
    let rows = rows(&section(" Run"));
    let flags = rows.iter().flat_map(|row| quoted(&row[0]));
    let flags = flags.map(|flag| flag.split(' ').next().unwrap().trim_start_matches('-'));
    let mut flags: Vec<String> = flags.map(str::to_owned).collect();
    usage.sort();
    flags.sort();
    assert_eq!(flags, usage);
}

/// The words of the source that reads the file: keys and the values that some of them take.
#[test]
fn keys_of_the_configuration() {
    let source = fs::read_to_string(path("src/config/decode.rs")).unwrap();
    let code: Vec<&str> = source.lines().filter(|line| !line.trim().starts_with("//")).collect();
    let code = code.join("\n");
    let is_word = |text: &&str| {
        text.starts_with(|c: char| c.is_ascii_lowercase())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    let words: Vec<&str> = code.split('"').skip(1).step_by(2).filter(is_word).collect();
    assert!(words.len() > 80);
    let section = section(" Configuration");
    let named: Vec<&str> =
        section.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').collect();
    let missing: Vec<&&str> = words.iter().filter(|word| !named.contains(*word)).collect();
    assert!(missing.is_empty(), "the README does not name {missing:?}");
    let rows = rows(&section);
    let keys = rows.iter().flat_map(|row| quoted(&row[0])).flat_map(|key| key.split('.'));
    let unknown: Vec<&str> = keys.filter(|key| !words.contains(key)).collect();
    assert!(unknown.is_empty(), "the README names {unknown:?}");
}

/// Each row of the comparison names what shows it: a test, a script, or figures that were measured.
#[test]
fn the_comparison_is_shown_by_tests() {
    let rows = rows(&section(" Compared with the reference"));
    assert!(rows.len() > 10);
    for row in &rows {
        let [subject, _, _, shown] = row.as_slice() else { panic!("{row:?}") };
        let names = quoted(shown);
        assert!(!names.is_empty(), "nothing shows: {subject}");
        for name in names {
            assert!(exists(name), "{subject}: there is no {name}");
        }
    }
}

/// Of a script, or of a test by its module and name below `tests/it` or `src`.
fn exists(name: &str) -> bool {
    let Some((modules, test)) = name.rsplit_once("::") else { return path(name).is_file() };
    let file = modules.replace("::", "/");
    let places = [format!("tests/it/{file}"), format!("src/{file}")];
    let function = format!("fn {test}()");
    places
        .iter()
        .flat_map(|place| [format!("{place}.rs"), format!("{place}/mod.rs")])
        .any(|file| fs::read_to_string(path(&file)).is_ok_and(|text| text.contains(&function)))
}
