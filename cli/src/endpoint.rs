//! Where a copy reads or writes: a local path, a server, standard input or
//! output, or a host over ssh.
//!
//! Leaves to others: whether it exists and what it is. Invariant: parsing
//! touches neither disk nor network, and what cannot be meant is refused here.

use haul_engine::{PeerAddress, limits};
use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// The port of `haul serve` unless the URL or `--listen` names another.
pub const PORT_DEFAULT: u16 = 7400;

/// One end of a copy, as typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A file or directory of this machine.
    Local(PathBuf),
    /// `-`: standard input as a source, standard output as a target.
    Standard,
    /// A path below the root of a `haul serve`.
    Server(ServerPath),
    /// `[USER@]HOST:PATH`, as typed: understood, not built yet.
    Ssh(String),
}

/// A path below a server's root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerPath {
    /// Where it listens.
    pub peer: PeerAddress,
    /// The bytes as they were typed, without leading or trailing slashes; empty
    /// is the root.
    pub path: Vec<u8>,
    /// It ended in a slash or is the root: a target must be a directory, a
    /// source means a directory's contents.
    pub directory: bool,
}

impl Endpoint {
    /// Reads what was typed.
    ///
    /// # Errors
    /// A clause that says what is wrong with the text.
    pub fn parse(typed: &OsStr) -> Result<Self, String> {
        let bytes = typed.as_bytes();
        if bytes.is_empty() {
            return Err("an empty path names nothing".to_owned());
        }
        if bytes == b"-" {
            return Ok(Self::Standard);
        }
        if let Some(rest) = strip_scheme(bytes, b"haul://") {
            return parse_server(rest)
                .map(Self::Server)
                .map_err(|why| format!("\"{}\" is not a haul address: {why}", typed.display()));
        }
        if let Some(scheme) = foreign_scheme(bytes) {
            return Err(format!(
                "\"{}\" is a {scheme} address; haul speaks to haul://HOST[:PORT]/PATH",
                typed.display()
            ));
        }
        if names_a_host(bytes) {
            return Ok(Self::Ssh(typed.display().to_string()));
        }
        Ok(Self::Local(PathBuf::from(typed)))
    }

    /// What to call it in a sentence.
    #[must_use]
    pub fn display(&self) -> String {
        match self {
            Self::Local(path) => path.display().to_string(),
            Self::Standard => "-".to_owned(),
            Self::Server(server) => server.display(),
            Self::Ssh(typed) => typed.clone(),
        }
    }
}

impl ServerPath {
    /// What to call it in a sentence.
    #[must_use]
    pub fn display(&self) -> String {
        let host = if self.peer.host.contains(':') {
            format!("[{}]", self.peer.host)
        } else {
            self.peer.host.clone()
        };
        let path = std::ffi::OsString::from_vec(self.path.clone());
        format!("haul://{host}:{}/{}", self.peer.port, path.display())
    }

    /// The last component of the path, where there is one.
    #[must_use]
    pub fn file_name(&self) -> Option<&[u8]> {
        self.path
            .rsplit(|byte| *byte == b'/')
            .next()
            .filter(|name| !name.is_empty())
    }
}

/// `bytes` without `scheme`, whose letters may be of either case.
fn strip_scheme<'a>(bytes: &'a [u8], scheme: &[u8]) -> Option<&'a [u8]> {
    let head = bytes.get(..scheme.len())?;
    head.eq_ignore_ascii_case(scheme)
        .then(|| &bytes[scheme.len()..])
}

/// The scheme of another tool's URL, such as "rsync".
fn foreign_scheme(bytes: &[u8]) -> Option<String> {
    let end = bytes.windows(3).position(|three| three == b"://")?;
    let scheme = std::str::from_utf8(&bytes[..end]).ok()?;
    let plausible = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    plausible.then(|| scheme.to_owned())
}

/// scp's rule: a colon before the first slash, with something before it.
fn names_a_host(bytes: &[u8]) -> bool {
    let colon = if let Some(bracket) = bytes.strip_prefix(b"[") {
        // [::1]:PATH; the colons inside the brackets are the address's.
        match bracket.iter().position(|byte| *byte == b']') {
            Some(end) if bracket.get(end + 1) == Some(&b':') => return true,
            _ => bytes.iter().position(|byte| *byte == b':'),
        }
    } else {
        bytes.iter().position(|byte| *byte == b':')
    };
    let slash = bytes.iter().position(|byte| *byte == b'/');
    match (colon, slash) {
        (Some(0) | None, _) => false,
        (Some(colon), Some(slash)) => colon < slash,
        (Some(_), None) => true,
    }
}

/// `HOST[:PORT][/PATH]`
fn parse_server(rest: &[u8]) -> Result<ServerPath, String> {
    let slash = rest.iter().position(|byte| *byte == b'/');
    let (authority, path) = rest.split_at(slash.unwrap_or(rest.len()));
    let authority =
        std::str::from_utf8(authority).map_err(|_| "the host's name is not text".to_owned())?;
    let peer = parse_authority(authority)?;
    let trimmed = trim_slashes(path);
    if trimmed.len() > limits::PATH_BYTES_MAX {
        let most = limits::PATH_BYTES_MAX;
        return Err(format!("its path is longer than {most} bytes"));
    }
    Ok(ServerPath {
        peer,
        path: trimmed.to_vec(),
        directory: trimmed.is_empty() || path.ends_with(b"/"),
    })
}

/// `HOST`, `HOST:PORT`, `[V6]` or `[V6]:PORT`.
fn parse_authority(authority: &str) -> Result<PeerAddress, String> {
    if authority.contains('@') {
        return Err("it names a user; a server knows tokens, not users".to_owned());
    }
    let (host, port) = if let Some(bracketed) = authority.strip_prefix('[') {
        let (host, rest) = bracketed
            .split_once(']')
            .ok_or("the bracket around the IPv6 address is not closed")?;
        let address = host
            .split_once('%')
            .map_or(host, |(address, _zone)| address);
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return Err(format!("\"{host}\" is not an IPv6 address"));
        }
        match rest.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if rest.is_empty() => (host, None),
            None => return Err(format!("\"{rest}\" follows the address; write :PORT")),
        }
    } else {
        match authority.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return Err("write an IPv6 address in brackets, as in haul://[::1]/".to_owned());
            }
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    if host.is_empty() {
        return Err("it names no host".to_owned());
    }
    if let Some(odd) = host
        .chars()
        .find(|c| c.is_whitespace() || c.is_control() || "/?#\\".contains(*c))
    {
        return Err(format!("a host's name cannot contain {odd:?}"));
    }
    Ok(PeerAddress {
        host: host.to_owned(),
        port: match port {
            None => PORT_DEFAULT,
            Some(port) => parse_port(port)?,
        },
    })
}

/// A port that can be connected to.
fn parse_port(port: &str) -> Result<u16, String> {
    // u16's parser takes a plus sign, which no port has.
    let plain = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    match port.parse::<u16>() {
        Ok(number) if plain && number > 0 => Ok(number),
        _ => Err(format!("\"{port}\" is not a port from 1 to 65535")),
    }
}

/// `path` without leading and trailing slashes.
fn trim_slashes(path: &[u8]) -> &[u8] {
    let start = path
        .iter()
        .position(|byte| *byte != b'/')
        .unwrap_or(path.len());
    let end = path
        .iter()
        .rposition(|byte| *byte != b'/')
        .map_or(start, |last| last + 1);
    &path[start..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Endpoint, String> {
        Endpoint::parse(OsStr::new(text))
    }

    fn server(host: &str, port: u16, path: &[u8], directory: bool) -> Endpoint {
        Endpoint::Server(ServerPath {
            peer: PeerAddress {
                host: host.to_owned(),
                port,
            },
            path: path.to_vec(),
            directory,
        })
    }

    #[test]
    fn local_paths_stay_as_typed() {
        for path in [
            "a", "/a/b", "./a:b", "../x", "a/b:c", "dir/", ":x", "a b", "-x", "[x]",
        ] {
            assert_eq!(
                parse(path),
                Ok(Endpoint::Local(PathBuf::from(path))),
                "{path}"
            );
        }
        assert_eq!(parse("-"), Ok(Endpoint::Standard));
        assert!(parse("").is_err());
    }

    #[test]
    fn a_path_need_not_be_text() {
        let odd = OsStr::from_bytes(b"/a/\xff\xfe");
        assert_eq!(
            Endpoint::parse(odd),
            Ok(Endpoint::Local(PathBuf::from(odd)))
        );
        assert_eq!(
            Endpoint::parse(OsStr::from_bytes(b"haul://h/a/\xff\xfe")),
            Ok(server("h", 7400, b"a/\xff\xfe", false))
        );
    }

    #[test]
    fn hosts_over_ssh_are_understood() {
        for path in [
            "host:path",
            "user@host:path",
            "host:",
            "host:/abs",
            "[::1]:x",
        ] {
            assert_eq!(parse(path), Ok(Endpoint::Ssh(path.to_owned())), "{path}");
        }
    }

    #[test]
    fn servers_with_and_without_a_port() {
        for (text, want) in [
            ("haul://h/p/q", server("h", 7400, b"p/q", false)),
            ("haul://h:99/p/", server("h", 99, b"p", true)),
            ("HAUL://h", server("h", 7400, b"", true)),
            ("haul://h/", server("h", 7400, b"", true)),
            ("haul://h//a//", server("h", 7400, b"a", true)),
            ("haul://[::1]/x", server("::1", 7400, b"x", false)),
            (
                "haul://[fe80::1%eth0]:1/x",
                server("fe80::1%eth0", 1, b"x", false),
            ),
            (
                "haul://127.0.0.1:7401/a:b",
                server("127.0.0.1", 7401, b"a:b", false),
            ),
            (
                "haul://h/100%41 %2Fc%?x#y%",
                server("h", 7400, b"100%41 %2Fc%?x#y%", false),
            ),
        ] {
            assert_eq!(parse(text), Ok(want), "{text}");
        }
    }

    #[test]
    fn addresses_that_mean_nothing_are_refused() {
        for text in [
            "haul://",
            "haul:///x",
            "haul://:7400/x",
            "haul://h:/x",
            "haul://h:0/x",
            "haul://h:65536/x",
            "haul://h:+80/x",
            "haul://h:port/x",
            "haul://::1/x",
            "haul://[::1/x",
            "haul://[::1]7/x",
            "haul://[h]/x",
            "haul://me@h/x",
            "haul://a b/x",
            "http://h/x",
            "rsync://h/x",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_for_sentences() {
        let Ok(Endpoint::Server(path)) = parse("haul://[::1]/a/b/") else {
            unreachable!("a server address");
        };
        assert_eq!(path.display(), "haul://[::1]:7400/a/b");
        assert_eq!(path.file_name(), Some(&b"b"[..]));
        let Ok(Endpoint::Server(root)) = parse("haul://h/") else {
            unreachable!("a server address");
        };
        assert_eq!(root.file_name(), None);
    }
}
