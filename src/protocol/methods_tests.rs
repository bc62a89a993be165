//! The calls that requests resolve to, the faults of malformed ones, and the answer to `Introspect`.

use super::super::call::resolve;
use super::super::message::{Refusal, parse_request};
use super::super::terms::Generation;
use super::*;

const EVERYTHING: Offered = Offered {
    authentication: true,
    tunnel_proxy: true,
    token_for_gateways: false,
    token_for_apps: false,
};

fn call(method: &str, params: &Value) -> Result<Call, String> {
    let json = json!({"id": 5, "method": method, "params": params}).to_string();
    let mut request = parse_request(json.as_bytes()).expect("frame is in order");
    resolve(&mut request, EVERYTHING).map_err(|refusal: Refusal| {
        assert_eq!(refusal.id, 5);
        refusal.error
    })
}

#[test]
fn unknown_names_are_told_apart() {
    let error = call("Nothing.Hello", &json!({})).expect_err("no such namespace");
    assert!(error.starts_with("No such namespace"), "{error}");
    let error = call("RemoteProxy.Nothing", &json!({})).expect_err("no such method");
    assert!(error.starts_with("No such method"), "{error}");
    assert!(error.ends_with("Hello, Introspect"), "{error}");
}

#[test]
fn uuid_and_name_decide_the_generation() {
    let Ok(Call::Authenticate(first)) = call("Authentication.Authenticate", &json!({"token": "t"}))
    else {
        panic!("valid")
    };
    assert_eq!((first.generation, first.nonce), (Generation::One, None));
    let params = json!({"token": "t", "uuid": "u", "name": "n", "nonce": "x"});
    let Ok(Call::Authenticate(second)) = call("Authentication.Authenticate", &params) else {
        panic!("valid")
    };
    assert_eq!((second.generation, &*second.identity.uuid), (Generation::Two, "u"));
    assert_eq!((second.nonce.as_deref(), &*second.identity.name), (Some("x"), "n"));
}

#[test]
fn every_fault_is_named() {
    let faults = |params: Value| call("Authentication.Authenticate", &params).expect_err("invalid");
    assert_eq!(faults(json!({})), "Invalid params: 'token' is missing");
    assert_eq!(
        faults(json!({"token": 1, "nonce": null, "uuid": "u", "tokne": "t"})),
        "Invalid params: 'token' must be of type String; 'nonce' must be of type String; \
         'name' is missing, it goes with 'uuid'; 'tokne' is unknown"
    );
    assert_eq!(
        faults(json!({"token": "t", "name": "n"})),
        "Invalid params: 'uuid' is missing, it goes with 'name'"
    );
    let error = call("RemoteProxy.Hello", &json!({"a": 1})).expect_err("no params");
    assert_eq!(error, "Invalid params: 'a' is unknown");
}

#[test]
fn introspection_speaks_of_what_is_there() {
    let introspection = introspection(EVERYTHING);
    let authenticate = &introspection["methods"]["Authentication.Authenticate"];
    assert_eq!(
        authenticate["params"],
        json!({"token": "String", "o:nonce": "String", "o:uuid": "String", "o:name": "String"})
    );
    assert_eq!(
        authenticate["returns"],
        json!({"o:authenticationError": "$ref:AuthenticationError"})
    );
    assert_eq!(introspection["methods"].as_object().map(Map::len), Some(METHODS.len()));
    assert_eq!(introspection["types"]["BasicType"], json!(BASIC_TYPES));
    assert_eq!(introspection["types"]["TunnelProxyError"].as_array().map(Vec::len), Some(8));
}

#[test]
fn answers_hold_what_is_described() {
    let described = &introspection(EVERYTHING)["methods"];
    let server = ServerInfo { name: "n".into(), version: "v".into() };
    for (method, answer) in
        [("Hello", hello(&server, EVERYTHING)), ("Introspect", introspection(EVERYTHING))]
    {
        let returns = described[format!("RemoteProxy.{method}")]["returns"].as_object();
        let answer = answer.as_object();
        assert_eq!(
            returns.map(|returns| returns.keys().collect::<Vec<_>>()),
            answer.map(|answer| answer.keys().collect::<Vec<_>>())
        );
    }
}

#[test]
fn the_tunnel_proxy_is_described() {
    let introspection = introspection(Offered { token_for_apps: true, ..EVERYTHING });
    let params = |method| &introspection["methods"][method]["params"];
    assert_eq!(
        *params("TunnelProxy.RegisterServer"),
        json!({
            "serverName": "String",
            "serverUuid": "Uuid",
            "o:token": "String",
            "o:flowControl": "Bool"
        })
    );
    assert_eq!(
        *params("TunnelProxy.RegisterClient"),
        json!({"clientName": "String", "clientUuid": "Uuid", "serverUuid": "Uuid", "token": "String"})
    );
    assert_eq!(*params("TunnelProxy.DisconnectClient"), json!({"socketAddress": "UInt"}));
    assert_eq!(
        introspection["methods"]["TunnelProxy.RegisterServer"]["returns"],
        json!({
            "tunnelProxyError": "$ref:TunnelProxyError",
            "slipEnabled": "Bool",
            "o:clientWindow": "UInt"
        })
    );
    assert_eq!(
        introspection["notifications"]["TunnelProxy.ClientConnected"]["params"],
        json!({
            "clientName": "String",
            "clientUuid": "Uuid",
            "clientPeerAddress": "String",
            "socketAddress": "UInt"
        })
    );
}

#[test]
fn what_is_not_offered_is_not_described() {
    let introspection = introspection(Offered { tunnel_proxy: false, ..EVERYTHING });
    for part in ["methods", "notifications"] {
        let names = introspection[part].as_object().expect("an object").keys();
        let of_the_tunnel_proxy = names.filter(|name| name.starts_with("TunnelProxy.")).count();
        assert_eq!(of_the_tunnel_proxy, 0);
    }
}
