//! `haul serve`: a server until a signal stops it.
//!
//! Leaves to others: sessions (the engine). Invariant: the token itself is
//! never shown, only where it is.

use crate::arguments::{Auto, ServeArguments, congestion};
use crate::clean;
use crate::console::Console;
use crate::interrupt::Interrupts;
use crate::refusals::Refusals;
use crate::size::format_size;
use crate::token;
use haul_engine::options::ServeOptions;
use haul_engine::{Error, Server, ServerEvent};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How often it is looked whether a stop takes too long.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Runs `haul serve` until SIGINT or SIGTERM; the exit code, which is the
/// signal's where that cut something off.
///
/// # Errors
/// The root, the token or an address cannot be used.
pub fn run(
    arguments: &ServeArguments,
    console: &Console,
    interrupts: &Interrupts,
) -> Result<u8, Error> {
    let found = token::find_or_make(arguments.token_file.as_deref())?;
    let mut listen: Vec<SocketAddr> = Vec::new();
    for address in arguments.listen.iter().flat_map(|listen| &listen.0) {
        if address.port() == 0 || !listen.contains(address) {
            listen.push(*address);
        }
    }
    let server = Server::bind(ServeOptions {
        root: arguments.root.clone(),
        local_target: None,
        listen,
        token: Some(found.token),
        allow_unauthenticated: arguments.allow_unauthenticated,
        allow_null: arguments.allow_null,
        socket_buffer_bytes: arguments.socket_buffer.chosen(),
        congestion: congestion(&arguments.congestion),
        workers: None,
    })?;
    clean::in_background(&arguments.root);
    let stop = server.stop_handle();
    interrupts.on_stop(move || stop.stop());
    if !arguments.quiet {
        for address in server.local_addresses() {
            console.line(&format!("haul: listening on {address}"));
        }
        console.line(&format!("haul: token file {}", found.origin));
        if arguments.allow_unauthenticated {
            console.line("haul: peers without a token are served, too");
        }
    }
    if let Auto::Value(bytes) = arguments.socket_buffer {
        tracing::debug!("socket buffers of {}", format_size(bytes));
    }
    let Ended { cut, is_whole } = attend(server, interrupts);
    let signal = interrupts.exit_code();
    if !is_whole {
        console.line("haul: stopped without an end of all sessions: a disk did not answer in time; temporary files may be left");
    }
    if !arguments.quiet || cut > 0 {
        console.line(&stopped(cut));
    }
    match (cut, is_whole) {
        (0, true) => Ok(0),
        _ => Ok(signal.unwrap_or(1)),
    }
}

/// How a server ended.
struct Ended {
    /// Transfers that its stop cut off, as far as they had ended.
    cut: u64,
    /// All its sessions ended.
    is_whole: bool,
}

/// Logs what the server tells until it ended, or its stop took too long.
fn attend(server: Server, interrupts: &Interrupts) -> Ended {
    let (began, mut refusals, mut missed) = (Instant::now(), Refusals::default(), 0);
    loop {
        let event = server.next_event(Some(LOOK_AGAIN));
        let is_over = event.is_none() && server.is_over();
        let due = refusals.due(began.elapsed(), is_over);
        due.iter().for_each(|line| tracing::warn!("{line}"));
        let unheard = server.missed_events() - missed;
        if unheard > 0 {
            missed += unheard;
            tracing::warn!("{unheard} events came faster than they were logged");
        }
        match event {
            Some(ServerEvent::Refused { peer, error }) => {
                if let Some(line) = refusals.refused(began.elapsed(), peer, &error) {
                    tracing::warn!("{line}");
                }
            }
            Some(event) => log(&event),
            None if is_over => {
                return Ended {
                    cut: server.wait(),
                    is_whole: true,
                };
            }
            None if interrupts.is_overdue() => {
                let cut = server.cut();
                // Its threads wait for what may never come, and so would its drop.
                std::mem::forget(server);
                return Ended {
                    cut,
                    is_whole: false,
                };
            }
            None => {}
        }
    }
}

/// The last line.
fn stopped(cut: u64) -> String {
    match cut {
        0 => "haul: stopped".to_owned(),
        1 => "haul: stopped; 1 transfer was cut off".to_owned(),
        _ => format!("haul: stopped; {cut} transfers were cut off"),
    }
}

/// One event as a line of the log.
fn log(event: &ServerEvent) {
    match event {
        ServerEvent::SessionOpened {
            peer,
            authenticated: true,
        } => tracing::info!("{peer}: session opened"),
        ServerEvent::SessionOpened {
            peer,
            authenticated: false,
        } => tracing::warn!("{peer}: session opened without a token"),
        ServerEvent::SessionClosed { peer, error: None } => {
            tracing::info!("{peer}: session closed");
        }
        ServerEvent::SessionClosed {
            peer,
            error: Some(error),
        } => tracing::warn!("{peer}: session ended: {error}"),
        ServerEvent::TransferEnded {
            peer,
            bytes,
            error: None,
        } => tracing::info!("{peer}: transfer of {} complete", format_size(*bytes)),
        ServerEvent::TransferEnded {
            peer,
            bytes,
            error: Some(error),
        } => tracing::warn!(
            "{peer}: transfer ended after {}: {error}",
            format_size(*bytes)
        ),
        // Counted: see `Refusals`.
        ServerEvent::Refused { .. } => {}
    }
}
