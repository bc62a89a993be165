//! How a view looks on a terminal.

use indicatif::HumanBytes;
use nymea_remoteproxy::monitor::Report;
use nymea_remoteproxy::printable::Printable;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row as TableRow, Table, TableState};

use crate::view::{Page, Row, Sort, View};

const HELP: &str = "q quit  / filter  Tab gateways, tunnels  g idle gateways  \
                    sort: n name  a apps  c connected  r rate  d data";
/// What is on the screen besides the list: two lines above it, its head, and one line below.
const AROUND: u16 = 4;

/// Lines of the list that fit on a screen of this height.
pub(crate) fn page_size(height: u16) -> usize {
    height.saturating_sub(AROUND).max(1).into()
}

/// Draws all of it; `now` in seconds since 1970.
pub(crate) fn draw(frame: &mut Frame<'_>, view: &View, now: u64) {
    let [head, list, foot] =
        Layout::vertical([Constraint::Length(2), Constraint::Min(0), Constraint::Length(1)])
            .areas(frame.area());
    frame.render_widget(Paragraph::new(head_lines(view)), head);
    let rows = view.rows();
    if rows.is_empty() {
        let [_, below] = Layout::vertical([Constraint::Length(1), Constraint::Min(0)]).areas(list);
        frame.render_widget(Paragraph::new(why_empty(view)), below);
    }
    draw_list(frame, view, &rows, list, now);
    frame.render_widget(Paragraph::new(foot_line(view)), foot);
}

fn head_lines(view: &View) -> Vec<Line<'static>> {
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let mut first = match &view.report {
        Some(report) => vec![
            Span::styled(shown(&report.server_name), bold),
            Span::raw(format!(
                "  version {}, api {}",
                shown(&report.server_version),
                shown(&report.api_version)
            )),
        ],
        None => vec![Span::styled("nymea-remoteproxy-monitor", bold)],
    };
    match &view.away {
        Some(why) => {
            let style = bold.fg(Color::Red);
            first.push(Span::styled(format!("  {}; trying again", shown(why)), style));
        }
        None if view.report.is_none() => first.push(Span::raw("  connecting")),
        None => {}
    }
    let second = view.report.as_ref().map(totals).unwrap_or_default();
    vec![Line::from(first), Line::raw(second)]
}

fn totals(report: &Report) -> String {
    let all = &report.tunnel_proxy;
    let transports = all.transports.iter();
    let transports: Vec<_> =
        transports.map(|(name, count)| format!("{} {count}", shown(name))).collect();
    format!(
        "{} connections ({})  {} gateways  {} apps  {}/s relayed",
        all.total_client_count,
        transports.join(", "),
        all.gateway_count,
        all.app_count,
        HumanBytes(all.throughput),
    )
}

fn why_empty(view: &View) -> &'static str {
    match &view.report {
        None => "",
        Some(_) if !view.filter.is_empty() => "Nothing has this in its name, UUID or address.",
        Some(report) if !view.print_all && report.tunnel_proxy.gateway_count > 0 => {
            "No gateway has an app; g shows those without."
        }
        Some(_) => match view.page {
            Page::Gateways => "There are no gateways.",
            Page::Tunnels => "There are no apps.",
        },
    }
}

fn foot_line(view: &View) -> Line<'static> {
    let filter = shown(&view.filter);
    if view.is_typing {
        Line::raw(format!("filter: {filter}█  Enter keeps it, Escape drops it"))
    } else if filter.is_empty() {
        Line::raw(HELP)
    } else {
        Line::raw(format!("filter: {filter} (Escape drops it)  {HELP}"))
    }
}

/// A column: its head, by what it sorts, how wide it is, and what is in it.
struct Column {
    head: &'static str,
    sort: Option<Sort>,
    width: Constraint,
    /// The screen must be as wide for this one to be there.
    from: u16,
    /// The only page that has it.
    page: Option<Page>,
    cell: fn(&View, &Row<'_>, u64) -> String,
}

const COLUMNS: [Column; 10] = [
    Column {
        head: "Name",
        sort: Some(Sort::Name),
        width: Constraint::Fill(1),
        from: 0,
        page: None,
        cell: |view, row, _| match (view.page, row.app) {
            (Page::Gateways, Some(app)) => format!("  └ {}", shown(&app.name)),
            (Page::Gateways, None) => shown(&row.gateway.name),
            (Page::Tunnels, _) => shown(row.name()),
        },
    },
    Column {
        head: "Gateway",
        sort: None,
        width: Constraint::Fill(1),
        from: 0,
        page: Some(Page::Tunnels),
        cell: |_, row, _| shown(&row.gateway.name),
    },
    Column {
        head: "UUID",
        sort: None,
        width: Constraint::Length(38),
        from: 140,
        page: None,
        cell: |_, row, _| shown(row.uuid()),
    },
    Column {
        head: "Address",
        sort: None,
        width: Constraint::Length(22),
        from: 110,
        page: None,
        cell: |_, row, _| shown(row.address()),
    },
    Column {
        head: "Connected",
        sort: Some(Sort::Connected),
        width: Constraint::Length(10),
        from: 60,
        page: None,
        cell: |_, row, now| age(now.saturating_sub(row.since())),
    },
    Column {
        head: "Apps",
        sort: Some(Sort::Apps),
        width: Constraint::Length(5),
        from: 0,
        page: Some(Page::Gateways),
        cell: |_, row, _| match row.app {
            Some(_) => String::new(),
            None => row.gateway.apps.len().to_string(),
        },
    },
    Column {
        head: "From it/s",
        sort: Some(Sort::Rate),
        width: Constraint::Length(11),
        from: 0,
        page: None,
        cell: |_, row, _| bytes(row.rate.received),
    },
    Column {
        head: "To it/s",
        sort: Some(Sort::Rate),
        width: Constraint::Length(11),
        from: 0,
        page: None,
        cell: |_, row, _| bytes(row.rate.sent),
    },
    Column {
        head: "From it",
        sort: Some(Sort::Data),
        width: Constraint::Length(11),
        from: 80,
        page: None,
        cell: |_, row, _| HumanBytes(row.received()).to_string(),
    },
    Column {
        head: "To it",
        sort: Some(Sort::Data),
        width: Constraint::Length(11),
        from: 80,
        page: None,
        cell: |_, row, _| HumanBytes(row.sent()).to_string(),
    },
];

fn draw_list(frame: &mut Frame<'_>, view: &View, rows: &[Row<'_>], area: Rect, now: u64) {
    let is_there = |column: &&Column| {
        column.from <= area.width && column.page.is_none_or(|page| page == view.page)
    };
    let columns = || COLUMNS.iter().filter(is_there);
    let head = columns().map(|column| match column.sort {
        Some(sort) if sort == view.sort => {
            let mark = if view.reversed { "▲" } else { "▼" };
            Cell::from(format!("{}{mark}", column.head))
        }
        _ => Cell::from(column.head),
    });
    let head = TableRow::new(head).style(Style::new().add_modifier(Modifier::REVERSED));
    // Only what is on the screen is made: there may be very many.
    let visible = page_size(frame.area().height);
    let selected = view.selected.min(rows.len().saturating_sub(1));
    let first = (selected + 1).saturating_sub(visible);
    let lines = rows.iter().skip(first).take(visible).map(|row| {
        let cells = columns().map(|column| Cell::from((column.cell)(view, row, now)));
        let style = match (view.page, row.app) {
            (Page::Gateways, None) => Style::new().add_modifier(Modifier::BOLD),
            _ => Style::new(),
        };
        TableRow::new(cells).style(style)
    });
    let table = Table::new(lines, columns().map(|column| column.width))
        .header(head)
        .row_highlight_style(Style::new().fg(Color::Cyan));
    let mut state = TableState::new();
    if !rows.is_empty() {
        state.select(Some(selected - first));
    }
    frame.render_stateful_widget(table, area, &mut state);
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
fn bytes(number: f64) -> String {
    HumanBytes(number.round() as u64).to_string()
}

/// As in `3d 4h`, `5m 10s`: never more than two units.
fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, ..) => format!("{hours}h {}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

/// What others have written, without what would do something to the terminal.
fn shown(text: &str) -> String {
    Printable::name(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_two_units() {
        for (seconds, expected) in [
            (0, "0s"),
            (59, "59s"),
            (61, "1m 1s"),
            (3_599, "59m 59s"),
            (3_600, "1h 0m"),
            (90_061, "1d 1h"),
        ] {
            assert_eq!(age(seconds), expected);
        }
    }

    #[test]
    fn names_do_nothing_to_the_terminal() {
        assert_eq!(shown("a\x1b[2Jb\r\n\u{202e}ü"), r"a\u{1b}[2Jb\r\n\u{202e}ü");
    }
}
