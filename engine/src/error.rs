//! Errors by whom they blame, and the exit code that each kind means.
//!
//! Leaves to others: what was being done and to what (each layer adds one
//! fact to the sentence and removes none). Invariant: `Display` is one
//! sentence, with the cure at its end where there is one.

use crate::reason;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What failed, by the exit code that it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// A fault of a disk or a file at either end (exit code 1).
    Local,
    /// What was asked for makes no sense or is not built (exit code 2).
    Usage,
    /// A connection or the peer: refused, lost, broke the protocol (exit code 3).
    Peer,
    /// Incompatible versions, or a kernel without what is needed (exit code 4).
    Incompatible,
    /// What arrived differs, or the source changed while it was read (exit code 5).
    Integrity,
    /// The peer does not know the token (exit code 6).
    Unauthorised,
    /// Some files failed, the rest are sealed (exit code 23).
    Partial,
    /// A file of a tree went before it was read (no failure, unless that is asked
    /// for: then exit code 23).
    Vanished,
    /// Stopped by the user (exit code 130).
    Interrupted,
}

impl ErrorKind {
    /// The process's exit code, which scripts rely on.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Local => 1,
            Self::Usage => 2,
            Self::Peer => 3,
            Self::Incompatible => 4,
            Self::Integrity => 5,
            Self::Unauthorised => 6,
            Self::Partial | Self::Vanished => 23,
            Self::Interrupted => 130,
        }
    }
}

/// Which end of the transfer an error happened at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The end that reads the source.
    Sender,
    /// The end that writes the target.
    Receiver,
    /// This process, before the sides were known.
    Caller,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sender => "sender",
            Self::Receiver => "receiver",
            Self::Caller => "caller",
        })
    }
}

/// One failure: a sentence, whom it blames, at which side, and its cure.
/// It also crosses the wire, so it owns all that it says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// What failed.
    pub kind: ErrorKind,
    /// Where it failed.
    pub side: Side,
    /// What was being done, to which file or peer, and why it failed.
    pub sentence: String,
    /// What the user can do about it, where there is something.
    pub cure: Option<String>,
    /// It may pass by itself, so that it is worth another try; what the user has
    /// to change does not.
    pub passes: bool,
}

/// The result of nearly everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The system's reason as a clause: "no such file or directory".
pub fn why(reason: impl Into<std::io::Error>) -> String {
    reason::clause(&reason.into().to_string())
}

impl Error {
    /// A failure of `kind` told by `sentence`, at the caller's side until
    /// [`Error::at`] says otherwise.
    pub fn new(kind: ErrorKind, sentence: impl Into<String>) -> Self {
        Self {
            kind,
            side: Side::Caller,
            sentence: sentence.into(),
            cure: None,
            // A peer may come back; our own faults and mistakes stay.
            passes: matches!(kind, ErrorKind::Peer),
        }
    }

    /// A local fault: `doing` is "cannot open /x/y", `why` is the system's reason,
    /// which is said in our words and brings its cure, until another is given.
    pub fn local(doing: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self::because(ErrorKind::Local, &doing, &why)
    }

    /// A fault of a connection or of the peer; `why` as in [`Error::local`].
    pub fn peer(doing: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self::because(ErrorKind::Peer, &doing, &why)
    }

    fn because(kind: ErrorKind, doing: &dyn fmt::Display, why: &dyn fmt::Display) -> Self {
        let why = reason::clause(&why.to_string());
        let mut error = Self::new(kind, format!("{doing}: {why}"));
        error.cure = reason::cure(&why).map(str::to_owned);
        error
    }

    /// A mistake in what was asked for.
    pub fn usage(sentence: impl Into<String>) -> Self {
        Self::new(ErrorKind::Usage, sentence)
    }

    /// The same failure at `side`.
    #[must_use]
    pub fn at(mut self, side: Side) -> Self {
        self.side = side;
        self
    }

    /// The same failure with a cure, said as a clause: "run `sysctl …`".
    #[must_use]
    pub fn cure(mut self, cure: impl Into<String>) -> Self {
        self.cure = Some(cure.into());
        self
    }

    /// The same failure, which no wait can cure.
    #[must_use]
    pub fn lasting(mut self) -> Self {
        self.passes = false;
        self
    }

    /// The same failure, which may pass by itself or not.
    #[must_use]
    pub fn passing_when(mut self, passes: bool) -> Self {
        self.passes = passes;
        self
    }

    /// The exit code that this failure means.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        self.kind.exit_code()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)?;
        match &self.cure {
            Some(cure) => write!(f, "; {cure}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_is_one_sentence_with_its_cure() {
        let error = Error::local("cannot open /a", "permission denied").cure("run chmod");
        assert_eq!(
            error.to_string(),
            "cannot open /a: permission denied; run chmod"
        );
        assert_eq!(error.exit_code(), 1);
    }

    #[test]
    fn only_a_peer_or_a_network_is_tried_again() {
        assert!(Error::peer("cannot connect", "refused").passes);
        assert!(!Error::peer("cannot connect", "forbidden").lasting().passes);
        assert!(!Error::local("cannot connect", "too many files").passes);
        assert!(!Error::usage("it makes no sense").passes);
        let proof = Error::new(ErrorKind::Unauthorised, "its proof does not hold");
        assert!(!proof.passes);
    }

    #[test]
    fn exit_codes_are_the_contract() {
        use ErrorKind::*;
        let codes = [
            Local,
            Usage,
            Peer,
            Incompatible,
            Integrity,
            Unauthorised,
            Partial,
            Interrupted,
        ]
        .map(ErrorKind::exit_code);
        assert_eq!(codes, [1, 2, 3, 4, 5, 6, 23, 130]);
    }
}
