//! How two ends of a session prove the token to each other, and how data
//! connections prove that they belong to the session.
//!
//! Leaves to others: random bytes, deadlines and sockets. Invariant: every
//! proof covers all that was said before it, from the first byte on, so that
//! nothing in it (a version, a feature, a nonce, the need of a token) can be
//! changed on the way unseen; keys of
//! different purposes are never the same; secrets are compared in constant
//! time and never printed.
//!
//! ```text
//!   client                                server
//!     │ preamble ───────────────────────────▶ │
//!     │ Hello {features, nonce, …} ─────────▶ │
//!     │ ◀───────────────────────────── reply  │   transcript = BLAKE3(preamble, reply,
//!     │ ◀───────── Welcome {session, nonce, …}│                       Hello, Welcome)
//!     │ Proof  = MAC(client key, transcript) ▶│   verified, or Refuse
//!     │ ◀─ Ready = MAC(server key, transcript)│
//! ```
//! The keys are `derive_key(context, token)`; without a token on both sides 32
//! zeros stand in its place, which authenticates nobody. The session's secret
//! is derived from the token and the transcript, so both ends have it after
//! Welcome, and data connections can be dialled without another round trip.

use super::ConnectionId;
use super::wire::{Flow, Hello, Join, Message, PREAMBLE_BYTES, Welcome, encode};
use crate::error::{Error, ErrorKind};

/// Feature bits that this code speaks. Version 1 needs none; see the wire
/// specification for how bits extend it.
pub const FEATURES: u64 = 0;

const CONTEXT_TRANSCRIPT: &str = "haul 1 transcript";
const CONTEXT_CLIENT: &str = "haul 1 client proof";
const CONTEXT_SERVER: &str = "haul 1 server proof";
const CONTEXT_SECRET: &str = "haul 1 session secret";
const NO_TOKEN: [u8; 32] = [0; 32];

/// What data connections of one session prove; never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct SessionSecret([u8; 32]);

impl std::fmt::Debug for SessionSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SessionSecret(..)")
    }
}

impl SessionSecret {
    /// The proof that belongs into a [`Join`] of these values.
    #[must_use]
    pub fn join_proof(
        &self,
        session: u64,
        connection: ConnectionId,
        flow: Flow,
        nonce: &[u8; 16],
    ) -> [u8; 32] {
        let unproved = Join {
            session,
            connection,
            flow,
            nonce: *nonce,
            proof: [0; 32],
        };
        // The layout has one encoding, so it is what the proof covers.
        *blake3::keyed_hash(&self.0, &unproved.encode()).as_bytes()
    }

    /// A whole join for a connection that is being dialled.
    #[must_use]
    pub fn join(
        &self,
        session: u64,
        connection: ConnectionId,
        flow: Flow,
        nonce: [u8; 16],
    ) -> Join {
        Join {
            session,
            connection,
            flow,
            nonce,
            proof: self.join_proof(session, connection, flow, &nonce),
        }
    }

    /// True when the join was made by somebody who knows the secret. That its
    /// number was not used before is the session's to check.
    #[must_use]
    pub fn verify_join(&self, join: &Join) -> bool {
        let expected = self.join_proof(join.session, join.connection, join.flow, &join.nonce);
        equal(&expected, &join.proof)
    }
}

/// The first bytes of both ends on a control connection, as each end saw them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirstBytes {
    /// The dialler's.
    pub preamble: [u8; PREAMBLE_BYTES],
    /// The accepter's answer.
    pub reply: [u8; PREAMBLE_BYTES],
}

/// What a finished handshake gives.
#[derive(Clone, Debug)]
pub struct ProvenSession {
    /// The session's number, chosen by the server.
    pub id: u64,
    /// Both ends proved the token.
    pub authenticated: bool,
    /// What data connections prove.
    pub secret: SessionSecret,
}

/// The keys and the secret of one pair of greetings.
struct Keys {
    client: [u8; 32],
    server: [u8; 32],
    secret: SessionSecret,
}

impl Keys {
    fn new(token: Option<[u8; 32]>, first: &FirstBytes, hello: &Hello, welcome: &Welcome) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT_TRANSCRIPT);
        hasher.update(&first.preamble);
        hasher.update(&first.reply);
        // Envelopes tell lengths, so the two cannot run into each other.
        hasher.update(&encode(&Message::Hello(hello.clone())));
        hasher.update(&encode(&Message::Welcome(welcome.clone())));
        let transcript = *hasher.finalize().as_bytes();
        let token = token.unwrap_or(NO_TOKEN);
        let proof = |context| {
            let key = blake3::derive_key(context, &token);
            *blake3::keyed_hash(&key, &transcript).as_bytes()
        };
        Self {
            client: proof(CONTEXT_CLIENT),
            server: proof(CONTEXT_SERVER),
            secret: SessionSecret(proof(CONTEXT_SECRET)),
        }
    }
}

/// The dialling end's part.
///
/// From: a control connection whose version was agreed. To: a [`ProvenSession`].
pub struct ClientHandshake {
    token: Option<[u8; 32]>,
    hello: Hello,
    /// Set by [`ClientHandshake::welcomed`].
    welcomed: Option<(Keys, ProvenSession)>,
}

impl ClientHandshake {
    /// Starts with fresh random bytes; the Hello is to be sent.
    #[must_use]
    pub fn new(token: Option<[u8; 32]>, nonce: [u8; 32], software: String) -> (Self, Hello) {
        let hello = Hello {
            features: FEATURES,
            nonce,
            has_token: token.is_some(),
            software,
        };
        let handshake = Self {
            token,
            hello: hello.clone(),
            welcomed: None,
        };
        (handshake, hello)
    }

    /// Takes the server's greeting, which came behind `first`; gives the proof to
    /// send.
    ///
    /// # Errors
    /// Unauthorised when the server needs a token and there is none; Peer when
    /// the greeting makes no sense.
    pub fn welcomed(&mut self, first: &FirstBytes, welcome: Welcome) -> Result<[u8; 32], Error> {
        if self.welcomed.is_some() || welcome.features & !self.hello.features != 0 {
            return Err(Error::peer(
                "cannot open a session",
                "the server's greeting claims what was not offered",
            ));
        }
        if welcome.needs_token && self.token.is_none() {
            return Err(Error::new(
                ErrorKind::Unauthorised,
                "cannot open a session: the server needs a token and none was given",
            )
            .cure("give the token that the server printed or wrote when it started"));
        }
        let keys = Keys::new(self.token, first, &self.hello, &welcome);
        let proof = keys.client;
        let session = ProvenSession {
            id: welcome.session,
            authenticated: self.token.is_some(),
            secret: keys.secret.clone(),
        };
        self.welcomed = Some((keys, session));
        Ok(proof)
    }

    /// The session as it will be if the server accepts the proof: enough to
    /// dial and join data connections at once. `None` before the Welcome.
    #[must_use]
    pub fn session(&self) -> Option<&ProvenSession> {
        self.welcomed.as_ref().map(|(_, session)| session)
    }

    /// Takes the server's proof.
    ///
    /// # Errors
    /// Unauthorised when this end has a token and the server does not know it;
    /// Peer when it comes before the Welcome.
    pub fn ready(self, proof: [u8; 32]) -> Result<ProvenSession, Error> {
        let Some((keys, session)) = self.welcomed else {
            return Err(Error::peer(
                "cannot open a session",
                "the server was ready before it welcomed",
            ));
        };
        if self.token.is_some() && !equal(&keys.server, &proof) {
            return Err(Error::new(
                ErrorKind::Unauthorised,
                "cannot open a session: the server does not know our token",
            )
            .cure("give the token of this server, or none if it serves without"));
        }
        Ok(session)
    }
}

/// The accepting end's part.
///
/// From: a control connection whose version was agreed. To: a [`ProvenSession`].
pub struct ServerHandshake {
    token: Option<[u8; 32]>,
    allow_unauthenticated: bool,
    nonce: [u8; 32],
    session: u64,
    software: String,
    /// Set by [`ServerHandshake::hello`].
    greeted: Option<(Keys, ProvenSession)>,
}

impl ServerHandshake {
    /// Starts with fresh random bytes and a session number nobody has.
    #[must_use]
    pub fn new(
        token: Option<[u8; 32]>,
        allow_unauthenticated: bool,
        nonce: [u8; 32],
        session: u64,
        software: String,
    ) -> Self {
        Self {
            token,
            allow_unauthenticated,
            nonce,
            session,
            software,
            greeted: None,
        }
    }

    /// Takes the client's greeting, which came behind `first`; gives ours.
    ///
    /// # Errors
    /// Unauthorised when a token is needed and the client has none; Peer when
    /// it greets twice.
    pub fn hello(&mut self, first: &FirstBytes, hello: Hello) -> Result<Welcome, Error> {
        if self.greeted.is_some() {
            return Err(Error::peer(
                "cannot open a session",
                "the client greeted twice",
            ));
        }
        let needs_token = !self.allow_unauthenticated;
        if needs_token && !hello.has_token {
            return Err(Error::new(
                ErrorKind::Unauthorised,
                "cannot open a session: this server needs a token and the client has none",
            )
            .cure("give the client this server's token"));
        }
        let welcome = Welcome {
            features: hello.features & FEATURES,
            nonce: self.nonce,
            needs_token,
            session: self.session,
            software: self.software.clone(),
        };
        // Only where both have a token is there something to prove.
        let token = self.token.filter(|_| hello.has_token);
        let keys = Keys::new(token, first, &hello, &welcome);
        let session = ProvenSession {
            id: self.session,
            authenticated: token.is_some(),
            secret: keys.secret.clone(),
        };
        self.greeted = Some((keys, session));
        Ok(welcome)
    }

    /// The session as it will be if the client's proof holds: enough to verify
    /// data connections that come ahead of it. `None` before the Hello.
    #[must_use]
    pub fn session(&self) -> Option<&ProvenSession> {
        self.greeted.as_ref().map(|(_, session)| session)
    }

    /// Takes the client's proof; gives ours for `Ready`.
    ///
    /// # Errors
    /// Unauthorised when the proof is wrong; Peer when it comes before Hello.
    pub fn proof(self, proof: [u8; 32]) -> Result<([u8; 32], ProvenSession), Error> {
        let Some((keys, session)) = self.greeted else {
            return Err(Error::peer(
                "cannot open a session",
                "the client proved before it greeted",
            ));
        };
        // A client that has a token and meets a server without one is let in
        // here; it will not accept our proof, and that is its choice.
        let nobody_can_prove = self.token.is_none() && self.allow_unauthenticated;
        if !nobody_can_prove && !equal(&keys.client, &proof) {
            return Err(Error::new(
                ErrorKind::Unauthorised,
                "cannot open a session: the client's token is not this server's",
            )
            .cure("give the client the token that this server printed or wrote when it started"));
        }
        Ok((keys.server, session))
    }
}

/// Compares secrets in constant time.
fn equal(a: &[u8; 32], b: &[u8; 32]) -> bool {
    blake3::Hash::from_bytes(*a) == blake3::Hash::from_bytes(*b)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: [u8; 32] = [9; 32];
    const FIRST: FirstBytes = FirstBytes {
        preamble: *b"HAUL\x01\x01\x00\x00",
        reply: *b"HAUL\x01\x01\x01\x00",
    };

    fn meet(
        client_token: Option<[u8; 32]>,
        server_token: Option<[u8; 32]>,
        allow: bool,
        tamper: impl Fn(&mut Hello, &mut Welcome),
    ) -> Result<(ProvenSession, ProvenSession), Error> {
        meet_behind([FIRST; 2], client_token, server_token, allow, tamper)
    }

    /// The same, where each end saw first bytes of its own: the client's, then
    /// the server's.
    fn meet_behind(
        [at_client, at_server]: [FirstBytes; 2],
        client_token: Option<[u8; 32]>,
        server_token: Option<[u8; 32]>,
        allow: bool,
        tamper: impl Fn(&mut Hello, &mut Welcome),
    ) -> Result<(ProvenSession, ProvenSession), Error> {
        let (mut client, mut hello) = ClientHandshake::new(client_token, [1; 32], "c".into());
        let mut server = ServerHandshake::new(server_token, allow, [2; 32], 77, "s".into());
        let mut unseen = Welcome {
            features: 0,
            nonce: [0; 32],
            needs_token: false,
            session: 0,
            software: String::new(),
        };
        tamper(&mut hello, &mut unseen);
        let mut welcome = server.hello(&at_server, hello.clone())?;
        tamper(&mut hello, &mut welcome);
        let proof = client.welcomed(&at_client, welcome)?;
        let early = client.session().cloned().expect("welcomed");
        let (ready, at_server) = server.proof(proof)?;
        let at_client = client.ready(ready)?;
        assert_eq!(early.secret, at_client.secret);
        Ok((at_client, at_server))
    }

    #[test]
    fn a_shared_token_gives_both_the_same_session() {
        let (client, server) = meet(Some(TOKEN), Some(TOKEN), false, |_, _| ()).expect("opens");
        assert_eq!((client.id, server.id), (77, 77));
        assert!(client.authenticated && server.authenticated);
        assert_eq!(client.secret, server.secret);
        let join = client.secret.join(77, 3, Flow::FromDialler, [5; 16]);
        assert!(server.secret.verify_join(&join));
        for wrong in [
            Join {
                session: 78,
                ..join
            },
            Join {
                connection: 4,
                ..join
            },
            Join {
                flow: Flow::ToDialler,
                ..join
            },
            Join {
                nonce: [6; 16],
                ..join
            },
            Join {
                proof: [0; 32],
                ..join
            },
        ] {
            assert!(!server.secret.verify_join(&wrong));
        }
        assert!(!format!("{client:?}").contains("secret: SessionSecret(["));
    }

    #[test]
    fn who_may_come_in() {
        let kind = |client, server, allow| {
            meet(client, server, allow, |_, _| ())
                .map(|(client, server)| (client.authenticated, server.authenticated))
                .map_err(|error| error.kind)
        };
        let (ours, other) = (Some(TOKEN), Some([8; 32]));
        assert_eq!(kind(None, None, true), Ok((false, false)));
        assert_eq!(kind(None, ours, true), Ok((false, false)));
        assert_eq!(kind(ours, ours, true), Ok((true, true)));
        for refused in [
            (other, ours, false),
            (other, ours, true),
            (None, ours, false),
            // A client with a token does not talk to a server that cannot prove it.
            (ours, None, true),
        ] {
            assert_eq!(
                kind(refused.0, refused.1, refused.2),
                Err(ErrorKind::Unauthorised),
                "{refused:?}"
            );
        }
        // A server that needs a token and has none lets nobody in.
        assert_eq!(kind(ours, None, false), Err(ErrorKind::Unauthorised));
    }

    #[test]
    fn no_bit_of_the_first_bytes_can_be_changed_on_the_way() {
        let ours = Some(TOKEN);
        let meet = |seen| meet_behind(seen, ours, ours, false, |_, _| ());
        assert!(meet([FIRST, FIRST]).is_ok());
        for bit in 0..2 * PREAMBLE_BYTES * 8 {
            let mut other = FIRST;
            let (byte, mask) = (bit / 8, 1 << (bit % 8));
            match byte.checked_sub(PREAMBLE_BYTES) {
                None => other.preamble[byte] ^= mask,
                Some(byte) => other.reply[byte] ^= mask,
            }
            for seen in [[FIRST, other], [other, FIRST]] {
                let kind = meet(seen).map(|_| ()).map_err(|error| error.kind);
                assert_eq!(kind, Err(ErrorKind::Unauthorised), "bit {bit}");
            }
        }
    }

    #[test]
    fn what_is_changed_on_the_way_is_found() {
        let renamed = meet(Some(TOKEN), Some(TOKEN), false, |hello, _| {
            hello.software = "x".into();
        });
        assert_eq!(
            renamed.map(|_| ()).map_err(|error| error.kind),
            Err(ErrorKind::Unauthorised)
        );
        let rerouted = meet(Some(TOKEN), Some(TOKEN), false, |_, welcome| {
            welcome.session = 5;
        });
        assert_eq!(
            rerouted.map(|_| ()).map_err(|error| error.kind),
            Err(ErrorKind::Unauthorised)
        );
        let stripped = meet(Some(TOKEN), Some(TOKEN), false, |_, welcome| {
            welcome.needs_token = false;
        });
        assert!(stripped.is_err());
    }
}
