//! The files of a transfer that ended: what counts of them, and the few that are told.
//!
//! Leaves to others: files that are under way (tally). Invariant: memory has a bound,
//! however many files there were; what is left out is counted.

use crate::error::{Error, ErrorKind};
use crate::limits;
use crate::report::{EntryCounts, ErrorReport, FileReport, Level};

/// Segment and file, by which they are told in the order offered.
pub(super) type FilePlace = (u32, usize);

/// Bytes of a file that are not sent.
#[derive(Clone, Copy)]
pub(super) struct Unsent {
    pub(super) hole_bytes: u64,
    /// Its target shares their blocks.
    pub(super) shared_bytes: u64,
}

/// How a file ended.
#[derive(Default)]
pub(super) struct FileEnd {
    /// Its size, where it is known.
    pub(super) bytes: Option<u64>,
    pub(super) level: Option<Level>,
    pub(super) error: Option<ErrorReport>,
}

impl FileEnd {
    pub(super) fn new(bytes: Option<u64>, result: &Result<Level, Error>) -> Self {
        Self {
            bytes,
            level: result.as_ref().ok().copied(),
            error: result.as_ref().err().map(ErrorReport::from),
        }
    }
}

/// What is left of the files that ended.
#[derive(Default)]
pub(super) struct Past {
    pub(super) counts: EntryCounts,
    /// Files that are told of one by one.
    told: Vec<(FilePlace, FileReport)>,
    told_failed: usize,
    /// The first that failed: its name and why.
    first: Option<(String, ErrorReport)>,
    /// The lowest that one reached.
    lowest: Option<Level>,
    reached: u64,
}

impl Past {
    /// A file that is over; it is told of, by `report`, where `is_told` says that anybody
    /// listens.
    pub(super) fn add(
        &mut self,
        place: FilePlace,
        unsent: Unsent,
        end: &FileEnd,
        is_told: bool,
        report: impl Fn() -> FileReport,
    ) {
        let counts = &mut self.counts;
        counts.entries += 1;
        counts.hole_bytes += unsent.hole_bytes;
        counts.shared += u64::from(unsent.shared_bytes > 0);
        counts.shared_bytes += unsent.shared_bytes;
        let mut has_failed = false;
        match &end.error {
            Some(error) if error.kind == ErrorKind::Vanished => counts.vanished += 1,
            Some(error) => {
                has_failed = true;
                counts.failed += 1;
                self.first
                    .get_or_insert_with(|| (report().name, error.clone()));
            }
            None => {}
        }
        if let Some(level) = end.level {
            counts.unchanged += u64::from(level == Level::Unchanged);
            self.reached += 1;
            self.lowest = Some(self.lowest.map_or(level, |lowest| lowest.min(level)));
        }
        // Those that failed have a room of their own.
        let has_room = match has_failed {
            true => self.told_failed < limits::FILES_TOLD_MAX,
            false => self.told.len() - self.told_failed < limits::FILES_TOLD_MAX,
        };
        if is_told && has_room {
            self.told_failed += usize::from(has_failed);
            self.told.push((place, report()));
        } else {
            self.counts.untold += 1;
        }
    }

    /// Something that has no entry failed: what could not be deleted.
    pub(super) fn fail(&mut self, error: ErrorReport) {
        self.counts.entries += 1;
        self.counts.failed += 1;
        // Its sentence names it.
        self.first.get_or_insert_with(|| (String::new(), error));
    }

    /// One file that failed is the transfer's error; some of several are
    /// `Partial`.
    pub(super) fn failure(&self) -> Option<Error> {
        let (name, first) = self.first.as_ref()?;
        let (failed, files) = (self.counts.failed, self.counts.entries);
        // A damaged chunk, for one, has no name of its own.
        let why = match first.message.contains(name) {
            true => first.message.clone(),
            false => format!("{name}: {}", first.message),
        };
        let (kind, sentence) = match (failed, files) {
            (_, 1) => (first.kind, why),
            _ => (
                if failed == files {
                    first.kind
                } else {
                    ErrorKind::Partial
                },
                format!("{failed} of {files} files failed; the first: {why}"),
            ),
        };
        Some(Error::new(kind, sentence).at(first.side))
    }

    /// The lowest level, when every file that did not vanish reached one.
    pub(super) fn level(&self) -> Option<Level> {
        let over = self.reached + self.counts.vanished;
        self.lowest.filter(|_| over == self.counts.entries)
    }

    /// The files that are told.
    pub(super) fn into_told(mut self) -> Vec<FileReport> {
        self.told.sort_by_key(|(place, _)| *place);
        self.told.into_iter().map(|(_, file)| file).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::EntryReportKind;

    /// File `number` ended so.
    fn add(past: &mut Past, place: FilePlace, number: usize, error: Option<ErrorKind>) {
        let result = match error {
            None => Ok(Level::Sealed),
            Some(kind) => Err(Error::new(kind, "it is so")),
        };
        let end = FileEnd::new(Some(1), &result);
        let unsent = Unsent {
            hole_bytes: 2,
            shared_bytes: 3 * u64::from(error.is_none()),
        };
        past.add(place, unsent, &end, true, || FileReport {
            name: format!("f{number}"),
            kind: EntryReportKind::File,
            bytes: Some(1),
            hole_bytes: 2,
            shared_bytes: unsent.shared_bytes,
            level: end.level,
            error: end.error.clone(),
            digest: None,
            mtime: None,
            is_renamed: false,
        });
    }

    #[test]
    fn a_million_files_are_counted_and_a_few_told() {
        let mut past = Past::default();
        for number in 0..1_000_000 {
            let error = (number % 100 == 99).then_some(ErrorKind::Local);
            add(&mut past, (0, number), number, error);
        }
        let counts = past.counts;
        assert_eq!((counts.entries, counts.failed), (1_000_000, 10_000));
        assert_eq!(counts.hole_bytes, 2_000_000);
        assert_eq!((counts.shared, counts.shared_bytes), (990_000, 2_970_000));
        let error = past.failure().expect("some failed");
        assert_eq!(error.kind, ErrorKind::Partial);
        assert!(error.sentence.starts_with("10000 of 1000000"), "{error}");
        let told = past.into_told();
        assert_eq!(told.len(), 2 * limits::FILES_TOLD_MAX);
        assert_eq!(counts.untold as usize, 1_000_000 - told.len());
        let failed = told.iter().filter(|file| file.error.is_some()).count();
        assert_eq!(failed, limits::FILES_TOLD_MAX);
    }

    #[test]
    fn what_vanished_is_no_failure() {
        let mut past = Past::default();
        add(&mut past, (1, 0), 0, Some(ErrorKind::Vanished));
        add(&mut past, (0, 0), 1, None);
        assert_eq!(past.failure(), None);
        assert_eq!(past.level(), Some(Level::Sealed));
        assert_eq!(past.counts.vanished, 1);
        add(&mut past, (0, 1), 2, Some(ErrorKind::Local));
        assert_eq!(past.level(), None);
        assert_eq!(
            past.failure().map(|error| error.kind),
            Some(ErrorKind::Partial)
        );
        let names: Vec<_> = past.into_told().into_iter().map(|file| file.name).collect();
        assert_eq!(names, ["f1", "f2", "f0"], "in the order offered");
    }
}
