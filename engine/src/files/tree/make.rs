//! The directories of an offer at the receiver: opened, or made.
//!
//! Leaves to others: what goes into them, and their own metadata, which comes last.
//! Invariant: no link is followed on the way to one, so that nothing leads outside
//! the target; only those are held that entries lie in, besides those of the offer
//! before.

use crate::error::{Error, Result, Side};
use crate::files::folder::HeldFolder;
use crate::files::place::{self, Place, ResolvedTarget, display_in};
use crate::protocol::wire::{Folder, FolderId, Offer};
use std::collections::HashMap;
use std::sync::Arc;

/// Directories that are held between one offer and the next, by their paths.
#[derive(Default)]
pub struct TargetFolders(HashMap<Vec<u8>, Arc<HeldFolder>>);

/// Where entries of one offer go.
pub struct OfferFolders {
    /// By number; none of those that nothing lies in.
    found: Vec<Option<Result<Arc<HeldFolder>>>>,
    displays: Vec<String>,
    /// Those that are missing and not made.
    left_out: Vec<bool>,
}

impl TargetFolders {
    /// Those that the entries of `offer` lie in.
    ///
    /// One that is missing is made if `makes`, else what lies in it is left out.
    pub fn of_offer(
        &mut self,
        target: &ResolvedTarget,
        offer: &Offer,
        makes: bool,
    ) -> OfferFolders {
        let (folders, wanted) = (&offer.folders, uses(offer));
        let mut waiting = needed_inside(folders, &wanted);
        let mut paths: Vec<Vec<u8>> = vec![Vec::new()];
        let mut found: Vec<Option<Result<Arc<HeldFolder>>>> = vec![None];
        let mut displays = vec![target.display().to_owned()];
        let mut kept = HashMap::new();
        let mut left_out = vec![false];
        for (number, folder) in (1..).zip(folders) {
            let parent = folder.parent as usize;
            let name = own_name(target, folder);
            let mut path = paths[parent].clone();
            path.extend_from_slice(&folder.name);
            path.push(b'/');
            displays.push(match (folder.parent, target.name()) {
                (0, Some(_)) => target.display().to_owned(),
                _ => display_in(&displays[parent], &folder.name),
            });
            let is_needed = wanted[number] || waiting[number] > 0;
            let mut is_left_out = left_out[parent];
            found.push(is_needed.then(|| match self.0.get(&path) {
                Some(held) => Ok(held.clone()),
                None => {
                    let parent = match (folder.parent, &found[parent]) {
                        (0, _) => Ok(target.folder().clone()),
                        (_, Some(parent)) => parent.clone(),
                        (_, None) => Err(lost(&displays[parent])),
                    };
                    parent.and_then(|parent| {
                        let place = Place::of(parent, name, displays[number].clone())?;
                        let place = place.written_by(target.claimant());
                        if !makes && !is_left_out && place.would_be_made()? {
                            is_left_out = true;
                        }
                        match is_left_out {
                            true => Err(lost(&displays[number])),
                            false => place::open_or_make(&place),
                        }
                    })
                }
            }));
            left_out.push(is_left_out);
            // One that only led to others is let go of with the last of them.
            if is_needed {
                waiting[parent] -= 1;
                if waiting[parent] == 0 && !wanted[parent] {
                    found[parent] = None;
                }
            }
            if let (true, Some(Ok(held))) = (wanted[number], &found[number]) {
                kept.insert(path.clone(), held.clone());
            }
            paths.push(path);
        }
        self.0 = kept;
        OfferFolders {
            found,
            displays,
            left_out,
        }
    }
}

/// Which folders entries lie in.
fn uses(offer: &Offer) -> Vec<bool> {
    let count = offer.folders.len() + 1;
    let mut wanted = vec![false; count];
    for entry in &offer.entries {
        wanted[entry.folder as usize] = true;
        if let crate::protocol::wire::EntryKind::HardLink(first, _) = &entry.kind {
            wanted[first.folder as usize] = true;
        }
    }
    wanted
}

/// How many folders that are needed lie in each.
fn needed_inside(folders: &[Folder], wanted: &[bool]) -> Vec<usize> {
    let mut waiting = vec![0; folders.len() + 1];
    for (at, folder) in folders.iter().enumerate().rev() {
        let number = at + 1;
        if wanted[number] || waiting[number] > 0 {
            waiting[folder.parent as usize] += 1;
        }
    }
    waiting
}

/// Its name at the target, which may have another for what is copied.
fn own_name<'a>(target: &'a ResolvedTarget, folder: &'a Folder) -> &'a [u8] {
    match (folder.parent, target.name()) {
        (0, Some(name)) => name,
        _ => &folder.name,
    }
}

/// A fault of haul: folders are found before those in them.
fn lost(display: &str) -> Error {
    Error::local(format!("cannot write into {display}"), "it was let go of").at(Side::Receiver)
}

impl OfferFolders {
    /// True where nothing is put into that folder, as it is missing.
    #[must_use]
    pub fn is_left_out(&self, folder: FolderId) -> bool {
        self.left_out.get(folder as usize).is_some_and(|is| *is)
    }

    /// Where `name` in that folder goes.
    ///
    /// # Errors
    /// The folder cannot be made or opened; the name is no plain one.
    pub fn place(&self, target: &ResolvedTarget, folder: FolderId, name: &[u8]) -> Result<Place> {
        if folder == 0 {
            return target.place_of(name);
        }
        match self.found.get(folder as usize) {
            Some(Some(Ok(held))) => {
                let display = &self.displays[folder as usize];
                let place = Place::inside(held.clone(), name, display)?;
                Ok(place.written_by(target.claimant()))
            }
            Some(Some(Err(error))) => Err(error.clone()),
            _ => Err(lost(target.display())),
        }
    }
}
