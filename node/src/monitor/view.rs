//! The selection of data from reports, and the keys that change it. The layout on the screen is not known here.

use std::cmp::Ordering;
use std::time::Instant;

use nymea_remoteproxy::monitor::{App, Gateway, Report};

use crate::keys::Key;
use crate::rates::{Rate, Rates};

/// The most that can be typed as a filter.
const LONGEST_FILTER: usize = 64;

/// The kind of list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Page {
    /// Gateways, each with its apps below it.
    Gateways,
    /// Apps, each with its gateway beside it: these are the tunnels.
    Tunnels,
}

/// In which order. The order of each is the one that is wanted first, usually the largest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sort {
    Name,
    Apps,
    Connected,
    Rate,
    Data,
}

/// The action after a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Draw.
    Draw,
    /// Draw, and first all of the screen is unknown.
    Redraw,
    /// Another report is wanted.
    Refresh,
    /// The end.
    Quit,
}

/// A line of the list.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row<'a> {
    pub(crate) gateway: &'a Gateway,
    /// The line is of this app of it.
    pub(crate) app: Option<&'a App>,
    pub(crate) rate: Rate,
}

/// See the module.
pub(crate) struct View {
    pub(crate) report: Option<Report>,
    /// Why there is no newer one.
    pub(crate) away: Option<String>,
    pub(crate) page: Page,
    pub(crate) sort: Sort,
    pub(crate) reversed: bool,
    pub(crate) filter: String,
    /// Keys go into the filter.
    pub(crate) is_typing: bool,
    /// Whether gateways without apps are wanted.
    pub(crate) print_all: bool,
    /// The line that the list is moved by.
    pub(crate) selected: usize,
    rates: Rates,
}

impl View {
    /// Creates a view without a report.
    pub(crate) fn new(print_all: bool) -> Self {
        Self {
            report: None,
            away: None,
            page: Page::Gateways,
            sort: Sort::Name,
            reversed: false,
            filter: String::new(),
            is_typing: false,
            print_all,
            selected: 0,
            rates: Rates::default(),
        }
    }

    /// A report came.
    pub(crate) fn show(&mut self, report: Report, now: Instant) {
        self.rates.update(&report, now);
        (self.report, self.away) = (Some(report), None);
    }

    /// None came.
    pub(crate) fn lose(&mut self, why: String) {
        self.rates.forget();
        self.away = Some(why);
    }

    /// `page_size` lines are on the screen.
    pub(crate) fn press(&mut self, key: Key, page_size: usize) -> Next {
        if key == Key::Interrupt {
            return Next::Quit;
        }
        if key == Key::Redraw {
            return Next::Redraw;
        }
        if self.is_typing {
            self.type_filter(key);
            return Next::Draw;
        }
        match key {
            Key::Char('q') => return Next::Quit,
            Key::Char('g') => {
                self.print_all = !self.print_all;
                return Next::Refresh;
            }
            Key::Char('/') => self.is_typing = true,
            Key::Escape => self.set_filter(String::new()),
            Key::Tab => {
                self.page = match self.page {
                    Page::Gateways => Page::Tunnels,
                    Page::Tunnels => Page::Gateways,
                };
                self.selected = 0;
            }
            Key::Char('n') => self.sort_by(Sort::Name),
            Key::Char('a') => self.sort_by(Sort::Apps),
            Key::Char('c') => self.sort_by(Sort::Connected),
            Key::Char('r') => self.sort_by(Sort::Rate),
            Key::Char('d') => self.sort_by(Sort::Data),
            Key::Up | Key::Char('k') => self.selected = self.selected.saturating_sub(1),
            Key::Down | Key::Char('j') => self.selected += 1,
            Key::PageUp => self.selected = self.selected.saturating_sub(page_size),
            Key::PageDown => self.selected += page_size,
            Key::Home => self.selected = 0,
            Key::End => self.selected = usize::MAX,
            Key::Char(_) | Key::Enter | Key::Backspace => {}
            Key::Interrupt | Key::Redraw => unreachable!("handled above"),
        }
        // There may be fewer lines than before; a selection beyond the end is the last one.
        self.selected = self.selected.min(self.rows().len().saturating_sub(1));
        Next::Draw
    }

    fn type_filter(&mut self, key: Key) {
        let mut filter = self.filter.clone();
        match key {
            Key::Char(char) if filter.chars().count() < LONGEST_FILTER => filter.push(char),
            Key::Backspace => {
                filter.pop();
            }
            Key::Escape => {
                filter.clear();
                self.is_typing = false;
            }
            Key::Enter => self.is_typing = false,
            _ => {}
        }
        self.set_filter(filter);
    }

    fn set_filter(&mut self, filter: String) {
        if self.filter != filter {
            (self.filter, self.selected) = (filter, 0);
        }
    }

    fn sort_by(&mut self, sort: Sort) {
        self.reversed = self.sort == sort && !self.reversed;
        self.sort = sort;
    }

    /// The lines of the list.
    pub(crate) fn rows(&self) -> Vec<Row<'_>> {
        let Some(report) = &self.report else { return Vec::new() };
        let filter = self.filter.to_lowercase();
        let gateways = report.tunnel_proxy.gateways.iter();
        match self.page {
            Page::Gateways => {
                let blocks = gateways.filter_map(|gateway| self.block(gateway, &filter));
                let mut blocks: Vec<_> = blocks.collect();
                blocks.sort_by(|one, other| self.compare(&one[0], &other[0]));
                blocks.into_iter().flatten().collect()
            }
            Page::Tunnels => {
                let filter = filter.as_str();
                let apps = gateways.flat_map(|gateway| {
                    let is_wanted = is_gateway_wanted(gateway, filter);
                    let apps = gateway.apps.iter();
                    apps.filter(move |app| is_wanted || is_app_wanted(app, filter))
                        .map(|app| self.row(gateway, Some(app)))
                });
                let mut rows: Vec<_> = apps.collect();
                rows.sort_by(|one, other| self.compare(one, other));
                rows
            }
        }
    }

    /// A gateway and those of its apps that are wanted (`filter` is in lower case); all of them, if it is wanted itself.
    fn block<'a>(&'a self, gateway: &'a Gateway, filter: &str) -> Option<Vec<Row<'a>>> {
        let is_wanted = is_gateway_wanted(gateway, filter);
        let apps = gateway.apps.iter().filter(|app| is_wanted || is_app_wanted(app, filter));
        let mut apps: Vec<_> = apps.map(|app| self.row(gateway, Some(app))).collect();
        if !is_wanted && apps.is_empty() {
            return None;
        }
        apps.sort_by(|one, other| self.compare(one, other));
        let mut block = vec![self.row(gateway, None)];
        block.append(&mut apps);
        Some(block)
    }

    fn row<'a>(&'a self, gateway: &'a Gateway, app: Option<&'a App>) -> Row<'a> {
        Row { gateway, app, rate: self.rates.of(&gateway.id, app.map(|app| app.id.as_str())) }
    }

    fn compare(&self, one: &Row<'_>, other: &Row<'_>) -> Ordering {
        let by_name = || one.name().to_lowercase().cmp(&other.name().to_lowercase());
        let order = match self.sort {
            Sort::Name => by_name(),
            Sort::Apps => other.gateway.apps.len().cmp(&one.gateway.apps.len()),
            Sort::Connected => other.since().cmp(&one.since()),
            Sort::Rate => other.rate.sum().total_cmp(&one.rate.sum()),
            Sort::Data => (other.received() + other.sent()).cmp(&(one.received() + one.sent())),
        };
        let order = if self.reversed { order.reverse() } else { order };
        // Equal ones must not change places with each report.
        order.then_with(by_name).then_with(|| one.uuid().cmp(other.uuid()))
    }
}

impl<'a> Row<'a> {
    pub(crate) fn name(&self) -> &'a str {
        self.app.map_or(&self.gateway.name, |app| &app.name)
    }

    pub(crate) fn uuid(&self) -> &'a str {
        self.app.map_or(&self.gateway.uuid, |app| &app.uuid)
    }

    pub(crate) fn address(&self) -> &'a str {
        self.app.map_or(&self.gateway.address, |app| &app.address)
    }

    pub(crate) fn since(&self) -> u64 {
        self.app.map_or(self.gateway.timestamp, |app| app.timestamp)
    }

    pub(crate) fn received(&self) -> u64 {
        self.app.map_or(self.gateway.received, |app| app.received)
    }

    pub(crate) fn sent(&self) -> u64 {
        self.app.map_or(self.gateway.sent, |app| app.sent)
    }
}

fn is_gateway_wanted(gateway: &Gateway, filter: &str) -> bool {
    contains([&gateway.name, &gateway.uuid, &gateway.address], filter)
}

fn is_app_wanted(app: &App, filter: &str) -> bool {
    contains([&app.name, &app.uuid, &app.address], filter)
}

fn contains(texts: [&String; 3], filter: &str) -> bool {
    texts.into_iter().any(|text| text.to_lowercase().contains(filter))
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
