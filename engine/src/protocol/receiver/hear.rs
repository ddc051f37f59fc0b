//! What the receiver makes of the sender's words.
//!
//! Leaves to others: decoding them. Invariant: a word that an honest sender
//! cannot say is a violation; a word that crossed one of ours on the way is
//! none.

use super::work::{Closed, ReceivingFileState, ReceivingWork};
use super::{Receiver, ReceiverOutput, ReceivingSegment, ReceivingState, number};
use crate::error::Error;
use crate::limits;
use crate::protocol::wire::{FileRange, Message, Names, Offer, Touched};
use crate::protocol::{ConnectionId, FileId, Nanos, SegmentId, Violation};
use crate::report::SideReport;
use std::sync::Arc;

/// What a `Closed` says of each of its files.
#[derive(Clone, Copy)]
struct HeardClosed {
    stream_bytes: Option<u64>,
    recalls: u32,
    touched: Option<Touched>,
}

impl Receiver {
    /// Takes a message of this transfer, or a `Lost`.
    ///
    /// # Errors
    /// What an honest sender cannot say now. The caller then stops the
    /// transfer and closes the session.
    pub fn handle_message(&mut self, _now: Nanos, message: Message) -> Result<(), Violation> {
        if matches!(
            self.state,
            ReceivingState::Ending(_) | ReceivingState::Ended
        ) {
            return Ok(());
        }
        if let Some(transfer) = message.transfer()
            && transfer != self.config.transfer
        {
            return Err(Violation::new("a message of this transfer", "another's"));
        }
        self.word_due.heard();
        match message {
            Message::Lost { connection } => self.hear_lost(connection),
            Message::Offer(offer) => self.hear_offer(offer),
            Message::Closed {
                segment,
                files,
                stream_bytes,
                recalls,
                touched,
                ..
            } => {
                let word = HeardClosed {
                    stream_bytes,
                    recalls,
                    touched,
                };
                let mut files = files.into_iter().flat_map(FileRange::files);
                files.try_for_each(|file| self.hear_closed(segment, file, word))
            }
            Message::Changed {
                segment,
                file,
                error,
                ..
            } => self.hear_changed(segment, file, error),
            Message::Void {
                segment,
                file,
                chunks,
                error,
                ..
            } => {
                if let Some(work) = self.heard_of(segment)?
                    && !work.plan.contains(chunks.first, chunks.count)
                {
                    return Err(Violation::new("chunks of the plan", "others"));
                }
                self.hear_changed(segment, file, error)
            }
            Message::Names(names) => self.hear_names(names),
            Message::Finish { report, .. } => self.hear_finish(report),
            Message::Abort { error, .. } => {
                self.fail(error);
                Ok(())
            }
            _ => Err(unexpected("a message that only a receiver says")),
        }
    }

    /// The segment to which a word about files applies: `None` when it is done
    /// already, and the word came late.
    fn heard_of(&mut self, segment: SegmentId) -> Result<Option<&mut ReceivingWork>, Violation> {
        let known = segment < self.next_segment;
        match self.segments.get_mut(&segment) {
            Some(ReceivingSegment::Open(work)) => Ok(Some(work)),
            None if known => Ok(None),
            _ => Err(unexpected("a word about a segment before its answer")),
        }
    }

    fn hear_lost(&mut self, connection: ConnectionId) -> Result<(), Violation> {
        if self.reaped.gaps() > limits::JOINS_MAX as usize {
            return Err(Violation::new(
                format!("at most {} connections", limits::JOINS_MAX),
                "more lost ones",
            ));
        }
        // What was reaped here first was told already; the words crossed.
        if !self.reaped.overlaps(number(connection)) {
            self.outputs
                .push_back(ReceiverOutput::CloseConnection { connection });
        }
        Ok(())
    }

    fn hear_offer(&mut self, offer: Arc<Offer>) -> Result<(), Violation> {
        if self.last_offered || offer.segment != self.next_segment {
            return Err(Violation::new(
                format!("segment {} or none", self.next_segment),
                format!("an offer of segment {}", offer.segment),
            ));
        }
        self.credit.grant(&offer)?;
        self.next_segment = self.next_segment.wrapping_add(1);
        self.last_offered = offer.last;
        self.segments
            .insert(offer.segment, ReceivingSegment::Preparing(offer.clone()));
        self.outputs.push_back(ReceiverOutput::Prepare { offer });
        Ok(())
    }

    fn hear_closed(
        &mut self,
        segment: SegmentId,
        file: FileId,
        word: HeardClosed,
    ) -> Result<(), Violation> {
        let Some(work) = self.heard_of(segment)? else {
            return Ok(());
        };
        let entry = known_file(work, file)?;
        if entry.state != ReceivingFileState::Moving {
            return Ok(());
        }
        let expected = work.recalls_of(entry);
        if word.recalls > expected {
            return Err(Violation::new(
                format!("a word that heard at most {expected} of ours"),
                format!("one that heard {}", word.recalls),
            ));
        }
        let chunk_bytes = u64::from(work.plan.chunk_bytes());
        let (size, shares) = match (entry.size, word.stream_bytes) {
            (Some(size), None) => (size, entry.shares),
            (None, Some(bytes)) => (bytes, Some(bytes.div_ceil(chunk_bytes))),
            _ => {
                return Err(Violation::new(
                    "a size of a stream, and of a stream alone",
                    format!("closed with {:?} bytes", word.stream_bytes),
                ));
            }
        };
        let beyond = shares.unwrap_or_default()..u64::MAX;
        if entry.size.is_none() && work.landed.overlaps(beyond) {
            return Err(Violation::new(
                "a stream at least as long as what landed",
                format!("closed with {size} bytes"),
            ));
        }
        let closed = Closed {
            size,
            recalls: word.recalls,
            touched: word.touched,
        };
        let entry = &mut work.files[file as usize];
        entry.shares = shares;
        entry.closed = Some(closed);
        self.settle_if_ready(segment, file);
        Ok(())
    }

    fn hear_changed(
        &mut self,
        segment: SegmentId,
        file: FileId,
        error: Error,
    ) -> Result<(), Violation> {
        if let Some(work) = self.heard_of(segment)? {
            known_file(work, file)?;
            self.fail_file(segment, file, error, false);
        }
        Ok(())
    }

    fn hear_names(&mut self, names: Box<Names>) -> Result<(), Violation> {
        match &mut self.state {
            ReceivingState::Deleting {
                heard,
                is_at_work,
                waiting,
                is_last_heard: is_last @ false,
            } if names.number == *heard && waiting.len() < limits::NAMES_AHEAD_MAX as usize => {
                *heard += 1;
                *is_last = names.last;
                match std::mem::replace(is_at_work, true) {
                    true => waiting.push_back(names),
                    false => self.outputs.push_back(ReceiverOutput::Delete(names)),
                }
                Ok(())
            }
            _ => Err(unexpected("names that nobody waits for")),
        }
    }

    fn hear_finish(&mut self, report: Box<SideReport>) -> Result<(), Violation> {
        match &mut self.state {
            ReceivingState::Finishing(heard @ None) => *heard = Some(report),
            ReceivingState::Reporting => self.done(report),
            _ => return Err(unexpected("Finish before every file ended")),
        }
        Ok(())
    }
}

fn unexpected(got: &str) -> Violation {
    Violation::new("what a sender says at this point", got)
}

fn known_file(
    work: &ReceivingWork,
    file: FileId,
) -> Result<&super::work::ReceivingFile, Violation> {
    let entry = work.files.get(file as usize);
    entry.ok_or_else(|| Violation::new("a file of the segment", format!("file {file}")))
}
