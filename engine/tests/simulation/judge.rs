//! What must hold when a run is over.
//!
//! Leaves to others: what must hold at each step (found where it happens).
//! Invariant: nothing here asks a machine what it thinks of itself where the
//! disks can be asked.

use crate::scenario::{Fault, Want};
use crate::world::World;

impl World {
    /// Judges a run that is over; the findings, if there are any.
    pub fn judge(&mut self) -> Vec<String> {
        if self.findings.is_empty() {
            self.judge_ends();
            self.judge_targets();
            self.judge_files();
            self.judge_counts();
        }
        std::mem::take(&mut self.findings)
    }

    fn judge_ends(&mut self) {
        let (sender, receiver) = (self.ends.sender.clone(), self.ends.receiver.clone());
        match (&sender, &receiver) {
            (None, _) => self.found("the sender hangs"),
            (_, None) => self.found("the receiver hangs"),
            (Some(Ok(())), Some(Ok(()))) => {}
            // The last word can be lost, or cross an end.
            _ if self.scenario.has(Fault::may_end_it) => {}
            _ => self.found(format!(
                "it failed without a cause: {sender:?}, {receiver:?}"
            )),
        }
        let reasons: Vec<&str> = self
            .scenario
            .faults
            .iter()
            .flat_map(|(_, fault)| fault.reasons())
            .copied()
            .collect();
        for end in [sender, receiver].into_iter().flatten() {
            if let Err(error) = end
                && !reasons.iter().any(|reason| error.sentence.contains(reason))
            {
                self.found(format!(
                    "it ended by another error than what happened: {error}"
                ));
            }
        }
    }

    fn judge_targets(&mut self) {
        let mut wrong = Vec::new();
        for (key, target) in &self.targets {
            let source = &self.sources[key];
            if target.temporary.is_some() {
                wrong.push(format!("the temporary file of {key:?} stays"));
            }
            let Some(sealed) = &target.sealed else {
                continue;
            };
            let expected: Vec<u8> = if source.endless {
                let original = source.original.iter().copied().cycle();
                original.take(sealed.len()).collect()
            } else {
                source.original.clone()
            };
            // Whoever forges a source before it is looked at is seen by its bytes.
            let expected = match source.is_forged {
                true => source.seen.clone(),
                false => expected,
            };
            if *sealed != expected {
                wrong.push(format!("{key:?} is sealed and differs from its source"));
            }
            if source.changed_at.is_some_and(|at| at < source.last_read_at) {
                wrong.push(format!("{key:?} is sealed and changed while it was read"));
            }
        }
        wrong.into_iter().for_each(|what| self.found(what));
    }

    fn judge_files(&mut self) {
        let mut wrong = Vec::new();
        let whole = self.ends.sender == Some(Ok(())) && self.ends.receiver == Some(Ok(()));
        if whole && !self.batches_due.is_empty() {
            wrong.push("not every file was offered".to_owned());
        }
        for key in self.sources.keys() {
            let at_sender = self.ends.sender_files.get(key);
            let at_receiver = self.ends.receiver_files.get(key);
            if whole && (at_sender.is_none() || at_receiver.is_none()) {
                wrong.push(format!("{key:?} has no end"));
            }
            if whole && at_sender.map(Result::is_ok) != at_receiver.map(Result::is_ok) {
                wrong.push(format!(
                    "{key:?}: {at_sender:?} there, {at_receiver:?} here"
                ));
            }
            let want = self.specs[&key.0][key.1 as usize].want;
            let sealed = self
                .targets
                .get(key)
                .is_some_and(|target| target.sealed.is_some());
            if sealed != at_receiver.is_some_and(|end| end.is_ok() && want != Want::Skip) {
                wrong.push(format!(
                    "{key:?}: sealed is {sealed}, told is {at_receiver:?}"
                ));
            }
            let may_fail = want == Want::Refuse || self.scenario.has(Fault::may_fail_files);
            if whole && !may_fail && at_sender.is_some_and(Result::is_err) {
                wrong.push(format!("{key:?} failed without a cause: {at_sender:?}"));
            }
        }
        wrong.into_iter().for_each(|what| self.found(what));
    }

    fn judge_counts(&mut self) {
        let (sender, receiver) = (self.sender.counts(), self.receiver.counts());
        let all_well =
            self.ends.sender == Some(Ok(())) && self.ends.sender_files.values().all(Result::is_ok);
        if !all_well {
            return;
        }
        let equal = sender.planned == sender.landed && sender.landed == sender.sealed;
        let same = (sender.planned, sender.landed, sender.sealed)
            == (receiver.planned, receiver.landed, receiver.sealed);
        if !equal || !same {
            self.found(format!("counts do not add up: {sender:?}, {receiver:?}"));
        }
        let clean = self.scenario.faults.is_empty();
        if clean && sender.resent > 0 {
            self.found("bytes were sent again without a cause");
        }
    }
}
