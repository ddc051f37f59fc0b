//! What goes wrong, when, and in which state it met the two machines.
//!
//! Leaves to others: the consequences. Invariant: a fault is noted with the
//! phases that hold at the moment when it takes effect, not when it was drawn.

use crate::rng::MILLI;
use crate::scenario::{Fault, PHASES, Phase};
use crate::stations::ENDS;
use crate::world::{Event, World};
use haul_engine::error::{Error, ErrorKind};
use haul_engine::protocol::ConnectionId;

/// Outputs of all machines between two events, at most.
const OUTPUTS_MAX: u32 = 100_000;

impl World {
    /// True when the phase holds now.
    pub fn is_in(&self, phase: Phase) -> bool {
        let seen = &self.seen;
        let sender = self.ends.sender.is_none();
        let receiver = self.ends.receiver.is_none();
        match phase {
            Phase::Offering => sender && seen.offered > seen.answered,
            Phase::Moving => {
                let counts = self.sender.counts();
                sender && counts.landed < counts.planned
            }
            Phase::Looking => sender && seen.looks > 0,
            Phase::Closed => sender && !seen.closed.is_empty(),
            Phase::Reporting => sender && seen.reporting,
            Phase::Preparing => receiver && seen.preparing > 0,
            Phase::Receiving => {
                let counts = self.receiver.counts();
                receiver && counts.landed < counts.planned
            }
            Phase::Settling => receiver && !seen.settling.is_empty(),
            Phase::Finishing => receiver && seen.finishing,
            Phase::Deleting => sender && self.sender.is_deleting(),
        }
    }

    /// Schedules the faults that waited for a phase that holds now.
    pub fn arm_by_phase(&mut self) {
        let mut pending = std::mem::take(&mut self.pending);
        pending.retain(|&(index, phase, delay)| {
            let strikes = self.is_in(phase);
            if strikes {
                self.queue.after(delay, Event::Strike(index));
            }
            !strikes
        });
        self.pending = pending;
    }

    /// True once the fault took effect.
    pub fn has_struck(&self, fault: Fault) -> bool {
        self.struck_ever.contains(&fault)
    }

    /// Counts that the fault took effect now.
    pub fn note(&mut self, fault: Fault) {
        self.struck_ever.insert(fault);
        for phase in PHASES {
            if self.is_in(phase) {
                self.struck.insert((fault, phase));
            }
        }
    }

    /// True, once, when the fault was armed: it takes effect now.
    pub fn disarm(&mut self, fault: Fault) -> bool {
        let armed = self.armed.remove(&fault);
        if armed {
            self.note(fault);
        }
        armed
    }

    pub fn strike(&mut self, index: usize) {
        let (_, fault) = self.scenario.faults[index];
        match fault {
            Fault::Cut => self.cut(fault, 50, 50),
            Fault::CutUnseenBySender => self.cut(fault, 30_000, 50),
            Fault::CutUnseenByReceiver => self.cut(fault, 50, 30_000),
            Fault::ControlLost => self.lose_control(),
            Fault::SourceChanged
            | Fault::SourceTruncated
            | Fault::SourceTouched
            | Fault::SourceForged => self.change_source(fault),
            Fault::Join
            | Fault::DialsRefused
            | Fault::NobodyListens
            | Fault::DialImpossible
            | Fault::JoinUnanswered
            | Fault::FullPeer => self.disturb_dials(fault),
            Fault::Silence => self.silence(),
            Fault::AbortSender | Fault::AbortReceiver => self.abort(fault),
            Fault::SlowWrites => {
                // Noted with each write that it slows.
                self.armed.insert(fault);
            }
            _ => {
                self.armed.insert(fault);
            }
        }
    }

    /// A connection goes, and what is dialled in its place meets the fault.
    fn disturb_dials(&mut self, fault: Fault) {
        match fault {
            Fault::DialsRefused => self.refusals += self.rng.within(1..4) as u32,
            Fault::NobodyListens => self.nobody_listens = true,
            Fault::FullPeer => {
                let wait = self.rng.within(1..25) * 1_000 * MILLI;
                self.full_until = self.full_until.max(self.queue.now + wait);
            }
            _ => {
                self.armed.insert(fault);
            }
        }
        let cuts = match fault {
            Fault::NobodyListens => self.links.len(),
            _ => 1,
        };
        for _ in 0..cuts {
            if let Some(id) = self.some_link() {
                self.cut_link(id, 20, 20);
            }
        }
    }

    /// Nothing is heard any more, at one end or at both.
    fn silence(&mut self) {
        self.note(Fault::Silence);
        let which = self.rng.within(0..3);
        self.to_sender.broken |= which != 0;
        self.to_receiver.broken |= which != 1;
    }

    fn abort(&mut self, fault: Fault) {
        self.note(fault);
        let error = Error::new(ErrorKind::Interrupted, "the user stopped it");
        if fault == Fault::AbortSender {
            self.sender.stop(error);
        } else {
            self.receiver.stop(error);
        }
    }

    /// Some connection that both ends or one of them have.
    fn some_link(&mut self) -> Option<ConnectionId> {
        let links = self.links.iter();
        let alive: Vec<ConnectionId> = links
            .filter(|(_, link)| link.up && (link.sender_has || link.receiver_has))
            .map(|(id, _)| *id)
            .collect();
        if alive.is_empty() {
            return None;
        }
        Some(self.rng.pick(&alive))
    }

    fn cut(&mut self, fault: Fault, sender_ms: u64, receiver_ms: u64) {
        let Some(id) = self.some_link() else {
            return;
        };
        self.note(fault);
        self.cut_link(id, sender_ms, receiver_ms);
    }

    fn cut_link(&mut self, id: ConnectionId, sender_ms: u64, receiver_ms: u64) {
        let sender_after = self.rng.within(1..sender_ms + 1) * MILLI;
        let receiver_after = self.rng.within(1..receiver_ms + 1) * MILLI;
        let now = self.queue.now;
        if let Some(link) = self.links.get_mut(&id) {
            link.up = false;
        }
        // A half-open end notices last of all, or is told.
        self.queue.at(
            now + sender_after.max(sender_ms / 2 * MILLI),
            Event::NoticeSender(id),
        );
        self.queue.at(
            now + receiver_after.max(receiver_ms / 2 * MILLI),
            Event::NoticeReceiver(id),
        );
    }

    fn lose_control(&mut self) {
        self.note(Fault::ControlLost);
        self.to_sender.broken = true;
        self.to_receiver.broken = true;
        for end in ENDS {
            let delay = self.rng.within(1..3000) * MILLI;
            let error = Error::peer("cannot go on", "the control connection was lost");
            self.queue.after(delay, Event::Closed(end, Some(error)));
        }
        for link in self.links.values_mut() {
            link.up = false;
        }
    }

    fn change_source(&mut self, fault: Fault) {
        let now = self.queue.now;
        let sources = self.sources.iter();
        let files: Vec<_> = sources
            .filter(|(_, source)| !source.stream && !source.bytes.is_empty())
            .map(|(key, _)| *key)
            .collect();
        if files.is_empty() {
            return;
        }
        let key = self.rng.pick(&files);
        self.note(fault);
        let size = self.sources[&key].bytes.len() as u64;
        let at = self.rng.within(0..size) as usize;
        let Some(source) = self.sources.get_mut(&key) else {
            return;
        };
        source.touched = true;
        match fault {
            Fault::SourceTouched => return,
            Fault::SourceTruncated => source.bytes.truncate(at),
            // All of it, so that whatever was read before tells.
            Fault::SourceForged => source.bytes.iter_mut().for_each(|byte| *byte ^= 0x5a),
            _ => source.bytes[at..].iter_mut().for_each(|byte| *byte ^= 0x5a),
        }
        if fault == Fault::SourceForged {
            source.is_forged = true;
        } else {
            source.changed_at.get_or_insert(now);
        }
    }

    /// Carries all outputs of both machines out.
    pub fn pump(&mut self) {
        let now = self.queue.now;
        for carried in 0.. {
            if carried > OUTPUTS_MAX {
                self.found("it goes on and on, and no time passes");
                return;
            }
            if self.at_sender.runs
                && let Some(output) = self.sender.poll(now)
            {
                if self.ends.sender.is_some() {
                    self.found(format!("the sender goes on after its end: {output:?}"));
                }
                self.carry_sender(output);
            } else if self.at_receiver.runs
                && let Some(output) = self.receiver.poll(now)
            {
                if self.ends.receiver.is_some() {
                    self.found(format!("the receiver goes on after its end: {output:?}"));
                }
                self.carry_receiver(output);
            } else if self.at_sender.runs && !self.seen.is_naming && self.sender.wants_names() {
                self.read_names();
            } else if !ENDS.into_iter().any(|end| self.pump_station(end)) {
                return;
            }
        }
    }
}
