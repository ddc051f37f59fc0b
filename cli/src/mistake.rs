//! What is said of a command line that cannot be understood.
//!
//! Leaves to others: the definition of the options. Invariant: one sentence,
//! which says what would be understood where that can be known.

use crate::arguments::used_command;
use clap::error::{ContextKind, ContextValue, ErrorKind as ClapKind};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

/// A refusal of clap's in one sentence, with its tip as the cure; `typed` is
/// the command line.
#[must_use]
pub fn sentence(error: &clap::Error, typed: &[OsString]) -> String {
    let rendered = error.render().to_string();
    let first = rendered.split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = first.split_whitespace().collect();
    let whole = words.join(" ");
    let mut sentence = match error.kind() {
        ClapKind::MissingSubcommand => "no subcommand was given".to_owned(),
        _ => whole.strip_prefix("error: ").unwrap_or(&whole).to_owned(),
    };
    match error.get(ContextKind::SuggestedArg) {
        Some(ContextValue::String(similar)) => sentence += &format!("; did you mean {similar}?"),
        _ => match error.get(ContextKind::SuggestedSubcommand) {
            Some(ContextValue::Strings(similar)) if !similar.is_empty() => {
                sentence += &format!("; did you mean {}?", similar.join(" or "));
            }
            _ => {
                if let Some(tip) = word_tip(error, typed) {
                    sentence += &format!("; {tip}");
                }
                sentence += &format!("; see {} --help", used_command(typed));
            }
        },
    }
    sentence
}

/// What to write instead of a word that looks like an option and is none.
fn word_tip(error: &clap::Error, typed: &[OsString]) -> Option<String> {
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidArg) else {
        return None;
    };
    if error.kind() != ClapKind::UnknownArgument || !word.starts_with('-') {
        return None;
    }
    if word[1..].starts_with(|c: char| c.is_ascii_digit()) {
        return Some("no option takes a number below zero".to_owned());
    }
    // Of "-dash" clap names "-d" only.
    let whole = typed
        .iter()
        .find(|other| other.as_bytes().starts_with(word.as_bytes()))
        .map_or(word.clone(), |whole| whole.display().to_string());
    (used_command(typed) == "haul copy")
        .then(|| format!("write ./{whole} for a file of that name, or -- before the first SOURCE"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::Arguments;
    use clap::Parser;

    fn told(line: &str) -> String {
        let typed: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let error = Arguments::try_parse_from(&typed).expect_err("a mistake");
        sentence(&error, &typed)
    }

    #[test]
    fn a_source_that_looks_like_an_option_has_another_spelling() {
        let told = told("haul copy -dash there");
        assert_eq!(
            told,
            "unexpected argument '-d' found; write ./-dash for a file of that name, or -- before \
             the first SOURCE; see haul copy --help"
        );
        let like = self::told("haul copy --jsn a b");
        assert!(like.ends_with("did you mean --json?"), "{like}");
        assert!(Arguments::try_parse_from(["haul", "copy", "--", "-dash", "there"]).is_ok());
    }

    #[test]
    fn no_number_is_below_zero() {
        for line in [
            "haul copy a -n -1 b",
            "haul copy --limit-rate -5 a b",
            "haul bench --seconds -3",
        ] {
            let told = told(line);
            assert!(
                told.contains("no option takes a number below zero"),
                "{told}"
            );
        }
    }
}
