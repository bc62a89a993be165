//! The rules for data through the tunnel proxy (`src/protocol/README.md`, section 4):
//! notifications, SLIP, text and binary, and ends. With every transport for the gateway and for the
//! app, on one node and across two with a real Redis between them. Uses bare sockets and no code of
//! the protocol.

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::places::{Place, Site, Via, each, everywhere, fresh};
use support::raw::{Event, Piece, client, server};
use support::redis::until;
use support::tunnel_proxy::{frame, uuid};

// Notifications

#[tokio::test]
async fn the_gateway_hears_who_comes_before_their_first_byte_and_who_goes() {
    everywhere(async |place| {
        let number = fresh();
        let mut gateway = place.gateway(number).await;
        let mut last = 0;
        let mut addresses = Vec::new();
        for app in 1..=3 {
            let mut client = place.far().await;
            let params = client_named(number + app, number);
            assert_eq!(client.error("RegisterClient", &params).await, "NoError");
            client.bytes(b"!").await;
            let message = gateway.message().await;
            assert_eq!(message["notification"], "TunnelProxy.ClientConnected");
            let id = message["id"].as_i64().expect("an integer");
            assert!(id > last, "{message}");
            last = id;
            let params = message["params"].as_object().expect("params");
            assert_eq!(params.len(), 4, "{message}");
            assert_eq!(params["clientName"], "Grün \" { }");
            assert_eq!(params["clientUuid"], uuid(number + app));
            let from = params["clientPeerAddress"].as_str().expect("a text");
            let expected = if place.far == Via::Unix { "unix" } else { "127.0.0.1" };
            assert!(from.starts_with(expected), "{from}");
            let address = params["socketAddress"].as_u64().expect("an integer");
            let address = u16::try_from(address).expect("16 bits");
            assert!((1..=0xFFFE).contains(&address) && !addresses.contains(&address));
            addresses.push(address);
            assert_eq!(gateway.event().await, Some(Event::Data(address, b"!".to_vec())));
            client.leave().await;
            drop(client);
            gateway.disconnected(address).await;
            last += 1;
        }
    })
    .await;
}

fn client_named(number: u128, gateway: u128) -> Value {
    let mut params = client(number, gateway);
    params["clientName"] = "Grün \" { }".into();
    params
}

// SLIP

#[tokio::test]
async fn all_bytes_pass_in_both_directions_in_any_pieces() {
    everywhere(async |place| {
        let (mut gateway, mut app, address) = place.both().await;
        let all: Vec<u8> = (0..=255).chain([0xC0, 0xDB, 0xDC, 0xDD, 0xDB, 0xC0, 0xC0]).collect();
        for piece in all.chunks(7) {
            app.bytes(piece).await;
        }
        assert_eq!(gateway.data(address, all.len()).await, all);
        for byte in frame(address, &all) {
            gateway.client.bytes(&[byte]).await;
        }
        assert_eq!(app.payload(all.len()).await, all);
        // Several frames at once, and one that is large.
        let large = support::pattern(7, 300_000);
        let frames = [frame(address, &all), frame(address, &large), frame(address, b"end")];
        gateway.client.bytes(&frames.concat()).await;
        let expected = [&all[..], &large, b"end"].concat();
        assert!(app.payload(expected.len()).await == expected);
        app.bytes(&large).await;
        assert!(gateway.data(address, large.len()).await == large);
    })
    .await;
}

#[tokio::test]
async fn broken_and_empty_frames_and_those_for_nobody_lose_nothing_else() {
    everywhere(async |place| {
        let (mut gateway, mut app, address) = place.both().await;
        let [high, low] = address.to_be_bytes();
        for nothing in [
            vec![0xC0, 0xC0, 0xC0],
            vec![high, low, b'x', 0xDB, b'y', b'z', 0xC0],
            vec![high, low, b'x', 0xDB, 0xC0],
            vec![high, 0xC0],
            frame(address, b""),
            frame(address + 77, b"for nobody"),
            frame(0xFFFF, b"for nobody"),
        ] {
            let around = [frame(address, b"before "), nothing.clone(), frame(address, b"behind ")];
            gateway.client.bytes(&around.concat()).await;
            assert_eq!(app.payload(14).await, b"before behind ", "{nothing:x?}");
        }
    })
    .await;
}

#[tokio::test]
async fn frames_of_a_web_socket_gateway_come_in_text_and_binary() {
    for site in [Site::one(|_| {}), Site::two(|_| {}).await] {
        for far in Via::ALL {
            let (mut gateway, mut app, address) =
                Place { site: &site, near: Via::WebSocket, far }.both().await;
            let whole = [frame(address, "grün und ".as_bytes()), frame(address, b"blue")].concat();
            // Valid UTF-8 arrives as text, all else as binary.
            for piece in whole.chunk_by(|one, other| (*one == 0xC0) == (*other == 0xC0)) {
                match str::from_utf8(piece) {
                    Ok(text) => gateway.client.say(text).await,
                    Err(_) => gateway.client.bytes(piece).await,
                }
            }
            let expected = "grün und blue".as_bytes();
            assert_eq!(app.payload(expected.len()).await, expected);
        }
    }
}

#[tokio::test]
async fn a_web_socket_app_gets_text_where_it_is_text() {
    for site in [Site::one(|_| {}), Site::two(|_| {}).await] {
        for near in Via::ALL {
            let (mut gateway, mut app, address) =
                Place { site: &site, near, far: Via::WebSocket }.both().await;
            gateway.send(address, "heiß {}\n".as_bytes()).await;
            assert_eq!(app.piece().await, Some(Piece::Text("heiß {}\n".into())));
            gateway.send(address, &[0xFF, 0xC0, 0xDB]).await;
            assert_eq!(app.piece().await, Some(Piece::Binary(vec![0xFF, 0xC0, 0xDB])));
            // A code point in pieces is held back until it is whole.
            let euros = "a€".as_bytes();
            gateway.send(address, &euros[..2]).await;
            assert_eq!(app.piece().await, Some(Piece::Text("a".into())));
            gateway.send(address, &euros[2..3]).await;
            gateway.send(address, &euros[3..]).await;
            assert_eq!(app.piece().await, Some(Piece::Text("€".into())));
            // Whatever it sends itself is bytes.
            app.say("text").await;
            app.bytes(b"bytes").await;
            assert_eq!(gateway.data(address, 9).await, b"textbytes");
        }
    }
}

// Ends

#[tokio::test]
async fn when_the_gateway_leaves_all_its_apps_are_closed() {
    everywhere(async |place| {
        let number = fresh();
        let mut gateway = place.gateway(number).await;
        let mut apps = Vec::new();
        for app in 1..=3 {
            let app = place.app(number + app, number).await;
            apps.push((app, gateway.connected().await));
        }
        for (_, address) in &apps {
            gateway.send(*address, &[0xDB; 10_000]).await;
        }
        gateway.client.leave().await;
        for (app, _) in &mut apps {
            assert_eq!(app.payload(10_000).await, [0xDB; 10_000]);
            app.ends().await;
        }
        drop(gateway);
        until("its UUID is free", async || {
            place.near().await.error("RegisterServer", &server(number)).await == "NoError"
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn what_an_app_sent_before_it_left_arrives() {
    everywhere(async |place| {
        let (mut gateway, mut app, address) = place.both().await;
        let data = support::pattern(3, 100_000);
        app.bytes(&data).await;
        app.leave().await;
        assert!(gateway.data(address, data.len()).await == data);
        // On a byte stream, only one direction has ended.
        drop(app);
        gateway.disconnected(address).await;
    })
    .await;
}

#[tokio::test]
async fn a_silent_gateway_is_closed_and_one_that_pings_is_not() {
    each(
        |config| config.tunnel_proxy.inactivity = Duration::from_millis(700),
        async |place| {
            let number = fresh();
            let mut silent = place.gateway(number).await;
            let mut app = place.app(number + 1, number).await;
            silent.connected().await;
            let mut pings = place.gateway(number + 2).await;
            let silence = async {
                silent.ends().await;
                app.ends().await;
            };
            let ping = async {
                loop {
                    pings.ask("Ping", &json!({ "timestamp": 1 })).await;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            };
            tokio::select! {
                () = silence => {}
                () = ping => {}
            }
            pings.ask("Ping", &json!({ "timestamp": 2 })).await;
        },
    )
    .await;
}

#[tokio::test]
async fn who_registers_as_nothing_is_closed() {
    each(
        |config| config.timeouts.inactivity = Duration::from_millis(400),
        async |place| {
            let mut silent = place.near().await;
            let mut greets = place.near().await;
            greets.hello().await;
            silent.ends().await;
            greets.ends().await;
        },
    )
    .await;
}
