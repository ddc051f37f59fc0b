//! The sources of one transfer, opened a part at a time.
//!
//! Leaves to others: when the next part is wanted, and how much it may take.
//! Invariant: names are opened in their order and each once, and no more
//! descriptors are open than there was room for.

use super::attributes;
use super::beneath::{DIRECTORY, check_path, open_below_root, open_beneath, unfit, why_beneath};
use super::content::contents;
use super::generated::Generated;
use super::missing::Missing;
use super::owners::OwnerNames;
use super::regular::{FileSource, NotOpened};
use super::shown;
use super::source::Source;
use super::stream::{StreamNews, StreamSource};
use super::tree::filter::PathFilter;
use super::tree::follow::Following;
use super::tree::names::{NameScan, NamesOptions, NamesPart};
use super::tree::offered::OfferedFolders;
use super::tree::passed_over::PassedOver;
use super::tree::scan::{ScanOptions, Scanned, TreeScan};
use super::tree::wanted::WantedNames;
use crate::error::{Error, ErrorKind, Result, Side};
use crate::kernel::descriptors;
use crate::kernel::descriptors::Exhaustion;
use crate::kernel::random::random;
use crate::limits;
use crate::options::names::NameList;
use crate::options::{LocalSource, Pattern, RemoteSource, TreeOptions, is_contents};
use crate::protocol::credit::Cut;
use crate::protocol::sender::Offered;
use crate::protocol::wire::{Data, Entry, EntryKind};
use rustix::fs::{CWD, Mode};
use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::Arc;

/// Where paths are looked up.
#[derive(Clone)]
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
    /// Names in the directory before it.
    Names(NameList),
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
            LocalSource::Names(names) => Self::Names(names),
            LocalSource::Stdin => Self::Stdin,
            LocalSource::Generated { pattern, bytes } => Self::Generated { pattern, bytes },
        }
    }
}

impl From<RemoteSource> for NamedSource {
    fn from(source: RemoteSource) -> Self {
        match source {
            RemoteSource::Path(path) => Self::Path(path),
            RemoteSource::Names(names) => Self::Names(names),
            RemoteSource::Generated { pattern, bytes } => Self::Generated { pattern, bytes },
        }
    }
}

impl NamedSource {
    fn kind(&self) -> EntryKind {
        match self {
            Self::Path(_) | Self::Names(_) | Self::Generated { bytes: Some(_), .. } => {
                EntryKind::File
            }
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
    /// Of the only directory, what lists name.
    wanted: Option<WantedNames>,
    /// The list that says what is read next was not told yet.
    waits_for_list: bool,
    /// The directory that is being read.
    tree: Option<TreeScan>,
    options: TreeOptions,
    filter: Option<Arc<PathFilter>>,
    /// Directories that were read, as they were named.
    roots: Vec<Vec<u8>>,
    owner_names: OwnerNames,
    /// One source and no other: what keeps it from being opened is the
    /// transfer's failure.
    is_alone: bool,
    drop_cache: bool,
    chunk_bytes: u32,
    /// The receiver hands every byte on in order.
    is_in_order: bool,
    /// Each file is offered with the digest of what it holds.
    tells_content: bool,
    tell: Option<Tell>,
    /// Why nothing is made on the fly.
    no_generated: Option<Error>,
}

/// One part.
#[derive(Default)]
pub struct Batch {
    /// As they are offered, in order.
    pub offered: Offered,
    /// Where their bytes come from.
    pub sources: Vec<Arc<Source>>,
    /// It was cut short as every descriptor was in use.
    pub ran_out: bool,
    /// What of a directory that was read was passed over.
    pub passed_over: PassedOver,
}

impl Batch {
    fn push(&mut self, entry: Entry, source: Source) {
        self.offered.entries.push(entry);
        self.sources.push(Arc::new(source));
    }

    /// Reads all files; one that cannot be read fails alone.
    fn add_contents(&mut self) {
        let contents = contents(&self.sources);
        let entries = self.offered.entries.iter_mut().zip(&mut self.sources);
        for ((entry, source), content) in entries.zip(contents) {
            match content {
                Some(Ok(content)) => entry.content = Some(content),
                Some(Err(error)) => {
                    let display = source.display().to_owned();
                    (entry.size, entry.data) = (0, Data::Everywhere);
                    let missing = Missing::of_entry(entry.clone(), display, error);
                    *source = Arc::new(Source::Missing(missing));
                }
                None => {}
            }
        }
    }
}

impl Walk {
    /// Nothing is open yet. `has_all` says that no name is added later.
    ///
    /// # Errors
    /// What is left out is told by what is no pattern.
    pub fn new(
        reach: Reach,
        names: impl IntoIterator<Item = impl Into<NamedSource>>,
        has_all: bool,
        options: TreeOptions,
        drop_cache: bool,
        chunk_bytes: u32,
    ) -> Result<Self> {
        let filter = PathFilter::new(&options.filters)?.map(Arc::new);
        let mut walk = Self {
            reach,
            filter,
            is_alone: options.listed,
            names: VecDeque::new(),
            wanted: options.listed.then(WantedNames::default),
            waits_for_list: false,
            tree: None,
            options,
            roots: Vec::new(),
            owner_names: OwnerNames::default(),
            drop_cache,
            chunk_bytes,
            is_in_order: false,
            tells_content: false,
            tell: None,
            no_generated: None,
        };
        walk.add(names);
        walk.is_alone |= has_all && walk.names.len() == 1;
        if has_all {
            walk.has_all();
        }
        Ok(walk)
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

    /// Each file is offered with the digest of what it holds, for which it is read.
    #[must_use]
    pub fn telling_content(mut self, tells_content: bool) -> Self {
        self.tells_content = tells_content;
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
        for named in names.into_iter().map(Into::into) {
            match (named, &mut self.wanted) {
                (NamedSource::Names(list), Some(wanted)) => {
                    self.waits_for_list &= list.is_empty();
                    wanted.add(list);
                }
                (named, _) => self.names.push_back(named),
            }
        }
    }

    /// No name is added later.
    pub fn has_all(&mut self) {
        self.waits_for_list = false;
        if let Some(wanted) = &mut self.wanted {
            wanted.has_all();
        }
    }

    /// True when further names are wanted before those run out that are left.
    #[must_use]
    pub fn runs_out(&self) -> bool {
        match &self.wanted {
            Some(wanted) => wanted.bytes() < limits::LIST_PART_BYTES / 2,
            None => self.names.len() < limits::SEGMENT_ENTRIES_MAX,
        }
    }

    /// True when every name so far was opened, and every directory read as far as the
    /// names lead.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && (self.tree.is_none() || self.waits_for_list)
    }

    /// True when the last name was opened, and every directory read.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.names.is_empty() && self.tree.is_none()
    }

    /// Opens what one segment of `room` descriptors takes of the next names, or reads so
    /// much of a directory; `waits` for the first where every descriptor is in use,
    /// which ends in that file's failure. Without, such a part may be empty.
    /// What keeps one of several from being opened is that file's failure alone.
    ///
    /// # Errors
    /// Any failure of a source that is alone; else those that are the machine's
    /// or concern all of them.
    pub fn next_batch(&mut self, room: u32, waits: bool) -> Result<Batch> {
        let mut cut = Cut::new(room);
        let mut batch = Batch::default();
        let mut folders = OfferedFolders::default();
        loop {
            if let Some(tree) = self.tree.take() {
                self.read_tree(tree, &mut cut, &mut folders, &mut batch);
                if self.tree.is_some() {
                    break;
                }
            }
            let Some(named) = self.names.front() else {
                break;
            };
            if !cut.takes(&named.kind(), 0) || batch.ran_out {
                break;
            }
            let named = named.clone();
            let waits = waits && batch.sources.is_empty();
            match self.open_or_miss(&named, waits) {
                Ok(WalkOpened::Entry(opened)) => {
                    let (entry, source) = *opened;
                    cut.add(&entry);
                    batch.push(entry, source);
                }
                Ok(WalkOpened::Tree(tree)) => {
                    if let NamedSource::Path(path) = named {
                        self.roots.push(path);
                    }
                    self.tree = Some(*tree);
                }
                Err(NotOpened::Exhausted(_)) => {
                    batch.ran_out = true;
                    break;
                }
                Err(not_opened) => return Err(not_opened.into()),
            }
            self.names.pop_front();
        }
        batch.offered.folders = folders.into_folders();
        if self.tells_content {
            batch.add_contents();
        }
        self.name_owners(&mut batch.offered);
        Ok(batch)
    }

    /// Takes what the segment takes of a directory, which stays where there is more.
    fn read_tree(
        &mut self,
        mut tree: TreeScan,
        cut: &mut Cut,
        folders: &mut OfferedFolders,
        batch: &mut Batch,
    ) {
        while cut.takes(&EntryKind::File, tree.depth())
            && cut.entries() < limits::TREE_SEGMENT_ENTRIES_MAX
        {
            let known = folders.count();
            let (entry, source) = match tree.next(folders, self.wanted.as_mut()) {
                Scanned::Entry(found) => *found,
                Scanned::Waits => {
                    self.waits_for_list = true;
                    break;
                }
                Scanned::Over => {
                    batch.passed_over += tree.passed_over();
                    return;
                }
            };
            for folder in folders.since(known) {
                cut.add_folder(&folder.name);
            }
            cut.add(&entry);
            batch.push(entry, source);
        }
        self.tree = Some(tree);
    }

    /// Tells what the entries' users and groups are called here.
    fn name_owners(&mut self, offered: &mut Offered) {
        if self.options.numeric_ids {
            return;
        }
        let owners = offered.entries.iter().filter_map(|entry| entry.owner);
        let (mut users, mut groups) = (BTreeSet::new(), BTreeSet::new());
        for owner in owners {
            users.insert(owner.user);
            groups.insert(owner.group);
        }
        let most = limits::SEGMENT_IDS_MAX;
        let names = &mut self.owner_names;
        let users = users.into_iter().take(most);
        offered.users = users.filter_map(|id| names.user(id)).collect();
        let groups = groups.into_iter().take(most);
        offered.groups = groups.filter_map(|id| names.group(id)).collect();
    }

    /// The source, or what stands for one of several that cannot be opened.
    /// `waits` for a descriptor, where that is what is missing.
    fn open_or_miss(&mut self, named: &NamedSource, waits: bool) -> Result<WalkOpened, NotOpened> {
        let opened = match named {
            NamedSource::Path(path) if waits => descriptors::patiently(|| self.open_path(path)),
            named => self.open(named),
        };
        let error = match opened {
            Ok(opened) => return Ok(opened),
            Err(NotOpened::Exhausted(error)) if !waits => return Err(NotOpened::Exhausted(error)),
            Err(not_opened) => Error::from(not_opened).at(Side::Sender),
        };
        let is_its_own = matches!(error.kind, ErrorKind::Local | ErrorKind::Usage);
        match named {
            NamedSource::Path(path) if is_its_own && !self.is_alone => {
                let missing = Missing::new(path, error)?;
                let entry = missing.entry().clone();
                let opened = (entry, Source::Missing(missing));
                Ok(WalkOpened::Entry(Box::new(opened)))
            }
            _ => Err(error.into()),
        }
    }

    fn open(&mut self, named: &NamedSource) -> Result<WalkOpened, NotOpened> {
        let (entry, source) = match named {
            NamedSource::Path(path) => return self.open_path(path),
            NamedSource::Names(_) => {
                return Err(Error::usage("names in no directory cannot be copied")
                    .at(Side::Sender)
                    .into());
            }
            NamedSource::Stdin => {
                let tell = self.tell.take().unwrap_or_else(|| Box::new(drop));
                let stream = StreamSource::stdin(self.chunk_bytes, tell)?;
                (stream.entry(), Source::Stream(stream))
            }
            NamedSource::Generated { pattern, bytes } => {
                if let Some(error) = &self.no_generated {
                    return Err(error.clone().into());
                }
                let seed = u64::from_le_bytes(random()?);
                let generated = Generated::new(*pattern, *bytes, seed);
                (generated.entry(), Source::Generated(generated))
            }
        };
        Ok(WalkOpened::Entry(Box::new((entry, source))))
    }

    fn open_path(&self, path: &[u8]) -> Result<WalkOpened, NotOpened> {
        let trimmed = match path.iter().rposition(|byte| *byte != b'/') {
            Some(last) => &path[..=last],
            // The root, and nothing is above it.
            None => return self.open_tree(path),
        };
        // A slash at its end asks for a directory.
        if trimmed.len() < path.len() {
            return self.open_tree(path);
        }
        let opened = match &self.reach {
            Reach::User => FileSource::try_local(Path::new(OsStr::from_bytes(path))),
            Reach::Beneath(root) => {
                FileSource::try_beneath(root.as_fd(), path, self.options.follow)
            }
        };
        let mut file = match opened {
            // Nothing that is handed on in order is a tree.
            Err(NotOpened::Directory(error)) if self.is_in_order => {
                return Err(error.cure("name a file").into());
            }
            Err(NotOpened::Directory(_)) => return self.open_tree(path),
            opened => opened?,
        };
        if self.drop_cache {
            file.prefer_direct();
        }
        let mut entry = file.entry();
        if self.is_in_order {
            // Who takes bytes in order takes their zeros, and nothing else.
            entry.data = Data::Everywhere;
        }
        entry.owner = entry.owner.filter(|_| self.options.owners);
        if self.options.attributes {
            let read = attributes::read(attributes::of(&file.fd()), file.display());
            entry.attributes = Some(read.map_err(|error| error.at(Side::Sender))?);
        }
        Ok(WalkOpened::Entry(Box::new((entry, Source::File(file)))))
    }

    /// A directory, or its contents where its path ends in a slash.
    fn open_tree(&self, path: &[u8]) -> Result<WalkOpened, NotOpened> {
        let (fd, name) = open_directory(&self.reach, path, self.options.follow)?;
        let options = ScanOptions {
            follow: following(&self.reach, path, self.options.follow),
            listed: self.options.listed,
            owners: self.options.owners,
            attributes: self.options.attributes,
            one_file_system: self.options.one_file_system,
            filter: self.filter.clone(),
        };
        let tree = TreeScan::new(fd, &name, shown(path), options)?;
        Ok(WalkOpened::Tree(Box::new(tree)))
    }

    /// The names in all directories that were read; `hides_left_out` leaves out what
    /// patterns do.
    #[must_use]
    pub fn naming(&mut self, hides_left_out: bool) -> Naming {
        Naming {
            reach: self.reach.clone(),
            roots: std::mem::take(&mut self.roots).into(),
            scan: None,
            follow: self.options.follow,
            options: NamesOptions {
                one_file_system: self.options.one_file_system,
                follow: None,
                filter: self.filter.clone(),
                hides_left_out,
            },
        }
    }
}

/// The directory of that path, and what it is called at the target: nothing where its
/// contents are meant.
fn open_directory(
    reach: &Reach,
    path: &[u8],
    follow: bool,
) -> Result<(OwnedFd, Vec<u8>), NotOpened> {
    let display = shown(path);
    let end = path.iter().rposition(|byte| *byte != b'/');
    let trimmed = &path[..end.map_or(0, |last| last + 1)];
    let (opened, name) = match reach {
        Reach::User => {
            let typed = Path::new(OsStr::from_bytes(path));
            let opened = rustix::fs::openat(CWD, typed, DIRECTORY, Mode::empty());
            (opened, typed.file_name().map(OsStrExt::as_bytes))
        }
        Reach::Beneath(root) if trimmed.is_empty() => {
            (open_beneath(root.as_fd(), b".", DIRECTORY), None)
        }
        Reach::Beneath(root) => {
            check_path(trimmed)
                .map_err(|why| unfit(&format!("cannot read {display:?}"), why))
                .map_err(|error| error.at(Side::Sender))?;
            let name = trimmed.rsplit(|byte| *byte == b'/').next();
            let opened = match follow {
                true => open_below_root(root.as_fd(), trimmed, DIRECTORY),
                false => open_beneath(root.as_fd(), trimmed, DIRECTORY),
            };
            (opened, name)
        }
    };
    let fd = opened.map_err(|errno| {
        let doing = format!("cannot open the directory {display}");
        let error = Error::local(doing, why_beneath(errno)).at(Side::Sender);
        match errno.is_exhaustion() {
            true => NotOpened::Exhausted(error),
            false => NotOpened::Refused(error),
        }
    })?;
    let name = name.filter(|_| !is_contents(path)).unwrap_or_default();
    Ok((fd, name.to_vec()))
}

/// Where links in the directory of that path lead, where they are followed.
fn following(reach: &Reach, path: &[u8], follow: bool) -> Option<Following> {
    follow.then(|| match reach {
        Reach::User => Following::User,
        Reach::Beneath(root) => Following::Beneath(root.clone(), below_root(path)),
    })
}

/// A directory's path below the root, with a slash at its end unless it is the root.
fn below_root(path: &[u8]) -> Vec<u8> {
    let mut path = path.to_vec();
    while path.last() == Some(&b'/') {
        path.pop();
    }
    if !path.is_empty() {
        path.push(b'/');
    }
    path
}

/// The names in the directories of a walk that is over.
pub struct Naming {
    reach: Reach,
    roots: VecDeque<Vec<u8>>,
    scan: Option<NameScan>,
    follow: bool,
    options: NamesOptions,
}

impl Naming {
    /// The next part; nothing when all was told. A directory that cannot be opened any
    /// more is not told, and nothing is deleted for it.
    pub fn next_part(&mut self) -> Option<NamesPart> {
        loop {
            if let Some(scan) = &mut self.scan {
                match scan.next_part() {
                    Some(part) => return Some(part),
                    None => self.scan = None,
                }
            }
            let path = self.roots.pop_front()?;
            let open = || open_directory(&self.reach, &path, self.follow);
            let opened = descriptors::patiently(open);
            let options = NamesOptions {
                follow: following(&self.reach, &path, self.follow),
                ..self.options.clone()
            };
            self.scan = opened
                .ok()
                .and_then(|(fd, name)| NameScan::new(fd, &name, options).ok());
        }
    }
}

/// What a name came to.
enum WalkOpened {
    Entry(Box<(Entry, Source)>),
    Tree(Box<TreeScan>),
}

#[cfg(test)]
mod tests;
