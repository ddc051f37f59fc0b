//! A receiver: serves one directory until standard input ends.
//!
//! Leaves to others: the sender (see the other example). Invariant: nothing
//! outside the directory is read or written.
//!
//! ```text
//! cargo run --release -p haul-engine --example receiver -- /srv/incoming 127.0.0.1:7411 secret
//! ```

#![allow(clippy::print_stdout, reason = "an example speaks to a person")]

use haul_engine::options::{Congestion, ServeOptions, Token};
use haul_engine::{Error, Result, Server};
use std::time::Duration;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [root, listen, word] = arguments.as_slice() else {
        return Err(Error::usage("usage: receiver DIRECTORY ADDRESS:PORT WORD"));
    };
    let listen = listen
        .parse()
        .map_err(|error| Error::usage(format!("cannot listen on {listen}: {error}")))?;
    let server = Server::bind(ServeOptions {
        root: root.into(),
        local_target: None,
        listen: vec![listen],
        token: Some(token(word)),
        allow_unauthenticated: false,
        allow_null: false,
        socket_buffer_bytes: None,
        congestion: Congestion::Auto,
        workers: None,
    })?;
    println!("listening on {}", server.local_addresses()[0]);

    let stop = server.stop_handle();
    std::thread::spawn(move || {
        // Whoever started this program ends it by closing its input.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        stop.stop();
    });
    while !server.is_over() {
        if let Some(event) = server.next_event(Some(Duration::from_millis(200))) {
            println!("{event:?}");
        }
    }
    server.wait();
    Ok(())
}

/// A real program shares 32 random bytes; an example makes them of a word.
fn token(word: &str) -> Token {
    let mut bytes = [0; 32];
    for (place, byte) in bytes.iter_mut().zip(word.bytes().cycle()) {
        *place = byte;
    }
    Token(bytes)
}
