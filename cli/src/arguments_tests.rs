//! Tests of what the command line takes and refuses.
//!
//! Leaves to others: what happens next. Invariant: every option of the
//! contract is in the table.

use super::*;

fn told(line: &str, error: &clap::Error) -> String {
    let typed: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
    crate::mistake::sentence(error, &typed)
}

fn read(line: &str) -> Result<Arguments, clap::Error> {
    Arguments::try_parse_from(line.split_whitespace())
}

fn copy(line: &str) -> CopyArguments {
    match read(line).map(|arguments| arguments.command) {
        Ok(Command::Copy(copy)) => copy,
        other => unreachable!("{line}: {other:?}"),
    }
}

#[test]
fn the_definition_holds_together() {
    Arguments::command().debug_assert();
}

#[test]
fn every_option_of_the_contract_is_taken() {
    let copy = copy(
        "haul copy -n 128 --chunk-size 1MiB --transmit splice --socket-buffer 4MiB \
         --limit-rate 10MB --bind ::1 --congestion bbr --no-fsync --verify --drop-cache -vv -q \
         --progress never --json --events --report r.json --hdr-log x.hlog --color never \
         --token-file t a b haul://h/c",
    );
    assert_eq!(copy.sources.len(), 2);
    let pool = copy.transfer.pool();
    assert_eq!(pool.connections, 128);
    assert_eq!(pool.socket_buffer_bytes, Some(4 << 20));
    assert_eq!(pool.rate_limit_bytes_per_second, Some(10_000_000));
    assert_eq!(pool.bind, Some("::1".parse().expect("an address")));
    assert_eq!(pool.congestion, Congestion::Named("bbr".to_owned()));
    let options = copy.transfer.copy();
    assert_eq!(options.chunk_bytes, 1 << 20);
    assert_eq!(options.transmit, Transmit::Splice);
    assert!(!options.fsync && options.verify && options.drop_cache);
    assert!(copy.output.quiet && copy.output.json && copy.output.events);
}

#[test]
fn without_options_the_engine_s_defaults_hold() {
    let copy = copy("haul copy a b");
    let (pool, options) = (copy.transfer.pool(), copy.transfer.copy());
    assert_eq!(pool.connections, limits::CONNECTIONS_DEFAULT);
    assert_eq!(pool.socket_buffer_bytes, None);
    assert_eq!(options.chunk_bytes, limits::CHUNK_BYTES_DEFAULT);
    assert!(options.fsync && !options.verify && !options.drop_cache);
}

#[test]
fn what_is_out_of_range_is_one_sentence() {
    for line in [
        "haul copy",
        "haul copy a",
        "haul copy -n 0 a b",
        "haul copy -n 129 a b",
        "haul copy -n many a b",
        "haul copy --chunk-size 32KiB a b",
        "haul copy --chunk-size 8MiB a b",
        "haul copy --chunk-size 100KiB a b",
        "haul copy --chunk-size 256K a b",
        "haul copy --transmit quick a b",
        "haul copy --socket-buffer 1 a b",
        "haul copy --socket-buffer 4GiB a b",
        "haul copy --limit-rate 0 a b",
        "haul copy --limit-rate 100Mbit a b",
        "haul copy --bind host a b",
        "haul copy --bind 127.0.0.1:80 a b",
        "haul copy --congestion a/b a b",
        "haul copy --progress sometimes a b",
        "haul copy --color blue a b",
        "haul copy --chunksize 1MiB a b",
        "haul copy haul:///x b",
        "haul copy http://h/x b",
        "haul serve",
        "haul serve --root . --listen 127.0.0.1:99999",
        "haul serve --root . --listen ::1:x",
        "haul bench --runs 0",
        "haul bench --seconds 0",
        "haul bench --seconds 1 --bytes 1MiB",
        "haul bench --sweep speed=1",
        "haul bench --sweep connections=auto",
        "haul bench --sweep chunk",
        "haul bench --sink disk",
        "haul completions cmd",
        "haul carry a b",
        "haul",
    ] {
        let error = read(line).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}");
        let told = told(line, &error);
        assert!(!told.contains('\n') && told.len() > 10, "{line}: {told}");
        assert!(!told.starts_with("error"), "{line}: {told}");
        assert!(
            told.contains("--help") || told.contains("did you mean"),
            "{line}: {told}"
        );
    }
}

#[test]
fn a_refusal_names_the_cure() {
    let told = |line: &str| told(line, &read(line).expect_err(line));
    assert!(told("haul copy --chunksize 1MiB a b").contains("--chunk-size"));
    assert!(told("haul copy -n 0 a b").contains("1 to 128"));
    assert!(told("haul copy -n 0 a b").contains("haul copy --help"));
    assert!(told("haul copy a").contains("haul copy --help"));
}

#[test]
fn where_to_listen() {
    let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
    for (text, want) in [
        ("127.0.0.1", "127.0.0.1:7400"),
        ("127.0.0.1:0", "127.0.0.1:0"),
        ("::1", "[::1]:7400"),
        ("[::1]", "[::1]:7400"),
        ("[::]:99", "[::]:99"),
    ] {
        assert_eq!(
            parse_listen(text),
            Ok(Listen(vec![address(want)])),
            "{text}"
        );
    }
    assert!(parse_listen("localhost:7").is_ok_and(|listen| {
        listen
            .0
            .iter()
            .all(|one| one.ip().is_loopback() && one.port() == 7)
    }));
}

#[test]
fn what_a_sweep_varies() {
    assert_eq!(
        parse_sweep("connections=1,2:chunk=64KiB,1MiB"),
        Ok(Sweep {
            connections: vec![1, 2],
            chunk_bytes: vec![65_536, 1_048_576],
        })
    );
}
