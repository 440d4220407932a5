//! Messages to the service manager that started us (`sd_notify`). Without `NOTIFY_SOCKET` and
//! `WATCHDOG_USEC` nothing exists and nothing happens.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Way to the service manager.
#[derive(Debug)]
pub struct Notifier {
    socket: UnixDatagram,
    address: SocketAddr,
}

impl Notifier {
    /// The one that the environment names; `None` = nobody wants to know.
    pub fn from_env() -> io::Result<Option<Self>> {
        std::env::var_os("NOTIFY_SOCKET").map(|name| Self::to(&name)).transpose()
    }

    /// To a socket path, or to a name in the abstract name space after `@`.
    pub fn to(name: &OsStr) -> io::Result<Self> {
        let address = match name.as_bytes() {
            [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest)?,
            _ => SocketAddr::from_pathname(name)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, address })
    }

    /// Sends one state, such as `READY=1`; never blocks.
    pub fn send(&self, state: &str) -> io::Result<()> {
        self.socket.send_to_addr(state.as_bytes(), &self.address)?;
        Ok(())
    }
}

/// How often the service manager wants to hear that we are alive: half of what it allows.
pub fn watchdog_period() -> Option<Duration> {
    let text = |name| std::env::var(name).ok();
    period(text("WATCHDOG_USEC").as_deref(), text("WATCHDOG_PID").as_deref(), std::process::id())
}

fn period(micros: Option<&str>, pid: Option<&str>, own: u32) -> Option<Duration> {
    let micros: u64 = micros?.parse().ok()?;
    let for_us = pid.is_none_or(|pid| pid.parse() == Ok(own));
    (for_us && micros > 0).then(|| Duration::from_micros(micros) / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods() {
        let check = |micros: Option<&str>, pid: Option<&str>, expect: Option<u64>| {
            let found = period(micros, pid, 7);
            assert_eq!(found, expect.map(Duration::from_micros), "{micros:?} {pid:?}");
        };
        check(None, None, None);
        check(Some("30000000"), None, Some(15_000_000));
        check(Some("30000000"), Some("7"), Some(15_000_000));
        check(Some("30000000"), Some("8"), None);
        check(Some("30000000"), Some("x"), None);
        check(Some("0"), None, None);
        check(Some("-1"), None, None);
        check(Some(""), None, None);
    }

    #[test]
    fn states_arrive_by_path_and_by_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let unique = format!("{}", dir.path().display());
        let abstract_address = SocketAddr::from_abstract_name(&unique).unwrap();
        let by_path = UnixDatagram::bind(&path).unwrap();
        let by_name = UnixDatagram::bind_addr(&abstract_address).unwrap();
        for (receiver, name) in
            [(by_path, path.as_os_str()), (by_name, format!("@{unique}").as_ref())]
        {
            Notifier::to(name).unwrap().send("READY=1").unwrap();
            let mut buffer = [0; 16];
            let length = receiver.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"READY=1");
        }
        assert!(
            Notifier::to(&dir.path().join("none").into_os_string()).unwrap().send("x").is_err()
        );
    }
}
