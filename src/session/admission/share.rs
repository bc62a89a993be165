//! What single networks and users may have of all connections, in whole numbers.

use crate::config::Limits;

/// Networks with fewer connections than this hundredth of the reserve may use it: it takes a hundred
/// networks to use it up.
const RESERVE_PARTS: usize = 100;
/// A tunnel has two ends, which may be of one network and one user.
const TUNNEL: usize = 2;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shares {
    /// Connections of one network.
    pub(super) per_network: usize,
    /// Connections of one user.
    pub(super) per_user: usize,
    /// Connections that only networks with few of them may use.
    pub(super) reserve: usize,
    /// What is few.
    pub(super) few: usize,
    /// Of the strangers, those that only newcomers can be.
    pub(super) newcomers: usize,
}

impl Shares {
    pub(super) fn of(limits: &Limits) -> Self {
        let all = limits.connections;
        let reserve = part(all, limits.reserve, f64::floor);
        Self {
            per_network: part(all, limits.network_share, f64::ceil).max(TUNNEL),
            per_user: part(all, limits.user_share, f64::ceil).max(TUNNEL),
            reserve,
            few: (reserve / RESERVE_PARTS).max(TUNNEL),
            newcomers: part(limits.unauthenticated, limits.reserve, f64::floor),
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "a share from 0 to 1 of a number far below 2^52"
)]
fn part(all: usize, share: f64, round: fn(f64) -> f64) -> usize {
    (round(all as f64 * share) as usize).min(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(connections: usize) -> Shares {
        Shares::of(&Limits { connections, ..Limits::default() })
    }

    #[test]
    fn the_default_shares_leave_room_for_others() {
        let Shares { per_network, per_user, reserve, few, newcomers } = shares(16_384);
        assert_eq!((per_network, per_user, reserve, few), (12_288, 8192, 1638, 16));
        assert_eq!(newcomers, 500);
    }

    #[test]
    fn a_tunnel_is_possible_however_few_there_are() {
        for connections in 2..10 {
            let shares = shares(connections);
            assert!(shares.per_network >= 2 && shares.per_user >= 2 && shares.few >= 2);
            assert_eq!(shares.reserve, 0);
        }
    }

    #[test]
    fn shares_of_one_limit_nothing() {
        let limits =
            Limits { network_share: 1.0, user_share: 1.0, reserve: 0.0, ..Limits::default() };
        let shares = Shares::of(&limits);
        assert_eq!((shares.per_network, shares.per_user), (16_384, 16_384));
        assert_eq!((shares.reserve, shares.newcomers), (0, 0));
    }
}
