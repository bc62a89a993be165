//! What an operator may change of the log while the node runs. The log itself is the program's.

/// The log of this process.
pub trait LogControl: Send + Sync {
    /// What is logged, as in `info,nymea_remoteproxy=debug`.
    fn filter(&self) -> String;

    /// Logs this from now on; an error says what is wrong with it, and nothing changes.
    fn set_filter(&self, directives: &str) -> Result<(), String>;

    /// Lines that were lost: not taken in time, or not to be written.
    fn dropped(&self) -> u64;
}
