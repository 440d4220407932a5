use super::*;

fn parse(text: &str) -> Object<'static> {
    Object::parse(text).unwrap()
}

#[test]
fn keys_match_in_any_case_and_the_later_one_wins() {
    let check = |text: &str, expect: Option<&str>| {
        assert_eq!(parse(text).str("cmServerUrl").unwrap(), expect, "{text}");
    };
    check(r#"{"CMServerURL": "a"}"#, Some("a"));
    check(r#"{"cmServerUrl": "a", "CMSERVERURL": "b"}"#, Some("b"));
    check(r#"{"CMSERVERURL": "b", "cmServerUrl": "a"}"#, Some("a"));
    check(r#"{"cmServerUrl": "a", "cmServerUrl": "b"}"#, Some("b"));
    check(r#"{"cm\u017ferverUrl": "long s"}"#, Some("long s"));
    check(r#"{"cmServerUrl": null}"#, None);
    check(r#"{"cmServerUrls": "a", "x": {"cmServerUrl": "a"}}"#, None);
}

#[test]
fn unsigned_numbers_are_plain_integer_literals() {
    let check = |literal: &str, expect: Option<u64>| {
        let text = format!(r#"{{"n": {literal}}}"#);
        let got = Object::parse(&text).and_then(|object| object.opt_u64("n"));
        assert_eq!(got.ok().flatten(), expect, "{literal}");
    };
    check("0", Some(0));
    check("18446744073709551615", Some(u64::MAX));
    for literal in ["18446744073709551616", "-1", "-0", "1.0", "1e2", "\"1\"", "true", "[1]", "01"]
    {
        check(literal, None);
    }
}

#[test]
fn other_types() {
    let object = parse(
        r#"{"b": true, "i": -5, "f": 2.5, "fi": 3, "s": ["a", null], "w": "two", "e": "",
            "o": {"In": {"deep": 1}}, "os": [{"a": 1}, null], "m": {"Kk": "v", "n": null},
            "d": "1m30s", "neg": "-1s", "num": 1.5}"#,
    );
    assert_eq!(object.opt_bool("B").unwrap(), Some(true));
    assert_eq!(object.opt_i64("i").unwrap(), Some(-5));
    assert_eq!(object.opt_f64("f").unwrap(), Some(2.5));
    assert_eq!(object.opt_f64("fi").unwrap(), Some(3.0));
    assert_eq!(object.strings("s").unwrap().unwrap(), ["a", ""]);
    assert_eq!(object.word("w", &["one", "two"]).unwrap(), Some("two"));
    assert_eq!(object.word("e", &["one", "two"]).unwrap(), None);
    let inner = object.object("o").unwrap().unwrap();
    let deep = inner.object("in").unwrap().unwrap();
    assert_eq!(deep.opt_u64("deep").unwrap(), Some(1));
    assert_eq!(deep.path_of("deep"), "o.in.deep");
    assert_eq!(object.objects("os").unwrap().unwrap().len(), 2);
    let map = object.string_map("m").unwrap().unwrap();
    assert_eq!((map["Kk"].as_str(), map["n"].as_str()), ("v", ""));
    let seconds = NumberUnit::Seconds;
    assert_eq!(object.duration("d", seconds).unwrap(), Some(Duration::from_secs(90)));
    assert_eq!(object.duration_ns("neg", seconds).unwrap(), Some(-1_000_000_000));
    assert_eq!(object.duration("num", seconds).unwrap(), Some(Duration::from_millis(1500)));
    assert_eq!(object.duration("absent", seconds).unwrap(), None);
}

#[test]
fn errors_name_key_value_and_what_is_allowed() {
    let object = parse(
        r#"{"a": {"B": [{"c": "x\n"}]}, "d": "soon", "neg": -1, "s": ["a", 7], "w": "three",
            "n": 101, "long": 1}"#,
    );
    let check = |error: Error, expect: &str| assert_eq!(error.to_string(), expect);
    let a = object.object("a").unwrap().unwrap();
    let b = a.objects("b").unwrap().unwrap();
    check(
        b[0].opt_u64("c").unwrap_err(),
        r#"a.b[0].c: "x\n" is not allowed, expected an unsigned integer"#,
    );
    check(
        object.duration("d", NumberUnit::Auto).unwrap_err(),
        r#"d: "soon" is not allowed, expected a duration such as "1m30s", "PT90S" or a number"#,
    );
    check(
        object.duration("neg", NumberUnit::Auto).unwrap_err(),
        "neg: -1 is not allowed, expected a duration that is not negative",
    );
    check(object.strings("s").unwrap_err(), "s[1]: 7 is not allowed, expected a string");
    check(
        object.word("w", &["one", "two"]).unwrap_err(),
        r#"w: "three" is not allowed, expected one of one, two"#,
    );
    check(
        object.u64_in("n", 0..=100).unwrap_err(),
        "n: 101 is not allowed, expected an integer from 0 to 100",
    );
    check(object.object("long").unwrap_err(), "long: 1 is not allowed, expected an object");
    check(object.refuse("gone", "a path"), "gone is missing, expected a path");
}

#[test]
fn malformed_documents() {
    for text in [
        "",
        " ",
        "{",
        "{}}",
        "{} {}",
        "{} x",
        "// c\n{}",
        r#"{"a": 1,}"#,
        "\u{feff}{}",
        "[]",
        "null",
        "\"text\"",
        "{\"a\": \"\\ud800\"}",
    ] {
        assert!(Object::parse(text).is_err(), "{text:?}");
    }
    for text in ["{}", " {}\n", "{\"\":0}"] {
        assert!(Object::parse(text).is_ok(), "{text:?}");
    }
    assert!(Object::parse_tolerant("\u{feff}{}").is_ok());
    assert!(Object::parse_tolerant("\u{feff}\u{feff}{}").is_err());
}

#[test]
fn limits() {
    let nested = |depth: usize| {
        let inner = depth - 1;
        format!("{{\"a\": {}{}}}", "[".repeat(inner), "]".repeat(inner))
    };
    assert!(Object::parse(&nested(MAX_DEPTH)).is_ok());
    assert!(Object::parse(&nested(MAX_DEPTH + 1)).is_err());
    assert!(Object::parse(&nested(50_000)).is_err());

    let many = |values: usize| format!("{{\"a\": [0{}]}}", ",0".repeat(values - 3));
    assert!(Object::parse(&many(MAX_VALUES)).is_ok());
    assert!(Object::parse(&many(MAX_VALUES + 1)).is_err());

    let long = |size: usize| format!("{{{}}}", " ".repeat(size - 2));
    assert!(Object::parse(&long(MAX_SIZE_BYTES)).is_ok());
    assert!(matches!(
        Object::parse(&long(MAX_SIZE_BYTES + 1)),
        Err(Error::TooLarge { size }) if size == MAX_SIZE_BYTES + 1
    ));
}
