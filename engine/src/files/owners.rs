//! Users and groups between two machines: by name where both know it.
//!
//! Leaves to others: who may give a file away. Invariant: each number is looked up
//! once, as a name service may be far away.

use crate::protocol::wire::{IdName, Ownership};
use nix::unistd::{Gid, Group, Uid, User};
use std::collections::HashMap;
use std::os::unix::ffi::OsStringExt;

/// The names of the users and groups that were met.
#[derive(Default)]
pub struct OwnerNames {
    users: HashMap<u32, Option<Vec<u8>>>,
    groups: HashMap<u32, Option<Vec<u8>>>,
}

impl OwnerNames {
    /// What the user is called here.
    pub fn user(&mut self, id: u32) -> Option<IdName> {
        let find = || {
            let user = User::from_uid(Uid::from_raw(id)).ok().flatten()?;
            Some(user.name.into_bytes())
        };
        let name = self.users.entry(id).or_insert_with(find).clone()?;
        Some(IdName { id, name })
    }

    /// What the group is called here.
    pub fn group(&mut self, id: u32) -> Option<IdName> {
        let find = || {
            let group = Group::from_gid(Gid::from_raw(id)).ok().flatten()?;
            Some(group.name.into_bytes())
        };
        let name = self.groups.entry(id).or_insert_with(find).clone()?;
        Some(IdName { id, name })
    }
}

/// The numbers here of users and groups of the other machine.
#[derive(Default)]
pub struct OwnerIds {
    users: HashMap<Vec<u8>, Option<u32>>,
    groups: HashMap<Vec<u8>, Option<u32>>,
}

impl OwnerIds {
    /// Whose number `owner` is here: by the names that its offer tells, else by number.
    pub fn here(&mut self, owner: Ownership, users: &[IdName], groups: &[IdName]) -> Ownership {
        let name_of = |ids: &[IdName], id| {
            let found = ids.iter().find(|one| one.id == id);
            found.map(|one| one.name.clone())
        };
        let text = |name: &[u8]| {
            let name = std::ffi::OsString::from_vec(name.to_vec());
            name.into_string().ok()
        };
        let user = name_of(users, owner.user).and_then(|name| {
            let find = || {
                let user = User::from_name(&text(&name)?).ok().flatten()?;
                Some(user.uid.as_raw())
            };
            *self.users.entry(name.clone()).or_insert_with(find)
        });
        let group = name_of(groups, owner.group).and_then(|name| {
            let find = || {
                let group = Group::from_name(&text(&name)?).ok().flatten()?;
                Some(group.gid.as_raw())
            };
            *self.groups.entry(name.clone()).or_insert_with(find)
        });
        Ownership {
            user: user.unwrap_or(owner.user),
            group: group.unwrap_or(owner.group),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_both_know_decides() {
        let mut names = OwnerNames::default();
        let root = names.user(0).expect("every machine has root");
        assert_eq!(root.name, b"root");
        assert_eq!(names.user(4_000_000_000), None);
        let mut ids = OwnerIds::default();
        // Number 77 was called root there.
        let there = IdName {
            id: 77,
            ..root.clone()
        };
        let owner = Ownership {
            user: 77,
            group: 78,
        };
        let unknown = IdName {
            id: 78,
            name: b"no such group \xff".to_vec(),
        };
        let here = ids.here(
            owner,
            std::slice::from_ref(&there),
            std::slice::from_ref(&unknown),
        );
        assert_eq!(here, Ownership { user: 0, group: 78 });
        assert_eq!(ids.here(owner, &[], &[]), owner);
    }
}
