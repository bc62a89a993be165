//! How durations and sizes are written in a configuration.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de::Error};

/// A duration such as `500ms`, `8s` or `2m`.
pub(super) fn duration<'de, D: Deserializer<'de>>(input: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(input)?;
    humantime::parse_duration(&text).map_err(D::Error::custom)
}

/// A number of bytes such as `16MiB`.
pub(super) fn size<'de, D: Deserializer<'de>>(input: D) -> Result<usize, D::Error> {
    usize::deserialize(input)
}
