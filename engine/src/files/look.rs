//! Sources looked at once more: a file after its last chunk, and a chunk whose
//! check failed at the receiver.
//!
//! Leaves to others: what follows from it. Invariant: a source that is called
//! unchanged had the size and the modification time of its opening, and the same
//! inode or a sum to be held against what was sent.

use super::read_back::ReadBack;
use super::regular::{FileSource, SourceState, Touch};
use super::source::Source;
use crate::error::{Error, Result, Side, why};
use crate::limits;
use crate::protocol::check::CheckSeed;
use crate::protocol::plan::Plan;
use crate::protocol::sender::{Looked, Rechecked};
use crate::protocol::wire::Touched;
use crate::protocol::{ChunkId, FileId};
use std::sync::Arc;

/// Looks at `source` again, which is `file` of `plan`, after its last chunk. Made
/// bytes never change, and a stream is read once: both give their size so far.
///
/// # Errors
/// [`crate::ErrorKind::Integrity`] when it changed, or its inode does not come to
/// rest; why a missing one could not be opened.
pub fn look(source: &Source, plan: &Plan, file: FileId) -> Result<Looked> {
    let size = match source {
        Source::File(held) => return look_at_file(held, plan, file),
        Source::Generated(generated) => generated.bytes().unwrap_or(0),
        Source::Stream(stream) => stream.read_bytes(),
        Source::Missing(missing) => return Err(missing.error().clone()),
        // Nothing of it is read: it is empty, or the receiver has it.
        Source::Later(later) => later.look()?,
        Source::Node(_) => 0,
    };
    Ok(Looked {
        size,
        touched: None,
    })
}

fn look_at_file(held: &FileSource, plan: &Plan, file: FileId) -> Result<Looked> {
    let at_rest = come_to_rest(|| held.state(), |touch| reread(held, plan, file, touch))?;
    let touched = at_rest.ok_or_else(|| {
        let times = limits::LOOKS_MAX;
        held.changed(&format!(
            "its inode was touched again each of the {times} times that its bytes were compared"
        ))
    })?;
    Ok(Looked {
        size: held.size(),
        touched,
    })
}

/// What `read` finds once `state` is the same before and after it; `None` where it
/// never is.
fn come_to_rest<T>(
    mut state: impl FnMut() -> Result<SourceState>,
    mut read: impl FnMut(Touch) -> Result<T>,
) -> Result<Option<Option<T>>> {
    let mut before = state()?;
    for _ in 0..limits::LOOKS_MAX {
        let SourceState::Touched(touch) = before else {
            return Ok(Some(None));
        };
        let found = read(touch)?;
        before = state()?;
        if before == SourceState::Touched(touch) {
            return Ok(Some(Some(found)));
        }
    }
    Ok(None)
}

/// What the file's pieces hold now.
fn reread(held: &FileSource, plan: &Plan, file: FileId, touch: Touch) -> Result<Touched> {
    let failed = |errno: Option<_>| match errno {
        Some(errno) => {
            let doing = format!("cannot read {} again", held.display());
            Error::local(doing, why(errno)).at(Side::Sender)
        }
        None => held.changed("it ends before its size"),
    };
    let mut back = ReadBack::as_it_is(held.fd()).map_err(|errno| failed(Some(errno)))?;
    let sum = back.sum(plan, file, held.size()).map_err(failed)?;
    let has_holes = back.has_holes_between(plan, file, held.size());
    if !has_holes.map_err(failed)? {
        return Err(held.changed("a hole of it was written to"));
    }
    Ok(Touched {
        mode: touch.mode,
        sum,
    })
}

/// The check of a chunk, computed again from the sources, to tell damage on the way
/// from a source that changed, and which of its files that can be laid to. A
/// stream's chunk is checked at the length that was read, which is shorter than
/// the plan's for its last one.
#[must_use]
pub fn recheck(
    plan: &Plan,
    seed: CheckSeed,
    sources: &[Option<Arc<Source>>],
    chunk: ChunkId,
) -> Rechecked {
    let mut payload = vec![0; plan.chunk_len(chunk) as usize];
    let (mut changed, mut touched) = (Vec::new(), Vec::new());
    for piece in plan.pieces(chunk, 1) {
        let source = sources.get(piece.file as usize).and_then(Option::as_deref);
        // Inside the chunk by the plan's layout.
        let start = piece.run_offset as usize;
        let buffer = &mut payload[start..start + piece.bytes as usize];
        let read = match source {
            Some(Source::File(file)) => {
                let read = file.read_at(piece.file_offset, buffer);
                // After the reading: what changed before is seen.
                read.and_then(|()| file.state()).map(|state| {
                    if let SourceState::Touched(_) = state {
                        let error = file.changed("its bytes are not those that were sent");
                        touched.push((piece.file, error));
                    }
                })
            }
            Some(Source::Generated(generated)) => {
                generated.fill(piece.file_offset, buffer);
                Ok(())
            }
            // It has no byte in any plan.
            Some(Source::Missing(missing)) => Err(missing.error().clone()),
            Some(Source::Later(_) | Source::Node(_)) => {
                Err(unreadable(chunk, "its source is not open"))
            }
            Some(Source::Stream(stream)) => match stream.chunk(chunk) {
                Some(kept) => {
                    // A stream is alone, and its last chunk ends where it does.
                    return Rechecked {
                        check: seed.check(chunk, &kept),
                        suspects: changed,
                    };
                }
                None => Err(unreadable(chunk, "it was acknowledged and forgotten")),
            },
            None => Err(unreadable(chunk, "its source is closed")),
        };
        if let Err(error) = read {
            changed.push((piece.file, error));
        }
    }
    Rechecked {
        check: seed.check(chunk, &payload),
        // Who is seen to have changed is reason enough, and clears the touched.
        suspects: match changed.is_empty() {
            true => touched,
            false => changed,
        },
    }
}

fn unreadable(chunk: ChunkId, why: &str) -> Error {
    Error::local(format!("cannot read chunk {chunk} again"), why).at(Side::Sender)
}

#[cfg(test)]
mod tests;
