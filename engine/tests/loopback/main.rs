//! Whole copies by the library over real rings and sockets.
//!
//! Leaves to others: the command line's tests. Invariant: every copy is
//! compared byte for byte, and nothing is left beside it.

mod faults;
mod impostor;
mod support;
mod trees;
mod words;

use haul_engine::options::{
    CopyOptions, LocalSource, LocalTarget, Pattern, Reflink, RemoteSource, RemoteTarget,
};
use haul_engine::report::Level;
use haul_engine::{ErrorKind, Event, Reflinks};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;
use support::{Site, assert_same, connect, push};

#[test]
fn sizes_at_and_around_every_boundary_arrive() {
    let site = Site::new();
    let mut pool = site.pool();
    let options = CopyOptions {
        chunk_bytes: 64 * 1024,
        ..CopyOptions::default()
    };
    let chunk = 64 * 1024;
    let around = [chunk, 1024 * 1024, 4 * 1024 * 1024].map(|at| [at - 1, at, at + 1]);
    for bytes in [0, 1, 4095, 4096, 4097]
        .into_iter()
        .chain(around.into_iter().flatten())
    {
        let name = format!("f{bytes}");
        let source = site.source(&format!("s{bytes}"), bytes);
        let report = push(&mut pool, &source, &name, &options);
        assert_eq!(report.error, None, "{bytes}");
        assert_eq!(report.level, Some(Level::Sealed));
        assert_eq!(report.bytes.landed, bytes as u64);
        assert_eq!(report.bytes.sealed, bytes as u64);
        assert_same(&source, &site.root().join(name));
    }
    assert_eq!(site.leftovers(), Vec::<String>::new());
}

#[test]
fn a_pool_serves_copy_after_copy_on_the_same_connections() {
    let site = Site::new();
    let mut pool = site.pool();
    let source = site.source("source", 9_000_000);
    let mut numbers = Vec::new();
    for round in 0..3 {
        let report = push(
            &mut pool,
            &source,
            &format!("target{round}"),
            &CopyOptions::default(),
        );
        assert_eq!(report.error, None);
        assert!(report.authenticated);
        let sender = report.sender.expect("the sender's report");
        let mut connections: Vec<_> = sender
            .connections
            .iter()
            .map(|one| one.connection)
            .collect();
        connections.sort_unstable();
        numbers.push(connections);
        assert_same(&source, &site.root().join(format!("target{round}")));
    }
    assert_eq!(numbers[0].len(), 4);
    assert!(
        numbers.windows(2).all(|pair| pair[0] == pair[1]),
        "{numbers:?}"
    );
    pool.close();
}

#[test]
fn a_pull_brings_the_file_and_its_attributes() {
    let site = Site::new();
    let source = site.root().join("source");
    std::fs::write(&source, support::noise(3_000_001)).expect("a source");
    std::fs::set_permissions(&source, std::fs::Permissions::from_mode(0o640)).expect("a mode");
    let mut pool = site.pool();
    let target = site.directory.path().join("pulled");
    let local = LocalTarget::Path {
        make: false,
        path: target.clone(),
        directory: false,
    };
    let report = pool
        .pull(
            vec![RemoteSource::Path(b"source".to_vec())],
            local,
            &CopyOptions::default(),
        )
        .expect("a transfer")
        .wait();
    assert_eq!(report.error, None);
    assert_same(&source, &target);
    let (from, to) = (
        source.metadata().expect("source"),
        target.metadata().expect("target"),
    );
    assert_eq!(to.permissions().mode() & 0o7777, 0o640);
    assert_eq!(
        from.modified().expect("mtime"),
        to.modified().expect("mtime")
    );
}

#[test]
fn several_files_share_a_transfer_and_small_ones_share_chunks() {
    let site = Site::new();
    let sizes = [10, 0, 70_000, 300_000, 5, 2_000_000, 1];
    let sources: Vec<_> = sizes
        .iter()
        .enumerate()
        .map(|(n, size)| site.source(&format!("file{n}"), *size))
        .collect();
    let target = RemoteTarget::Path {
        make: false,
        path: Vec::new(),
        directory: true,
    };
    let local = sources
        .iter()
        .map(|path| LocalSource::Path(path.clone()))
        .collect();
    let report = site
        .pool()
        .push(local, target, &CopyOptions::default())
        .expect("a transfer")
        .wait();
    assert_eq!(report.error, None);
    assert_eq!(report.files.len(), sizes.len());
    for source in &sources {
        assert_same(
            source,
            &site.root().join(source.file_name().expect("a name")),
        );
    }
}

#[test]
fn an_existing_target_is_replaced_whole() {
    let site = Site::new();
    std::fs::write(site.root().join("target"), vec![1; 5_000_000]).expect("an old target");
    let source = site.source("source", 1_000_000);
    let report = push(&mut site.pool(), &source, "target", &CopyOptions::default());
    assert_eq!(report.error, None);
    assert_same(&source, &site.root().join("target"));
}

#[test]
fn generated_bytes_go_to_a_null_sink_both_ways() {
    let site = Site::new();
    let mut pool = site.pool();
    let bytes = Some(50_000_000);
    let source = LocalSource::Generated {
        pattern: Pattern::Random,
        bytes,
    };
    let report = pool
        .push(vec![source], RemoteTarget::Null, &CopyOptions::default())
        .expect("pushes")
        .wait();
    assert_eq!(report.error, None);
    assert_eq!(
        (report.bytes.landed, report.level),
        (50_000_000, Some(Level::Delivered))
    );
    let source = RemoteSource::Generated {
        pattern: Pattern::Zero,
        bytes,
    };
    let report = pool
        .pull(vec![source], LocalTarget::Null, &CopyOptions::default())
        .expect("pulls")
        .wait();
    assert_eq!(report.error, None);
    assert_eq!(report.bytes.landed, 50_000_000);
}

#[test]
fn an_endless_source_ends_when_it_is_told_to() {
    let site = Site::new();
    let mut pool = site.pool();
    for pull in [false, true] {
        let options = CopyOptions::default();
        let mut transfer = if pull {
            let source = RemoteSource::Generated {
                pattern: Pattern::Zero,
                bytes: None,
            };
            pool.pull(vec![source], LocalTarget::Null, &options)
        } else {
            let source = LocalSource::Generated {
                pattern: Pattern::Zero,
                bytes: None,
            };
            pool.push(vec![source], RemoteTarget::Null, &options)
        }
        .expect("a transfer");
        let stop = transfer.stop_handle();
        while !transfer.is_over() {
            if let Some(Event::Progress(progress)) =
                transfer.next_event(Some(Duration::from_secs(1)))
                && progress.landed_bytes > 0
            {
                stop.finish();
            }
        }
        let report = transfer.wait();
        assert_eq!(report.error, None, "pull: {pull}");
        assert!(report.bytes.landed > 0);
    }
}

#[test]
fn an_interrupted_transfer_leaves_nothing() {
    let site = Site::new();
    let source = site.source("source", 40_000_000);
    let mut pool = connect(site.address(), |options| {
        options.rate_limit_bytes_per_second = Some(4_000_000);
    });
    let target = RemoteTarget::Path {
        make: false,
        path: b"target".to_vec(),
        directory: false,
    };
    let mut transfer = pool
        .push(
            vec![LocalSource::Path(source)],
            target,
            &CopyOptions::default(),
        )
        .expect("a transfer");
    let stop = transfer.stop_handle();
    while !transfer.is_over() {
        if let Some(Event::Progress(progress)) = transfer.next_event(Some(Duration::from_secs(1)))
            && progress.landed_bytes > 0
        {
            stop.stop();
        }
    }
    let report = transfer.wait();
    assert_eq!(
        report.error.map(|error| error.kind),
        Some(ErrorKind::Interrupted)
    );
    pool.close();
    site.server.stop_handle().stop();
    let Site { directory, server } = site;
    server.wait();
    let names: Vec<_> = std::fs::read_dir(directory.path().join("root"))
        .expect("the root")
        .collect();
    assert!(names.is_empty(), "{names:?}");
}

#[test]
fn both_address_families_are_served_by_one_listener() {
    let site = Site::with(|options| {
        options.listen = vec!["[::]:0".parse().expect("an address")];
    });
    let port = site.address().port();
    let source = site.source("source", 100_000);
    for ip in ["127.0.0.1", "::1"] {
        let address = std::net::SocketAddr::new(ip.parse().expect("an ip"), port);
        let report = push(
            &mut connect(address, |_| {}),
            &source,
            ip,
            &CopyOptions::default(),
        );
        assert_eq!(report.error, None, "{ip}");
        assert_same(&source, &site.root().join(ip));
    }
}

#[test]
fn many_sessions_run_side_by_side() {
    let site = Site::new();
    let source = site.source("source", 5_000_000);
    std::thread::scope(|scope| {
        for number in 0..6 {
            let (site, source) = (&site, &source);
            scope.spawn(move || {
                let name = format!("target{number}");
                let report = push(&mut site.pool(), source, &name, &CopyOptions::default());
                assert_eq!(report.error, None);
                assert_same(source, &site.root().join(name));
            });
        }
    });
    assert_eq!(site.leftovers(), Vec::<String>::new());
}

#[test]
fn blocks_that_must_be_shared_are_never_copied_instead() {
    let site = Site::new();
    let source = site.source("source", 100_000);
    let always = CopyOptions {
        reflink: Reflink::Always,
        ..CopyOptions::default()
    };
    let target = || RemoteTarget::Path {
        path: b"target".to_vec(),
        directory: false,
        make: false,
    };
    let mut pool = site.pool();
    let sources = || vec![LocalSource::Path(source.clone())];
    let error = pool.push(sources(), target(), &always).err();
    assert_eq!(error.expect("no peer beside").kind, ErrorKind::Usage);
    // This server was not given them.
    pool.share_blocks(Reflinks::default());
    let verified = CopyOptions {
        verify: true,
        ..always.clone()
    };
    let error = pool.push(sources(), target(), &verified).err();
    assert_eq!(error.expect("nothing to verify").kind, ErrorKind::Usage);
    let error = push(&mut pool, &source, "target", &always).error;
    let error = error.expect("nothing is weaker than asked");
    assert_eq!(error.kind, ErrorKind::Usage, "{error}");
    assert!(error.sentence.contains("within this machine"), "{error}");
    assert!(!site.root().join("target").exists());
    let report = push(&mut pool, &source, "target", &CopyOptions::default());
    assert_eq!((report.error, report.bytes.landed), (None, 100_000));
    assert_eq!(report.entries.shared, 0);
    // The server begins one transfer when the last has let go of its files.
    assert!(site.leftovers().is_empty());
}
