//! `tunnel_proxy.*`: what gateways and apps may do here.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::units;

/// `tunnel_proxy.*`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TunnelProxy {
    /// Whether gateways and apps are served. By default only where no other machine can come: on
    /// loopback addresses and unix sockets, as whoever registers needs no token.
    #[serde(deserialize_with = "units::switch")]
    pub enabled: Option<bool>,
    /// Who must show a token when it registers.
    pub token: TokenFor,
    /// Bytes that may wait for each app, whatever waits for others.
    #[serde(deserialize_with = "units::size")]
    pub backlog: usize,
    /// Bytes that may wait for all apps together beyond that.
    #[serde(deserialize_with = "units::size")]
    pub overflow: usize,
    /// A gateway that sends nothing for this long is closed.
    #[serde(deserialize_with = "units::duration", serialize_with = "units::write_duration")]
    pub inactivity: Duration,
}

/// Who must show a token when it registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenFor {
    /// Nobody.
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
