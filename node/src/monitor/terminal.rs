//! Sets up the terminal and restores it: at the end, on a panic, and on a signal while the terminal
//! accepts no output.

use std::io::{self, Stdout, Write};
use std::sync::Once;
use std::thread;
use std::time::Duration;

use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{Receiver, channel};

/// How long an orderly end may take. A terminal that accepts no output blocks its writer.
const GRACE: Duration = Duration::from_secs(2);

/// The terminal, taken. Dropping it gives it back.
pub(crate) struct Terminal(pub(crate) ratatui::Terminal<CrosstermBackend<Stdout>>);

impl Terminal {
    /// Keys come as bytes from now on, and what was on the screen is put away.
    pub(crate) fn take() -> io::Result<Self> {
        static PANICS: Once = Once::new();
        PANICS.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                give_back();
                before(panic);
            }));
        });
        enable_raw_mode()?;
        let taken = execute!(io::stdout(), EnterAlternateScreen)
            .and_then(|()| ratatui::Terminal::new(CrosstermBackend::new(io::stdout())));
        match taken {
            Ok(terminal) => Ok(Self(terminal)),
            Err(error) => {
                give_back();
                Err(error)
            }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        give_back();
    }
}

/// If the terminal is gone, there is nothing to be given back.
fn give_back() {
    let _raw = disable_raw_mode();
    let _shown = execute!(io::stdout(), LeaveAlternateScreen, Show);
    let _written = io::stdout().flush();
}

/// Gets a word when the program is to end: by SIGTERM, SIGINT, SIGQUIT or SIGHUP. If it has not
/// ended soon after, it is ended.
pub(crate) fn told_to_end() -> io::Result<Receiver<()>> {
    let (sender, receiver) = channel(1);
    // A thread and a runtime of their own: the main one may be held up by the terminal.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let kinds = [
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::quit(),
        SignalKind::hangup(),
    ];
    let signals = {
        let _within = runtime.enter();
        kinds.map(signal)
    };
    let [terminate, interrupt, quit, hangup] = signals;
    let (mut terminate, mut interrupt, mut quit, mut hangup) =
        (terminate?, interrupt?, quit?, hangup?);
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                _ = quit.recv() => {}
                _ = hangup.recv() => {}
            }
        });
        // Full or closed: the end is known already.
        let _told = sender.try_send(());
        thread::sleep(GRACE);
        // As above: a terminal that is gone needs nothing, and this must end in any case.
        let _raw = disable_raw_mode();
        #[expect(clippy::disallowed_methods, reason = "the main thread may never return")]
        std::process::exit(1);
    });
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::num::NonZeroU16;

    use portable_pty::{CommandBuilder, PtySize, native_pty_system};

    use super::*;

    /// Set where the test below runs itself on a terminal, to panic there.
    const ON_TERMINAL: &str = "PANICS_ON_THIS_TERMINAL";

    #[test]
    fn a_panic_is_told_on_a_terminal_that_is_as_it_was() {
        if std::env::var_os(ON_TERMINAL).is_some() {
            let _terminal = Terminal::take().expect("a terminal");
            panic!("on purpose");
        }
        let size = PtySize { rows: 50, cols: 100, pixel_width: 0, pixel_height: 0 };
        let pair = native_pty_system().openpty(size).expect("a terminal");
        let before = pair.master.get_termios().expect("its settings");
        let mut command = CommandBuilder::new(std::env::current_exe().expect("this test"));
        let name = "terminal::tests::a_panic_is_told_on_a_terminal_that_is_as_it_was";
        command.args(["--exact", "--nocapture", name]);
        command.env(ON_TERMINAL, "1");
        let mut child = pair.slave.spawn_command(command).expect("spawned");
        drop(pair.slave);
        let mut written = Vec::new();
        // It ends with EIO when no process has the terminal open any more.
        let _end = pair.master.try_clone_reader().expect("a reader").read_to_end(&mut written);
        assert!(!child.wait().expect("a child").success());
        assert_eq!(before, pair.master.get_termios().expect("its settings"));
        let size = |size| NonZeroU16::new(size).expect("not empty");
        let mut terminal = vt100::Parser::new(size(50), size(100), 0);
        terminal.process(&written);
        let screen = terminal.screen();
        assert!(!screen.alternate_screen() && !screen.hide_cursor());
        let (taken, told) = (find(&written, b"\x1b[?1049l"), find(&written, b"on purpose"));
        assert!(taken.expect("given back") < told.expect("told"), "{}", screen.contents());
    }

    fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
        bytes.windows(part.len()).position(|window| window == part)
    }
}
