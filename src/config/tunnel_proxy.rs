//! `tunnel_proxy.*`: the settings for gateways and apps.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::units;

/// `tunnel_proxy.*`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TunnelProxy {
    /// Whether gateways and apps are served. By default only if no other machine can connect (loopback
    /// addresses and unix sockets), as a registration needs no token.
    #[serde(deserialize_with = "units::switch")]
    pub enabled: Option<bool>,
    /// Registrations that must have a token.
    pub token: TokenFor,
    /// Bytes that may wait for each app, regardless of other apps.
    #[serde(deserialize_with = "units::size")]
    pub backlog: usize,
    /// Bytes that may wait for all apps together, beyond the backlog of each.
    #[serde(deserialize_with = "units::size")]
    pub overflow: usize,
    /// A gateway that sends nothing for this long is closed.
    #[serde(deserialize_with = "units::duration", serialize_with = "units::write_duration")]
    pub inactivity: Duration,
}

/// Registrations that must have a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenFor {
    /// None.
    #[default]
    None,
    /// Gateways.
    Gateways,
    /// Apps.
    Apps,
    /// Gateways and apps.
    Both,
}

impl TokenFor {
    /// Whether gateways must.
    pub fn gateways(self) -> bool {
        matches!(self, Self::Gateways | Self::Both)
    }

    /// Whether apps must.
    pub fn apps(self) -> bool {
        matches!(self, Self::Apps | Self::Both)
    }
}

impl Default for TunnelProxy {
    fn default() -> Self {
        Self {
            enabled: None,
            token: TokenFor::None,
            backlog: 1 << 20,
            overflow: 64 << 20,
            inactivity: Duration::from_mins(1),
        }
    }
}
