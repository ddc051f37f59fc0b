//! Credit: how many descriptors the files of a transfer may take at both ends.
//!
//! Leaves to others: opening and closing. Invariant: what the segments weigh
//! that are offered and not done never exceeds what the receiver allowed, and
//! both ends weigh an entry alike, from what its offer says of it.

use super::wire::{ByteRange, Data, Entry, EntryKind, FolderId, Offer, Verdict};
use super::{SegmentId, Violation};
use crate::limits;
use std::collections::BTreeMap;

/// Descriptors that an entry may take at either end: the file, the same file
/// opened past the page cache, and its directory, unless the entry before it, which
/// lies in `before`, has that already.
#[must_use]
pub fn descriptors_of(entry: &Entry, before: FolderId) -> u32 {
    let is_direct = entry.kind == EntryKind::File && entry.size >= limits::DIRECT_BYTES_MIN;
    let has_directory = entry.folder != 0 && entry.folder != before;
    u32::from(entry.kind.has_bytes()) + u32::from(is_direct) + u32::from(has_directory)
}

/// What all entries of a segment take.
#[must_use]
pub fn descriptors_of_all(entries: &[Entry]) -> u32 {
    let mut before = 0;
    let take = |entry: &Entry| descriptors_of(entry, std::mem::replace(&mut before, entry.folder));
    entries.iter().map(take).fold(0, u32::saturating_add)
}

/// What an offer takes of memory while it is open, about.
#[must_use]
pub fn bytes_of(offer: &Offer) -> usize {
    let folders = offer.folders.iter().map(|folder| folder.name.len() + 64);
    let entries = offer.entries.iter().map(|entry| {
        let ranges = match &entry.data {
            Data::Everywhere => 0,
            Data::Ranges(ranges) => ranges.len(),
        };
        entry.names_bytes() + ENTRY_BYTES + ranges * size_of::<ByteRange>()
    });
    folders.chain(entries).sum()
}

/// What an entry takes besides its names.
const ENTRY_BYTES: usize = 256;

/// What an open segment takes.
#[derive(Clone, Copy, Debug, Default)]
struct SegmentWeight {
    descriptors: u32,
    bytes: usize,
}

/// The descriptors of the segments that are offered and not done.
#[derive(Debug)]
pub struct Credit {
    /// This end's own files may take so many.
    own: u32,
    /// And the peer's.
    peer: u32,
    /// The peer said so, and what it does with offers.
    is_agreed: bool,
    open: u32,
    bytes: usize,
    by_segment: BTreeMap<SegmentId, SegmentWeight>,
}

impl Credit {
    /// Nothing is open. Each end allows [`limits::DESCRIPTORS_FIRST`] at least.
    #[must_use]
    pub fn new(own: u32, peer: u32) -> Self {
        Self {
            own: own.max(limits::DESCRIPTORS_FIRST),
            peer: peer.max(limits::DESCRIPTORS_FIRST),
            is_agreed: peer > 0,
            open: 0,
            bytes: 0,
            by_segment: BTreeMap::new(),
        }
    }

    /// The peer said how many it allows.
    pub fn allow(&mut self, peer: u32) {
        self.peer = peer.max(limits::DESCRIPTORS_FIRST);
        self.is_agreed = true;
    }

    /// Segments that may be open: a peer that has not begun keeps fewer words.
    #[must_use]
    pub fn segments_max(&self) -> usize {
        match self.is_agreed {
            true => limits::SEGMENTS_OPEN_MAX,
            false => limits::SEGMENTS_AT_WORK,
        }
    }

    /// This end has no more than are open now: others took what it counted on.
    pub fn shrink(&mut self) {
        self.own = self.own.min(self.open).max(limits::DESCRIPTORS_FIRST);
    }

    /// What the next segment may take besides `kept`, which waits to be offered;
    /// 0 until more are given back. A part of the whole, so that several are
    /// under way: one is opened while another moves and a third is sealed.
    #[must_use]
    pub fn room(&self, kept: u32) -> u32 {
        let most = self.own.min(self.peer);
        let part = (most / limits::SEGMENTS_AT_WORK as u32).max(limits::ENTRY_DESCRIPTORS_MAX);
        let is_full = self.bytes + limits::OFFERS_BYTES_MAX / limits::SEGMENTS_AT_WORK
            > limits::OFFERS_BYTES_MAX;
        if is_full || most.saturating_sub(self.open.saturating_add(kept)) < part {
            0
        } else {
            part
        }
    }

    /// True when the peer allows it now.
    #[must_use]
    pub fn allows(&self, offer: &Offer) -> bool {
        let open = self.open.saturating_add(descriptors_of_all(&offer.entries));
        // What was cut to a smaller part was cut for this.
        open <= self.peer
            && self.by_segment.len() < self.segments_max()
            && self.bytes + bytes_of(offer) <= limits::OFFERS_BYTES_MAX
    }

    /// The segment is offered.
    pub fn take(&mut self, offer: &Offer) {
        let weight = SegmentWeight {
            descriptors: descriptors_of_all(&offer.entries),
            bytes: bytes_of(offer),
        };
        self.open = self.open.saturating_add(weight.descriptors);
        self.bytes += weight.bytes;
        self.by_segment.insert(offer.segment, weight);
    }

    /// The segment is answered: files of which nothing is wanted are open at neither
    /// end, but for the directories that they lie in.
    pub fn answered(&mut self, offer: &Offer, verdicts: &[Verdict]) {
        let mut before = 0;
        let mut unwanted: u32 = 0;
        for (entry, verdict) in offer.entries.iter().zip(verdicts) {
            let all = descriptors_of(entry, before);
            let of_directory = u32::from(entry.folder != 0 && entry.folder != before);
            if !verdict.is_wanted() {
                unwanted = unwanted.saturating_add(all - of_directory);
            }
            before = entry.folder;
        }
        if let Some(weight) = self.by_segment.get_mut(&offer.segment) {
            weight.descriptors = weight.descriptors.saturating_sub(unwanted);
            self.open = self.open.saturating_sub(unwanted);
        }
    }

    /// The segment is offered by the peer.
    ///
    /// # Errors
    /// It takes more than this end allowed.
    pub fn grant(&mut self, offer: &Offer) -> Result<(), Violation> {
        if self.by_segment.len() >= limits::SEGMENTS_OPEN_MAX
            || self.bytes + bytes_of(offer) > limits::OFFERS_BYTES_MAX
        {
            return Err(Violation::new(
                format!("at most {} open segments", limits::SEGMENTS_OPEN_MAX),
                "an offer of one more, or of one that is too large beside the others",
            ));
        }
        let open = self.open.saturating_add(descriptors_of_all(&offer.entries));
        if open > self.own {
            return Err(Violation::new(
                format!("files of at most {} descriptors at once", self.own),
                format!("an offer of files that take {open} in all"),
            ));
        }
        self.take(offer);
        Ok(())
    }

    /// The segment is done.
    pub fn give_back(&mut self, segment: SegmentId) {
        let weight = self.by_segment.remove(&segment).unwrap_or_default();
        self.open = self.open.saturating_sub(weight.descriptors);
        self.bytes = self.bytes.saturating_sub(weight.bytes);
    }
}

/// The cut of one segment: entries are added until one more might not fit.
#[derive(Debug)]
pub struct Cut {
    room: u32,
    entries: usize,
    folders: usize,
    /// That of the last entry.
    folder: FolderId,
    names_bytes: usize,
    data_ranges: usize,
    is_stream: bool,
}

impl Cut {
    /// An empty segment that may take `room` descriptors.
    #[must_use]
    pub fn new(room: u32) -> Self {
        Self {
            room,
            entries: 0,
            folders: 0,
            folder: 0,
            names_bytes: 0,
            data_ranges: 0,
            is_stream: false,
        }
    }

    /// True when another entry fits, whatever it is; a stream only where
    /// nothing else is. `folders_ahead` are those that it may bring with it, at most,
    /// and a link's first name besides.
    #[must_use]
    pub fn takes(&self, kind: &EntryKind, folders_ahead: usize) -> bool {
        let is_alone = self.entries == 0;
        let most_bytes = limits::ENTRY_NAMES_BYTES_MAX + folders_ahead * limits::NAME_BYTES_MAX;
        let fits = self.entries < limits::SEGMENT_ENTRIES_MAX
            && self.folders + folders_ahead <= limits::SEGMENT_FOLDERS_MAX
            && self.names_bytes + most_bytes <= limits::SEGMENT_NAMES_BYTES_MAX
            && self.data_ranges + limits::DATA_RANGES_MAX <= limits::SEGMENT_DATA_RANGES_MAX
            && self.room >= limits::ENTRY_DESCRIPTORS_MAX;
        match kind {
            EntryKind::Stream => is_alone,
            _ => !self.is_stream && (is_alone || fits),
        }
    }

    /// Entries that are in it.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.entries
    }

    /// A directory of that name is told of.
    pub fn add_folder(&mut self, name: &[u8]) {
        self.folders += 1;
        self.names_bytes += name.len();
    }

    /// The entry is in the segment.
    pub fn add(&mut self, entry: &Entry) {
        self.entries += 1;
        self.names_bytes += entry.names_bytes();
        if let Data::Ranges(ranges) = &entry.data {
            self.data_ranges += ranges.len();
        }
        self.is_stream |= entry.kind == EntryKind::Stream;
        let taken = descriptors_of(entry, self.folder);
        self.folder = entry.folder;
        self.room = self.room.saturating_sub(taken);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(name: &str, size: u64) -> Entry {
        // "d/a" lies in the directory of number 1.
        let (folder, name) = name
            .split_once('/')
            .map_or((0, name), |(_, name)| (1, name));
        Entry {
            folder,
            name: name.as_bytes().to_vec(),
            kind: EntryKind::File,
            size,
            mode: 0,
            mtime_seconds: 0,
            mtime_nanos: 0,
            data: Data::Everywhere,
            ..Entry::default()
        }
    }

    fn offer(segment: SegmentId, entries: Vec<Entry>) -> Offer {
        Offer {
            transfer: crate::protocol::TransferId([1; 16]),
            segment,
            last: false,
            folders: Vec::new(),
            entries,
            users: Vec::new(),
            groups: Vec::new(),
        }
    }

    #[test]
    fn an_entry_weighs_what_it_may_open() {
        assert_eq!(descriptors_of(&entry("a", 0), 0), 1);
        assert_eq!(descriptors_of(&entry("a", limits::DIRECT_BYTES_MIN), 0), 2);
        assert_eq!(
            descriptors_of(&entry("d/a", limits::DIRECT_BYTES_MIN), 0),
            3
        );
        let stream = Entry {
            kind: EntryKind::Stream,
            ..entry("a", 0)
        };
        assert_eq!(descriptors_of(&stream, 0), 1);
    }

    #[test]
    fn the_smaller_end_bounds_what_is_open() {
        let mut credit = Credit::new(80, 0);
        // Nothing was said yet, and one entry of any kind fits all the same.
        assert_eq!(credit.room(0), limits::ENTRY_DESCRIPTORS_MAX);
        credit.allow(40);
        assert_eq!(credit.room(0), 5);
        let first = offer(0, vec![entry("a", 0); 36]);
        assert!(credit.allows(&first));
        credit.take(&first);
        assert_eq!(credit.room(0), 0, "a whole part is waited for");
        assert!(!credit.allows(&offer(1, vec![entry("a", 0); 5])));
        credit.give_back(0);
        assert_eq!(credit.room(0), 5);
    }

    #[test]
    fn what_is_not_wanted_makes_room_when_it_is_answered() {
        let (mut credit, mut far) = (Credit::new(40, 40), Credit::new(40, u32::MAX));
        let mut entries = vec![entry("d/a", 0); 38];
        entries.push(entry("d/a", limits::DIRECT_BYTES_MIN));
        // 38 files, their directory, and one.
        let first = offer(0, entries[..39].to_vec());
        credit.take(&offer(0, entries[..38].to_vec()));
        assert_eq!(far.grant(&offer(0, entries[..38].to_vec())), Ok(()));
        assert_eq!(credit.room(0), 0);
        let mut verdicts = vec![Verdict::Skip; 38];
        verdicts[7] = Verdict::Whole;
        credit.answered(&offer(0, first.entries[..38].to_vec()), &verdicts);
        // One file and the directory are left.
        assert!(credit.allows(&offer(1, vec![entry("a", 0); 38])));
        assert!(!credit.allows(&offer(1, vec![entry("a", 0); 39])));
        far.answered(&offer(0, first.entries[..38].to_vec()), &verdicts);
        assert_eq!(far.grant(&offer(1, vec![entry("a", 0); 38])), Ok(()));
        credit.give_back(0);
        assert_eq!(credit.room(0), 5);
    }

    #[test]
    fn offers_take_so_much_memory_and_no_more() {
        let long = "x".repeat(limits::NAME_BYTES_MAX);
        let many = |segment| offer(segment, vec![entry(&long, 0); limits::SEGMENT_ENTRIES_MAX]);
        let mut credit = Credit::new(u32::MAX, u32::MAX);
        let mut segment = 0;
        while credit.allows(&many(segment)) {
            assert_eq!(credit.grant(&many(segment)), Ok(()));
            segment += 1;
        }
        assert!((8..20).contains(&segment), "{segment}");
        assert_eq!(credit.room(0), 0);
        assert!(credit.grant(&many(segment)).is_err());
        // Before the peer said anything fewer words wait there.
        let mut early = Credit::new(u32::MAX, 0);
        for segment in 0..limits::SEGMENTS_AT_WORK as u32 {
            assert!(early.allows(&offer(segment, Vec::new())));
            early.take(&offer(segment, Vec::new()));
        }
        assert!(!early.allows(&offer(99, Vec::new())));
        early.allow(10);
        assert!(early.allows(&offer(99, Vec::new())));
    }

    #[test]
    fn an_end_that_ran_out_goes_on_with_what_it_has() {
        let mut credit = Credit::new(80, 80);
        credit.take(&offer(0, vec![entry("a", 0); 24]));
        credit.shrink();
        assert_eq!(credit.room(0), 0);
        credit.give_back(0);
        assert_eq!(credit.room(0), 3, "of 24");
        credit.shrink();
        assert_eq!(credit.room(0), limits::ENTRY_DESCRIPTORS_MAX);
    }

    #[test]
    fn an_offer_beyond_the_credit_breaks_the_protocol() {
        let mut credit = Credit::new(6, u32::MAX);
        let some = |segment, name, size, count| offer(segment, vec![entry(name, size); count]);
        assert_eq!(credit.grant(&some(0, "a", 0, 4)), Ok(()));
        assert!(credit.grant(&some(1, "d/a", 1 << 40, 1)).is_err());
        assert_eq!(credit.grant(&some(1, "d/a", 0, 1)), Ok(()));
        credit.give_back(0);
        assert_eq!(credit.grant(&some(2, "d/a", 0, 2)), Ok(()));
    }

    #[test]
    fn a_stream_is_alone_and_names_fit_a_message() {
        let mut cut = Cut::new(1000);
        assert!(cut.takes(&EntryKind::Stream, 0));
        cut.add(&entry("a", 0));
        assert!(!cut.takes(&EntryKind::Stream, 0) && cut.takes(&EntryKind::File, 0));
        let long = "x".repeat(limits::PATH_BYTES_MAX);
        let mut names_bytes = 1;
        while cut.takes(&EntryKind::File, 0) {
            cut.add(&entry(&long, 0));
            names_bytes += long.len();
        }
        assert!(names_bytes <= limits::SEGMENT_NAMES_BYTES_MAX);
        let mut stream = Cut::new(1000);
        stream.add(&Entry {
            kind: EntryKind::Stream,
            ..entry("a", 0)
        });
        assert!(!stream.takes(&EntryKind::File, 0));
    }

    proptest! {
        /// Cut by what there is room for, any series of files fits any two
        /// ends, and one that is done always makes room for the next.
        #[test]
        fn segments_that_are_cut_fit_both_ends(
            (own, peer) in (0..300u32, 0..300u32),
            files in prop::collection::vec((any::<bool>(), any::<bool>()), 1..200),
        ) {
            let mut credit = Credit::new(own, peer);
            let mut far = Credit::new(peer, u32::MAX);
            let (mut next, mut oldest) = (0, 0);
            let mut files = files.into_iter().peekable();
            while files.peek().is_some() {
                let room = credit.room(0);
                if room == 0 || next - oldest == credit.segments_max() as u32 {
                    prop_assert!(oldest < next, "there is room where nothing is open");
                    credit.give_back(oldest);
                    far.give_back(oldest);
                    oldest += 1;
                    continue;
                }
                let (mut cut, mut entries) = (Cut::new(room), Vec::new());
                while cut.takes(&EntryKind::File, 0) && let Some((large, deep)) = files.next() {
                    let size = if large { limits::DIRECT_BYTES_MIN } else { 9 };
                    let entry = entry(if deep { "d/a" } else { "a" }, size);
                    cut.add(&entry);
                    entries.push(entry);
                }
                prop_assert!(!entries.is_empty(), "each segment takes one");
                let offer = offer(next, entries);
                prop_assert!(credit.allows(&offer));
                credit.take(&offer);
                prop_assert_eq!(far.grant(&offer), Ok(()));
                next += 1;
            }
        }
    }
}
