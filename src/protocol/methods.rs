//! The methods of the protocol, described once: `Introspect` prints this description and requests
//! are validated against it, so that the two cannot drift.

use serde_json::{Map, Value, json};

use super::endpoint::{Generation, Identity};
use super::message::{Refusal, Request};
use super::token::Token;

/// The version of the protocol that `Hello` states: generation 2 of the public releases.
pub const API_VERSION: &str = "0.3";

/// What `Hello` says of this server.
#[derive(Debug, Clone)]
pub struct ServerInfo {
    /// The configured `server.name`.
    pub name: String,
    /// The version of this program.
    pub version: String,
}

/// A request that may be carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Call {
    Hello,
    Introspect,
    Authenticate(Authenticate),
}

/// The params of `Authentication.Authenticate`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Authenticate {
    pub token: Token,
    pub nonce: Option<String>,
    pub generation: Generation,
    pub identity: Identity,
}

#[derive(Clone, Copy)]
enum Type {
    String,
    Object,
    Ref(&'static str),
}

struct Param {
    name: &'static str,
    kind: Type,
    optional: bool,
    /// The param that must come together with this one.
    needs: Option<&'static str>,
}

const fn required(name: &'static str, kind: Type) -> Param {
    Param { name, kind, optional: false, needs: None }
}

const fn optional(name: &'static str, kind: Type, needs: Option<&'static str>) -> Param {
    Param { name, kind, optional: true, needs }
}

struct Method {
    namespace: &'static str,
    name: &'static str,
    description: &'static str,
    params: &'static [Param],
    returns: &'static [Param],
    call: fn(&mut Map<String, Value>) -> Call,
}

const METHODS: &[Method] = &[
    Method {
        namespace: "Authentication",
        name: "Authenticate",
        description: "Authenticate this connection. Two connections that show the same token and \
            nonce get a tunnel. With uuid and name the other endpoint learns who is there. If the \
            token is refused, the connection is closed.",
        params: &[
            required("token", Type::String),
            optional("nonce", Type::String, None),
            optional("uuid", Type::String, Some("name")),
            optional("name", Type::String, Some("uuid")),
        ],
        returns: &[optional("authenticationError", Type::Ref("AuthenticationError"), None)],
        call: |params| Call::Authenticate(Authenticate::from_params(params)),
    },
    Method {
        namespace: "RemoteProxy",
        name: "Hello",
        description: "Ask who this server is and which version of the protocol it speaks.",
        params: &[],
        returns: &[
            required("server", Type::String),
            required("name", Type::String),
            required("version", Type::String),
            required("apiVersion", Type::String),
        ],
        call: |_| Call::Hello,
    },
    Method {
        namespace: "RemoteProxy",
        name: "Introspect",
        description: "Describe all methods, notifications and types of this protocol.",
        params: &[],
        returns: &[
            required("methods", Type::Object),
            required("notifications", Type::Object),
            required("types", Type::Object),
        ],
        call: |_| Call::Introspect,
    },
];

struct Notification {
    name: &'static str,
    description: &'static str,
    params: &'static [Param],
}

pub(crate) const ESTABLISHED_GENERATION_1: &str = "Tunnel.Established";
pub(crate) const ESTABLISHED_GENERATION_2: &str = "RemoteProxy.TunnelEstablished";

const NOTIFICATIONS: &[Notification] = &[
    Notification {
        name: ESTABLISHED_GENERATION_2,
        description: "The tunnel stands. This is the last message of the server's own: all data \
            behind it comes from the other endpoint, whose name and uuid are given. Sent to \
            connections that authenticated with uuid and name.",
        params: &[required("name", Type::String), required("uuid", Type::String)],
    },
    Notification {
        name: ESTABLISHED_GENERATION_1,
        description: "The tunnel stands. This is the last message of the server's own: all data \
            behind it comes from the other endpoint. Sent to connections that authenticated \
            without uuid and name.",
        params: &[],
    },
];

const BASIC_TYPES: &[&str] =
    &["Uuid", "String", "Int", "UInt", "Double", "Bool", "Variant", "Object"];

/// The enums of the protocol and their values.
const ENUMS: &[(&str, &[&str])] = &[
    (
        "AuthenticationError",
        &[
            "AuthenticationErrorNoError",
            "AuthenticationErrorUnknown",
            "AuthenticationErrorTimeout",
            "AuthenticationErrorAborted",
            "AuthenticationErrorAuthenticationFailed",
            "AuthenticationErrorProxyError",
        ],
    ),
    (
        "TunnelProxyError",
        &[
            "TunnelProxyErrorNoError",
            "TunnelProxyErrorInvalidUuid",
            "TunnelProxyErrorInternalServerError",
            "TunnelProxyErrorServerNotFound",
            "TunnelProxyErrorForbiddenCall",
            "TunnelProxyErrorAlreadyRegistered",
            "TunnelProxyErrorNotRegistered",
            "TunnelProxyErrorUnknownSocketAddress",
        ],
    ),
];

/// Finds the method of a request and checks its params.
pub(super) fn resolve(request: &mut Request) -> Result<Call, Refusal> {
    let refuse = |error: String| Refusal::new(request.id, error);
    let in_namespace = || METHODS.iter().filter(|method| method.namespace == request.namespace);
    if in_namespace().next().is_none() {
        return Err(refuse(format!("No such namespace. There are {}", namespaces().join(", "))));
    }
    let Some(method) = in_namespace().find(|method| method.name == request.method) else {
        let names: Vec<_> = in_namespace().map(|method| method.name).collect();
        let names = names.join(", ");
        return Err(refuse(format!("No such method. This namespace has {names}")));
    };
    let faults = faults_of(method.params, &request.params);
    if !faults.is_empty() {
        return Err(refuse(format!("Invalid params: {}", faults.join("; "))));
    }
    Ok((method.call)(&mut request.params))
}

fn namespaces() -> Vec<&'static str> {
    let mut names: Vec<_> = METHODS.iter().map(|method| method.namespace).collect();
    names.dedup();
    names
}

/// Every missing, wrong-typed and unknown param, each named. Values are not repeated: they may be
/// secret.
fn faults_of(expected: &[Param], params: &Map<String, Value>) -> Vec<String> {
    let mut faults = Vec::new();
    for param in expected {
        let name = param.name;
        match params.get(name) {
            Some(value) if !param.kind.fits(value) => {
                faults.push(format!("'{name}' must be of type {}", param.kind.name()));
            }
            Some(_) => {}
            None if !param.optional => faults.push(format!("'{name}' is missing")),
            None => {
                if let Some(other) = param.needs.filter(|other| params.contains_key(*other)) {
                    faults.push(format!("'{name}' is missing, it goes with '{other}'"));
                }
            }
        }
    }
    let known = |name: &str| expected.iter().any(|param| param.name == name);
    let unknown = params.keys().filter(|name| !known(name));
    faults.extend(unknown.map(|name| format!("'{}' is unknown", shortened(name))));
    faults
}

/// At most 40 characters of a name that a client made up, none of them invisible.
fn shortened(name: &str) -> String {
    name.chars().take(40).flat_map(char::escape_debug).collect()
}

impl Type {
    fn name(self) -> &'static str {
        match self {
            Self::String => "String",
            Self::Object => "Object",
            Self::Ref(name) => name,
        }
    }

    fn fits(self, value: &Value) -> bool {
        match self {
            Self::String => value.is_string(),
            Self::Object => value.is_object(),
            Self::Ref(name) => value.as_str().is_some_and(|value| {
                ENUMS
                    .iter()
                    .any(|(enum_name, values)| *enum_name == name && values.contains(&value))
            }),
        }
    }
}

impl Authenticate {
    /// From params that [`faults_of`] has found faultless.
    fn from_params(params: &mut Map<String, Value>) -> Self {
        let mut take = |name: &str| match params.remove(name) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        };
        let token = Token::new(take("token").unwrap_or_default());
        let nonce = take("nonce");
        let (generation, identity) = match (take("uuid"), take("name")) {
            (Some(uuid), Some(name)) => (Generation::Two, Identity { uuid, name }),
            _ => (Generation::One, Identity::default()),
        };
        Self { token, nonce, generation, identity }
    }
}

/// The params of the response to `Hello`.
pub(super) fn hello(server: &ServerInfo) -> Value {
    json!({
        "server": "nymea-remoteproxy",
        "name": server.name,
        "version": server.version,
        "apiVersion": API_VERSION,
    })
}

/// The params of the response to `Introspect`.
pub fn introspection() -> Value {
    let methods: Map<_, _> = METHODS
        .iter()
        .map(|method| {
            let name = format!("{}.{}", method.namespace, method.name);
            let description = json!({
                "description": method.description,
                "params": described(method.params),
                "returns": described(method.returns),
            });
            (name, description)
        })
        .collect();
    let notifications: Map<_, _> = NOTIFICATIONS
        .iter()
        .map(|notification| {
            let description = json!({
                "description": notification.description,
                "params": described(notification.params),
            });
            (notification.name.to_owned(), description)
        })
        .collect();
    let mut types = Map::from_iter([("BasicType".to_owned(), json!(BASIC_TYPES))]);
    types.extend(ENUMS.iter().map(|(name, values)| ((*name).to_owned(), json!(values))));
    json!({ "methods": methods, "notifications": notifications, "types": types })
}

fn described(params: &[Param]) -> Map<String, Value> {
    let key = |param: &Param| format!("{}{}", if param.optional { "o:" } else { "" }, param.name);
    let kind = |param: &Param| match param.kind {
        Type::Ref(name) => format!("$ref:{name}"),
        basic => basic.name().to_owned(),
    };
    params.iter().map(|param| (key(param), Value::String(kind(param)))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::message::parse_request;
    use super::*;

    fn call(method: &str, params: &Value) -> Result<Call, String> {
        let json = json!({"id": 5, "method": method, "params": params}).to_string();
        let mut request = parse_request(json.as_bytes()).expect("frame is in order");
        resolve(&mut request).map_err(|refusal| {
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
        let Ok(Call::Authenticate(first)) =
            call("Authentication.Authenticate", &json!({"token": "t"}))
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
        let faults =
            |params: Value| call("Authentication.Authenticate", &params).expect_err("invalid");
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
        let introspection = introspection();
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
        let described = &introspection()["methods"];
        let server = ServerInfo { name: "n".into(), version: "v".into() };
        for (method, answer) in [("Hello", hello(&server)), ("Introspect", introspection())] {
            let returns = described[format!("RemoteProxy.{method}")]["returns"].as_object();
            let answer = answer.as_object();
            assert_eq!(
                returns.map(|returns| returns.keys().collect::<Vec<_>>()),
                answer.map(|answer| answer.keys().collect::<Vec<_>>())
            );
        }
    }
}
