//! What the sending half has the hands do with one segment's sources.
//!
//! Leaves to others: when (the state machine), and what comes of it (the half itself).
//! Invariant: each job comes back as one answer, whatever keeps it from being done.

use super::{SendingHalf, never_offered};
use crate::data::SendSegment;
use crate::error::Error;
use crate::files::look;
use crate::files::source::Source;
use crate::kernel::descriptors;
use crate::protocol::{ChunkId, FileId, SegmentId};
use crate::session::core::Core;
use crate::session::inbox::{Done, OpenedSegment};
use std::sync::Arc;

impl SendingHalf {
    /// Opens what is wanted of the segment and was only looked at so far.
    pub(super) fn open_wanted(&mut self, core: &mut Core, mut data: SendSegment) {
        let segment = data.segment;
        let is_due = |(file, source): (FileId, &Option<Arc<Source>>)| {
            let is_later = matches!(source.as_deref(), Some(Source::Later(_)));
            let is_wanted = data.plan.bytes_of(file) > 0 || data.plan.is_held(file);
            (is_later && is_wanted).then_some(file)
        };
        let due: Vec<FileId> = (0..).zip(&data.sources).filter_map(is_due).collect();
        if due.is_empty() {
            self.segments.insert(segment, Arc::new(data));
            return self.machine.opened(segment, Vec::new());
        }
        let open = move || {
            let mut failed = Vec::new();
            for file in due {
                let Some(Source::Later(later)) = data.sources[file as usize].as_deref() else {
                    continue;
                };
                match descriptors::patiently(|| later.open()) {
                    Ok(mut opened) => {
                        if data.drop_cache {
                            opened.prefer_direct();
                        }
                        let opened = Arc::new(Source::File(opened));
                        data.sources[file as usize] = Some(opened);
                    }
                    Err(not_opened) => failed.push((file, Error::from(not_opened))),
                }
            }
            Done::SegmentOpened {
                segment,
                opened: Ok(OpenedSegment {
                    data: Box::new(data),
                    failed,
                }),
            }
        };
        let failed = move |error| Done::SegmentOpened {
            segment,
            opened: Err(error),
        };
        core.hand(self.transfer, open, failed);
    }

    /// Reads a chunk again, to tell whether its source changed.
    pub(super) fn recheck(&mut self, core: &mut Core, segment: SegmentId, chunk: ChunkId) {
        let Some(data) = self.segments.get(&segment).cloned() else {
            return;
        };
        let rechecked = move |result| Done::Rechecked {
            segment,
            chunk,
            result,
        };
        let recheck = move || {
            rechecked(Ok(look::recheck(
                &data.plan,
                data.seed,
                &data.sources,
                chunk,
            )))
        };
        core.hand(self.transfer, recheck, move |error| rechecked(Err(error)));
    }

    /// Looks at files again: nothing is sealed on a guess.
    pub(super) fn look(&mut self, core: &mut Core, segment: SegmentId, files: Vec<FileId>) {
        let Some(data) = self.segments.get(&segment).cloned() else {
            return self.machine.stop(never_offered(segment));
        };
        let all = files.clone();
        let look = move || {
            let look = |file: FileId| {
                let source = data.sources.get(file as usize).and_then(Option::as_ref);
                let looked = match source {
                    Some(source) => look::look(source, &data.plan, file),
                    None => Err(never_offered(data.segment)),
                };
                (file, looked)
            };
            Done::Looked {
                segment,
                files: files.into_iter().map(look).collect(),
            }
        };
        let failed = move |error: Error| Done::Looked {
            segment,
            files: all
                .into_iter()
                .map(|file| (file, Err(error.clone())))
                .collect(),
        };
        core.hand(self.transfer, look, failed);
    }

    /// Lets a segment's pages leave the page cache, where that was asked for.
    pub(super) fn forget_pages(&mut self, core: &mut Core, data: Option<Arc<SendSegment>>) {
        let Some(data) = data.filter(|_| self.options.drop_cache) else {
            return;
        };
        let forget = move || {
            let sources = data.sources.iter().flatten();
            sources.for_each(|source| source.forget_pages());
            Done::Emptied
        };
        // Advice only.
        core.hand(self.transfer, forget, |_| Done::Emptied);
    }
}
