//! What is listed, in which order, and what keys do about it.

use std::time::Duration;

use super::*;

fn gateway(name: &str, apps: &[&str], data: u64) -> Gateway {
    let apps = apps.iter().map(|name| App {
        id: format!("id of {name}"),
        name: (*name).into(),
        uuid: format!("{{{name}}}"),
        address: "192.0.2.7:99".into(),
        ..App::default()
    });
    Gateway {
        id: format!("id of {name}"),
        name: name.into(),
        received: data,
        apps: apps.collect(),
        ..Gateway::default()
    }
}

fn report(gateways: Vec<Gateway>) -> Report {
    let mut report = Report::default();
    report.tunnel_proxy.gateways = gateways;
    report
}

fn houses(data: [u64; 3]) -> Report {
    report(vec![
        gateway("West", &["Zoe", "anna"], data[0]),
        gateway("east", &[], data[1]),
        gateway("North", &["Ben"], data[2]),
    ])
}

fn view() -> View {
    let mut view = View::new(true);
    view.show(houses([5, 7, 6]), Instant::now());
    view
}

fn names(view: &View) -> Vec<&str> {
    view.rows().iter().map(Row::name).collect()
}

fn typed(view: &mut View, keys: &str) {
    for char in keys.chars() {
        assert_eq!(view.press(Key::Char(char), 10), Next::Draw, "{char}");
    }
}

#[test]
fn gateways_are_listed_with_their_apps_below() {
    let mut view = view();
    assert_eq!(names(&view), ["east", "North", "Ben", "West", "anna", "Zoe"]);
    view.press(Key::Tab, 10);
    assert_eq!(names(&view), ["anna", "Ben", "Zoe"]);
    assert_eq!(view.rows()[0].gateway.name, "West");
    view.press(Key::Tab, 10);
    assert_eq!(names(&view).len(), 6);
}

#[test]
fn keys_sort_and_turn_the_order() {
    let mut view = view();
    typed(&mut view, "n");
    assert_eq!(names(&view), ["West", "Zoe", "anna", "North", "Ben", "east"]);
    typed(&mut view, "a");
    assert_eq!(names(&view), ["West", "anna", "Zoe", "North", "Ben", "east"]);
    typed(&mut view, "d");
    assert_eq!(names(&view), ["east", "North", "Ben", "West", "anna", "Zoe"]);
    typed(&mut view, "d");
    assert_eq!(names(&view), ["West", "anna", "Zoe", "North", "Ben", "east"]);
    view.show(houses([5, 8, 106]), Instant::now() + Duration::from_secs(1));
    typed(&mut view, "r");
    assert_eq!(names(&view), ["North", "Ben", "east", "West", "anna", "Zoe"]);
}

#[test]
fn a_filter_is_typed() {
    let mut view = view();
    typed(&mut view, "/ZO");
    assert_eq!(names(&view), ["West", "Zoe"], "an app with its gateway");
    view.press(Key::Backspace, 10);
    view.press(Key::Backspace, 10);
    typed(&mut view, "eastq");
    assert!(names(&view).is_empty());
    view.press(Key::Backspace, 10);
    view.press(Key::Enter, 10);
    assert_eq!(names(&view), ["east"]);
    assert_eq!(view.press(Key::Char('q'), 10), Next::Quit, "no more of the filter");
    view.press(Key::Escape, 10);
    assert_eq!(names(&view).len(), 6);
    typed(&mut view, "/192.0.2.7");
    assert_eq!(names(&view), ["North", "Ben", "West", "anna", "Zoe"]);
    view.press(Key::Tab, 10);
    view.press(Key::Escape, 10);
    view.press(Key::Tab, 10);
    typed(&mut view, "/WEST");
    assert_eq!(names(&view), ["anna", "Zoe"], "a gateway with all of its apps");
    typed(&mut view, &"x".repeat(1000));
    assert_eq!(view.filter.len(), LONGEST_FILTER);
    assert_eq!(view.press(Key::Interrupt, 10), Next::Quit);
}

#[test]
fn the_selection_stays_within_the_list() {
    let mut view = view();
    for (key, expected) in [
        (Key::Up, 0),
        (Key::Down, 1),
        (Key::PageDown, 4),
        (Key::PageDown, 5),
        (Key::PageUp, 2),
        (Key::End, 5),
        (Key::Down, 5),
        (Key::Home, 0),
    ] {
        view.press(key, 3);
        assert_eq!(view.selected, expected, "{key:?}");
    }
    let mut empty = View::new(true);
    empty.press(Key::End, 3);
    assert_eq!(empty.selected, 0);
}

#[test]
fn idle_gateways_are_asked_for_or_not() {
    let mut view = view();
    assert_eq!(view.press(Key::Char('g'), 10), Next::Refresh);
    assert!(!view.print_all);
}

#[test]
fn what_was_seen_stays_while_the_node_is_away() {
    let mut view = view();
    view.lose("gone".into());
    assert_eq!(names(&view).len(), 6);
    assert_eq!(view.away.as_deref(), Some("gone"));
    view.show(houses([9, 9, 9]), Instant::now());
    assert_eq!(view.away, None);
    assert!(view.rows().iter().all(|row| row.rate == Rate::default()));
}
