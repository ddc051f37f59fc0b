//! Manifests: a line for each file, with its path and its digest, as b3sum and
//! sha256sum write them, or as a JSON object that knows size and time, too.
//!
//! Leaves to others: what is held against them, and where they are kept.
//! Invariant: a line that is written is read back as the same; a line that can be
//! read in two ways is refused.

use haul_engine::options::DigestKind;
use haul_engine::report::{Digest, path_of_told, told_path};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::io::{self, BufRead, Read};

/// Bytes of one line, at most: the deepest paths and their escapes.
const LINE_BYTES_MAX: usize = 1024 * 1024;
/// Hexadecimal digits of a digest.
const HEX_DIGITS: usize = 64;
/// Nanoseconds have so many digits.
const NANOS_DIGITS: usize = 9;

/// How a line is written; each is told by itself when it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ManifestFormat {
    /// `HEX  PATH`, which the tools check that are named after the digests.
    Sum,
    /// A JSON object.
    Json,
}

/// One file of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestLine {
    /// Its path, of any bytes but NUL.
    pub path: Vec<u8>,
    /// Its size in bytes, where the line says so.
    pub bytes: Option<u64>,
    /// Its modification time, where the line says so: seconds, rounded down, and
    /// nanoseconds.
    pub mtime: Option<(i64, u32)>,
    /// The digest of all its bytes.
    pub digest: Digest,
}

/// The same as a JSON object.
#[derive(Serialize, Deserialize)]
struct ManifestJson<'a> {
    #[serde(borrow)]
    path: Cow<'a, str>,
    #[serde(default)]
    bytes: Option<u64>,
    #[serde(default)]
    mtime: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    blake3: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
}

impl ManifestLine {
    /// The line in `format`, with its end.
    #[must_use]
    pub fn written(&self, format: ManifestFormat) -> Vec<u8> {
        match format {
            ManifestFormat::Sum => self.as_sum(),
            ManifestFormat::Json => self.as_json(),
        }
    }

    fn as_sum(&self) -> Vec<u8> {
        let mut line = Vec::with_capacity(HEX_DIGITS + 3 + self.path.len());
        let is_escaped = self.path.iter().any(|byte| b"\\\n\r".contains(byte));
        if is_escaped {
            line.push(b'\\');
        }
        line.extend_from_slice(self.digest.hex().as_bytes());
        line.extend_from_slice(b"  ");
        for byte in &self.path {
            match byte {
                b'\\' => line.extend_from_slice(b"\\\\"),
                b'\n' => line.extend_from_slice(b"\\n"),
                b'\r' => line.extend_from_slice(b"\\r"),
                byte => line.push(*byte),
            }
        }
        line.push(b'\n');
        line
    }

    fn as_json(&self) -> Vec<u8> {
        let hex = |kind| (self.digest.kind == kind).then(|| self.digest.hex());
        let object = ManifestJson {
            path: told_path(&self.path).into(),
            bytes: self.bytes,
            mtime: self
                .mtime
                .map(|(seconds, nanos)| format!("{seconds}.{nanos:0NANOS_DIGITS$}")),
            blake3: hex(DigestKind::Blake3),
            sha256: hex(DigestKind::Sha256),
        };
        let mut line = serde_json::to_vec(&object).expect("plain values serialize");
        line.push(b'\n');
        line
    }
}

impl ManifestLine {
    /// Reads a line without its end; `kind` is the digest of one that does not say.
    ///
    /// # Errors
    /// What is wrong with it, as a clause.
    pub fn read(line: &[u8], kind: DigestKind) -> Result<Self, String> {
        if line.first() == Some(&b'{') {
            return Self::from_json(line);
        }
        Self::from_sum(line, kind).map_err(str::to_owned)
    }

    fn from_sum(line: &[u8], kind: DigestKind) -> Result<Self, &'static str> {
        let (is_escaped, line) = match line {
            [b'\\', line @ ..] => (true, line),
            line => (false, line),
        };
        let (hex, rest) = line
            .split_at_checked(HEX_DIGITS)
            .ok_or("it is too short for a digest of 64 hexadecimal digits and a path")?;
        let digest =
            Digest::from_hex(kind, hex).ok_or("it does not begin with 64 hexadecimal digits")?;
        let path = match rest {
            [b' ', b' ' | b'*', path @ ..] if !path.is_empty() => path,
            [b' ', b' ' | b'*'] | [] => return Err("it has no path"),
            _ => {
                return Err("its digest is not followed by two spaces, or a space and an asterisk");
            }
        };
        let path = match is_escaped {
            true => unescaped(path).ok_or("a backslash in its path escapes nothing")?,
            false => path.to_vec(),
        };
        Ok(Self {
            path,
            bytes: None,
            mtime: None,
            digest,
        })
    }

    fn from_json(line: &[u8]) -> Result<Self, String> {
        let object: ManifestJson<'_> = serde_json::from_slice(line)
            .map_err(|error| format!("it is no JSON object of a manifest: {error}"))?;
        let path = path_of_told(&object.path)
            .ok_or("a backslash in its path is not followed by x and two hexadecimal digits")?;
        let mtime = object.mtime.as_deref().map(read_mtime);
        let (kind, hex) = match (object.blake3, object.sha256) {
            (Some(hex), None) => (DigestKind::Blake3, hex),
            (None, Some(hex)) => (DigestKind::Sha256, hex),
            (None, None) => return Err("it has neither blake3 nor sha256".to_owned()),
            (Some(_), Some(_)) => return Err("it has both blake3 and sha256".to_owned()),
        };
        Ok(Self {
            path,
            bytes: object.bytes,
            mtime: match mtime {
                Some(None) => {
                    return Err("its mtime is not SECONDS.NANOSECONDS with 9 digits".to_owned());
                }
                mtime => mtime.flatten(),
            },
            digest: Digest::from_hex(kind, hex.as_bytes())
                .ok_or_else(|| format!("its {} is not 64 hexadecimal digits", kind.word()))?,
        })
    }
}

/// The path that b3sum and sha256sum wrote with escapes.
fn unescaped(path: &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::with_capacity(path.len());
    let mut bytes = path.iter();
    while let Some(byte) = bytes.next() {
        plain.push(match byte {
            b'\\' => match bytes.next()? {
                b'\\' => b'\\',
                b'n' => b'\n',
                b'r' => b'\r',
                _ => return None,
            },
            byte => *byte,
        });
    }
    Some(plain)
}

/// Seconds, rounded down, and what is beyond them.
fn read_mtime(text: &str) -> Option<(i64, u32)> {
    let (seconds, nanos) = text.split_once('.')?;
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let whole = seconds.strip_prefix('-').unwrap_or(seconds);
    // "-0" would be read as another time than whoever wrote it means.
    let is_odd = seconds.starts_with('-') && whole.bytes().all(|byte| byte == b'0');
    if is_odd || !is_number(whole) || !is_number(nanos) || nanos.len() != NANOS_DIGITS {
        return None;
    }
    Some((seconds.parse().ok()?, nanos.parse().ok()?))
}

/// A line as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundLine {
    /// Its number, from 1 on.
    pub number: u64,
    /// What it says, or what is wrong with it.
    pub line: Result<ManifestLine, String>,
    /// The input ended before the line did.
    pub is_cut: bool,
}

/// The lines of a manifest, one by one.
pub struct ManifestReader<R> {
    input: R,
    kind: DigestKind,
    number: u64,
    line: Vec<u8>,
}

impl<R: BufRead> ManifestReader<R> {
    /// Reads from `input`; `kind` is the digest of lines that do not say.
    pub fn new(input: R, kind: DigestKind) -> Self {
        Self {
            input,
            kind,
            number: 0,
            line: Vec::new(),
        }
    }

    /// The next line that is neither empty nor a comment; `None` at the end.
    ///
    /// # Errors
    /// The input cannot be read.
    pub fn next_line(&mut self) -> io::Result<Option<FoundLine>> {
        loop {
            self.line.clear();
            let mut start = self.input.by_ref().take(LINE_BYTES_MAX as u64);
            if start.read_until(b'\n', &mut self.line)? == 0 {
                return Ok(None);
            }
            self.number += 1;
            let is_long = self.line.len() == LINE_BYTES_MAX && !self.line.ends_with(b"\n");
            let is_ended = match is_long {
                true => skip_line(&mut self.input)?,
                false => self.line.ends_with(b"\n"),
            };
            let line = self.line.strip_suffix(b"\n").unwrap_or(&self.line);
            // As other systems end their lines; a path's own is written as "\r".
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let line = match line {
                [] | [b'#', ..] if !is_long => continue,
                _ if is_long => Err("it is longer than 1 MiB".to_owned()),
                line => ManifestLine::read(line, self.kind),
            };
            return Ok(Some(FoundLine {
                number: self.number,
                line,
                is_cut: !is_ended,
            }));
        }
    }
}

/// Goes to the end of the line; false where the input ends before it.
fn skip_line(input: &mut impl BufRead) -> io::Result<bool> {
    loop {
        let bytes = match input.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            bytes => bytes?,
        };
        if bytes.is_empty() {
            return Ok(false);
        }
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let used = end.map_or(bytes.len(), |at| at + 1);
        input.consume(used);
        if end.is_some() {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    fn line(path: impl AsRef<[u8]>, kind: DigestKind) -> ManifestLine {
        ManifestLine {
            path: path.as_ref().to_vec(),
            bytes: None,
            mtime: None,
            digest: Digest::from_hex(kind, HEX.as_bytes()).expect("hex"),
        }
    }

    fn read(text: impl AsRef<[u8]>) -> Result<ManifestLine, String> {
        ManifestLine::read(text.as_ref(), DigestKind::Sha256)
    }

    fn all(text: &[u8]) -> Vec<FoundLine> {
        let mut reader = ManifestReader::new(text, DigestKind::Blake3);
        std::iter::from_fn(|| reader.next_line().expect("bytes can be read")).collect()
    }

    #[test]
    fn what_is_written_is_read_back_whatever_the_name_holds() {
        let every_byte: Vec<u8> = (1..=255).collect();
        for path in [
            b"plain".as_slice(),
            b"a/b c",
            b" * spaces ",
            b"\\",
            b"a\nb",
            b"a\\nb",
            b"ends\r",
            b"\xff\xfe",
            "ä\u{85}\u{fffd}".as_bytes(),
            b"#no comment",
            b"{",
            &every_byte,
        ] {
            for kind in [DigestKind::Blake3, DigestKind::Sha256] {
                let mut line = line(path, kind);
                let sum = line.written(ManifestFormat::Sum);
                let mut reader = ManifestReader::new(&sum[..], kind);
                let found = reader.next_line().expect("read").expect("a line");
                assert_eq!((found.line, found.is_cut), (Ok(line.clone()), false));
                for mtime in [(0, 0), (1_700_000_000, 1), (-1, 999_999_999), (i64::MIN, 0)] {
                    (line.bytes, line.mtime) = (Some(u64::MAX), Some(mtime));
                    let json = line.written(ManifestFormat::Json);
                    assert!(json.is_ascii() || std::str::from_utf8(&json).is_ok());
                    assert_eq!(read(json.trim_ascii_end()), Ok(line.clone()));
                }
            }
        }
    }

    #[test]
    fn lines_are_those_of_the_tools() {
        let written = line("a\\b\nc\rd", DigestKind::Blake3).written(ManifestFormat::Sum);
        let want = format!("\\{HEX}  a\\\\b\\nc\\rd\n");
        assert_eq!(String::from_utf8_lossy(&written), want);
        let json = ManifestLine {
            bytes: Some(7),
            // One and a half seconds before 1970.
            mtime: Some((-2, 500_000_000)),
            ..line(b"\xff\\", DigestKind::Sha256)
        };
        let want = format!(
            "{{\"path\":\"\\\\xff\\\\x5c\",\"bytes\":7,\"mtime\":\"-2.500000000\",\"sha256\":\"{HEX}\"}}\n"
        );
        let written = json.written(ManifestFormat::Json);
        assert_eq!(String::from_utf8_lossy(&written), want);
        let upper = HEX.to_uppercase();
        for text in [
            format!("{HEX}  a"),
            format!("{HEX} *a"),
            format!("{upper}  a"),
            format!("\\{HEX}  a"),
        ] {
            assert_eq!(read(&text), Ok(line("a", DigestKind::Sha256)), "{text}");
        }
        let blake3 = format!("{{\"blake3\":\"{HEX}\", \"path\":\"a\", \"later\":[1]}}");
        assert_eq!(read(blake3), Ok(line("a", DigestKind::Blake3)));
        let raw = [HEX.as_bytes(), b"  \xff\\n"].concat();
        assert_eq!(read(raw), Ok(line(b"\xff\\n", DigestKind::Sha256)));
    }

    #[test]
    fn what_is_no_line_is_told_with_its_reason() {
        let json = |fields: &str| format!("{{\"path\":\"a\",{fields}}}");
        for (text, why) in [
            ("words".to_owned(), "too short"),
            (HEX[1..].to_owned(), "too short"),
            (HEX.to_owned(), "no path"),
            (format!("{HEX}  "), "no path"),
            (format!("{HEX} a"), "two spaces"),
            (format!("{HEX}\ta"), "two spaces"),
            (format!("{HEX}0  a"), "two spaces"),
            (HEX.replace('f', "g") + "  a", "64 hexadecimal digits"),
            (format!("\\{HEX}  a\\tb"), "escapes nothing"),
            (format!("\\{HEX}  a\\"), "escapes nothing"),
            (
                json(&format!("\"blake3\":\"{HEX}"))[..60].to_owned(),
                "no JSON",
            ),
            (json("\"bytes\":7"), "neither"),
            (
                json(&format!("\"blake3\":\"{HEX}\",\"sha256\":\"{HEX}\"")),
                "both",
            ),
            (json("\"blake3\":\"00\""), "its blake3 is not"),
            (
                json(&format!("\"sha256\":\"{HEX}\",\"bytes\":-1")),
                "no JSON",
            ),
            (
                json(&format!("\"sha256\":\"{HEX}\",\"mtime\":\"1.5\"")),
                "mtime",
            ),
            (
                json(&format!("\"sha256\":\"{HEX}\",\"mtime\":\"-0.500000000\"")),
                "mtime",
            ),
            (
                json(&format!("\"sha256\":\"{HEX}\",\"mtime\":\"+1.500000000\"")),
                "mtime",
            ),
            (
                json(&format!("\"sha256\":\"{HEX}\"")).replace("\"a\"", "\"\\\\a\""),
                "backslash",
            ),
            (format!("{{\"sha256\":\"{HEX}\"}}"), "path"),
        ] {
            let told = read(&text).expect_err(&text);
            assert!(told.contains(why), "{text}: {told}");
        }
    }

    #[test]
    fn lines_are_counted_and_an_end_that_is_missing_is_seen() {
        let text = format!("# comment\n\n{HEX}  a\r\nwords\n{HEX}  b");
        let found = all(text.as_bytes());
        let a = line("a", DigestKind::Blake3);
        let b = line("b", DigestKind::Blake3);
        assert_eq!(found.len(), 3);
        assert_eq!((found[0].number, found[0].is_cut), (3, false));
        assert_eq!(found[0].line, Ok(a));
        assert_eq!((found[1].number, found[1].line.is_err()), (4, true));
        assert_eq!((found[2].number, found[2].is_cut), (5, true));
        assert_eq!(found[2].line, Ok(b));
        assert!(all(b"").is_empty() && all(b"\n#\n").is_empty());
    }

    #[test]
    fn a_line_without_an_end_takes_no_memory() {
        let mut text = vec![b'a'; 3 * LINE_BYTES_MAX];
        text.extend_from_slice(format!("\n{HEX}  a\n").as_bytes());
        let found = all(&text);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].line, Err("it is longer than 1 MiB".to_owned()));
        assert_eq!(found[1].line, Ok(line("a", DigestKind::Blake3)));
        assert_eq!((found[1].number, found[1].is_cut), (2, false));
    }
}
