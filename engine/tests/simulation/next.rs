//! The next transfer of a session, begun while the server may not be through with
//! the last one; the server does not want it.
//!
//! Leaves to others: a transfer that runs. Invariant: it is taken up after the last
//! one's end, and its words come after it was.

use crate::stations::{End, begin};
use crate::world::{NEXT, World};
use haul_engine::error::Error;
use haul_engine::options::{RemoteSource, RemoteTarget};
use haul_engine::protocol::wire::{Message, Offer, Task};
use std::sync::Arc;

impl World {
    /// The client's caller asks for the next transfer: the server's half of the
    /// last one may run yet.
    pub fn ask_again(&mut self, end: End) {
        self.station(end).asked_again = true;
        self.start_transfer(NEXT);
        match end {
            End::Sender => {
                let target = RemoteTarget::Null;
                self.tell(end, &begin(NEXT, Task::Push { target }, 0));
                self.tell(
                    end,
                    &Message::Offer(Arc::new(Offer {
                        folders: Vec::new(),
                        users: Vec::new(),
                        groups: Vec::new(),
                        transfer: NEXT,
                        segment: 0,
                        last: true,
                        entries: Vec::new(),
                    })),
                );
            }
            End::Receiver => {
                let sources = vec![RemoteSource::Path(b"f".to_vec())];
                let last = true;
                self.tell(end, &begin(NEXT, Task::Pull { sources, last }, 0));
            }
        }
    }

    /// The server takes the next transfer up.
    pub fn begin_next(&mut self, end: End) {
        let first = match end {
            End::Sender => &self.ends.sender,
            End::Receiver => &self.ends.receiver,
        };
        if first.is_none() {
            self.found("a transfer was begun while the last one runs");
        }
        self.station(end).runs_next = true;
        if end == End::Sender {
            self.refuse_next(end);
        }
    }

    /// A word of the next transfer: its offer, or that it is not wanted.
    pub fn hear_next(&mut self, end: End, message: &Message) {
        let runs = self.station(end).runs_next;
        match message {
            Message::Offer(_) if runs => self.refuse_next(end),
            Message::Abort { .. } if self.station(end).is_client => self.transfer_ended(end),
            Message::Abort { .. } => {}
            _ => self.found(format!("{end:?} heard too early: {message:?}")),
        }
    }

    fn refuse_next(&mut self, end: End) {
        let error = Error::peer("cannot begin a transfer", "one was enough");
        let transfer = NEXT;
        self.tell(end, &Message::Abort { transfer, error });
        if let Some(machine) = self.machine(end) {
            machine.transfer_ended();
        }
    }
}
