//! A sender: several copies over one pool of connections, with their events
//! and reports.
//!
//! Leaves to others: the receiver (see the other example). Invariant: a copy
//! that did not reach its level is an error.
//!
//! ```text
//! cargo run --release -p haul-engine --example sender -- 127.0.0.1 7411 secret FILE...
//! ```

#![allow(clippy::print_stdout, reason = "an example speaks to a person")]

use haul_engine::options::{CopyOptions, LocalSource, PoolOptions, RemoteTarget, Token};
use haul_engine::{Error, Event, PeerAddress, Pool, Result};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [host, port, word, files @ ..] = arguments.as_slice() else {
        return Err(Error::usage("usage: sender HOST PORT WORD FILE..."));
    };
    let port = port
        .parse()
        .map_err(|error| Error::usage(format!("cannot use port {port}: {error}")))?;
    let peer = PeerAddress {
        host: host.clone(),
        port,
    };
    let mut pool = Pool::connect(
        &peer,
        PoolOptions {
            token: Some(token(word)),
            ..PoolOptions::default()
        },
    )?;
    for file in files {
        // Each file is a transfer of its own; the connections stay.
        let target = RemoteTarget::Path {
            make: false,
            path: Vec::new(),
            directory: true,
        };
        let sources = vec![LocalSource::Path(file.into())];
        let mut transfer = pool.push(sources, target, &CopyOptions::default())?;
        while !transfer.is_over() {
            match transfer.next_event(None) {
                Some(Event::Progress(progress)) => {
                    println!("{} bytes landed", progress.landed_bytes)
                }
                Some(Event::FileEnded(ended)) => println!("{}: {:?}", ended.name, ended.level),
                _ => {}
            }
        }
        let report = transfer.wait();
        if let Some(error) = report.error {
            return Err(error);
        }
        println!("{file}: {:.3} s, {:?}", report.seconds.total, report.level);
    }
    pool.close();
    Ok(())
}

/// As the receiver's example makes it.
fn token(word: &str) -> Token {
    let mut bytes = [0; 32];
    for (place, byte) in bytes.iter_mut().zip(word.bytes().cycle()) {
        *place = byte;
    }
    Token(bytes)
}
