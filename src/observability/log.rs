//! The changes that an operator may make to the log at run time. The program implements them.

/// The log of this process.
pub trait LogControl: Send + Sync {
    /// The filter in force, as in `info,nymea_remoteproxy=debug`.
    fn filter(&self) -> String;

    /// Sets the filter from now on. On an error, the old filter stays in force.
    fn set_filter(&self, directives: &str) -> Result<(), String>;

    /// Lines that were lost: not taken in time, or not to be written.
    fn dropped(&self) -> u64;
}
