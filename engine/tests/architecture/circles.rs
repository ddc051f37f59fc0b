//! Which file imports which, and the circles in that.
//!
//! Leaves to others: which crates are looked at, and what is complained about.
//! Invariant: an import counts for the file that defines the name, whatever
//! re-exports it on the way, and code for tests only does not count.

use super::SourceFile;
use super::code::{names, without_tests};
use std::collections::{BTreeMap, BTreeSet};

/// Files, by place in the list that was given, and whom each imports.
type Edges = BTreeMap<usize, BTreeSet<usize>>;

/// The files of one crate, by the path of the module that each is.
struct Crate<'a> {
    modules: BTreeMap<Vec<&'a str>, Module>,
}

/// What one file says to the others.
struct Module {
    file: usize,
    /// Its paths to other modules, from the crate's root.
    imports: Vec<Vec<String>>,
    /// What it lends out under its own name: the name, or "*", and its path.
    lends: Vec<(String, Vec<String>)>,
    /// What it defines.
    defines: BTreeSet<String>,
}

/// The sets of files below `source` (as "engine/src/") that import each other
/// in a circle.
pub fn circles<'a>(files: &'a [SourceFile], source: &str) -> Vec<Vec<&'a str>> {
    let edges = Crate::read(files, source).edges();
    let mut found: Vec<Vec<&str>> = Vec::new();
    let mut seen = BTreeSet::new();
    let reached: BTreeMap<usize, BTreeSet<usize>> = edges
        .keys()
        .map(|file| (*file, reach(&edges, *file)))
        .collect();
    for (file, far) in &reached {
        if !far.contains(file) || !seen.insert(*file) {
            continue;
        }
        let circle: Vec<usize> = far
            .iter()
            .copied()
            .filter(|other| reached[other].contains(file))
            .collect();
        seen.extend(&circle);
        found.push(
            circle
                .iter()
                .map(|file| files[*file].path.as_str())
                .collect(),
        );
    }
    found
}

/// Every file that `from` imports, directly or not.
fn reach(edges: &Edges, from: usize) -> BTreeSet<usize> {
    let mut reached = BTreeSet::new();
    let mut open = vec![from];
    while let Some(file) = open.pop() {
        let next = edges.get(&file).into_iter().flatten();
        open.extend(next.filter(|file| reached.insert(**file)));
    }
    reached
}

impl<'a> Crate<'a> {
    fn read(files: &'a [SourceFile], source: &str) -> Self {
        let mut paths = BTreeMap::new();
        for (index, file) in files.iter().enumerate() {
            if let Some(path) = module_path(&file.path, source) {
                paths.insert(path, index);
            }
        }
        let modules = paths.iter().map(|(path, file)| {
            let code = without_tests(&files[*file].code);
            let children = paths
                .keys()
                .filter(|other| other.len() == path.len() + 1 && other.starts_with(path))
                .filter_map(|other| other.last().copied())
                .collect();
            (path.clone(), Module::read(*file, &code, path, &children))
        });
        Self {
            modules: modules.collect(),
        }
    }

    fn edges(&self) -> Edges {
        let mut edges = Edges::new();
        for module in self.modules.values() {
            let targets = edges.entry(module.file).or_default();
            for import in &module.imports {
                targets.extend(self.definer(import, 0).filter(|file| *file != module.file));
            }
        }
        edges
    }

    /// True when the module of the glob `path` defines `name`.
    fn is_defined_in(&self, path: &[String], name: &str) -> bool {
        let path = path.iter().filter(|name| *name != "*");
        let path: Vec<&str> = path.map(String::as_str).collect();
        let module = self.modules.get(&path);
        module.is_some_and(|module| module.defines.contains(name))
    }

    /// The file that defines what `path` names.
    fn definer(&self, path: &[String], depth: usize) -> Option<usize> {
        let mut at = Vec::new();
        for (index, name) in path.iter().enumerate() {
            at.push(name.as_str());
            // A folder without a file of its own is one as well.
            if self.modules.keys().any(|path| path.starts_with(&at)) {
                continue;
            }
            at.pop();
            let module = self.modules.get(&at)?;
            // Who lends in a circle lends nothing.
            let mut lends = module.lends.iter().filter(|_| depth < 8);
            let lender = lends.find(|(lent, from)| {
                lent == name || (lent == "*" && self.is_defined_in(from, name))
            });
            if let Some((lent, from)) = lender {
                // A glob's path ends in the star.
                let from = from.iter().filter(|name| *name != "*");
                let rest = &path[index + usize::from(lent != "*")..];
                let further: Vec<_> = from.chain(rest).cloned().collect();
                return self.definer(&further, depth + 1);
            }
            return Some(module.file);
        }
        self.modules.get(&at).map(|module| module.file)
    }
}

impl Module {
    fn read(file: usize, code: &str, path: &[&str], children: &BTreeSet<&str>) -> Self {
        let mut module = Self {
            file,
            imports: Vec::new(),
            lends: Vec::new(),
            defines: defined(code),
        };
        let (uses, rest) = use_statements(code);
        for (is_lent, tree) in uses {
            for (named, mut said) in leaves(&tree) {
                if said.last().is_some_and(|last| last == "self") {
                    said.pop();
                }
                let Some(from) = absolute(&said, path, children) else {
                    continue;
                };
                // Lending alone needs nothing of it.
                if !is_lent || names(&rest).contains(named.as_str()) {
                    module.imports.push(from.clone());
                }
                if is_lent {
                    module.lends.push((named, from));
                }
            }
        }
        let said = paths_in(&rest);
        let absolute = said
            .iter()
            .filter_map(|said| absolute(said, path, children));
        module.imports.extend(absolute);
        module
    }
}

/// The names that `code` defines.
fn defined(code: &str) -> BTreeSet<String> {
    const KINDS: [&str; 7] = ["struct", "enum", "trait", "type", "fn", "const", "static"];
    let is_name = |letter: char| letter.is_alphanumeric() || letter == '_';
    let words = code.split(|letter| !is_name(letter));
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    let pairs = words.windows(2).filter(|pair| KINDS.contains(&pair[0]));
    pairs.map(|pair| pair[1].to_owned()).collect()
}

/// The module that a file is; `None` outside of `source`, for programs of
/// their own and for tests.
fn module_path<'a>(path: &'a str, source: &str) -> Option<Vec<&'a str>> {
    let inside = path.strip_prefix(source)?.strip_suffix(".rs")?;
    let mut names: Vec<&str> = inside.split('/').collect();
    let is_test = |name: &&str| *name == "tests" || name.ends_with("_tests");
    if names[0] == "bin" || names.iter().any(is_test) {
        return None;
    }
    if matches!(names.last(), Some(&("mod" | "lib" | "main"))) {
        names.pop();
    }
    Some(names)
}

/// A path as it is said in the module `path`, from the crate's root; `None`
/// where it leads out of the crate or to a local name.
fn absolute(said: &[String], path: &[&str], children: &BTreeSet<&str>) -> Option<Vec<String>> {
    let mut from: Vec<String> = path.iter().map(|name| (*name).to_owned()).collect();
    let mut said = said;
    match said.first()?.as_str() {
        "crate" => {
            from.clear();
            said = &said[1..];
        }
        "self" => said = &said[1..],
        "super" => {
            while said.first().is_some_and(|name| name == "super") {
                from.pop()?;
                said = &said[1..];
            }
        }
        child if children.contains(child) => {}
        _ => return None,
    }
    from.extend_from_slice(said);
    Some(from)
}

/// The `use` statements of `code`, with whether each lends what it names out,
/// and the code without them.
fn use_statements(code: &str) -> (Vec<(bool, String)>, String) {
    let (mut uses, mut rest) = (Vec::new(), String::new());
    let mut left = code;
    while let Some(at) = find_word(left, "use ") {
        let Some(length) = left[at..].find(';') else {
            break;
        };
        let before = left[..at].trim_end();
        let is_lent = before.ends_with("pub") || before.ends_with(')');
        uses.push((is_lent, left[at + "use ".len()..at + length].to_owned()));
        rest.push_str(&left[..at]);
        left = &left[at + length + 1..];
    }
    rest.push_str(left);
    (uses, rest)
}

/// Where `word` begins that no name goes on before it.
fn find_word(code: &str, word: &str) -> Option<usize> {
    let is_name = |letter: char| letter.is_alphanumeric() || letter == '_';
    let starts = |at: &usize| !code[..*at].ends_with(is_name);
    code.match_indices(word).map(|(at, _)| at).find(starts)
}

/// Each name that a `use` tree brings in, and its path.
fn leaves(tree: &str) -> Vec<(String, Vec<String>)> {
    let tree = tree.trim();
    if let Some(open) = tree.find('{') {
        let prefix = split_path(&tree[..open]);
        let inner = tree[open + 1..].trim_end().trim_end_matches('}');
        let members = members(inner);
        let below = members.iter().flat_map(|member| leaves(member));
        return below
            .map(|(name, path)| (name, prefix.iter().cloned().chain(path).collect()))
            .collect();
    }
    let (path, alias) = match tree.split_once(" as ") {
        Some((path, alias)) => (path, Some(alias.trim().to_owned())),
        None => (tree, None),
    };
    let path = split_path(path);
    let Some(last) = path.last() else {
        return Vec::new();
    };
    vec![(alias.unwrap_or_else(|| last.clone()), path)]
}

/// What stands between the commas of a group, groups inside it left whole.
fn members(group: &str) -> Vec<String> {
    let (mut depth, mut found) = (0, vec![String::new()]);
    for letter in group.chars() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                found.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(member) = found.last_mut() {
            member.push(letter);
        }
    }
    found
}

fn split_path(path: &str) -> Vec<String> {
    let names = path.split("::").map(|name| name.trim().to_owned());
    names.filter(|name| !name.is_empty()).collect()
}

/// Every `a::b::c` that stands in `code`.
fn paths_in(code: &str) -> Vec<Vec<String>> {
    let is_path = |letter: char| letter.is_alphanumeric() || letter == '_' || letter == ':';
    code.split(|letter| !is_path(letter))
        .filter(|path| path.contains("::") && !path.starts_with(':'))
        .map(split_path)
        .collect()
}

#[test]
fn names_are_traced_to_where_they_are_defined() {
    let file = |path, text| SourceFile::new(path, text);
    let files = [
        file("it/src/lib.rs", "pub mod a; pub mod b;"),
        file(
            "it/src/a/mod.rs",
            "mod x; mod y; pub use x::{X, deep::Z}; pub use crate::b::*; pub struct Own;",
        ),
        file(
            "it/src/a/x.rs",
            "use super::{Own, y::{self, Y}}; pub struct X;",
        ),
        file(
            "it/src/a/y.rs",
            "use std::fmt; fn f() { crate::a::g() } pub struct Y;",
        ),
        file(
            "it/src/b.rs",
            "use crate::a::Z; #[cfg(test)] mod tests { use crate::a::Own; } fn g() {}",
        ),
    ];
    let edges = Crate::read(&files, "it/src/").edges();
    let of = |file: usize| edges[&file].iter().copied().collect::<Vec<_>>();
    assert_eq!((of(0), of(1), of(2)), (vec![], vec![], vec![1, 3]));
    assert_eq!((of(3), of(4)), (vec![4], vec![2]));
    let circle = ["it/src/a/x.rs", "it/src/a/y.rs", "it/src/b.rs"];
    assert_eq!(circles(&files, "it/src/"), [circle]);
}
