//! Which movers there are: every way out with every way in.
//!
//! Leaves to others: moving. Invariant: a row that asks for a durable target is
//! one only where the measurement does.

/// How bytes leave the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sending {
    /// sendfile(2): page-cache pages by reference.
    Sendfile,
    /// sendmsg(2) of a buffer that pread(2) filled.
    Buffer,
    /// SENDMSG on a ring, from the source's mapping.
    Mapping,
}

/// How bytes reach the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitLanding {
    /// splice(2) from the socket into a pipe and from there into the file.
    Splice,
    /// RECV and WRITE_FIXED on one ring for all connections.
    RingWrite,
    /// recv(2) and pwrite(2).
    Pwrite,
    /// As [`LimitLanding::RingWrite`], past the page cache into allocated extents:
    /// the best where the target must be durable.
    RingDirect,
}

/// One row of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitMethod {
    /// The sending end.
    pub sending: Sending,
    /// The receiving end.
    pub landing: LimitLanding,
    /// TCP connections.
    pub connections: usize,
}

impl LimitMethod {
    /// The row's name.
    #[must_use]
    pub fn name(&self) -> String {
        let sending = match self.sending {
            Sending::Sendfile => "sendfile",
            Sending::Buffer => "pread + sendmsg",
            Sending::Mapping => "mapping, ring sendmsg",
        };
        let landing = match self.landing {
            LimitLanding::Splice => "splice",
            LimitLanding::RingWrite => "ring write",
            LimitLanding::Pwrite => "recv + pwrite",
            LimitLanding::RingDirect => "ring direct write",
        };
        format!("{sending} > {landing}, {}", self.connections)
    }

    /// All rows: every pair of ends on 1, 2 and 4 connections. Direct writes
    /// are rows only where the target must be `durable`.
    #[must_use]
    pub fn matrix(durable: bool) -> Vec<Self> {
        let mut rows = Vec::new();
        for sending in [Sending::Sendfile, Sending::Buffer, Sending::Mapping] {
            for landing in [
                LimitLanding::Splice,
                LimitLanding::RingWrite,
                LimitLanding::Pwrite,
                LimitLanding::RingDirect,
            ] {
                if landing == LimitLanding::RingDirect && !durable {
                    continue;
                }
                for connections in [1, 2, 4] {
                    rows.push(Self {
                        sending,
                        landing,
                        connections,
                    });
                }
            }
        }
        rows
    }
}
