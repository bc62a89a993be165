//! The file of a unix socket that only some may open: there from [`UnixSocket::bind`] until the value
//! is dropped.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Type};
use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};

/// Who may connect: the user that the node runs as, and its group.
const MODE: u32 = 0o660;
/// Connections that the kernel may hold until they are accepted.
const BACKLOG: i32 = 1024;

/// Why there is no socket.
#[derive(Debug, Error)]
pub enum UnixSocketError {
    /// Another program listens there.
    #[error(
        "cannot listen on {}: another program answers there; end that one or choose another file \
         with {setting}", path.display()
    )]
    InUse {
        /// The file.
        path: PathBuf,
        /// The setting that names the file.
        setting: &'static str,
    },
    /// There is a file that is not a socket.
    #[error(
        "cannot listen on {}: that is no socket; remove it or choose another file with {setting}",
        path.display()
    )]
    NoSocket {
        /// The file.
        path: PathBuf,
        /// The setting that names the file.
        setting: &'static str,
    },
    /// The system does not allow it.
    #[error(
        "cannot listen on {}: its directory must exist and allow this process to write; choose \
         another file with {setting} if not", .path.display()
    )]
    Io {
        /// The file.
        path: PathBuf,
        /// The setting that names the file.
        setting: &'static str,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
}

/// A unix socket that is listened on. Dropping it removes its file.
#[derive(Debug)]
pub struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file: what is there later may be another one's.
    file: (u64, u64),
}

impl UnixSocket {
    /// Listens on this file, which only the user and group of this process can open from its first
    /// moment on. A file left by a program that has ended is replaced. Must be called within a tokio
    /// runtime; `setting` is the setting that names the file.
    pub fn bind(path: &Path, setting: &'static str) -> Result<Self, UnixSocketError> {
        let failed = |source| UnixSocketError::Io { path: path.into(), setting, source };
        make_room(path, setting)?;
        let listener = listen(path).map_err(failed)?;
        let made = fs::symlink_metadata(path).map_err(failed)?;
        Ok(Self { listener, path: path.into(), file: (made.dev(), made.ino()) })
    }

    /// The next connection.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        Ok(self.listener.accept().await?.0)
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        let is_ours = |there: fs::Metadata| (there.dev(), there.ino()) == self.file;
        if fs::symlink_metadata(&self.path).is_ok_and(is_ours) {
            // A file that remains is replaced by the next program that listens on it.
            let _removed = fs::remove_file(&self.path);
        }
    }
}

fn make_room(path: &Path, setting: &'static str) -> Result<(), UnixSocketError> {
    match fs::symlink_metadata(path) {
        Err(_) => Ok(()),
        Ok(there) if !there.file_type().is_socket() => {
            Err(UnixSocketError::NoSocket { path: path.into(), setting })
        }
        Ok(_) => match connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                let removed = fs::remove_file(path);
                removed.map_err(|source| UnixSocketError::Io { path: path.into(), setting, source })
            }
            // It may also be too busy to answer, or not for us to ask: it is not ours in any case.
            Ok(()) | Err(_) => Err(UnixSocketError::InUse { path: path.into(), setting }),
        },
    }
}

/// Does not wait for room in the backlog of who listens there.
fn connect(path: &Path) -> io::Result<()> {
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
    socket.connect(&SockAddr::unix(path)?)
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
    // Linux gives the file the mode that the socket had before, without what the umask takes away:
    // there is no moment in which it is open to more than these.
    let socket = File::from(OwnedFd::from(socket));
    socket.set_permissions(Permissions::from_mode(MODE))?;
    let socket = socket2::Socket::from(OwnedFd::from(socket));
    socket.bind(&SockAddr::unix(path)?)?;
    fs::set_permissions(path, Permissions::from_mode(MODE))?;
    socket.listen(BACKLOG)?;
    UnixListener::from_std(OwnedFd::from(socket).into())
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn bind(path: &Path) -> Result<UnixSocket, UnixSocketError> {
        UnixSocket::bind(path, "test.socket")
    }

    #[tokio::test]
    async fn what_was_left_behind_is_replaced_and_what_lives_is_not() {
        let directory = TempDir::new().expect("a directory");
        let path = directory.path().join("socket");
        let left_behind = std::os::unix::net::UnixListener::bind(&path).expect("bound");
        let error = bind(&path).expect_err("it lives");
        assert!(matches!(error, UnixSocketError::InUse { .. }), "{error}");
        assert!(error.to_string().ends_with("another file with test.socket"), "{error}");
        drop(left_behind);
        let socket = bind(&path).expect("replaced");
        assert!(matches!(bind(&path), Err(UnixSocketError::InUse { .. })));

        // Another one has taken its place: that stays.
        fs::remove_file(&path).expect("removed");
        let other = bind(&path).expect("bound");
        drop(socket);
        assert!(path.exists());
        drop(other);

        fs::write(&path, "precious").expect("written");
        assert!(matches!(bind(&path), Err(UnixSocketError::NoSocket { .. })));
        assert_eq!(fs::read(&path).expect("there"), b"precious");
        let nowhere = directory.path().join("nowhere/socket");
        assert!(matches!(bind(&nowhere), Err(UnixSocketError::Io { .. })));
        let too_long = directory.path().join("x".repeat(120));
        assert!(matches!(bind(&too_long), Err(UnixSocketError::Io { .. })));
    }
}
