#![allow(clippy::disallowed_methods)] // a test writes its files directly

use super::*;

/// What is read from a URL, with everything that is set.
fn read_url(text: &str) -> String {
    let url = match Url::parse(text) {
        Ok(url) => url,
        Err(reason) => return format!("error: {reason}"),
    };
    let show = |bytes: &Option<Vec<u8>>| {
        bytes.as_ref().map_or("-".to_owned(), |b| b.escape_ascii().to_string())
    };
    format!(
        "{} {} {} library={} pin={} source={}",
        show(&url.token),
        show(&url.object),
        show(&url.id),
        url.library.display(),
        show(&url.pin_value),
        url.pin_source.map_or("-".to_owned(), |p| p.display().to_string()),
    )
}

#[test]
fn urls_are_read_as_iam_writes_them() {
    let check = |url: &str, expect: &str| assert_eq!(read_url(url), expect);
    check(
        "pkcs11:token=aoscore;object=sm;id=%2C%38%9A%11?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=/var/aos/iam/.usrpin",
        r"aoscore sm ,8\x9a\x11 library=/usr/lib/softhsm/libsofthsm2.so pin=- source=/var/aos/iam/.usrpin",
    );
    check("pkcs11:object=a%20b?pin-value=12%3B34", "- a b - library= pin=12;34 source=-");
    check("pkcs11:token=t;id=ab;pin-value=1", "t - ab library= pin=1 source=-");
    check("pkcs11:id=%01?pin-source=file:///run/pin", r"- - \x01 library= pin=- source=/run/pin");
    check("pkcs11:object=a?pin-source=file:/run/pin", "- a - library= pin=- source=/run/pin");
    check("pkcs11:slot-id=1;library-version=3;type=cert;object=a", "- a - library= pin=- source=-");
    check("pkcs11:token=t", "error: names neither object nor id");
    check("pkcs11:object=%4", "error: bad percent sign");
    check("pkcs11:", "error: names neither object nor id");
}

#[test]
fn openssl_gets_an_unambiguous_url() {
    let check = |url: &str, expect: &str| {
        let url = Url::parse(url).unwrap();
        assert_eq!(url.for_openssl(&url.pin().unwrap()), expect);
    };
    check(
        "pkcs11:token=aos core;object=s;m;id=,8%9a?module-path=/m.so&pin-value=1&2",
        "pkcs11:token=aos%20core;object=s;id=%2C8%9A;type=private?pin-value=1",
    );
    check("pkcs11:id=%00%ff", "pkcs11:id=%00%FF;type=private");
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().display();
    let url = format!("pkcs11:object=sm;type=cert?pin-source={path}");
    let with_file = format!("pkcs11:object=sm;type=private?pin-source={path}");
    for (content, expect) in [
        ("12 34", with_file.as_str()),
        ("12 34\n", "pkcs11:object=sm;type=private?pin-value=12%2034"),
        ("12 34\r\n", "pkcs11:object=sm;type=private?pin-value=12%2034"),
    ] {
        std::fs::write(file.path(), content).unwrap();
        check(&url, expect);
    }
}

#[test]
fn a_pin_is_shown_nowhere() {
    let check = |url: &str, expect: &str| assert_eq!(public_part(url), expect);
    check("pkcs11:token=a;object=b?pin-value=1234", "pkcs11:token=a;object=b");
    check("pkcs11:token=a;pin-value=1234;object=b", "pkcs11:token=a");
    let missing = "pkcs11:object=a?module-path=/no/such.so&pin-value=1234";
    let error = Tokens::default().key_for_core(missing).unwrap_err();
    assert!(!format!("{error:?} {error}").contains("1234"), "{error:?}");
    assert!(
        crate::model::status::chain(&error).starts_with(
            r#"cannot use "pkcs11:object=a": cannot load PKCS#11 library /no/such.so"#
        ),
        "{}",
        crate::model::status::chain(&error)
    );
}

#[test]
fn the_provider_gets_a_pem_block_of_its_kind() {
    let check = |length: usize, head: &[u8]| {
        let url = "u".repeat(length);
        let content = provider_der(&url);
        assert_eq!(content.get(..head.len()).unwrap(), head);
        assert!(content.ends_with(url.as_bytes()));
    };
    check(3, &[0x30, 32, 0x1a, 25, b'P']);
    check(200, &[0x30, 0x81, 230, 0x1a, 25, b'P']);
    check(300, &[0x30, 0x82, 0x01, 0x4b, 0x1a, 25, b'P']);
    let text = String::from_utf8(provider_pem("pkcs11:object=a")).unwrap();
    assert!(text.starts_with("-----BEGIN PKCS#11 PROVIDER URI-----\nM"), "{text}");
}
