//! The loop of the terminal: keys, reports and signals go into the view, and the view onto the
//! screen.

use std::io;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nymea_remoteproxy::monitor::Report;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use crate::draw::{draw, page_size};
use crate::keys::{self, Decoder, Key};
use crate::lines::with_source;
use crate::options::Options;
use crate::source::Source;
use crate::terminal::{Terminal, told_to_end};
use crate::view::{Next, View};

/// How long the rest of a key may take. Escape is a key by itself, and the beginning of others.
const WITHIN_KEY: Duration = Duration::from_millis(50);

/// A report, or why there is none.
type News = Result<Box<Report>, String>;

/// Shows reports until the user quits or the terminal is closed.
pub(crate) async fn run(options: &Options) -> anyhow::Result<()> {
    let mut told_to_end = told_to_end()?;
    let mut resized = signal(SignalKind::window_change())?;
    let mut view = View::new(!options.with_apps);
    let (print_all, wanted) = watch::channel(view.print_all);
    let (sender, mut news) = mpsc::channel(1);
    let asking = tokio::spawn(ask(Source::new(&options.socket), options.interval, wanted, sender));
    let mut terminal = Terminal::take()?;
    let mut pieces = keys::read();
    let mut decoder = Decoder::default();
    let outcome = 'screen: loop {
        if let Err(error) = draw_on(&mut terminal, &view) {
            break Err(error);
        }
        let keys = tokio::select! {
            biased;
            _ = told_to_end.recv() => break Ok(()),
            piece = pieces.recv() => match piece {
                Some(piece) => decoder.push(&piece),
                // The terminal is gone.
                None => break Ok(()),
            },
            () = sleep(WITHIN_KEY), if decoder.is_within() => decoder.pause().into_iter().collect(),
            _ = resized.recv() => Vec::new(),
            Some(news) = news.recv() => {
                match news {
                    Ok(report) => view.show(*report, Instant::now()),
                    Err(why) => view.lose(why),
                }
                Vec::new()
            }
        };
        for key in keys {
            match press(&mut view, key, &mut terminal) {
                Ok(Next::Draw | Next::Redraw) => {}
                Ok(Next::Refresh) => {
                    print_all.send_replace(view.print_all);
                }
                Ok(Next::Quit) => break 'screen Ok(()),
                Err(error) => break 'screen Err(error),
            }
        }
    };
    asking.abort();
    drop(terminal);
    match outcome {
        // The terminal is closed.
        Err(error) if error.raw_os_error() == Some(EIO) => Ok(()),
        outcome => Ok(outcome?),
    }
}

/// The error of writes to a terminal that has hung up.
const EIO: i32 = 5;

fn press(view: &mut View, key: Key, terminal: &mut Terminal) -> io::Result<Next> {
    let height = terminal.0.size()?.height;
    let next = view.press(key, page_size(height));
    if next == Next::Redraw {
        terminal.0.clear()?;
    }
    Ok(next)
}

fn draw_on(terminal: &mut Terminal, view: &View) -> io::Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    terminal.0.draw(|frame| draw(frame, view, now))?;
    Ok(())
}

/// Asks again and again, and at once when something else is wanted.
async fn ask(
    mut source: Source,
    interval: Duration,
    mut wanted: watch::Receiver<bool>,
    news: mpsc::Sender<News>,
) {
    loop {
        let print_all = *wanted.borrow_and_update();
        let answer = source.refresh(print_all).await;
        let answer = match answer {
            Ok(answer) => Ok(Box::new(answer.report)),
            Err(error) => Err(with_source(&error)),
        };
        if news.send(answer).await.is_err() {
            return;
        }
        // Asked again because the time has passed, or something else is wanted.
        if let Ok(Err(_)) = timeout(interval, wanted.changed()).await {
            return;
        }
    }
}
