//! The tables of the tunnel proxy (`src/protocol/README.md`, section 4), row by row: methods,
//! errors, and requests in a stream. With every transport for the gateway and for the app, on one
//! node and across two with a real Redis between them. Uses bare sockets and no code of the
//! protocol.

mod support;

use futures_util::future::join_all;
use serde_json::{Value, json};
use support::places::{Via, each, everywhere, everywhere_at_once, fresh};
use support::raw::{Client, client, error_in, server};
use support::redis::until;
use support::tunnel_proxy::{call, frame, uuid};

const NOBODY: u128 = 0xDEAD;

// Methods

#[tokio::test]
async fn register_server_and_client_answer_exactly_this() {
    everywhere(async |place| {
        let number = fresh();
        let mut gateway = place.near().await;
        assert_eq!(
            gateway.ask("RegisterServer", &server(number)).await,
            json!({ "id": 7, "status": "success", "params": {
                "tunnelProxyError": "TunnelProxyErrorNoError", "slipEnabled": true,
            }})
        );
        let mut app = place.far().await;
        assert_eq!(
            app.ask("RegisterClient", &client(number + 1, number)).await,
            json!({ "id": 7, "status": "success", "params": {
                "tunnelProxyError": "TunnelProxyErrorNoError",
            }})
        );
    })
    .await;
}

#[tokio::test]
async fn hello_introspect_and_ping_before_and_after() {
    each(
        |config| config.server.name = "the proxy".into(),
        async |place| {
            let mut client = place.near().await;
            let mut answers = vec![
                client.ask("Ping", &json!({ "timestamp": 1 })).await["params"].clone(),
                client.hello().await["params"].clone(),
                ask_anything(&mut client, "RemoteProxy.Introspect").await["params"].clone(),
            ];
            let mut gateway = client.gateway(fresh()).await;
            answers.push(gateway.ask("Ping", &json!({ "timestamp": 1 })).await["params"].clone());
            for method in ["RemoteProxy.Hello", "RemoteProxy.Introspect"] {
                let request = json!({ "id": 3, "method": method }).to_string();
                gateway.send(0, request.as_bytes()).await;
                answers.push(gateway.message().await["params"].clone());
            }
            for answers in answers.chunks(3) {
                let [pong, hello, methods] = answers else { panic!("three") };
                assert_eq!(pong, &json!({ "timestamp": 1 }));
                assert_eq!(hello["server"], "nymea-remoteproxy");
                assert_eq!(hello["name"], "the proxy");
                assert_eq!(hello["apiVersion"], "0.6");
                for name in ["RegisterServer", "RegisterClient", "DisconnectClient", "Ping"] {
                    let method = &methods["methods"][format!("TunnelProxy.{name}")];
                    assert!(
                        method["params"].is_object() && method["returns"].is_object(),
                        "{name}"
                    );
                }
                for name in ["ClientConnected", "ClientDisconnected"] {
                    let notification = &methods["notifications"][format!("TunnelProxy.{name}")];
                    assert!(notification["params"].is_object(), "{name}");
                }
                assert!(methods["types"].to_string().contains("TunnelProxyErrorServerNotFound"));
            }
        },
    )
    .await;
}

async fn ask_anything(client: &mut Client, method: &str) -> Value {
    client.say(&json!({ "id": 3, "method": method }).to_string()).await;
    client.message().await
}

#[tokio::test]
async fn disconnect_client_closes_that_one() {
    everywhere(async |place| {
        let number = fresh();
        let mut gateway = place.gateway(number).await;
        let mut apps = Vec::new();
        for app in 1..=2 {
            let app = place.app(number + app, number).await;
            apps.push((app, gateway.connected().await));
        }
        assert_ne!(apps[0].1, apps[1].1);
        let [(gone, address), (stays, other)] = &mut apps[..] else { panic!("two") };
        gateway.send(*address, b"last words").await;
        let answer = gateway.ask("DisconnectClient", &json!({ "socketAddress": address })).await;
        assert_eq!(answer["params"], json!({ "tunnelProxyError": "TunnelProxyErrorNoError" }));
        assert_eq!(gone.payload(10).await, b"last words");
        gone.ends().await;
        gateway.disconnected(*address).await;
        for unknown in [u32::from(*address), 0xABCD, 0, 0xFFFF, 0x1_0000] {
            let params = json!({ "socketAddress": unknown });
            let answer = gateway.ask("DisconnectClient", &params).await;
            assert_eq!(error_in(&answer), "UnknownSocketAddress", "{unknown}");
        }
        gateway.send(*other, b"still here").await;
        assert_eq!(stays.payload(10).await, b"still here");
    })
    .await;
}

// Errors

#[tokio::test]
async fn uuids_must_be_some_and_may_have_braces() {
    everywhere_at_once(async |place| {
        let number = fresh();
        let null = "{00000000-0000-0000-0000-000000000000}";
        let good = uuid(number);
        for bad in ["", "none", "{12345678}", null, null.trim_matches(['{', '}'])] {
            for (method, params) in [
                ("RegisterServer", json!({ "serverName": "n", "serverUuid": bad })),
                (
                    "RegisterClient",
                    json!({ "clientName": "n", "clientUuid": bad, "serverUuid": good }),
                ),
                (
                    "RegisterClient",
                    json!({ "clientName": "n", "clientUuid": good, "serverUuid": bad }),
                ),
            ] {
                let answer = place.near().await.ask(method, &params).await;
                assert_eq!(error_in(&answer), "InvalidUuid", "{method} {params}");
                if method == "RegisterServer" {
                    assert_eq!(answer["params"]["slipEnabled"], false);
                }
            }
        }

        // Accepted with or without braces, in either case; sent with braces in lower case.
        let plain = "abcdef00-0000-4000-8000-".to_owned() + &format!("{number:012x}");
        let params = json!({ "serverName": "n", "serverUuid": plain });
        let mut gateway = place.near().await;
        assert_eq!(gateway.error("RegisterServer", &params).await, "NoError");
        let braced = format!("{{{}}}", plain.to_uppercase());
        let params = json!({ "serverName": "n", "serverUuid": braced });
        let mut other = place.far().await;
        tokio::select! {
            piece = gateway.piece() => panic!("{piece:?}"),
            error = other.error("RegisterServer", &params) => assert_eq!(error, "AlreadyRegistered"),
        }

        let mut gateway = place.gateway(number).await;
        for (app, written) in
            [plain.to_uppercase().replace("ABCDEF", "FEDCBA"), uuid(number + 1)].iter().enumerate()
        {
            let params = json!({
                "clientName": app.to_string(),
                "clientUuid": written,
                "serverUuid": uuid(number).trim_matches(['{', '}']).to_uppercase(),
            });
            let mut client = place.far().await;
            assert_eq!(client.error("RegisterClient", &params).await, "NoError");
            let told = gateway.notification("ClientConnected").await;
            let expected = format!("{{{}}}", written.trim_matches(['{', '}']).to_lowercase());
            assert_eq!(told["clientUuid"], expected);
            drop(client);
            gateway.notification("ClientDisconnected").await;
        }
    })
    .await;
}

#[tokio::test]
async fn an_unknown_server_is_not_found_and_the_connection_closes() {
    everywhere(async |place| {
        let mut app = place.far().await;
        let answer = app.ask("RegisterClient", &client(fresh(), NOBODY)).await;
        let params = json!({ "tunnelProxyError": "TunnelProxyErrorServerNotFound" });
        assert_eq!(answer, json!({ "id": 7, "status": "success", "params": params }));
        app.ends().await;
    })
    .await;
}

#[tokio::test]
async fn a_uuid_has_one_place_and_one_role() {
    everywhere_at_once(async |place| {
        let number = fresh();
        let mut gateway = place.gateway(number).await;
        let mut app = place.app(number + 1, number).await;
        let address = gateway.connected().await;
        // Each waits until it is known that who has the UUID is alive.
        let refused = async |far: bool, method: &str, params: Value| {
            let mut other = if far { place.far().await } else { place.near().await };
            let answer = other.ask(method, &params).await;
            assert_eq!(error_in(&answer), "AlreadyRegistered", "{method} {params}");
            if method == "RegisterServer" {
                assert_eq!(answer["params"]["slipEnabled"], false);
            }
            other.ends().await;
        };
        let tries = [false, true].map(|far| {
            [
                refused(far, "RegisterServer", server(number)),
                refused(far, "RegisterServer", server(number + 1)),
                refused(far, "RegisterClient", client(number + 1, number)),
                refused(far, "RegisterClient", client(number, number)),
            ]
        });
        let tries = join_all(tries.into_iter().flatten());
        // Those who have it are asked for a sign of life, and on WebSocket answer when they read.
        tokio::select! {
            event = gateway.event() => panic!("{event:?}"),
            piece = app.piece() => panic!("{piece:?}"),
            _ = tries => {}
        }
        // Those who were first do not notice.
        app.bytes(b"hello").await;
        assert_eq!(gateway.data(address, 5).await, b"hello");

        // Who leaves gives the UUID back, for either role.
        app.leave().await;
        gateway.disconnected(address).await;
        drop(app);
        until("the app's UUID is free", async || {
            let mut other = place.far().await;
            other.error("RegisterServer", &server(number + 1)).await == "NoError"
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_gateway_does_not_register_again() {
    each(
        |_| {},
        async |place| {
            let number = fresh();
            for (method, params) in [
                ("RegisterServer", server(number + 2)),
                ("RegisterClient", client(number + 2, number + 3)),
            ] {
                let mut gateway = place.gateway(fresh()).await;
                assert_eq!(error_in(&gateway.ask(method, &params).await), "AlreadyRegistered");
                gateway.ends().await;
            }
        },
    )
    .await;
}

#[tokio::test]
async fn only_a_gateway_disconnects() {
    each(
        |_| {},
        async |place| {
            let mut stranger = place.far().await;
            let error = stranger.error("DisconnectClient", &json!({ "socketAddress": 1 })).await;
            assert_eq!(error, "ForbiddenCall");
        },
    )
    .await;
}

#[tokio::test]
async fn bad_input_is_answered_and_ends_the_connection() {
    let cases = [
        ("hello\n", -1, "Failed to parse JSON data"),
        ("{\"id\":}\n", -1, "Failed to parse JSON data"),
        (r#"{"method":"TunnelProxy.Ping"}"#, -1, "Error parsing command. Missing 'id'"),
        (r#"{"id":"1","method":"TunnelProxy.Ping"}"#, -1, "Error parsing command. Missing 'id'"),
        (r#"{"id":1}"#, 1, "Error parsing method"),
        (r#"{"id":2,"method":"Ping"}"#, 2, "Error parsing method"),
        (r#"{"id":3,"method":"Nowhere.Ping"}"#, 3, "No such namespace"),
        (r#"{"id":4,"method":"TunnelProxy.Pong"}"#, 4, "No such method"),
        (r#"{"id":5,"method":"TunnelProxy.Ping"}"#, 5, "Invalid params"),
        (r#"{"id":6,"method":"TunnelProxy.Ping","params":{"timestamp":-1}}"#, 6, "Invalid params"),
        (
            r#"{"id":8,"method":"TunnelProxy.Ping","params":{"timestamp":1,"more":1}}"#,
            8,
            "Invalid params",
        ),
        (
            r#"{"id":9,"method":"TunnelProxy.RegisterServer","params":{"serverUuid":"{1}"}}"#,
            9,
            "Invalid params",
        ),
    ];
    each(
        |_| {},
        async |place| {
            for (input, id, error) in cases {
                let check = |answer: &Value| {
                    assert_eq!((&answer["id"], &answer["status"]), (&json!(id), &json!("error")));
                    let told = answer["error"].as_str().expect("a text");
                    assert!(told.starts_with(error), "{input}: {told}");
                };
                let mut client = place.near().await;
                client.say(input).await;
                check(&client.message().await);
                client.ends().await;

                // The same at address 0.
                let mut gateway = place.gateway(fresh()).await;
                gateway.send(0, input.as_bytes()).await;
                check(&gateway.message().await);
                gateway.ends().await;
            }
            // Every missing param is named.
            let mut client = place.near().await;
            let answer = client.ask("RegisterClient", &json!({ "clientName": "n" })).await;
            let told = answer["error"].as_str().expect("a text");
            assert!(told.contains("clientUuid") && told.contains("serverUuid"), "{told}");
        },
    )
    .await;
}

#[tokio::test]
async fn a_request_that_is_too_large_ends_the_connection() {
    each(
        |_| {},
        async |place| {
            let mut client = place.near().await;
            let name = "x".repeat(11_000);
            let params = json!({ "serverName": name, "serverUuid": uuid(fresh()) });
            client.say(&call("RegisterServer", &params)).await;
            client.ends().await;
        },
    )
    .await;
}

// Streams of requests

#[tokio::test]
async fn requests_come_in_any_pieces_and_several_at_once() {
    each(
        |_| {},
        async |place| {
            let mut client = place.near().await;
            let ping = |number: u64| call("Ping", &json!({ "timestamp": number }));
            client.say(&format!("{}{} \r\n {}\n", ping(1), ping(2), ping(3))).await;
            for number in 1..=3 {
                assert_eq!(client.message().await["params"]["timestamp"], number);
            }
            if place.near != Via::WebSocket {
                // Brackets and line feeds may be in a text.
                let params = json!({ "serverName": "}{\n\"ü", "serverUuid": uuid(fresh()) });
                for byte in format!("{}{}", ping(4), call("RegisterServer", &params)).as_bytes() {
                    client.bytes(&[*byte]).await;
                }
                assert_eq!(client.message().await["params"]["timestamp"], 4);
                assert_eq!(client.message().await["params"]["slipEnabled"], true);
            }
        },
    )
    .await;
}

#[tokio::test]
async fn white_space_behind_the_request_is_no_data() {
    everywhere(async |place| {
        let number = fresh();
        let mut gateway = place.near().await;
        gateway.say(&format!("{}\n", call("RegisterServer", &server(number)))).await;
        assert_eq!(error_in(&gateway.message().await), "NoError");
        let mut app = place.far().await;
        app.say(&format!("{}\r\n", call("RegisterClient", &client(number + 1, number)))).await;
        assert_eq!(error_in(&app.message().await), "NoError");
        app.bytes(b"first").await;
        let received = gateway.payload(frame(1, b"").len()).await;
        assert_eq!(received[..2], [0, 0], "the notification is first");
        // The next byte is the first one of the app.
        let mut all = received;
        while !all.windows(5).any(|window| window == b"first") {
            all.extend(gateway.payload(1).await);
        }
        let data = &all[all.len() - 5 - 2..];
        assert_eq!(data[0], 0, "{all:?}");
        assert!((1..0xC0).contains(&data[1]), "{all:?}");
    })
    .await;
}

#[tokio::test]
async fn without_the_tunnel_proxy_there_is_no_such_namespace() {
    each(
        |config| config.tunnel_proxy.enabled = Some(false),
        async |place| {
            let mut client = place.near().await;
            let answer = client.ask("RegisterServer", &server(fresh())).await;
            let told = answer["error"].as_str().expect("a text");
            assert!(told.starts_with("No such namespace"), "{told}");
            client.ends().await;
        },
    )
    .await;
}
