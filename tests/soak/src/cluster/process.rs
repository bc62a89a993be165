//! What the kernel says about processes, and signals to them.

use std::fs;
use std::net::SocketAddr;

use anyhow::{Context, ensure};
use tokio::process::Command;

/// Sends a signal to a process of this run.
pub(crate) async fn signal(pid: u32, name: &str) -> anyhow::Result<()> {
    let pid = pid.to_string();
    let status = Command::new("kill").args(["-s", name, &pid]).status().await?;
    ensure!(status.success(), "cannot send SIG{name} to process {pid}");
    Ok(())
}

/// How many file descriptors a process has open.
pub(crate) fn descriptors(pid: u32) -> anyhow::Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// Resident memory of a process, in KiB.
pub(crate) fn resident(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Whether the local end of a connection, an IPv4 address, is of this process.
pub(crate) fn has_connection(pid: u32, local: SocketAddr) -> bool {
    let Some(inode) = inode(local) else { return false };
    let wanted = format!("socket:[{inode}]");
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    entries.flatten().any(|entry| {
        fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str() == wanted.as_str())
    })
}

fn inode(local: SocketAddr) -> Option<String> {
    let SocketAddr::V4(local) = local else { return None };
    let address = u32::from_le_bytes(local.ip().octets());
    let wanted = format!("{address:08X}:{:04X}", local.port());
    let table = fs::read_to_string("/proc/net/tcp").ok()?;
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        (fields.next()? == wanted).then(|| fields.nth(7).map(str::to_owned))?
    })
}
