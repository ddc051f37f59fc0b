//! What is told of a transfer: counters, histograms, and the report that a
//! person, a harness and the peer read.
//!
//! Leaves to others: collecting (the data plane and the control plane) and
//! printing (the command line). Invariant: a field is null when it was not
//! measured, never zero in its place; times inside are nanoseconds, exported
//! latencies microseconds.

use crate::error::{Error, ErrorKind, Side};
use crate::limits;
use crate::options::DigestKind;
use hdrhistogram::Histogram;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use std::marker::PhantomData;
use std::time::Duration;

/// Longest latency that is told apart, in nanoseconds: one minute.
pub const LATENCY_NANOS_MAX: u64 = 60_000_000_000;

/// Latencies in nanoseconds: a histogram of 1 ns to 60 s at 2 significant digits
/// (30 KiB; a value is told within 1 %), and the exact smallest and largest.
#[derive(Clone, Debug)]
pub struct Latency {
    values: Histogram<u64>,
    /// The smallest; above the largest while nothing was counted.
    min: u64,
    max: u64,
}

impl Default for Latency {
    fn default() -> Self {
        // The bounds are constants that hdrhistogram accepts; see the test.
        let values = Histogram::new_with_bounds(1, LATENCY_NANOS_MAX, 2);
        Self {
            values: values.expect("constant bounds"),
            min: u64::MAX,
            max: 0,
        }
    }
}

impl Latency {
    /// Counts `count` operations that took `nanos` each.
    pub fn record(&mut self, nanos: u64, count: u64) {
        if count == 0 {
            return;
        }
        let nanos = nanos.clamp(1, LATENCY_NANOS_MAX);
        self.values.saturating_record_n(nanos, count);
        self.min = self.min.min(nanos);
        self.max = self.max.max(nanos);
    }

    /// Adds what `other` counted.
    pub fn merge(&mut self, other: &Self) {
        // Equal bounds make this infallible.
        let _ = self.values.add(&other.values);
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    /// True when nothing was counted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Operations that were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.values.len()
    }

    /// The smallest, exactly, in nanoseconds; 0 of nothing.
    #[must_use]
    pub fn min(&self) -> u64 {
        self.min.min(self.max)
    }

    /// The largest, exactly, in nanoseconds; 0 of nothing.
    #[must_use]
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The mean, in nanoseconds.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.values.mean().clamp(self.min() as f64, self.max as f64)
    }

    /// What `quantile` (0 to 1) of the operations took at most, in nanoseconds,
    /// within 1 % and never outside the smallest and the largest.
    #[must_use]
    pub fn at(&self, quantile: f64) -> u64 {
        self.clamped(self.values.value_at_quantile(quantile))
    }

    /// A value of the histogram, brought between the smallest and the largest.
    #[must_use]
    pub fn clamped(&self, nanos: u64) -> u64 {
        nanos.clamp(self.min(), self.max)
    }

    /// The histogram itself, whose edges are those of its buckets.
    #[must_use]
    pub fn histogram(&self) -> &Histogram<u64> {
        &self.values
    }
}

/// As the smallest, the largest, and pairs of value and count. The histogram
/// crate's own format is not used between peers: its reader allocates what the
/// bytes announce.
impl Serialize for Latency {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let recorded = self.values.iter_recorded();
        let pairs: Vec<(u64, u64)> = recorded
            .map(|value| (value.value_iterated_to(), value.count_at_value()))
            .collect();
        (self.min, self.max, pairs).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Latency {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (min, max, pairs) = <(u64, u64, Vec<(u64, u64)>)>::deserialize(deserializer)?;
        let mut own = Self::default();
        for (nanos, count) in pairs {
            own.record(nanos, count);
        }
        // A peer's edges are believed as far as its buckets bear them out.
        if own.max > 0 {
            let bucket = |nanos| {
                let values = &own.values;
                (
                    values.lowest_equivalent(nanos),
                    values.highest_equivalent(nanos),
                )
            };
            let ((lowest, _), (first, last)) = (bucket(own.min), bucket(own.max));
            own.max = max.clamp(first, last);
            own.min = min.clamp(lowest, own.max);
        }
        Ok(own)
    }
}

/// The five stages that are timed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Latencies {
    /// One send operation, submitted → completed.
    pub send: Latency,
    /// One zero-copy send, submitted → notification.
    pub release: Latency,
    /// One chunk, submitted → acknowledgement received.
    pub landed: Latency,
    /// One file write, submitted → completed.
    pub write: Latency,
    /// One fsync.
    pub sync: Latency,
}

impl Latencies {
    /// Adds what `other` counted.
    pub fn merge(&mut self, other: &Self) {
        self.send.merge(&other.send);
        self.release.merge(&other.release);
        self.landed.merge(&other.landed);
        self.write.merge(&other.write);
        self.sync.merge(&other.sync);
    }

    /// The stages by name, with what one value of each stands for.
    #[must_use]
    pub fn stages(&self) -> [(&'static str, &'static str, &Latency); 5] {
        [
            (
                "send",
                "one send operation, submitted to completed",
                &self.send,
            ),
            (
                "release",
                "one zero-copy send, submitted to notification",
                &self.release,
            ),
            (
                "landed",
                "one chunk, submitted to acknowledgement received",
                &self.landed,
            ),
            (
                "write",
                "one file write, submitted to completed",
                &self.write,
            ),
            ("sync", "one fsync", &self.sync),
        ]
    }
}

/// What TCP_INFO says of one connection.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TcpInfo {
    /// Segments sent again since the connection was made.
    pub retransmits: u64,
    /// Smoothed round trip, microseconds.
    pub rtt_us: u32,
    /// Smallest round trip seen, microseconds.
    pub rtt_min_us: u32,
    /// Congestion window, bytes.
    pub congestion_window_bytes: u64,
    /// The kernel's delivery-rate sample, bytes per second.
    pub delivery_rate_bytes_per_second: u64,
    /// Time that the peer's receive window held us back, microseconds.
    pub receive_window_limited_us: u64,
    /// Time that our send buffer held us back, microseconds.
    pub send_buffer_limited_us: u64,
    /// Time with data outstanding, microseconds.
    pub busy_us: u64,
}

/// One data connection, as one end sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ConnectionReport {
    /// Its number in the session.
    pub connection: u32,
    /// Payload bytes that it carried.
    pub bytes: u64,
    /// The sending path in use at the end: "copy", "zerocopy" or "splice".
    pub path: String,
    /// The send buffer's limit in force, bytes.
    pub send_buffer_bytes: u64,
    /// The receive buffer's limit in force, bytes.
    pub receive_buffer_bytes: u64,
    /// The algorithm in force.
    pub congestion_control: String,
    /// At the end of the transfer; null where the kernel did not tell.
    pub tcp: Option<TcpInfo>,
    /// Why it was lost, where it was.
    pub lost: Option<String>,
}

/// One data connection while it is used, seen from one end.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ConnectionProgress {
    /// Its number in the session.
    pub connection: u32,
    /// Payload bytes of it that landed so far.
    pub bytes: u64,
    /// As it is now; null where the kernel did not tell.
    pub tcp: Option<TcpInfo>,
}

/// What one end measured; each end sends its own to the other.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SideReport {
    /// All system calls of this end's data plane.
    pub system_calls: u64,
    /// CPU time of this end's data-plane threads, nanoseconds.
    pub cpu_nanos: u64,
    /// Send-side or receive-side stages; the others are empty.
    pub latencies: Latencies,
    /// Bytes that the kernel sent without a copy.
    pub zero_copy_sent_bytes: u64,
    /// Bytes of zero-copy sends that the kernel copied all the same.
    pub zero_copy_copied_bytes: u64,
    /// This end's view of each data connection.
    #[serde(deserialize_with = "first::<_, _, { limits::JOINS_MAX as usize }>")]
    pub connections: Vec<ConnectionReport>,
    /// How this end read or landed: "mapping", "direct read", "buffered write"…
    pub method: String,
    /// What was left to haul and decided, in sentences.
    #[serde(deserialize_with = "first::<_, _, { limits::NOTES_MAX }>")]
    pub notes: Vec<String>,
    /// What of the entries this end could not keep: a sentence a kind, with its count;
    /// and what of directories that gave way it could not remove, a sentence each.
    #[serde(deserialize_with = "first::<_, _, { limits::NOTES_MAX }>")]
    pub lost: Vec<String>,
}

/// The first `MAX` elements of a list that a peer sent; the others are read and
/// forgotten, because one byte on the wire can be a hundred in memory.
fn first<'de, D, T, const MAX: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct First<T, const MAX: usize>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for First<T, MAX> {
        type Value = Vec<T>;

        fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(formatter, "a list")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut list = Vec::new();
            while let Some(element) = seq.next_element()? {
                if list.len() < MAX {
                    list.push(element);
                }
            }
            Ok(list)
        }
    }

    deserializer.deserialize_seq(First::<T, MAX>(PhantomData))
}

/// How far a file got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// It is not there, and would be made (as the other six where it is only told
    /// what would be done).
    WouldMake,
    /// It would be sent, as the target's has another size.
    WouldSendSize,
    /// It would be sent, as the target's has another modification time.
    WouldSendTime,
    /// It would be sent, as the target's holds other bytes.
    WouldSendContent,
    /// It would be sent though the target's has the same size and time.
    WouldSendAnyway,
    /// Something else is in its place, and would be replaced.
    WouldReplace,
    /// Its mode, owner, time or attributes would be corrected.
    WouldCorrect,
    /// Renamed into place, not durable (`--no-fsync`).
    Placed,
    /// Streams, devices and null sinks end here.
    Delivered,
    /// Durable, metadata set, renamed, directory synced.
    Sealed,
    /// The target had it already, and it was passed over.
    Unchanged,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryReportKind {
    /// A regular file.
    File,
    /// Bytes whose end was not known before.
    Stream,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// Another name of a file.
    HardLink,
    /// A FIFO.
    Fifo,
    /// A character or block device.
    Device,
}

/// Entries of one transfer by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EntryCounts {
    /// All of them: files, directories, links, special files.
    pub entries: u64,
    /// Those that failed.
    pub failed: u64,
    /// Those that the target had already.
    pub unchanged: u64,
    /// Those that went before they were read, which is no failure.
    pub vanished: u64,
    /// What was deleted at the target because the source had it not.
    pub deleted: u64,
    /// Those of which the report does not tell one by one.
    pub untold: u64,
    /// Bytes of holes, which are not sent and stay holes.
    pub hole_bytes: u64,
    /// Files that share their blocks with their sources: nothing of them was sent.
    pub shared: u64,
    /// Bytes of these, holes not counted.
    pub shared_bytes: u64,
}

/// One file's end.
#[derive(Clone, Debug, Serialize)]
pub struct FileReport {
    /// Its path from where the transfer's files go. What is not text, a backslash and
    /// control characters are written as `\xHH`.
    pub name: String,
    /// What it is.
    pub kind: EntryReportKind,
    /// Its size, once known.
    pub bytes: Option<u64>,
    /// Those of them that are holes, which are not sent and stay holes.
    pub hole_bytes: u64,
    /// Those that share their blocks with the source, and are not sent.
    pub shared_bytes: u64,
    /// The level reached; null when it failed.
    pub level: Option<Level>,
    /// Why it failed.
    pub error: Option<ErrorReport>,
    /// What it holds at the target, where that was asked for.
    #[serde(serialize_with = "as_text")]
    pub digest: Option<Digest>,
    /// Its source's modification time: seconds, rounded down, and nanoseconds.
    #[serde(skip)]
    pub mtime: Option<(i64, u32)>,
    /// The only source has another name at the target: the first of this path.
    #[serde(skip)]
    pub is_renamed: bool,
}

/// As "blake3:…" or "sha256:…".
fn as_text<S: Serializer>(digest: &Option<Digest>, serializer: S) -> Result<S::Ok, S::Error> {
    match digest {
        Some(digest) => {
            serializer.collect_str(&format_args!("{}:{}", digest.kind.word(), digest.hex()))
        }
        None => serializer.serialize_none(),
    }
}

/// The digest of all bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// How it was computed.
    pub kind: DigestKind,
    /// Its bytes, in the order in which they are written.
    pub bytes: [u8; 32],
}

impl Digest {
    /// As 64 small hexadecimal digits.
    #[must_use]
    pub fn hex(&self) -> String {
        self.bytes.iter().fold(String::new(), |mut hex, byte| {
            for digit in [byte >> 4, byte & 15] {
                hex.extend(char::from_digit(digit.into(), 16));
            }
            hex
        })
    }

    /// The digest of `kind` that `hex` writes, in digits of either case; `None`
    /// where those are not 64 hexadecimal digits.
    #[must_use]
    pub fn from_hex(kind: DigestKind, hex: &[u8]) -> Option<Self> {
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let mut bytes = [0; 32];
        if hex.len() != 2 * bytes.len() {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
            // Two digits are below 256.
            *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
        }
        Some(Self { kind, bytes })
    }
}

/// A path as programs are told it: what is not text, control characters and a
/// backslash, as `\x` and two hexadecimal digits, so that two paths stay different
/// and [`path_of_told`] turns them back.
#[must_use]
pub fn told_path(path: &[u8]) -> String {
    let mut told = String::with_capacity(path.len());
    for part in path.utf8_chunks() {
        for letter in part.valid().chars() {
            match letter {
                '\\' => told.push_str("\\x5c"),
                letter if letter.is_control() && letter.is_ascii() => {
                    told.push_str(&format!("\\x{:02x}", u32::from(letter)));
                }
                letter => told.push(letter),
            }
        }
        for byte in part.invalid() {
            told.push_str(&format!("\\x{byte:02x}"));
        }
    }
    told
}

/// The path that [`told_path`] tells as `told`; `None` where a backslash is not
/// followed by an x and two hexadecimal digits.
#[must_use]
pub fn path_of_told(told: &str) -> Option<Vec<u8>> {
    let mut parts = told.split('\\');
    let mut path = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (byte, rest) = part.strip_prefix('x')?.split_at_checked(2)?;
        let digit = |at: usize| char::from(byte.as_bytes()[at]).to_digit(16);
        // Two digits are below 256.
        path.push((digit(0)? << 4 | digit(1)?) as u8);
        path.extend_from_slice(rest.as_bytes());
    }
    Some(path)
}

/// An error as the JSON tells it.
#[derive(Clone, Debug, Serialize)]
pub struct ErrorReport {
    /// The kind that decides the exit code.
    pub kind: ErrorKind,
    /// The side it happened at.
    pub side: Side,
    /// The sentence, cure included.
    pub message: String,
}

impl From<&Error> for ErrorReport {
    fn from(error: &Error) -> Self {
        Self {
            kind: error.kind,
            side: error.side,
            message: error.to_string(),
        }
    }
}

/// Byte counts of one transfer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Bytes {
    /// What the plan holds; grows with a stream.
    pub planned: u64,
    /// Acknowledged as landed.
    pub landed: u64,
    /// Reached the level asked for.
    pub sealed: u64,
    /// Sent more than once.
    pub resent: u64,
}

/// Times of one transfer, seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Seconds {
    /// From the call to the end.
    pub total: f64,
    /// From the call to the first landed byte.
    pub first_byte: Option<f64>,
    /// From the first send to the last landed byte.
    pub moving: f64,
    /// From the last landed byte to the end.
    pub sealing: f64,
}

/// What one transfer came to: both ends' measurements and the outcome.
#[derive(Clone, Debug)]
pub struct Report {
    /// The first error, where there was one.
    pub error: Option<Error>,
    /// The files, in the order offered: of many the first
    /// [`limits::FILES_TOLD_MAX`], and the first as many of those that failed.
    pub files: Vec<FileReport>,
    /// All of them, counted.
    pub entries: EntryCounts,
    /// Byte counts.
    pub bytes: Bytes,
    /// Times.
    pub seconds: Seconds,
    /// The chunk size in use.
    pub chunk_bytes: u32,
    /// What the sending end measured; `None` when it was lost before it could tell.
    pub sender: Option<SideReport>,
    /// What the receiving end measured.
    pub receiver: Option<SideReport>,
    /// The level that every file reached, where all did.
    pub level: Option<Level>,
    /// The peer proved the token.
    pub authenticated: bool,
}

impl Report {
    /// A transfer that failed before anything moved, `took` after it was asked for.
    #[must_use]
    pub fn failed(error: Error, took: Duration) -> Self {
        Self {
            error: Some(error),
            files: Vec::new(),
            entries: EntryCounts::default(),
            bytes: Bytes::default(),
            seconds: Seconds {
                total: took.as_secs_f64(),
                ..Seconds::default()
            },
            chunk_bytes: 0,
            sender: None,
            receiver: None,
            level: None,
            authenticated: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_survives_the_wire() {
        let mut latency = Latency::default();
        latency.record(1_000, 3);
        latency.record(5_000_000_000, 1);
        let bytes = postcard::to_stdvec(&latency).expect("serializes");
        let back: Latency = postcard::from_bytes(&bytes).expect("deserializes");
        assert_eq!(back.count(), 4);
        assert_eq!(back.histogram(), latency.histogram());
        assert_eq!((back.min(), back.max()), (1_000, 5_000_000_000));
        let lie = postcard::to_stdvec(&(7_u64, u64::MAX, vec![(1_000_u64, 1_u64)]));
        let back: Latency = postcard::from_bytes(&lie.expect("serializes")).expect("deserializes");
        assert_eq!(back.count(), 1);
        assert!((1_000..1_010).contains(&back.max()), "{}", back.max());
        assert!((990..=1_000).contains(&back.min()), "{}", back.min());
    }

    #[test]
    fn of_a_single_value_all_edges_are_that_value() {
        for nanos in [1, 400, 12_345_678, LATENCY_NANOS_MAX] {
            let mut latency = Latency::default();
            assert_eq!((latency.min(), latency.max(), latency.at(0.5)), (0, 0, 0));
            latency.record(nanos, 3);
            let edges = [
                latency.min(),
                latency.at(0.0),
                latency.at(0.5),
                latency.at(1.0),
            ];
            assert_eq!(edges, [nanos; 4]);
            assert_eq!(latency.max(), nanos);
            assert_eq!(latency.mean(), nanos as f64);
        }
    }

    #[test]
    fn paths_are_told_so_that_they_can_be_turned_back() {
        assert_eq!(told_path("a/ä b".as_bytes()), "a/ä b");
        assert_eq!(told_path(b"\xff\\ \n"), "\\xff\\x5c \\x0a");
        assert_ne!(told_path(b"\\xff"), told_path(b"\xff"));
        let all: Vec<u8> = (0..=255).collect();
        for path in [&all[..], b"", b"\\x5c", "\u{85}ä\u{fffd}".as_bytes()] {
            assert_eq!(path_of_told(&told_path(path)).as_deref(), Some(path));
        }
        for told in ["\\", "a\\b", "\\x", "\\x5", "\\xzz", "\\x\u{e4}", "\\\\x5c"] {
            assert_eq!(path_of_told(told), None, "{told}");
        }
    }

    #[test]
    fn a_digest_is_sixty_four_digits_and_back() {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&[0x01, 0xab, 0x0f, 0xf0]);
        let kind = DigestKind::Sha256;
        let digest = Digest { kind, bytes };
        let hex = digest.hex();
        assert!(hex.starts_with("01ab0ff0") && hex.len() == 64, "{hex}");
        for text in [hex.clone(), hex.to_uppercase()] {
            assert_eq!(Digest::from_hex(kind, text.as_bytes()), Some(digest));
        }
        for text in [
            &hex[1..],
            &hex[2..],
            &format!("{hex}0"),
            &hex.replace('f', "g"),
        ] {
            assert_eq!(Digest::from_hex(kind, text.as_bytes()), None, "{text}");
        }
        let wire = postcard::to_stdvec(&digest).expect("serializes");
        assert_eq!(postcard::from_bytes(&wire), Ok(digest));
    }
}
