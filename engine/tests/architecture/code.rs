//! Rust source as the rules see it: comments and literals blanked out, and the
//! names that follow a path's root.
//!
//! Leaves to others: what is allowed. Invariant: blanking keeps every line
//! break, so that a line number here is one in the file.

use std::collections::BTreeSet;

/// The source with comments and the insides of string and character literals
/// replaced by blanks.
pub fn without_comments_and_literals(source: &str) -> String {
    let letters: Vec<char> = source.chars().collect();
    let mut code = String::with_capacity(source.len());
    let mut at = 0;
    while at < letters.len() {
        let end = match (letters[at], letters.get(at + 1)) {
            ('/', Some('/')) => line_comment(&letters, at),
            ('/', Some('*')) => block_comment(&letters, at),
            ('"', _) => string(&letters, at),
            ('\'', _) => character(&letters, at),
            ('r', Some('"' | '#')) if !after_name(&letters, at) => raw_string(&letters, at),
            ('b', Some('r')) if !after_name(&letters, at) => raw_string(&letters, at + 1),
            _ => at,
        };
        if end == at {
            code.push(letters[at]);
            at += 1;
            continue;
        }
        for letter in &letters[at..end] {
            code.push(if *letter == '\n' { '\n' } else { ' ' });
        }
        at = end;
    }
    code
}

fn is_name(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

fn after_name(letters: &[char], at: usize) -> bool {
    at > 0 && is_name(letters[at - 1])
}

fn line_comment(letters: &[char], at: usize) -> usize {
    let rest = letters[at..].iter().position(|letter| *letter == '\n');
    rest.map_or(letters.len(), |length| at + length)
}

fn block_comment(letters: &[char], mut at: usize) -> usize {
    let mut depth = 0;
    while at < letters.len() {
        match (letters[at], letters.get(at + 1)) {
            ('/', Some('*')) => (depth, at) = (depth + 1, at + 2),
            ('*', Some('/')) => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at.min(letters.len())
}

fn string(letters: &[char], mut at: usize) -> usize {
    at += 1;
    while at < letters.len() && letters[at] != '"' {
        at += if letters[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(letters.len())
}

/// A raw string that starts with the 'r' at `at`; `at` itself where it is none,
/// as in `r#type`.
fn raw_string(letters: &[char], at: usize) -> usize {
    let hashes = letters[at + 1..].iter().take_while(|l| **l == '#').count();
    if letters.get(at + 1 + hashes) != Some(&'"') {
        return at;
    }
    let mut inside = at + 2 + hashes;
    while inside < letters.len() {
        let closing = &letters[inside + 1..(inside + 1 + hashes).min(letters.len())];
        if letters[inside] == '"' && closing.len() == hashes && closing.iter().all(|l| *l == '#') {
            return inside + 1 + hashes;
        }
        inside += 1;
    }
    letters.len()
}

/// A character literal that starts at `at`; `at` itself for a lifetime.
fn character(letters: &[char], at: usize) -> usize {
    match (letters.get(at + 1), letters.get(at + 2)) {
        (Some('\\'), _) => {
            let end = letters[at + 3..].iter().position(|letter| *letter == '\'');
            end.map_or(letters.len(), |length| at + length + 4)
        }
        (Some(_), Some('\'')) => at + 3,
        _ => at,
    }
}

/// The code without what is compiled for tests only.
pub fn without_tests(code: &str) -> String {
    let mut kept = String::new();
    let mut left = code;
    while let Some(at) = left.find("#[cfg(test)]") {
        kept.push_str(&left[..at]);
        left = &left[at + item_end(&left[at..])..];
    }
    kept.push_str(left);
    kept
}

/// Where the item that `code` begins with ends: at its block's brace, or at
/// the semicolon of one that has none.
fn item_end(code: &str) -> usize {
    let mut depth = 0_usize;
    for (at, letter) in code.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 && matches!(letter, '}' | ';') {
            return at + 1;
        }
    }
    code.len()
}

/// The types and traits that `code` defines; no alias inside an `impl`, which is
/// indented.
pub fn types(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in code.lines() {
        let words: Vec<&str> = line
            .split(|letter: char| !is_name(letter))
            .filter(|word| !word.is_empty())
            .take_while(|word| *word != "fn")
            .collect();
        let is_top = !line.starts_with(' ');
        for pair in words.windows(2) {
            let defines = match pair[0] {
                "struct" | "enum" | "trait" => true,
                "type" => is_top,
                _ => false,
            };
            if defines {
                found.push(pair[1].to_owned());
            }
        }
    }
    found
}

/// The names in `code`: every run of letters, digits and underscores.
pub fn names(code: &str) -> BTreeSet<&str> {
    code.split(|letter: char| !is_name(letter))
        .filter(|name| !name.is_empty())
        .collect()
}

/// The names that directly follow `root::` anywhere in `code`, those in a
/// group `root::{a, b::c}` included.
pub fn children(code: &str, root: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let needle = format!("{root}::");
    for (at, _) in code.match_indices(&needle) {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|letter| is_name(letter) || letter == ':') {
            continue;
        }
        let rest = code[at + needle.len()..].trim_start();
        match rest.strip_prefix('{') {
            Some(group) => found.extend(group_heads(group)),
            None => found.extend([head(rest)]),
        }
    }
    found.remove("");
    found
}

/// The names that follow a chain of at least two `super::`.
pub fn beyond_supers(code: &str) -> BTreeSet<String> {
    children(&code.replace("super::super::", "supers::"), "supers")
}

fn head(path: &str) -> String {
    path.chars().take_while(|letter| is_name(*letter)).collect()
}

/// The first name of each member of a group whose brace was just opened.
fn group_heads(group: &str) -> Vec<String> {
    let (mut depth, mut member, mut heads) = (0, String::new(), Vec::new());
    for letter in group.chars() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => heads.push(head(std::mem::take(&mut member).trim())),
            letter if depth == 0 => member.push(letter),
            _ => {}
        }
    }
    heads.push(head(member.trim()));
    heads
}

#[test]
fn comments_and_literals_are_blanked() {
    let source = concat!(
        "use a; // unsafe\n/* unsafe /* nested */ libc */ let x = \"unsafe \\\" libc\";\n",
        "let y = r#\"tokio \" \"#; let c = '\\''; let d: &'static str = b\"libc\"; r#type"
    );
    let code = without_comments_and_literals(source);
    assert_eq!(code.lines().count(), 3);
    let names = names(&code);
    for gone in ["unsafe", "libc", "tokio", "nested"] {
        assert!(!names.contains(gone), "{gone}: {code}");
    }
    for kept in ["a", "x", "y", "c", "d", "static", "str", "type"] {
        assert!(names.contains(kept), "{kept}: {code}");
    }
}

#[test]
fn code_for_tests_is_left_out() {
    let code =
        "use a; #[cfg(test)] use b::{c, d}; #[cfg(test)]\nmod tests { fn e() { f(); } } fn g() {}";
    let kept = without_tests(code);
    let kept: Vec<_> = names(&kept).into_iter().collect();
    assert_eq!(kept, ["a", "fn", "g", "use"]);
}

#[test]
fn paths_are_followed_into_groups() {
    let code = "use crate::{a::{x, y}, b}; crate::c::d(); mycrate::e; ::crate::f;";
    let all: Vec<_> = children(code, "crate").into_iter().collect();
    assert_eq!(all, ["a", "b", "c"]);
    let all = beyond_supers("use super::super::data::x; use super::files;");
    assert_eq!(all.into_iter().collect::<Vec<_>>(), ["data"]);
}
