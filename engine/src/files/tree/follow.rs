//! Where the links of a tree lead, for those who want what is there in their place.
//!
//! Leaves to others: what is found there. Invariant: below a server's root the kernel
//! walks each link and never leaves the root; the last name that is given is no link.

use crate::error::{Error, Result, Side, why};
use crate::files::beneath::{DIRECTORY, open_below_root};
use crate::files::folder::HeldFolder;
use crate::kernel::descriptors::patiently;
use rustix::fs::{AtFlags, FileType, Mode, Stat};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// Links that lead to links, at most: as the kernel has it.
const LINKS_MAX: usize = 40;

/// Where links are followed.
#[derive(Clone)]
pub enum Following {
    /// Anywhere, for the local user.
    User,
    /// Below a server's root: the path of the tree there, with a slash at its end
    /// unless it is empty.
    Beneath(Arc<OwnedFd>, Vec<u8>),
}

/// What a link led to: a name that is no link, in a directory.
pub struct LinkEnd {
    /// The directory.
    pub folder: Arc<HeldFolder>,
    /// The name in it; "." for the directory itself.
    pub name: Vec<u8>,
    /// What has it.
    pub stat: Stat,
}

impl Following {
    /// Follows the link `name` in `folder`, a directory of that path in the tree.
    ///
    /// # Errors
    /// It leads to nothing, outside, in a circle, or cannot be read.
    pub fn follow(
        &self,
        folder: &Arc<HeldFolder>,
        path: &[u8],
        name: &[u8],
        display: &str,
    ) -> Result<LinkEnd> {
        let mut place = match self {
            Self::User => Vec::new(),
            Self::Beneath(_, tree) => [&tree[..], path].concat(),
        };
        let (mut folder, mut name) = (folder.clone(), name.to_vec());
        for _ in 0..LINKS_MAX {
            let cannot = |doing: &str, errno: Errno| {
                let doing = format!("cannot follow the symbolic link {display}: {doing}");
                Error::local(doing, reason(errno)).at(Side::Sender)
            };
            let text = rustix::fs::readlinkat(&folder, &name[..], Vec::new());
            let text = text.map_err(|errno| cannot("it cannot be read", errno))?;
            let text = text.into_bytes();
            let shown = text.escape_ascii().to_string();
            let leads = format!("it leads to \"{shown}\"");
            let (parent, last) = split(&text);
            place.extend_from_slice(parent);
            let opened = match self {
                Self::User => patiently(|| {
                    rustix::fs::openat(&folder, or_here(parent), DIRECTORY, Mode::empty())
                }),
                Self::Beneath(..) if text.first() == Some(&b'/') => Err(Errno::XDEV),
                Self::Beneath(root, _) => {
                    patiently(|| open_below_root(root.as_fd(), or_here(&place), DIRECTORY))
                }
            };
            let opened = opened.map_err(|errno| cannot(&leads, errno))?;
            folder = Arc::new(HeldFolder::found(opened));
            name = last.to_vec();
            let looked = rustix::fs::statat(&folder, &name[..], AtFlags::SYMLINK_NOFOLLOW);
            let stat = looked.map_err(|errno| cannot(&leads, errno))?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
                return Ok(LinkEnd { folder, name, stat });
            }
        }
        let doing = format!("cannot follow the symbolic link {display}");
        Err(Error::local(doing, "it leads in a circle").at(Side::Sender))
    }
}

/// A link's text as the directory that it leads to, with a slash at its end, and the
/// name there.
fn split(text: &[u8]) -> (&[u8], &[u8]) {
    let slash = text.iter().rposition(|byte| *byte == b'/');
    match slash.map_or((&text[..0], text), |slash| text.split_at(slash + 1)) {
        (_, b"" | b"." | b"..") => (text, b"."),
        split => split,
    }
}

/// The empty path is the directory that it starts from.
fn or_here(path: &[u8]) -> &[u8] {
    match path {
        b"" => b".",
        path => path,
    }
}

fn reason(errno: Errno) -> String {
    match errno {
        Errno::NOENT => "there is nothing".to_owned(),
        Errno::XDEV => "that is outside of the root".to_owned(),
        Errno::LOOP => "that leads in a circle".to_owned(),
        errno => why(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{create_dir_all, write};
    use std::os::unix::fs::symlink;
    use std::path::Path;

    fn held(path: &Path) -> Arc<HeldFolder> {
        Arc::new(HeldFolder::found(
            std::fs::File::open(path).expect("opened").into(),
        ))
    }

    fn size(followed: Result<LinkEnd>) -> std::result::Result<i64, String> {
        followed
            .map(|followed| followed.stat.st_size)
            .map_err(|error| error.sentence)
    }

    #[test]
    fn links_lead_where_the_kernel_says_and_never_outside_a_root() {
        let scratch = tempfile::tempdir().expect("a directory");
        let root = scratch.path().join("root");
        create_dir_all(root.join("tree/deep")).expect("made");
        create_dir_all(root.join("other")).expect("made");
        write(root.join("other/file"), "12345").expect("written");
        write(scratch.path().join("outside"), "123").expect("written");
        let deep = root.join("tree/deep");
        for (name, text) in [
            ("near", "../../other/file"),
            ("again", "near"),
            ("directory", "../../other/"),
            ("up", ".."),
            ("gone", "nowhere"),
            ("circle", "circle"),
            ("out", "../../../outside"),
            ("absolute", "/etc/passwd"),
        ] {
            symlink(text, deep.join(name)).expect("linked");
        }
        let opened = std::fs::File::open(&root).expect("opened");
        let beneath = Following::Beneath(Arc::new(opened.into()), b"tree/".to_vec());
        let folder = held(&deep);
        for following in [Following::User, beneath] {
            let is_user = matches!(following, Following::User);
            let follow = |name: &str| following.follow(&folder, b"deep/", name.as_bytes(), name);
            assert_eq!(size(follow("near")), Ok(5));
            assert_eq!(size(follow("again")), Ok(5));
            let directory = follow("directory").expect("followed");
            assert_eq!(directory.name, b".");
            assert_eq!(
                FileType::from_raw_mode(directory.stat.st_mode),
                FileType::Directory
            );
            assert!(follow("up").is_ok());
            let told = size(follow("gone")).expect_err("nothing there");
            assert!(told.contains("\"nowhere\": there is nothing"), "{told}");
            let told = size(follow("circle")).expect_err("a circle");
            assert!(told.contains("circle"), "{told}");
            for outside in ["out", "absolute"] {
                let found = size(follow(outside));
                match is_user {
                    true => assert!(found.is_ok(), "{outside}: {found:?}"),
                    false => {
                        let told = found.expect_err("outside");
                        assert!(told.contains("outside of the root"), "{told}");
                    }
                }
            }
        }
    }
}
