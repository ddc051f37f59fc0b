//! What is copied of trees and entries: the options of `haul copy` for that.
//!
//! Leaves to others: the tree itself (the engine). Invariant: patterns keep the order
//! in which they were typed, files of them included, since the last that fits decides.

use crate::verify::DigestName;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, ValueEnum, value_parser};
use haul_engine::Error;
use haul_engine::error::why;
use haul_engine::options::{
    DeleteRules, DigestKind, FilterRule, PassOver, Reflink, TargetRules, TreeOptions,
};
use std::path::PathBuf;

/// What is copied of each entry, and what is passed over.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Entries")]
pub struct EntryOptions {
    /// Send files of the same size and time, too, instead of passing them over
    #[arg(short = 'I', long)]
    pub ignore_times: bool,
    /// Compare files by digests of their content, which both ends read, not by size and time
    #[arg(short, long, conflicts_with = "ignore_times")]
    pub checksum: bool,
    /// Make nothing that the target has not
    #[arg(long)]
    pub existing: bool,
    /// Replace nothing that the target has
    #[arg(long)]
    pub ignore_existing: bool,
    /// Leave files alone that are newer in the target
    #[arg(short, long)]
    pub update: bool,
    /// Leave owners and groups as they come
    #[arg(long)]
    pub no_owner: bool,
    /// Keep owners and groups by number, not by name
    #[arg(long, conflicts_with = "no_owner")]
    pub numeric_ids: bool,
    /// Leave extended attributes, access control lists and capabilities out
    #[arg(long)]
    pub no_xattrs: bool,
    /// Leave directories on other file systems empty
    #[arg(short = 'x', long)]
    pub one_file_system: bool,
    /// Copy what symbolic links lead to in their place (from a server: below its root)
    #[arg(short = 'L', long)]
    pub follow: bool,
    /// Copy what FILE names of SOURCE, a directory: a name a line, - is standard input; a
    /// directory alone, or with all that is in it where a slash ends its name
    #[arg(long, value_name = "FILE", conflicts_with = "delete")]
    pub files_from: Option<PathBuf>,
    /// With --files-from: names end in NUL, as those of find -print0
    #[arg(short = '0', long, requires = "files_from")]
    pub null: bool,
    /// Let what is of another kind in the target give way: a directory, with all that is
    /// in it, to a file, link or special file, and any of these to a directory
    #[arg(long)]
    pub force: bool,
    /// Delete in the end what the target's directories have and the source's have not;
    /// what is of another kind gives way as with --force
    #[arg(long)]
    pub delete: bool,
    /// With --delete: nothing where more than N files and directories would go, those
    /// counted that gave way; and without --force no more than N give way
    #[arg(long, value_name = "N", requires = "delete")]
    pub max_delete: Option<u64>,
    /// With --delete: also what --exclude leaves out
    #[arg(long, requires = "delete")]
    pub delete_excluded: bool,
    /// With --delete: also all of a target whose source is empty
    #[arg(long, requires = "delete")]
    pub delete_everything: bool,
    /// Write a line for each file that the target holds in the end: its digest and its path
    /// there, for haul verify or b3sum --check; as JSON where FILE ends in .jsonl
    #[arg(long, value_name = "FILE", conflicts_with = "dry_run")]
    pub manifest: Option<PathBuf>,
    /// With --manifest: BLAKE3 is made while the bytes land, for SHA-256 each file is read
    /// back
    #[arg(
        long,
        value_name = "KIND",
        value_enum,
        default_value = "blake3",
        requires = "manifest"
    )]
    pub digest: DigestName,
    /// Touch nothing: list what would be made, sent, replaced, corrected and deleted
    #[arg(long)]
    pub dry_run: bool,
    /// Share blocks with the source instead of copying bytes, within one file system
    #[arg(
        long,
        value_name = "auto|always|never",
        value_enum,
        default_value = "auto",
        hide_possible_values = true
    )]
    pub reflink: ReflinkName,
    /// Count files that vanish while the copy runs as failed
    #[arg(long)]
    pub strict: bool,
    /// What is left out.
    #[command(flatten)]
    pub patterns: Patterns,
}

/// `--reflink`'s values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReflinkName {
    /// Where it is possible, but not with --verify.
    Auto,
    /// Or the file fails.
    Always,
    /// No file does.
    Never,
}

impl EntryOptions {
    /// Whether files share their blocks with their sources.
    #[must_use]
    pub fn reflink(&self) -> Reflink {
        match self.reflink {
            ReflinkName::Auto => Reflink::Auto,
            ReflinkName::Always => Reflink::Always,
            ReflinkName::Never => Reflink::Never,
        }
    }

    /// As the engine takes them.
    ///
    /// # Errors
    /// A file of patterns cannot be read.
    pub fn tree(&self) -> Result<TreeOptions, Error> {
        Ok(TreeOptions {
            owners: !self.no_owner,
            numeric_ids: self.numeric_ids,
            attributes: !self.no_xattrs,
            one_file_system: self.one_file_system,
            follow: self.follow,
            listed: false,
            filters: self.patterns.rules()?,
        })
    }

    /// The digest that each file's end tells.
    #[must_use]
    pub fn digest(&self) -> Option<DigestKind> {
        self.manifest.as_ref().map(|_| self.digest.into())
    }

    /// What is written, by what the target has.
    #[must_use]
    pub fn rules(&self) -> TargetRules {
        TargetRules {
            pass_over: match (self.ignore_times, self.checksum) {
                (true, _) => PassOver::Nothing,
                (_, true) => PassOver::SameContent,
                _ => PassOver::Unchanged,
            },
            only_existing: self.existing,
            only_missing: self.ignore_existing,
            only_older: self.update,
            deletes: self.delete.then_some(DeleteRules {
                count_max: self.max_delete,
                left_out: self.delete_excluded,
                everything: self.delete_everything,
                only_tell: self.dry_run,
            }),
            force: self.force,
            only_tell: self.dry_run,
        }
    }
}

/// One option of what is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Typed {
    Exclude(String),
    Include(String),
    ExcludeFrom(PathBuf),
}

/// All of them, in order.
#[derive(Clone, Debug, Default)]
pub struct Patterns(Vec<Typed>);

impl Patterns {
    fn rules(&self) -> Result<Vec<FilterRule>, Error> {
        let mut rules = Vec::new();
        let rule = |pattern: &str, excludes| FilterRule {
            pattern: pattern.to_owned(),
            excludes,
        };
        for typed in &self.0 {
            match typed {
                Typed::Exclude(pattern) => rules.push(rule(pattern, true)),
                Typed::Include(pattern) => rules.push(rule(pattern, false)),
                Typed::ExcludeFrom(path) => {
                    let read = std::fs::read_to_string(path).map_err(|error| {
                        let doing = format!("cannot read the patterns in {}", path.display());
                        Error::local(doing, why(error))
                    })?;
                    // As git reads it: comments, empty lines, and "!" for what is taken.
                    let lines = read.lines().filter(|line| !line.trim().is_empty());
                    for line in lines.filter(|line| !line.starts_with('#')) {
                        rules.push(match line.strip_prefix('!') {
                            Some(pattern) => rule(pattern, false),
                            None => rule(line, true),
                        });
                    }
                }
            }
        }
        Ok(rules)
    }
}

/// The options' names, and what each takes and does.
const OPTIONS: [(&str, &str, &str); 3] = [
    (
        "exclude",
        "PATTERN",
        "Leave out what fits PATTERN, as in a .gitignore; the last that fits decides",
    ),
    (
        "include",
        "PATTERN",
        "Take what fits PATTERN, whatever an earlier --exclude says",
    ),
    (
        "exclude-from",
        "FILE",
        "Patterns from FILE, a line each; ! takes, # comments",
    ),
];

impl Args for Patterns {
    fn augment_args(command: Command) -> Command {
        OPTIONS
            .iter()
            .fold(command, |command, (name, takes, help)| {
                let arg = Arg::new(*name).long(*name).value_name(*takes).help(*help);
                let arg = arg.action(ArgAction::Append);
                command.arg(match *takes {
                    "FILE" => arg.value_parser(value_parser!(PathBuf)),
                    _ => arg,
                })
            })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Patterns {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut all: Vec<(usize, Typed)> = Vec::new();
        let mut add = |name: &str, typed: Vec<Typed>| {
            let places = matches.indices_of(name).into_iter().flatten();
            all.extend(places.zip(typed));
        };
        let texts = |name: &str| -> Vec<String> {
            let values = matches.get_many::<String>(name);
            values.into_iter().flatten().cloned().collect()
        };
        let files = matches.get_many::<PathBuf>("exclude-from");
        let files: Vec<PathBuf> = files.into_iter().flatten().cloned().collect();
        add(
            "exclude",
            texts("exclude").into_iter().map(Typed::Exclude).collect(),
        );
        add(
            "include",
            texts("include").into_iter().map(Typed::Include).collect(),
        );
        add(
            "exclude-from",
            files.into_iter().map(Typed::ExcludeFrom).collect(),
        );
        all.sort_by_key(|(place, _)| *place);
        Ok(Self(all.into_iter().map(|(_, typed)| typed).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        entries: EntryOptions,
    }

    #[test]
    fn patterns_keep_the_order_in_which_they_were_typed() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("patterns");
        std::fs::write(&file, "# a comment\n\n*.tmp\n!kept.tmp\n").expect("written");
        let from = file.to_str().expect("text");
        let line = [
            "x",
            "--include",
            "a",
            "--exclude",
            "b",
            "--exclude-from",
            from,
        ];
        let line = line.into_iter().chain(["--include", "c", "--exclude=d"]);
        let entries = Line::try_parse_from(line).expect("parsed").entries;
        let rules = entries.tree().expect("read").filters;
        let told: Vec<_> = rules
            .iter()
            .map(|rule| (rule.pattern.as_str(), rule.excludes))
            .collect();
        let wanted = [
            ("a", false),
            ("b", true),
            ("*.tmp", true),
            ("kept.tmp", false),
            ("c", false),
            ("d", true),
        ];
        assert_eq!(told, wanted);
        let missing = Line::try_parse_from(["x", "--exclude-from", "/no/such/file"]);
        let error = missing
            .expect("parsed")
            .entries
            .tree()
            .expect_err("missing");
        assert!(error.sentence.contains("/no/such/file"), "{error}");
    }
}
