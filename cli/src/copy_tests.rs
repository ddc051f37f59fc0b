//! Tests of what endpoints mean together.
//!
//! Leaves to others: real copies (cli/tests). Invariant: nothing here connects.

use super::*;
use crate::arguments::{Arguments, Command};
use clap::Parser;

fn plan(line: &str) -> Result<Route, Error> {
    let arguments = Arguments::try_parse_from(line.split_whitespace()).expect("arguments");
    let Command::Copy(copy) = arguments.command else {
        unreachable!("a copy");
    };
    Route::plan(&copy)
}

fn peer(host: &str) -> PeerAddress {
    PeerAddress {
        host: host.to_owned(),
        port: 7400,
    }
}

#[test]
fn which_way_the_bytes_go() {
    assert_eq!(
        plan("haul copy a b haul://h/x").expect("a push"),
        Route::Push {
            peer: peer("h"),
            sources: vec![LocalSource::Path("a".into()), LocalSource::Path("b".into())],
            target: RemoteTarget::Path {
                make: false,
                path: b"x".to_vec(),
                directory: true
            },
        }
    );
    assert_eq!(
        plan("haul copy haul://h/x y").expect("a pull"),
        Route::Pull {
            peer: peer("h"),
            sources: vec![RemoteSource::Path(b"x".to_vec())],
            target: LocalTarget::Path {
                make: false,
                path: "y".into(),
                directory: false
            },
        }
    );
    assert_eq!(
        plan("haul copy a b/").expect("here"),
        Route::Here {
            make: false,
            sources: vec![LocalSource::Path("a".into())],
            target: "b/".into(),
            directory: true,
        }
    );
    assert_eq!(
        plan("haul copy a -").expect("out"),
        Route::Out { source: "a".into() }
    );
    assert!(plan("haul copy haul://h/x -").expect("out").is_in_order());
    assert!(matches!(
        plan("haul copy - haul://h/x"),
        Ok(Route::Push { sources, .. }) if sources == [LocalSource::Stdin]
    ));
}

#[test]
fn what_cannot_be_meant_or_is_not_built_is_usage() {
    for (line, word) in [
        ("haul copy host:a b", "ssh"),
        ("haul copy a me@host:b", "ssh"),
        ("haul copy haul://h/a haul://g/b", "third-party"),
        ("haul copy haul://h/a haul://g/b c", "several servers"),
        ("haul copy haul://h/a b c", "at once"),
        ("haul copy a b -", "several sources"),
        ("haul copy - -", "standard"),
        ("haul copy - .", "no name"),
        ("haul copy - haul://h/d/", "no name"),
        ("haul copy - a d", "no name"),
        ("haul copy --json a -", "--json"),
        ("haul copy --events haul://h/a -", "--events"),
        ("haul copy --verify a -", "--verify"),
        ("haul copy x/a y/a d", "same name"),
    ] {
        let error = plan(line).expect_err(line);
        assert_eq!(error.kind, ErrorKind::Usage, "{line}: {error}");
        assert!(error.to_string().contains(word), "{line}: {error}");
    }
}

#[test]
fn where_a_local_target_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path().canonicalize().expect("a path");
    std::fs::write(root.join("file"), "x").expect("written");
    let path = |path: &[u8], directory| RemoteTarget::Path {
        make: false,
        path: path.to_vec(),
        directory,
    };
    assert_eq!(
        place(&root, false, false),
        Ok((root.clone(), path(b"", true)))
    );
    assert_eq!(
        place(&root.join("new"), false, false),
        Ok((root.clone(), path(b"new", false)))
    );
    let code = |target: PathBuf, directory| {
        place(&target, directory, false)
            .expect_err("refused")
            .exit_code()
    };
    assert_eq!(code(root.join("file"), true), 1, "a file as a directory");
    assert_eq!(code(root.join("none"), true), 1, "a missing directory");
    assert_eq!(code(root.join("none/new"), false), 1, "a missing parent");
    assert_eq!(code(root.join("file/new"), false), 1, "a file as a parent");
}

#[test]
fn a_file_is_not_copied_onto_itself() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("a");
    std::fs::write(&file, "x").expect("written");
    std::os::unix::fs::symlink(&file, folder.path().join("link")).expect("linked");
    let sources = [LocalSource::Path(file.clone())];
    for target in [
        file.clone(),
        folder.path().join("link"),
        folder.path().into(),
    ] {
        let error = refuse_onto_itself(&sources, &target).expect_err("refused");
        assert_eq!(error.exit_code(), 2);
    }
    assert_eq!(
        refuse_onto_itself(&sources, &folder.path().join("b")),
        Ok(())
    );
}

#[test]
fn a_refused_token_says_where_it_came_from() {
    let refused =
        || Error::new(ErrorKind::Unauthorised, "the server refused the token").cure("give its own");
    let told = explain_token(refused(), Some("/run/token")).to_string();
    assert!(told.contains("/run/token"), "{told}");
    let told = explain_token(refused(), None).to_string();
    assert!(told.contains("--token-file"), "{told}");
    let file = Error::new(ErrorKind::Unauthorised, "cannot write a; chmod ug-s");
    assert_eq!(explain_token(file.clone(), None), file);
}
