//! What a message may say before anybody looks at its meaning.
//!
//! Leaves to others: whether it makes sense now (the state machines).
//! Invariant: every decoded message passed here, so nothing behind it has to
//! fear a count, a name, a size or a text that a peer made up.

use super::{
    Answer, Begin, Data, Entry, EntryKind, FileRange, Folder, Listing, Message, Names, Offer,
    Ownership, Task, Verdict,
};
use crate::error::Error;
use crate::limits;
use crate::options::{RemoteSource, RemoteTarget};
use crate::protocol::names::name_bytes;
use crate::protocol::{TransferId, Violation};
use crate::report::SideReport;

/// The message, with its texts made harmless.
///
/// # Errors
/// A count, name or size beyond its limit.
pub(super) fn check_bounds(mut message: Message) -> Result<Message, Violation> {
    match &mut message {
        Message::Hello(hello) => clean(&mut hello.software),
        Message::Welcome(welcome) => clean(&mut welcome.software),
        Message::Begin(begin) => check_begin(begin)?,
        Message::Sources(further) => check_sources(&further.sources)?,
        Message::Offer(offer) => check_offer(offer)?,
        Message::Answer(answer) => check_answer(answer)?,
        Message::Landed { chunks, .. } => {
            at_most(chunks.len(), limits::LANDED_RANGES_MAX, "ranges")?;
        }
        Message::Names(names) => check_names(names)?,
        Message::Deleted { deletions, .. } => deletions.failed.iter_mut().for_each(clean_error),
        Message::Closed { files, touched, .. } => check_files(files, touched.is_some())?,
        Message::Settled { files, .. } => check_files(files, false)?,
        Message::Refuse(error)
        | Message::Void { error, .. }
        | Message::Changed { error, .. }
        | Message::Failed { error, .. }
        | Message::Abort { error, .. } => clean_error(error),
        Message::Finish { report, .. } | Message::Finished { report, .. } => clean_report(report),
        _ => {}
    }
    Ok(message)
}

fn check_begin(begin: &Begin) -> Result<(), Violation> {
    if begin.transfer == TransferId::PADDING {
        return Err(Violation::new("a transfer's name", "that of padding"));
    }
    let sizes = limits::CHUNK_BYTES_MIN..=limits::CHUNK_BYTES_MAX;
    if !begin.chunk_bytes.is_power_of_two() || !sizes.contains(&begin.chunk_bytes) {
        return Err(Violation::new(
            "a chunk size that is a power of two within the limits",
            format!("{} bytes", begin.chunk_bytes),
        ));
    }
    let filters = &begin.tree.filters;
    at_most(filters.len(), limits::FILTERS_MAX, "patterns")?;
    let filters_bytes = filters.iter().map(|rule| rule.pattern.len()).sum();
    at_most(
        filters_bytes,
        limits::FILTERS_BYTES_MAX,
        "bytes of patterns",
    )?;
    match &begin.task {
        Task::Push {
            target: RemoteTarget::Path { path, .. },
        } => at_most(path.len(), limits::PATH_BYTES_MAX, "bytes of a path"),
        Task::Push {
            target: RemoteTarget::Null,
        } => Ok(()),
        Task::Pull { sources, .. } => check_sources(sources),
    }
}

fn check_sources(sources: &[RemoteSource]) -> Result<(), Violation> {
    at_most(sources.len(), limits::SEGMENT_ENTRIES_MAX, "sources")?;
    let lengths = || sources.iter().map(name_bytes);
    for source in sources {
        match source {
            RemoteSource::Names(list) => list
                .check()
                .map_err(|why| Violation::new("names in a directory", why))?,
            RemoteSource::Path(path) => {
                at_most(path.len(), limits::PATH_BYTES_MAX, "bytes of a path")?;
            }
            RemoteSource::Generated { .. } => {}
        }
    }
    at_most(
        lengths().sum(),
        limits::SEGMENT_NAMES_BYTES_MAX,
        "bytes of names",
    )
}

fn check_offer(offer: &Offer) -> Result<(), Violation> {
    let entries = &offer.entries;
    at_most(entries.len(), limits::SEGMENT_ENTRIES_MAX, "entries")?;
    let names_bytes: usize = entries.iter().map(Entry::names_bytes).sum();
    let folders_bytes: usize = offer.folders.iter().map(|folder| folder.name.len()).sum();
    at_most(
        names_bytes + folders_bytes,
        limits::SEGMENT_NAMES_BYTES_MAX,
        "bytes of names",
    )?;
    check_folders(&offer.folders)?;
    for ids in [&offer.users, &offer.groups] {
        let longest = ids.iter().map(|id| id.name.len()).max().unwrap_or(0);
        at_most(longest, limits::NAME_BYTES_MAX, "bytes of a user's name")?;
    }
    let ranges = entries.iter().map(|entry| match &entry.data {
        Data::Everywhere => 0,
        Data::Ranges(ranges) => ranges.len(),
    });
    at_most(
        ranges.sum(),
        limits::SEGMENT_DATA_RANGES_MAX,
        "stretches of data",
    )?;
    let mut bytes: u64 = 0;
    for entry in entries {
        check_entry(entry, offer.folders.len())?;
        bytes = bytes.saturating_add(entry.size);
        if entry.kind == EntryKind::Stream && entries.len() > 1 {
            return Err(Violation::new(
                "a stream alone in its segment",
                format!("a stream among {} entries", entries.len()),
            ));
        }
    }
    if bytes > limits::SEGMENT_BYTES_MAX {
        return Err(Violation::new(
            format!("at most {} bytes in a segment", limits::SEGMENT_BYTES_MAX),
            "more",
        ));
    }
    Ok(())
}

fn check_folders(folders: &[Folder]) -> Result<(), Violation> {
    for (number, folder) in (1..).zip(folders) {
        if folder.parent >= number || !is_name(&folder.name) {
            return Err(Violation::new(
                "directories with plain names, each behind the one that it lies in",
                format!("\"{}\"", folder.name.escape_ascii()),
            ));
        }
    }
    Ok(())
}

fn check_names(names: &Names) -> Result<(), Violation> {
    check_folders(&names.folders)?;
    let all = || names.listings.iter().flat_map(|listing| &listing.names);
    at_most(all().count(), limits::NAMES_MAX, "names in all")?;
    let folders_bytes: usize = names.folders.iter().map(|folder| folder.name.len()).sum();
    let bytes = all().map(Vec::len).sum::<usize>() + folders_bytes;
    at_most(bytes, limits::NAMES_BYTES_MAX, "bytes of names")?;
    let is_known = |listing: &Listing| listing.folder as usize <= names.folders.len();
    if !names.listings.iter().all(is_known) || !all().all(|name| is_name(name)) {
        return Err(Violation::new(
            "names in directories of the message",
            "others",
        ));
    }
    Ok(())
}

/// One plain component of a path.
fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..")
        && name.len() <= limits::NAME_BYTES_MAX
        && !name.contains(&0)
        && !name.contains(&b'/')
}

fn check_entry(entry: &Entry, folders: usize) -> Result<(), Violation> {
    let name = &entry.name;
    let is_top = name.is_empty() && entry.folder == 0 && entry.kind == EntryKind::Directory;
    if !is_name(name) && !is_top {
        return Err(Violation::new(
            "a plain name",
            format!("\"{}\"", name.escape_ascii()),
        ));
    }
    let in_folder = |folder: u32| folder as usize <= folders;
    let (fits, what) = match &entry.kind {
        EntryKind::Symlink(text) => (
            !text.is_empty() && text.len() <= limits::SYMLINK_BYTES_MAX && !text.contains(&0),
            "a symbolic link's text",
        ),
        EntryKind::HardLink(first, _) => (
            in_folder(first.folder) && is_name(&first.name),
            "a hard link's first name",
        ),
        _ => (true, ""),
    };
    if !fits || !in_folder(entry.folder) {
        let wanted = if fits {
            "a directory of the offer"
        } else {
            what
        };
        return Err(Violation::new(wanted, "another"));
    }
    if entry.kind != EntryKind::File && entry.size != 0 {
        return Err(Violation::new(
            "a size of a file alone",
            format!("{} bytes of another entry", entry.size),
        ));
    }
    // Number -1 is nobody's: the kernel takes it for "leave it as it is".
    let nobody = |owner: &Ownership| owner.user == u32::MAX || owner.group == u32::MAX;
    if entry.owner.as_ref().is_some_and(nobody) {
        return Err(Violation::new("an owner", "number -1"));
    }
    check_attributes(entry)?;
    if let Data::Ranges(ranges) = &entry.data {
        let inside = ranges
            .iter()
            .all(|range| range.start < range.end && range.end <= entry.size);
        let ordered = ranges.windows(2).all(|pair| pair[0].end < pair[1].start);
        if !inside || !ordered || entry.kind != EntryKind::File {
            return Err(Violation::new(
                "ascending stretches of data inside a file",
                format!("{} stretches", ranges.len()),
            ));
        }
    }
    if entry.mtime_nanos >= 1_000_000_000 {
        return Err(Violation::new(
            "nanoseconds below a second",
            format!("{}", entry.mtime_nanos),
        ));
    }
    Ok(())
}

fn check_attributes(entry: &Entry) -> Result<(), Violation> {
    let mut bytes = 0;
    for attribute in entry.attributes.iter().flatten() {
        let name = &attribute.name;
        if name.is_empty() || name.len() > limits::NAME_BYTES_MAX || name.contains(&0) {
            return Err(Violation::new(
                "an extended attribute's name",
                format!("\"{}\"", name.escape_ascii()),
            ));
        }
        bytes += name.len() + attribute.value.len();
    }
    at_most(
        bytes,
        limits::ENTRY_ATTRIBUTES_BYTES_MAX,
        "bytes of extended attributes",
    )
}

/// `alone` says that one file is meant.
fn check_files(files: &[FileRange], alone: bool) -> Result<(), Violation> {
    at_most(files.len(), limits::SEGMENT_ENTRIES_MAX, "ranges of files")?;
    let count = |range: &FileRange| range.count as usize;
    let most = limits::SEGMENT_ENTRIES_MAX;
    if files.iter().any(|range| count(range) > most) {
        return Err(Violation::new(
            "files of a segment",
            "more than it can hold",
        ));
    }
    let sum: usize = files.iter().map(count).sum();
    at_most(sum, if alone { 1 } else { most }, "files in a word")
}

fn check_answer(answer: &mut Answer) -> Result<(), Violation> {
    at_most(
        answer.verdicts.len(),
        limits::SEGMENT_ENTRIES_MAX,
        "verdicts",
    )?;
    let mut ranges_total = 0;
    for verdict in &mut answer.verdicts {
        match verdict {
            Verdict::Ranges(ranges) => {
                at_most(ranges.len(), limits::VERDICT_RANGES_MAX, "ranges of a file")?;
                ranges_total += ranges.len();
            }
            Verdict::Refused(error) => clean_error(error),
            Verdict::Skip | Verdict::Whole | Verdict::Would(_) | Verdict::Held => {}
        }
    }
    at_most(
        ranges_total,
        limits::ANSWER_RANGES_MAX,
        "ranges of a segment",
    )
}

fn at_most(count: usize, max: usize, what: &str) -> Result<(), Violation> {
    if count <= max {
        return Ok(());
    }
    Err(Violation::new(
        format!("at most {max} {what}"),
        format!("{count}"),
    ))
}

fn clean_error(error: &mut Error) {
    clean(&mut error.sentence);
    if let Some(cure) = &mut error.cure {
        clean(cure);
    }
}

fn clean_report(report: &mut SideReport) {
    clean(&mut report.method);
    report.notes.iter_mut().for_each(clean);
    report.lost.iter_mut().for_each(clean);
    for connection in &mut report.connections {
        clean(&mut connection.path);
        clean(&mut connection.congestion_control);
        if let Some(lost) = &mut connection.lost {
            clean(lost);
        }
    }
}

/// Cuts a text that people will read, and takes out what would steer their
/// terminal.
fn clean(text: &mut String) {
    cut(text, limits::TEXT_BYTES_MAX);
    if text.chars().any(char::is_control) {
        *text = text.replace(char::is_control, "\u{fffd}");
    }
}

/// Cuts a text to at most `bytes_max` bytes, in its middle and between two
/// characters: what was being done stands at its front, why it failed at its end.
pub fn cut(text: &mut String, bytes_max: usize) {
    const MARK: &str = "\u{2026}";
    if text.len() <= bytes_max {
        return;
    }
    let kept = bytes_max.saturating_sub(MARK.len());
    let mut end = kept.div_ceil(2);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut start = text.len() - kept / 2;
    while !text.is_char_boundary(start) {
        start += 1;
    }
    let mark = if bytes_max < MARK.len() { "" } else { MARK };
    text.replace_range(end..start, mark);
}
