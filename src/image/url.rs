//! URLs of the schemes http and https, as far as a download needs them.
//!
//! Pure; fetch thread.

/// Where to connect and what to ask for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Url {
    /// Name or address, an IPv6 address without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// Path and query, safe to put into a request line.
    pub(super) target: String,
    /// By TLS.
    pub(super) secure: bool,
}

const SCHEME: &str = "http://";
const SECURE_SCHEME: &str = "https://";
const PORT: u16 = 80;
const SECURE_PORT: u16 = 443;

impl Url {
    /// The error says what is wrong.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        let starts =
            |scheme: &str| text.get(..scheme.len()).is_some_and(|s| s.eq_ignore_ascii_case(scheme));
        let secure = starts(SECURE_SCHEME);
        if !secure && !starts(SCHEME) {
            return Err("it starts neither with http:// nor with https://");
        }
        let rest = &text[if secure { SECURE_SCHEME } else { SCHEME }.len()..];
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(end);
        if authority.contains('@') {
            return Err("credentials are not allowed");
        }
        let (host, port) = split_port(authority, if secure { SECURE_PORT } else { PORT })?;
        Ok(Self { host, port, target: target_of(target), secure })
    }

    /// Resolves the target of a redirect against this URL.
    pub(super) fn join(&self, location: &str) -> Result<Self, &'static str> {
        if location.is_empty() {
            return Err("it is empty");
        }
        if let Some(rest) = location.strip_prefix("//") {
            return Self::parse(&format!(
                "{}{rest}",
                if self.secure { SECURE_SCHEME } else { SCHEME }
            ));
        }
        let path = self.target.split('?').next().unwrap_or_default();
        let target = match location.as_bytes()[0] {
            b'/' => target_of(location),
            b'?' => target_of(&format!("{path}{location}")),
            _ if has_scheme(location) => return Self::parse(location),
            _ => {
                let directory = &path[..path.rfind('/').map_or(0, |at| at + 1)];
                target_of(&format!("{directory}{location}"))
            }
        };
        Ok(Self { target, ..self.clone() })
    }

    /// Value of the field `Host`.
    pub(super) fn authority(&self) -> String {
        let host =
            if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let default = if self.secure { SECURE_PORT } else { PORT };
        if self.port == default { host } else { format!("{host}:{}", self.port) }
    }
}

fn has_scheme(text: &str) -> bool {
    let Some((scheme, _)) = text.split_once(':') else { return false };
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.bytes().all(allowed)
}

fn split_port(authority: &str, default: u16) -> Result<(String, u16), &'static str> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').ok_or("bad host")?;
            let port =
                if rest.is_empty() { "" } else { rest.strip_prefix(':').ok_or("bad host")? };
            let allowed = |byte: u8| byte.is_ascii_hexdigit() || b":.".contains(&byte);
            if host.is_empty() || !host.bytes().all(allowed) {
                return Err("bad host");
            }
            (host, port)
        }
        None => {
            let (host, port) = authority.split_once(':').unwrap_or((authority, ""));
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
            if host.is_empty() || !host.bytes().all(allowed) {
                return Err("bad host");
            }
            (host, port)
        }
    };
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    let port = if port.is_empty() { default } else { port.parse().map_err(|_| "bad port")? };
    if !digits || port == 0 {
        return Err("bad port");
    }
    Ok((host.to_owned(), port))
}

/// Path and query without the fragment; what would break a request line is escaped.
fn target_of(text: &str) -> String {
    let text = text.split('#').next().unwrap_or_default();
    let mut target = String::with_capacity(text.len() + 1);
    if !text.starts_with('/') {
        target.push('/');
    }
    for byte in text.bytes() {
        if byte <= b' ' || byte >= 0x7f {
            target.push_str(&format!("%{byte:02X}"));
        } else {
            target.push(char::from(byte));
        }
    }
    target
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let check = |text: &str, expect: Result<(&str, u16, &str), &str>| {
            let url = Url::parse(text);
            let got = url.as_ref().map(|url| (url.host.as_str(), url.port, url.target.as_str()));
            assert_eq!(got.map_err(|reason| *reason), expect, "{text}");
        };
        check("http://h/p", Ok(("h", 80, "/p")));
        check("HTTP://h:8080/p?q#f", Ok(("h", 8080, "/p?q")));
        check("http://h", Ok(("h", 80, "/")));
        check("http://h?q", Ok(("h", 80, "/?q")));
        check("http://h:/p", Ok(("h", 80, "/p")));
        check("http://[::1]:81/p", Ok(("::1", 81, "/p")));
        check("http://h/a b\r\nX: y/é", Ok(("h", 80, "/a%20b%0D%0AX:%20y/%C3%A9")));
        check("http://h/services/a=_-b%20", Ok(("h", 80, "/services/a=_-b%20")));
        check("https://h/", Ok(("h", 443, "/")));
        check("HTTPS://h:1/", Ok(("h", 1, "/")));
        check("ftp://h/", Err("it starts neither with http:// nor with https://"));
        check("http://u:p@h/", Err("credentials are not allowed"));
        for text in ["http://", "http:///p", "http://a b/", "http://[::1/p", "http://[x]/"] {
            check(text, Err("bad host"));
        }
        for text in ["http://h:0/", "http://h:65536/", "http://h:x/", "http://h:+1/"] {
            check(text, Err("bad port"));
        }
    }

    #[test]
    fn redirects() {
        let base = Url::parse("http://h:81/a/b?q").unwrap();
        let check = |location: &str, expect: Option<(&str, u16, &str)>| {
            let url = base.join(location).ok();
            let got = url.as_ref().map(|url| (url.host.as_str(), url.port, url.target.as_str()));
            assert_eq!(got, expect, "{location}");
        };
        check("http://i/c", Some(("i", 80, "/c")));
        check("https://i/c", Some(("i", 443, "/c")));
        check("//i/c", Some(("i", 80, "/c")));
        check("/c", Some(("h", 81, "/c")));
        check("c", Some(("h", 81, "/a/c")));
        check("?r", Some(("h", 81, "/a/b?r")));
        for location in ["", "file:///etc/passwd", "http://u@i/", "gopher:x"] {
            check(location, None);
        }
        assert_eq!(base.authority(), "h:81");
        let secure = Url::parse("https://h/a").unwrap();
        assert_eq!((secure.authority().as_str(), secure.secure), ("h", true));
        let (other, down) = (secure.join("//i/c").unwrap(), secure.join("http://i/c").unwrap());
        assert_eq!((other.port, other.secure, down.port, down.secure), (443, true, 80, false));
        assert_eq!(Url::parse("http://[::1]/").unwrap().authority(), "[::1]");
    }
}
