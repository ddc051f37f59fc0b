//! Every limit of the engine, written once, with its reason.
//!
//! Leaves to others: enforcing them. Invariant: the assertions at the end hold
//! at compile time, so no room can be built against contradictory limits.

/// Smallest chunk: below 128 KiB the cost of a chunk doubled on loopback, and
/// below 64 KiB the table of checks begins to show on the wire.
pub const CHUNK_BYTES_MIN: u32 = 64 * 1024;
/// Chunk size unless asked otherwise.
pub const CHUNK_BYTES_DEFAULT: u32 = 256 * 1024;
/// Largest chunk: a landing block holds whole chunks, and blocks are memory
/// that a peer's frames fill.
pub const CHUNK_BYTES_MAX: u32 = 4 * 1024 * 1024;

/// Data connections of one session, at most (`--connections`).
pub const CONNECTIONS_MAX: u32 = 128;
/// Data connections unless asked otherwise.
pub const CONNECTIONS_DEFAULT: u32 = 4;
/// Data connections under a rate limit are so few that each has at least this
/// share, bytes per second: the kernel lets a fresh connection send what its
/// buffers take before it paces. 20 MiB at 1 MB/s went in 0.07 s over 128.
pub const PACED_BYTES_PER_SECOND_MIN: u64 = 2_000_000;
/// Data connections where haul chooses and the path is long. Slow start fills
/// the link a round trip sooner than with four: 587 MiB over 1 Gbit/s and 50 ms
/// with 0.1 % loss took 5.60 s against 5.65 s (means of two, bbr).
pub const CONNECTIONS_ON_LONG_PATHS: u32 = 8;
/// A path is long from this round trip on, microseconds.
pub const LONG_PATH_US: u32 = 10_000;
/// Padding that opens a long path's congestion window, a connection, at most:
/// ten packets of an ordinary path are 14 KiB.
pub const PADDING_BYTES_MAX: usize = 64 * 1024;
/// Joins that one session accepts in its life: each lost connection is dialled
/// again under a new number, and a number is never used twice.
pub const JOINS_MAX: u32 = 4096;

/// Chunks in one run, at most: bounds the table of checks (4 KiB).
pub const RUN_CHUNKS_MAX: u32 = 256;
/// Payload bytes in one run, at most: with half of it the sender made 0.18
/// system calls a chunk of 256 KiB over one connection on loopback, with this 0.11.
pub const RUN_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Runs handed to one of several connections and not yet sent, at most: one on
/// the wire and the next, whose pages are fetched meanwhile.
pub const RUNS_AHEAD: usize = 2;
/// The same for the only connection: its worker hears of new runs when a send
/// ends, and has nothing else to do until their pages are there. 1.7 GiB from
/// tmpfs to a null sink took 0.53 s against 0.61 s (medians of 15); with four
/// connections a third run made it 0.56 s against 0.53 s.
pub const RUNS_AHEAD_MAX: usize = 3;
/// A run lasts at most about this long at its connection's rate.
pub const RUN_TIME_MAX_NANOS: u64 = 100_000_000;

/// Descriptors that a process uses, at most, whatever its limit says: what they
/// hold is memory of the kernel, and more files under way at once are no faster.
pub const DESCRIPTORS_MAX: u32 = 4096;
/// Descriptors that each end allows the files of a transfer at least: what may
/// be offered before the receiver said how many it has.
pub const DESCRIPTORS_FIRST: u32 = 4;
/// Descriptors of a data connection at one end: its worker's, and one to look
/// at it.
pub const DESCRIPTORS_OF_CONNECTION: usize = 2;
/// Descriptors of one entry, at most: see [`crate::protocol::credit`].
pub const ENTRY_DESCRIPTORS_MAX: u32 = 3;
/// Files below this get no direct descriptor: their pages are cheaper cached
/// than the second open and the waiting for the device.
pub const DIRECT_BYTES_MIN: u64 = 4 * 1024 * 1024;

/// Files in one segment, at most.
pub const SEGMENT_ENTRIES_MAX: usize = 4096;
/// Directories that one segment's entries lie in, those around them included, at
/// most: as deep as a tree may be nested.
pub const SEGMENT_FOLDERS_MAX: usize = 4096;
/// Entries of a segment of a tree, at most: so many small files are looked at,
/// landed and settled together, while eight such segments keep every stage at work.
pub const TREE_SEGMENT_ENTRIES_MAX: usize = 256;
/// Descriptors that the files of a tree are given, where there are so many: all
/// segments that may be open, with a directory to every other file.
pub const TREE_DESCRIPTORS: usize = SEGMENTS_AT_WORK * TREE_SEGMENT_ENTRIES_MAX * 3 / 2;
/// Names in one message of names, at most: …
pub const NAMES_MAX: usize = 16 * 1024;
/// … and their bytes, with those of the directories that they lie in.
pub const NAMES_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Bytes of a list of names that are told at once, about: some five thousand names.
pub const LIST_PART_BYTES: usize = 256 * 1024;
/// Bytes of names that are kept until the last of their directory is told, at most:
/// some two million in one directory.
pub const NAMES_KEPT_BYTES_MAX: usize = 128 * 1024 * 1024;
/// Messages of names that were not answered, at most.
pub const NAMES_AHEAD_MAX: u32 = 2;
/// Patterns of what is left out of a tree, at most, …
pub const FILTERS_MAX: usize = 1024;
/// … and their bytes: compiled they take some hundred times as much.
pub const FILTERS_BYTES_MAX: usize = 64 * 1024;
/// Users or groups that one segment tells the names of, at most; those of further
/// entries are known by number.
pub const SEGMENT_IDS_MAX: usize = 256;
/// Extended attributes of one entry, at most, …
pub const ENTRY_ATTRIBUTES_MAX: usize = 1024;
/// … and the bytes of their names and values: Linux lists 64 KiB of names, and a
/// value has at most 64 KiB; ext4 keeps 4 KiB of both.
pub const ENTRY_ATTRIBUTES_BYTES_MAX: usize = 256 * 1024;
/// Bytes of all names and texts of one entry, at most.
pub const ENTRY_NAMES_BYTES_MAX: usize =
    ENTRY_ATTRIBUTES_BYTES_MAX + ENTRY_ATTRIBUTES_MAX * 8 + SYMLINK_BYTES_MAX + 2 * NAME_BYTES_MAX;
/// Bytes of what a symbolic link says, at most (Linux' PATH_MAX, without its end).
pub const SYMLINK_BYTES_MAX: usize = 4095;
/// Byte ranges in one verdict, at most.
pub const VERDICT_RANGES_MAX: usize = 4096;
/// Stretches of data that are told of one file with holes: 128 MiB of such a
/// file are told apart to the page, and what has more is told more coarsely.
pub const DATA_RANGES_MAX: usize = 32 * 1024;
/// … and of all files of a segment.
pub const SEGMENT_DATA_RANGES_MAX: usize = 2 * DATA_RANGES_MAX;
/// Bytes of one path on the wire, at most (Linux' PATH_MAX).
pub const PATH_BYTES_MAX: usize = 4096;
/// Bytes of one component of a path (Linux' NAME_MAX).
pub const NAME_BYTES_MAX: usize = 255;
/// Body of one control message, at most: a full segment's offer with long
/// names still fits, and a peer cannot make us allocate more.
pub const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Body of one message of a peer that has not proved anything yet, at most.
pub const GREETING_MESSAGE_BYTES_MAX: usize = 8 * 1024;
/// Segments that share the descriptors which a transfer's files may take: one is
/// opened while others move and are sealed.
pub const SEGMENTS_AT_WORK: usize = 8;
/// Segments of one transfer that are offered and not yet done, at most: on a long path
/// those that take no descriptors any more, as their files are there, wait for the end
/// of their directories beside those at work.
pub const SEGMENTS_OPEN_MAX: usize = 64;
/// What they take of memory, about, at most: a peer's offers must not fill ours.
pub const OFFERS_BYTES_MAX: usize = SEGMENTS_AT_WORK * 4 * 1024 * 1024;
/// Bytes of all names in one segment, at most: with the other fields of a full
/// segment they still fit into one message.
pub const SEGMENT_NAMES_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Byte ranges in all verdicts of one answer, at most: bounds message and plan.
pub const ANSWER_RANGES_MAX: usize = 65_536;
/// Bytes of all files of one segment, at most: what an offset can say.
pub const SEGMENT_BYTES_MAX: u64 = i64::MAX as u64;
/// Chunk ranges in one `Landed`, at most.
pub const LANDED_RANGES_MAX: usize = 4096;
/// Bytes of one error's sentence, or of any other text that a peer sends for
/// people to read, at most: the longest path and a sentence around it; longer ones
/// are cut in their middle.
pub const TEXT_BYTES_MAX: usize = PATH_BYTES_MAX + 1024;
/// Files that a report tells of one by one, at most, and as many that failed; the
/// others are counted.
pub const FILES_TOLD_MAX: usize = 1000;
/// Notes of one end's report, at most; the others are dropped.
pub const NOTES_MAX: usize = 128;
/// Bytes of a stream that may be sent and not yet acknowledged.
pub const STREAM_WINDOW_BYTES: u64 = 32 * 1024 * 1024;

/// One landing block: what one receive and one file write move.
pub const BLOCK_BYTES: usize = 1024 * 1024;
/// Landing blocks' memory of one receive worker, at most.
pub const BLOCKS_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Where so many bytes of one receive worker's blocks wait for direct writes,
/// what comes for files that need not be on their disk in the end goes through
/// the page cache. A disk that keeps up never has so many, and
/// direct writes are then far ahead; one that does not is no faster for waiting
/// for it. Without an fsync, seconds (medians of 3 to 9, ext4, 2 cores):
///
/// ```text
///                              page cache   direct   direct up to 8, 16, 24 MiB
/// 4 GiB, 2 GB/s disk                 9.17     1.82         6.94, 3.81, 2.43
/// 587 MiB, the same                  0.89     0.25
/// 587 MiB, held to 200 MB/s          0.73     2.92            –, 0.92, 0.62
/// ```
pub const DIRECT_BYTES_AHEAD_MAX: usize = 24 * 1024 * 1024;

/// Sessions that one server holds at once.
pub const SESSIONS_MAX: usize = 64;
/// Connections that have not yet proved anything, at most, in one server.
pub const GREETINGS_MAX: usize = 256;

/// A peer that has not finished its greeting by then is closed.
pub const GREETING_WAIT_NANOS_MAX: u64 = 10_000_000_000;
/// A data connection is taken in within this time, or dialled anew.
pub const JOINED_WAIT_NANOS_MAX: u64 = 5_000_000_000;
/// Whoever owes a word, such as an Answer, says it or gets further with it within
/// this time: making 4096 targets on a slow network file system takes a while, but
/// each heartbeat tells how far it is.
pub const WORD_WAIT_NANOS_MAX: u64 = 30_000_000_000;
/// A control connection that is idle sends a heartbeat this often.
pub const HEARTBEAT_NANOS: u64 = 2_000_000_000;
/// A control connection that was silent this long is lost.
pub const SILENCE_NANOS_MAX: u64 = 20_000_000_000;
/// A connect attempt ends by then.
pub const CONNECT_WAIT_NANOS_MAX: u64 = 10_000_000_000;
/// Unacknowledged bytes on a TCP connection make it lost after this long.
pub const TCP_USER_TIMEOUT_MILLIS: u32 = 15_000;
/// Rounds of redials in a row without one landed chunk.
pub const REDIALS_MAX: u32 = 8;
/// Times that a source is read once more because its inode was touched; one that
/// is touched during each of them does not come to rest.
pub const LOOKS_MAX: u32 = 5;
/// Times that one damaged chunk is sent again before its files fail.
pub const RESENDS_MAX: u32 = 8;
/// Chunks of one segment that were damaged or drained and have not landed
/// since, at most: more is a path that carries nothing whole.
pub const RECALLED_CHUNKS_MAX: usize = 16_384;
/// Runs of one connection that are sent and not all landed, at most: bounds
/// what is remembered of them where a peer reads and never acknowledges.
pub const RUNS_UNLANDED_MAX: usize = 1024;

const _: () = {
    assert!(CHUNK_BYTES_MIN.is_power_of_two() && CHUNK_BYTES_MAX.is_power_of_two());
    assert!(CHUNK_BYTES_MIN <= CHUNK_BYTES_DEFAULT && CHUNK_BYTES_DEFAULT <= CHUNK_BYTES_MAX);
    // A run holds at least one chunk of any size, and the table has room for
    // a full run of the smallest chunks.
    assert!(RUN_BYTES_MAX >= CHUNK_BYTES_MAX as u64);
    assert!(RUN_CHUNKS_MAX as u64 * CHUNK_BYTES_MIN as u64 >= RUN_BYTES_MAX);
    // A stream's window holds more than one run for some connections.
    assert!(STREAM_WINDOW_BYTES >= 4 * RUN_BYTES_MAX);
    assert!(RUNS_AHEAD <= RUNS_AHEAD_MAX);
    // Blocks are left to receive into, and to write through the page cache.
    assert!(DIRECT_BYTES_AHEAD_MAX < BLOCKS_BYTES_MAX);
    assert!(HEARTBEAT_NANOS * 3 < SILENCE_NANOS_MAX);
    // Who works is heard several times before it is given up.
    assert!(HEARTBEAT_NANOS * 3 < WORD_WAIT_NANOS_MAX);
    assert!(CONNECTIONS_MAX <= JOINS_MAX);
    // One entry of any kind fits what each end has at least.
    assert!(ENTRY_DESCRIPTORS_MAX <= DESCRIPTORS_FIRST);
    assert!(PATH_BYTES_MAX <= SEGMENT_NAMES_BYTES_MAX);
    assert!(GREETING_MESSAGE_BYTES_MAX < MESSAGE_BYTES_MAX);
    // Names, and for each entry less than 64 bytes of everything else.
    const OFFER_RANGES_BYTES_MAX: usize = SEGMENT_DATA_RANGES_MAX * 20;
    const OFFER_IDS_BYTES_MAX: usize = 2 * SEGMENT_IDS_MAX * (NAME_BYTES_MAX + 8);
    assert!(
        SEGMENT_NAMES_BYTES_MAX
            + SEGMENT_ENTRIES_MAX * 64
            + SEGMENT_FOLDERS_MAX * 8
            + OFFER_RANGES_BYTES_MAX
            + OFFER_IDS_BYTES_MAX
            < MESSAGE_BYTES_MAX
    );
    // One entry of a tree fits, as deep as it may lie, and with a link's first name.
    assert!(ENTRY_NAMES_BYTES_MAX + SEGMENT_FOLDERS_MAX * NAME_BYTES_MAX < SEGMENT_NAMES_BYTES_MAX);
    assert!(NAMES_BYTES_MAX + NAMES_MAX * 16 < MESSAGE_BYTES_MAX);
    // Ranges of two offsets, and a text for each refused entry.
    assert!(ANSWER_RANGES_MAX * 20 < MESSAGE_BYTES_MAX / 2);
};
