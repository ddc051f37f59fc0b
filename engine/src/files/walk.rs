//! The sources of one transfer, opened a part at a time.
//!
//! Leaves to others: when the next part is wanted, and how much it may take.
//! Invariant: names are opened in their order and each once, and no more
//! descriptors are open than there was room for.

use super::generated::Generated;
use super::missing::Missing;
use super::source::{FileSource, NotOpened, Source};
use super::stream::{StreamNews, StreamSource};
use crate::error::{Error, ErrorKind, Result, Side};
use crate::kernel::descriptors;
use crate::kernel::random::random;
use crate::options::{LocalSource, Pattern, RemoteSource};
use crate::protocol::credit::Cut;
use crate::protocol::wire::{Data, Entry, EntryKind};
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::Arc;

/// Where paths are looked up.
pub enum Reach {
    /// Anywhere, as the local user typed them.
    User,
    /// Below a server's root, as a peer named them.
    Beneath(Arc<OwnedFd>),
}

/// A source that was named and is not open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamedSource {
    /// A regular file.
    Path(Vec<u8>),
    /// Standard input.
    Stdin,
    /// Bytes made on the fly.
    Generated {
        /// What they look like.
        pattern: Pattern,
        /// How many; `None` goes on.
        bytes: Option<u64>,
    },
}

impl From<LocalSource> for NamedSource {
    fn from(source: LocalSource) -> Self {
        match source {
            LocalSource::Path(path) => Self::Path(path.into_os_string().into_vec()),
            LocalSource::Stdin => Self::Stdin,
            LocalSource::Generated { pattern, bytes } => Self::Generated { pattern, bytes },
        }
    }
}

impl From<RemoteSource> for NamedSource {
    fn from(source: RemoteSource) -> Self {
        match source {
            RemoteSource::Path(path) => Self::Path(path),
            RemoteSource::Generated { pattern, bytes } => Self::Generated { pattern, bytes },
        }
    }
}

impl NamedSource {
    fn kind(&self) -> EntryKind {
        match self {
            Self::Path(_) | Self::Generated { bytes: Some(_), .. } => EntryKind::File,
            Self::Stdin | Self::Generated { bytes: None, .. } => EntryKind::Stream,
        }
    }
}

/// Hears how far the reader of standard input is.
pub type Tell = Box<dyn FnMut(StreamNews) + Send>;

/// What is left to open.
pub struct Walk {
    reach: Reach,
    names: VecDeque<NamedSource>,
    /// One source and no other: what keeps it from being opened is the
    /// transfer's failure.
    is_alone: bool,
    drop_cache: bool,
    chunk_bytes: u32,
    /// The receiver hands every byte on in order.
    is_in_order: bool,
    tell: Option<Tell>,
    /// Why nothing is made on the fly.
    no_generated: Option<Error>,
}

/// One part.
pub struct Batch {
    /// As they are offered, and open.
    pub files: Vec<(Entry, Arc<Source>)>,
    /// It was cut short as every descriptor was in use.
    pub ran_out: bool,
}

impl Walk {
    /// Nothing is open yet. `has_all` says that no name is added later.
    #[must_use]
    pub fn new(
        reach: Reach,
        names: impl IntoIterator<Item = impl Into<NamedSource>>,
        has_all: bool,
        drop_cache: bool,
        chunk_bytes: u32,
    ) -> Self {
        let names: VecDeque<NamedSource> = names.into_iter().map(Into::into).collect();
        Self {
            reach,
            is_alone: has_all && names.len() == 1,
            names,
            drop_cache,
            chunk_bytes,
            is_in_order: false,
            tell: None,
            no_generated: None,
        }
    }

    /// What is made on the fly ends the transfer with `error`.
    #[must_use]
    pub fn refusing_generated(mut self, error: Error) -> Self {
        self.no_generated = Some(error);
        self
    }

    /// Holes are offered as data: who takes bytes in order takes their zeros.
    #[must_use]
    pub fn in_order(mut self, is_in_order: bool) -> Self {
        self.is_in_order = is_in_order;
        self
    }

    /// Who hears of standard input.
    #[must_use]
    pub fn telling(mut self, tell: Tell) -> Self {
        self.tell = Some(tell);
        self
    }

    /// Names that follow those that are there.
    pub fn add(&mut self, names: impl IntoIterator<Item = impl Into<NamedSource>>) {
        self.names.extend(names.into_iter().map(Into::into));
    }

    /// Names that are left.
    #[must_use]
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// True when every name so far was opened.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Opens what one segment of `room` descriptors takes of the next names;
    /// `waits` for the first where every descriptor is in use, which ends in that
    /// file's failure. Without, such a part may be empty.
    /// What keeps one of several from being opened is that file's failure alone.
    ///
    /// # Errors
    /// Any failure of a source that is alone; else those that are the machine's
    /// or concern all of them.
    pub fn next_batch(&mut self, room: u32, waits: bool) -> Result<Batch> {
        let mut cut = Cut::new(room);
        let mut batch = Batch {
            files: Vec::new(),
            ran_out: false,
        };
        while let Some(named) = self.names.front()
            && cut.takes(named.kind())
        {
            let named = named.clone();
            let waits = waits && batch.files.is_empty();
            let source = match self.open_or_miss(&named, waits) {
                Ok(source) => source,
                Err(NotOpened::Exhausted(_)) => {
                    batch.ran_out = true;
                    break;
                }
                Err(not_opened) => return Err(not_opened.into()),
            };
            self.names.pop_front();
            let mut entry = source.entry();
            if self.is_in_order {
                entry.data = Data::Everywhere;
            }
            cut.add(&entry);
            batch.files.push((entry, Arc::new(source)));
        }
        Ok(batch)
    }

    /// The source, or what stands for one of several that cannot be opened.
    /// `waits` for a descriptor, where that is what is missing.
    fn open_or_miss(&mut self, named: &NamedSource, waits: bool) -> Result<Source, NotOpened> {
        let opened = match named {
            NamedSource::Path(path) if waits => descriptors::patiently(|| self.open_file(path)),
            named => self.open(named),
        };
        let error = match opened {
            Ok(source) => return Ok(source),
            Err(NotOpened::Exhausted(error)) if !waits => return Err(NotOpened::Exhausted(error)),
            Err(not_opened) => Error::from(not_opened).at(Side::Sender),
        };
        let is_its_own = matches!(error.kind, ErrorKind::Local | ErrorKind::Usage);
        match named {
            NamedSource::Path(path) if is_its_own && !self.is_alone => {
                Ok(Missing::new(path, error).map(Source::Missing)?)
            }
            _ => Err(error.into()),
        }
    }

    fn open(&mut self, named: &NamedSource) -> Result<Source, NotOpened> {
        Ok(match named {
            NamedSource::Path(path) => self.open_file(path)?,
            NamedSource::Stdin => {
                let tell = self.tell.take().unwrap_or_else(|| Box::new(drop));
                Source::Stream(StreamSource::stdin(self.chunk_bytes, tell)?)
            }
            NamedSource::Generated { pattern, bytes } => {
                if let Some(error) = &self.no_generated {
                    return Err(error.clone().into());
                }
                let seed = u64::from_le_bytes(random()?);
                Source::Generated(Generated::new(*pattern, *bytes, seed))
            }
        })
    }

    fn open_file(&self, path: &[u8]) -> Result<Source, NotOpened> {
        let mut file = match &self.reach {
            Reach::User => FileSource::try_local(Path::new(OsStr::from_bytes(path)))?,
            Reach::Beneath(root) => FileSource::try_beneath(root.as_fd(), path)?,
        };
        if self.drop_cache {
            file.prefer_direct();
        }
        Ok(Source::File(file))
    }
}

#[cfg(test)]
mod tests;
