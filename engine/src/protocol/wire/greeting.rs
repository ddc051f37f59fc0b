//! The fixed bytes that open every TCP connection.
//!
//! Leaves to others: whether a proof holds (the handshake) and what follows.
//! Invariant: every layout has one encoding; a byte that has to be zero and is
//! not makes the greeting a violation, so that it can mean something later.

use super::Flow;
use crate::protocol::{ConnectionId, Violation};

/// Bytes of a [`Preamble`] and of a [`PreambleReply`].
pub const PREAMBLE_BYTES: usize = 8;
/// Bytes of a [`Join`].
pub const JOIN_BYTES: usize = 64;
/// The oldest protocol version that this code speaks.
pub const VERSION_MIN: u8 = 1;
/// The newest protocol version that this code speaks.
pub const VERSION_MAX: u8 = 1;

const MAGIC: [u8; 4] = *b"HAUL";

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionRole {
    /// Messages.
    Control,
    /// Data frames, once it has joined a session.
    Data,
}

/// The dialler's first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preamble {
    /// The oldest version that the dialler speaks.
    pub version_min: u8,
    /// The newest.
    pub version_max: u8,
    /// What the connection is for.
    pub role: ConnectionRole,
}

impl Preamble {
    /// What this code says when it dials.
    #[must_use]
    pub fn ours(role: ConnectionRole) -> Self {
        Self {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            role,
        }
    }

    /// The preamble's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; PREAMBLE_BYTES] {
        let [a, b, c, d] = MAGIC;
        let role = match self.role {
            ConnectionRole::Control => 0,
            ConnectionRole::Data => 1,
        };
        [a, b, c, d, self.version_min, self.version_max, role, 0]
    }

    /// Reads a preamble.
    ///
    /// # Errors
    /// Bytes that are not haul's, a role that does not exist, or an empty
    /// range of versions. A version that is not spoken here is no violation:
    /// see [`choose_version`].
    pub fn decode(bytes: &[u8; PREAMBLE_BYTES]) -> Result<Self, Violation> {
        let [a, b, c, d, version_min, version_max, role, zero] = *bytes;
        if [a, b, c, d] != MAGIC {
            return Err(Violation::new(
                "a haul connection",
                format!("bytes {:02x?}", &bytes[..4]),
            ));
        }
        let role = match role {
            0 => ConnectionRole::Control,
            1 => ConnectionRole::Data,
            other => return Err(Violation::new("role 0 or 1", format!("role {other}"))),
        };
        if version_min == 0 || version_min > version_max || zero != 0 {
            return Err(Violation::new(
                "a range of versions and a zero",
                format!("versions {version_min} to {version_max} and {zero}"),
            ));
        }
        Ok(Self {
            version_min,
            version_max,
            role,
        })
    }
}

/// The accepter's answer on a control connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PreambleReply {
    /// The version to speak; `None` refuses the connection.
    pub version: Option<u8>,
    /// The oldest version that the accepter speaks.
    pub version_min: u8,
    /// The newest.
    pub version_max: u8,
}

impl PreambleReply {
    /// What this code answers to `preamble`.
    #[must_use]
    pub fn to(preamble: &Preamble) -> Self {
        Self {
            version: choose_version(preamble.version_min, preamble.version_max),
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
        }
    }

    /// The reply's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; PREAMBLE_BYTES] {
        let [a, b, c, d] = MAGIC;
        let version = self.version.unwrap_or(0);
        [a, b, c, d, version, self.version_min, self.version_max, 0]
    }

    /// Reads a reply.
    ///
    /// # Errors
    /// Bytes that are not haul's, or a chosen version outside the range that
    /// stands beside it.
    pub fn decode(bytes: &[u8; PREAMBLE_BYTES]) -> Result<Self, Violation> {
        let [a, b, c, d, version, version_min, version_max, zero] = *bytes;
        if [a, b, c, d] != MAGIC {
            return Err(Violation::new(
                "a haul server",
                format!("bytes {:02x?}", &bytes[..4]),
            ));
        }
        let chosen = version == 0 || (version_min..=version_max).contains(&version);
        if version_min == 0 || version_min > version_max || zero != 0 || !chosen {
            return Err(Violation::new(
                "a version within the server's range",
                format!("version {version} of {version_min} to {version_max} and {zero}"),
            ));
        }
        Ok(Self {
            version: (version != 0).then_some(version),
            version_min,
            version_max,
        })
    }
}

/// The newest version that this code and a peer that speaks `min..=max` have
/// in common.
#[must_use]
pub fn choose_version(min: u8, max: u8) -> Option<u8> {
    let newest = max.min(VERSION_MAX);
    (newest >= min.max(VERSION_MIN)).then_some(newest)
}

/// A data connection's claim to belong to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Join {
    /// The session, as its `Welcome` named it.
    pub session: u64,
    /// The connection's number, used once in the session.
    pub connection: ConnectionId,
    /// Which way frames go.
    pub flow: Flow,
    /// Fresh random bytes.
    pub nonce: [u8; 16],
    /// Knowledge of the session's secret, over all of the above.
    pub proof: [u8; 32],
}

impl Join {
    /// The join's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; JOIN_BYTES] {
        let mut bytes = [0; JOIN_BYTES];
        bytes[..8].copy_from_slice(&self.session.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.connection.to_le_bytes());
        bytes[12] = match self.flow {
            Flow::FromDialler => 0,
            Flow::ToDialler => 1,
        };
        bytes[16..32].copy_from_slice(&self.nonce);
        bytes[32..].copy_from_slice(&self.proof);
        bytes
    }

    /// Reads a join; whether its proof holds is the session's to say.
    ///
    /// # Errors
    /// A flow that does not exist, or reserved bytes that are not zero.
    pub fn decode(bytes: &[u8; JOIN_BYTES]) -> Result<Self, Violation> {
        let flow = match (bytes[12], &bytes[13..16]) {
            (0, [0, 0, 0]) => Flow::FromDialler,
            (1, [0, 0, 0]) => Flow::ToDialler,
            _ => {
                return Err(Violation::new(
                    "flow 0 or 1 and three zeros",
                    format!("bytes {:02x?}", &bytes[12..16]),
                ));
            }
        };
        Ok(Self {
            session: u64::from_le_bytes(part(bytes, 0)),
            connection: ConnectionId::from_le_bytes(part(bytes, 8)),
            flow,
            nonce: part(bytes, 16),
            proof: part(bytes, 32),
        })
    }
}

/// The `N` bytes at `start`, which the layout holds.
fn part<const N: usize>(bytes: &[u8; JOIN_BYTES], start: usize) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&bytes[start..start + N]);
    part
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_join_decodes_back(session: u64, connection: u32, from: bool, nonce: [u8; 16], proof: [u8; 32]) {
            let flow = if from { Flow::FromDialler } else { Flow::ToDialler };
            let join = Join { session, connection, flow, nonce, proof };
            prop_assert_eq!(Join::decode(&join.encode()), Ok(join));
        }

        #[test]
        fn any_eight_bytes_decode_to_what_encodes_to_them_or_not_at_all(mut bytes: [u8; 8], ours: bool) {
            if ours {
                bytes[..4].copy_from_slice(&MAGIC);
            }
            if let Ok(preamble) = Preamble::decode(&bytes) {
                prop_assert_eq!(preamble.encode(), bytes);
            }
            if let Ok(reply) = PreambleReply::decode(&bytes) {
                prop_assert_eq!(reply.encode(), bytes);
            }
        }

        #[test]
        fn any_join_bytes_decode_to_what_encodes_to_them_or_not_at_all(bytes: [u8; 32], flow in 0u8..4) {
            let mut whole = [0; JOIN_BYTES];
            whole[..32].copy_from_slice(&bytes);
            whole[12..16].copy_from_slice(&[flow, 0, 0, 0]);
            match Join::decode(&whole) {
                Ok(join) => prop_assert_eq!(join.encode(), whole),
                Err(_) => prop_assert!(flow > 1),
            }
        }
    }

    #[test]
    fn the_preamble_is_these_bytes() {
        let preamble = Preamble::ours(ConnectionRole::Data);
        assert_eq!(&preamble.encode(), b"HAUL\x01\x01\x01\x00");
        assert_eq!(Preamble::decode(&preamble.encode()), Ok(preamble));
        let reply = PreambleReply::to(&preamble);
        assert_eq!(&reply.encode(), b"HAUL\x01\x01\x01\x00");
        assert_eq!(PreambleReply::decode(&reply.encode()), Ok(reply));
    }

    #[test]
    fn a_newer_peer_is_answered_and_an_alien_one_is_not_understood() {
        let newer = Preamble {
            version_min: 2,
            version_max: 9,
            role: ConnectionRole::Control,
        };
        let decoded = Preamble::decode(&newer.encode()).expect("haul's own bytes");
        assert_eq!(PreambleReply::to(&decoded).version, None);
        assert_eq!(choose_version(1, 200), Some(1));
        assert_eq!(choose_version(0, 0), None);
        assert!(Preamble::decode(b"SSH-2.0-").is_err());
        assert!(Preamble::decode(b"HAUL\x02\x01\x00\x00").is_err());
    }
}
