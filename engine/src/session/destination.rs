//! Where a transfer's files go, and the making of its targets there.
//!
//! Leaves to others: when they are made. Invariant: the directory is looked up
//! once and held from then on, so that all files of a transfer go to the same
//! one, by one descriptor.

use crate::error::{Error, Result, Side};
use crate::files::claim::Claimant;
use crate::files::content::{digest_of_name, holds};
use crate::files::metadata::{Keeping, Metadata};
use crate::files::node::{Node, refuse_unproved_device};
use crate::files::place::{self, Place, ResolvedTarget};
use crate::files::reflink::{CloneSource, Cloning, Reflinks};
use crate::files::replace::Replacing;
use crate::files::target::{Target, TargetOptions};
use crate::files::tree::delete::Deleting;
use crate::files::tree::filter::PathFilter;
use crate::files::tree::make::{OfferFolders, TargetFolders};
use crate::options::{DigestKind, FilterRule, LocalTarget, PassOver, TargetRules};
use crate::protocol::wire::{Deletions, Entry, EntryKind, Names, Offer, Verdict};
use crate::report::{Digest, Level};
use rustix::fs::Stat;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// Where a transfer's files go, as it was asked for.
pub(crate) enum Asked {
    /// Below a server's root.
    Beneath {
        root: Arc<OwnedFd>,
        path: Vec<u8>,
        directory: bool,
        make: bool,
    },
    /// Where the local user said.
    Local {
        path: PathBuf,
        directory: bool,
        make: bool,
    },
    Stdout,
    Null,
}

impl From<LocalTarget> for Asked {
    fn from(target: LocalTarget) -> Self {
        match target {
            LocalTarget::Path {
                path,
                directory,
                make,
            } => Self::Local {
                path,
                directory,
                make,
            },
            LocalTarget::Stdout => Self::Stdout,
            LocalTarget::Null => Self::Null,
        }
    }
}

/// How its targets are made.
pub(crate) struct Making {
    pub(crate) options: TargetOptions,
    pub(crate) rules: TargetRules,
    pub(crate) keeping: Arc<Keeping>,
    /// What is left out, and left alone where is deleted.
    pub(crate) filters: Vec<FilterRule>,
    /// What a sender in this process offers to be cloned.
    pub(crate) reflinks: Option<Reflinks>,
}

/// What an entry became at the receiver, until it is settled.
#[derive(Clone)]
pub(crate) enum PreparedTarget {
    /// What bytes land in.
    Bytes(Arc<Target>),
    /// What has none.
    Node(Arc<Node>),
}

/// The same, as it was found.
pub(super) struct Destination {
    asked: Asked,
    making: Making,
    resolved: Mutex<Option<ResolvedTarget>>,
    claimant: Arc<Claimant>,
    /// Directories that were made or opened for the last offer.
    folders: Mutex<TargetFolders>,
    deleting: Mutex<Option<Deleting>>,
}

/// What an entry is to the receiver now.
pub(super) enum EntryFound {
    /// It goes there.
    Target(PreparedTarget),
    /// It was there, and holds this.
    Known(Digest),
}

/// What becomes of an entry, and what it is now if that is anything.
type Prepared = (Verdict, Option<EntryFound>);

impl Destination {
    /// Nothing is looked up yet.
    pub(super) fn new(asked: Asked, making: Making) -> Self {
        let is_filtered = !making.filters.is_empty();
        let replacing = Replacing::new(&making.rules, is_filtered, making.options.fsync);
        Self {
            asked,
            making,
            resolved: Mutex::default(),
            claimant: Arc::new(Claimant::new(replacing)),
            folders: Mutex::default(),
            deleting: Mutex::default(),
        }
    }

    /// How its targets are made.
    pub(super) fn making(&self) -> &Making {
        &self.making
    }

    /// What `resolve` finds, the first time.
    fn resolved(&self, resolve: impl FnOnce() -> Result<ResolvedTarget>) -> Result<ResolvedTarget> {
        let mut resolved = self.resolved.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = &*resolved {
            return Ok(place.clone());
        }
        let place = resolve()?.written_by(self.claimant.clone());
        Ok(resolved.insert(place).clone())
    }

    /// The directory or the name that was asked for; nothing for standard output and
    /// null sinks.
    fn target(&self) -> Option<Result<ResolvedTarget>> {
        Some(match &self.asked {
            Asked::Beneath {
                root,
                path,
                directory,
                make,
            } => {
                let make = *make && !self.making.rules.only_tell;
                self.resolved(|| place::resolve_beneath(root.as_fd(), path, *directory, make))
            }
            Asked::Local {
                path,
                directory,
                make,
            } => {
                let make = *make && !self.making.rules.only_tell;
                self.resolved(|| place::resolve_local(path, *directory, make))
            }
            Asked::Stdout | Asked::Null => return None,
        })
    }

    /// Deletes what these names show to be superfluous; blocks.
    pub(super) fn delete(&self, names: &Names) -> Result<Deletions> {
        let (Some(target), Some(rules)) = (self.target(), self.making.rules.deletes) else {
            return Ok(Deletions::default());
        };
        let mut deleting = self.deleting.lock().unwrap_or_else(PoisonError::into_inner);
        if deleting.is_none() {
            let filter = PathFilter::new(&self.making.filters)?;
            let gone = self.claimant.replacing().gone();
            *deleting = Some(Deleting::new(rules, filter).besides(gone));
        }
        let target = match target {
            // A target that would be made has nothing that could go.
            Err(_) if self.making.rules.only_tell => return Ok(Deletions::default()),
            target => target?,
        };
        match deleting.as_mut() {
            Some(deleting) => deleting.part(&target, names),
            None => Ok(Deletions::default()),
        }
    }

    /// Looks at and creates the targets of one segment, in order; blocks.
    pub(super) fn prepare(&self, offer: &Offer) -> Vec<Prepared> {
        let Some(target) = self.target() else {
            let entries = offer.entries.iter();
            return entries.map(|entry| self.without_a_place(entry)).collect();
        };
        if self.making.rules.only_tell {
            return self.would(target, offer);
        }
        let cloning = self.cloning(offer);
        let target = target.and_then(|target| {
            require_one_top(&target, offer)?;
            // Each file alone may fit where all of them do not.
            let bytes = bytes_to_store(offer, cloning.as_ref(), &target);
            target.require_space(bytes).map(|()| target)
        });
        let target = match target {
            Ok(target) => target,
            Err(error) => {
                let refused = || (Verdict::Refused(error.clone().at(Side::Receiver)), None);
                return offer.entries.iter().map(|_| refused()).collect();
            }
        };
        let mut folders = self.folders.lock().unwrap_or_else(PoisonError::into_inner);
        let makes = !self.making.rules.only_existing;
        let folders = folders.of_offer(&target, offer, makes);
        let entries = (0..).zip(&offer.entries);
        entries
            .map(|(file, entry)| {
                let clone = |place: &Place| cloning.as_ref()?.source(file, entry, place.folder());
                let prepared = self.entry(&target, &folders, offer, entry, clone);
                prepared.unwrap_or_else(|error| (Verdict::Refused(error.at(Side::Receiver)), None))
            })
            .collect()
    }

    /// What of the segment may share its blocks. Only what arrived can be verified.
    fn cloning(&self, offer: &Offer) -> Option<Cloning> {
        let reflinks = self.making.reflinks.as_ref();
        let reflinks = reflinks.filter(|_| !self.making.options.verify)?;
        reflinks.of(offer.transfer, offer.segment)
    }

    /// What would become of each; nothing is made.
    fn would(&self, target: Result<ResolvedTarget>, offer: &Offer) -> Vec<Prepared> {
        let told = |level| (Verdict::Would(level), None);
        let makes = match &self.asked {
            Asked::Beneath { make, .. } | Asked::Local { make, .. } => *make,
            Asked::Stdout | Asked::Null => false,
        };
        let target = match target {
            // A directory that would be made has nothing in it.
            Ok(target) if makes && !target.is_directory() => Err(None),
            Err(_) if makes => Err(None),
            target => target.map_err(Some),
        };
        let target = match target {
            Ok(target) => target,
            Err(None) => {
                return offer
                    .entries
                    .iter()
                    .map(|_| told(Level::WouldMake))
                    .collect();
            }
            Err(Some(error)) => {
                let refused = || (Verdict::Refused(error.clone().at(Side::Receiver)), None);
                return offer.entries.iter().map(|_| refused()).collect();
            }
        };
        let mut folders = self.folders.lock().unwrap_or_else(PoisonError::into_inner);
        let folders = folders.of_offer(&target, offer, false);
        let entries = offer.entries.iter();
        entries
            .map(
                |entry| match self.would_entry(&target, &folders, offer, entry) {
                    Ok(level) => told(level),
                    Err(error) => (Verdict::Refused(error.at(Side::Receiver)), None),
                },
            )
            .collect()
    }

    fn would_entry(
        &self,
        target: &ResolvedTarget,
        folders: &OfferFolders,
        offer: &Offer,
        entry: &Entry,
    ) -> Result<Level> {
        let rules = &self.making.rules;
        if folders.is_left_out(entry.folder) {
            return Ok(match rules.only_existing {
                true => Level::Unchanged,
                false => Level::WouldMake,
            });
        }
        let place = folders.place(target, entry.folder, &entry.name)?;
        if self.leaves(&place, entry)? {
            return Ok(Level::Unchanged);
        }
        let metadata = Metadata::of(entry, offer, &self.making.keeping);
        if !entry.kind.has_bytes() {
            let first = match &entry.kind {
                EntryKind::HardLink(first, _) if folders.is_left_out(first.folder) => {
                    return Ok(Level::WouldMake);
                }
                EntryKind::HardLink(first, _) => {
                    Some(folders.place(target, first.folder, &first.name)?)
                }
                _ => None,
            };
            return Node::would(place, entry, first, metadata);
        }
        let occupant = place.occupant()?;
        let Some(stat) = place.refuse_occupied()? else {
            return Ok(match occupant {
                Some(_) => Level::WouldReplace,
                None => Level::WouldMake,
            });
        };
        // Regular files have no negative size.
        if stat.st_size as u64 != entry.size {
            return Ok(Level::WouldSendSize);
        }
        let has_time = metadata.has_time_of(&stat);
        Ok(match rules.pass_over {
            PassOver::SameContent if !holds_content(&place, &stat, entry) => {
                Level::WouldSendContent
            }
            PassOver::Unchanged | PassOver::Nothing if !has_time => Level::WouldSendTime,
            PassOver::Nothing => Level::WouldSendAnyway,
            _ if has_time && metadata.is_kept(&place, &stat) => Level::Unchanged,
            _ => Level::WouldCorrect,
        })
    }

    /// Standard output and null sinks.
    fn without_a_place(&self, entry: &Entry) -> Prepared {
        let options = self.making.options;
        let made = match (&self.asked, entry.kind.has_bytes()) {
            (Asked::Null, true) => Target::null(options),
            // Nothing is made of it, and nothing is missing.
            (Asked::Null, false) => return (Verdict::Skip, None),
            (_, true) => Target::stdout(options),
            (_, false) => Err(Error::usage(
                "cannot copy a directory to standard output: only a file can go there",
            )),
        };
        match made {
            Ok(target) => (
                Verdict::Whole,
                Some(EntryFound::Target(PreparedTarget::Bytes(Arc::new(target)))),
            ),
            Err(error) => (Verdict::Refused(error.at(Side::Receiver)), None),
        }
    }

    fn entry<'a>(
        &self,
        target: &ResolvedTarget,
        folders: &OfferFolders,
        offer: &Offer,
        entry: &Entry,
        clone: impl FnOnce(&Place) -> Option<CloneSource<'a>>,
    ) -> Result<Prepared> {
        // What its peer calls it is no name that anybody typed.
        if target.is_directory() && entry.kind == EntryKind::Stream {
            return Err(Error::usage(
                "cannot copy standard input into a directory: it has no name there",
            )
            .cure("name the file"));
        }
        if folders.is_left_out(entry.folder) {
            return Ok((Verdict::Skip, None));
        }
        let place = folders.place(target, entry.folder, &entry.name)?;
        if self.leaves(&place, entry)? {
            return Ok((Verdict::Skip, None));
        }
        let metadata = Metadata::of(entry, offer, &self.making.keeping);
        if !entry.kind.has_bytes() {
            return self.node(target, folders, entry, place, metadata);
        }
        let there = place.refuse_occupied()?;
        if entry.kind == EntryKind::File
            && let Some(stat) = there
            && self.is_same(&place, &stat, entry, &metadata)
        {
            self.making.options.check(&place, entry)?;
            metadata
                .correct(place.directory(), place.name(), &stat)
                .map_err(|(doing, errno)| place.failed(doing, errno))?;
            let known = self.digest_there(&place, entry)?;
            return Ok((Verdict::Skip, known.map(EntryFound::Known)));
        }
        let place = place.claimed()?;
        let (source, options) = (clone(&place), self.making.options);
        let made = Target::create_from(place, entry, metadata, options, source, there.is_none())?;
        let verdict = match made.is_held() {
            true => Verdict::Held,
            false => Verdict::Whole,
        };
        let made = PreparedTarget::Bytes(Arc::new(made));
        Ok((verdict, Some(EntryFound::Target(made))))
    }

    /// What the file that is passed over holds, where that was asked for.
    fn digest_there(&self, place: &Place, entry: &Entry) -> Result<Option<Digest>> {
        let Some(kind) = self.making.options.digest else {
            return Ok(None);
        };
        // It was compared.
        if let (Some(bytes), DigestKind::Blake3) = (entry.content, kind) {
            return Ok(Some(Digest { kind, bytes }));
        }
        digest_of_name(place.directory(), place.name(), kind, place.display()).map(Some)
    }

    /// True when the only source gets another name, once that is known.
    pub(super) fn is_renamed(&self) -> bool {
        let resolved = self.resolved.lock().unwrap_or_else(PoisonError::into_inner);
        let target = resolved.as_ref();
        target.is_some_and(|target| !target.is_directory())
    }

    /// True where the file that is there is passed over.
    fn is_same(&self, place: &Place, stat: &Stat, entry: &Entry, metadata: &Metadata) -> bool {
        match self.making.rules.pass_over {
            PassOver::Unchanged => metadata.is_of_unchanged(entry.size, stat),
            PassOver::SameContent => holds_content(place, stat, entry),
            PassOver::Nothing => false,
        }
    }

    /// True where the rules leave what is there, or is not there, as it is.
    fn leaves(&self, place: &Place, entry: &Entry) -> Result<bool> {
        let rules = &self.making.rules;
        if !(rules.only_existing || rules.only_missing || rules.only_older) {
            return Ok(false);
        }
        let Some(stat) = place.occupant()? else {
            return Ok(rules.only_existing);
        };
        // A directory is no file that is replaced: what is in it is asked one by one.
        let is_directory = entry.kind == EntryKind::Directory;
        #[allow(clippy::unnecessary_cast)] // The fields differ in type between architectures.
        let there = (stat.st_mtime as i64, stat.st_mtime_nsec as u32);
        let is_newer = there > (entry.mtime_seconds, entry.mtime_nanos);
        Ok(!is_directory && (rules.only_missing || rules.only_older && is_newer))
    }

    fn node(
        &self,
        target: &ResolvedTarget,
        folders: &OfferFolders,
        entry: &Entry,
        place: Place,
        metadata: Metadata,
    ) -> Result<Prepared> {
        refuse_unproved_device(entry, self.making.options.special_bits, place.display())?;
        let first = match &entry.kind {
            EntryKind::HardLink(first, _) => {
                Some(folders.place(target, first.folder, &first.name)?)
            }
            _ => None,
        };
        let place = match entry.kind {
            // Many may fill one.
            EntryKind::Directory => place,
            _ => place.claimed()?,
        };
        Ok(match Node::new(place, entry, first, metadata)? {
            Some(node) => {
                let node = PreparedTarget::Node(Arc::new(node));
                (Verdict::Whole, Some(EntryFound::Target(node)))
            }
            None => (Verdict::Skip, None),
        })
    }
}

/// True where the file that is there holds what the source does.
fn holds_content(place: &Place, stat: &Stat, entry: &Entry) -> bool {
    let wanted = entry.content.as_ref();
    // Regular files have no negative size.
    stat.st_size as u64 == entry.size && wanted.is_some_and(|wanted| holds(place, stat, wanted))
}

/// Bytes of the segment that need room, as far as is known: what shares its blocks
/// needs none, and what turns out not to looks for itself.
fn bytes_to_store(offer: &Offer, cloning: Option<&Cloning>, target: &ResolvedTarget) -> u64 {
    let folder = target.folder();
    let may_share =
        |file, entry| cloning.is_some_and(|cloning| cloning.source(file, entry, folder).is_some());
    let entries = (0..).zip(&offer.entries);
    entries
        .filter(|(file, entry)| !may_share(*file, *entry))
        .map(|(_, entry)| entry.data_bytes())
        .fold(0, u64::saturating_add)
}

/// A target that names what is copied takes one file or one directory: the contents of
/// a directory keep their names, and need one to be in.
fn require_one_top(target: &ResolvedTarget, offer: &Offer) -> Result<()> {
    if target.is_directory() {
        return Ok(());
    }
    let entries = offer.entries.iter().filter(|entry| entry.folder == 0);
    let folders = offer.folders.iter().filter(|folder| folder.parent == 0);
    let names = entries.map(|entry| &entry.name);
    let mut names = names.chain(folders.map(|folder| &folder.name));
    let first = names.next();
    if names.all(|name| Some(name) == first) && first.is_none_or(|name| !name.is_empty()) {
        return Ok(());
    }
    let doing = format!("cannot write {}", target.display());
    Err(Error::local(
        doing,
        "a directory's contents need a directory, and it is none",
    )
    .cure("make the directory first")
    .at(Side::Receiver))
}
