//! What of a tree is left out, by patterns as git's ignore files have them.
//!
//! Leaves to others: reading the tree. Invariant: the last rule that fits a path
//! decides, a directory that is left out is not gone into, and paths are from the
//! directory that was named.

use crate::error::{Error, Result};
use crate::limits;
use crate::options::FilterRule;
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Rules, compiled.
#[derive(Debug)]
pub struct PathFilter(Gitignore);

impl PathFilter {
    /// `None` where there are no rules.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Usage`]: a pattern that is none, or too many of them.
    pub fn new(rules: &[FilterRule]) -> Result<Option<Self>> {
        if rules.is_empty() {
            return Ok(None);
        }
        let bytes: usize = rules.iter().map(|rule| rule.pattern.len()).sum();
        if rules.len() > limits::FILTERS_MAX || bytes > limits::FILTERS_BYTES_MAX {
            let most = limits::FILTERS_MAX;
            return Err(Error::usage(format!(
                "cannot use these patterns: they are more than {most}, or too long"
            )));
        }
        let mut builder = GitignoreBuilder::new("");
        for rule in rules {
            let bad = |why: &dyn std::fmt::Display| {
                let pattern = rule.pattern.escape_debug();
                Error::usage(format!("\"{pattern}\" is not a pattern: {why}"))
            };
            // What git takes for a comment or for nothing would be left out silently.
            let pattern = rule.pattern.as_str();
            if pattern.trim().is_empty() || pattern.contains(['\n', '\0']) {
                return Err(bad(&"it says nothing, or goes over a line's end"));
            }
            let pattern = match pattern.strip_prefix(['#', '!']) {
                Some(_) => format!("\\{pattern}"),
                None => pattern.to_owned(),
            };
            let line = match rule.excludes {
                true => pattern,
                false => format!("!{pattern}"),
            };
            builder.add_line(None, &line).map_err(|error| bad(&error))?;
        }
        let built = builder.build().map_err(|error| {
            Error::usage(format!("cannot use these patterns together: {error}"))
        })?;
        Ok(Some(Self(built)))
    }

    /// True where that path, relative to the directory that was named, is left out.
    #[must_use]
    pub fn excludes(&self, path: &[u8], is_directory: bool) -> bool {
        let path = Path::new(OsStr::from_bytes(path));
        self.0.matched(path, is_directory).is_ignore()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(rules: &[&str]) -> Result<Option<PathFilter>> {
        let rules: Vec<FilterRule> = rules
            .iter()
            .map(|rule| FilterRule {
                excludes: !rule.starts_with('+'),
                pattern: rule.trim_start_matches('+').to_owned(),
            })
            .collect();
        PathFilter::new(&rules)
    }

    #[test]
    fn the_last_rule_that_fits_decides() {
        let filter = filter(&[
            "*.log",
            "+keep.log",
            "/top",
            "cache/",
            "a/**/b",
            "#odd",
            "!odd",
        ]);
        let filter = filter.expect("patterns").expect("some");
        for (path, is_directory, excluded) in [
            ("x.log", false, true),
            ("deep/x.log", false, true),
            ("deep/keep.log", false, false),
            ("top", false, true),
            ("deep/top", false, false),
            ("deep/cache", true, true),
            ("deep/cache", false, false),
            ("a/x/y/b", false, true),
            ("#odd", false, true),
            ("!odd", false, true),
            ("plain", false, false),
        ] {
            let found = filter.excludes(path.as_bytes(), is_directory);
            assert_eq!(found, excluded, "{path}");
        }
        assert!(!filter.excludes(b"\xff\xfe", false));
        assert!(filter.excludes(b"\xff.log", false));
    }

    #[test]
    fn what_is_no_pattern_is_said() {
        assert!(matches!(filter(&[]), Ok(None)));
        for bad in ["", "  ", "[z-a]", "a\nb", "{a"] {
            let error = filter(&[bad]).expect_err(bad);
            assert_eq!(error.kind, crate::error::ErrorKind::Usage, "{bad}");
        }
        let many = vec!["a"; limits::FILTERS_MAX + 1];
        assert!(filter(&many).is_err());
    }
}
