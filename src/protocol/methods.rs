//! The methods of the protocol, described once: `Introspect` prints this description and requests
//! are validated against it, so that the two cannot drift.

use serde_json::{Map, Value, json};

use super::call::{Authenticate, Call, Register, take_uint};
use super::tunnel_proxy::{NO_ERROR, TunnelProxyError};

/// The version of the protocol that `Hello` states without the tunnel proxy: generation 2 of the
/// public releases.
pub const API_VERSION: &str = "0.3";
/// The version of the protocol that `Hello` states with the tunnel proxy: generation 3.
pub const API_VERSION_TUNNEL_PROXY: &str = "0.6";

/// Which methods a connection may call, and with what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "they are switches")]
pub(super) struct Offered {
    /// The namespace `Authentication` is there.
    pub authentication: bool,
    /// The namespace `TunnelProxy` is there.
    pub tunnel_proxy: bool,
    /// Gateways must show a token.
    pub token_for_gateways: bool,
    /// Apps must show a token.
    pub token_for_apps: bool,
}

/// The data about this server in the response to `Hello`.
#[derive(Debug, Clone)]
pub struct ServerInfo {
    /// The configured `server.name`.
    pub name: String,
    /// The version of this program.
    pub version: String,
}

#[derive(Clone, Copy)]
pub(super) enum Type {
    String,
    /// Text that should be a UUID; a malformed one is answered by `TunnelProxyErrorInvalidUuid`.
    Uuid,
    UInt,
    Bool,
    Object,
    Ref(&'static str),
}

#[derive(Clone, Copy)]
pub(super) struct Param {
    pub name: &'static str,
    pub kind: Type,
    pub optional: bool,
    /// The param that must come together with this one.
    pub needs: Option<&'static str>,
}

const fn required(name: &'static str, kind: Type) -> Param {
    Param { name, kind, optional: false, needs: None }
}

const fn optional(name: &'static str, kind: Type, needs: Option<&'static str>) -> Param {
    Param { name, kind, optional: true, needs }
}

pub(super) struct Method {
    pub namespace: &'static str,
    pub name: &'static str,
    description: &'static str,
    params: &'static [Param],
    returns: &'static [Param],
    /// The call, from params without faults.
    pub call: fn(&mut Map<String, Value>) -> Call,
}

const METHODS: &[Method] = &[
    Method {
        namespace: AUTHENTICATION,
        name: "Authenticate",
        description: "Authenticate this connection. Two connections with the same token and nonce \
            get a tunnel. Uuid and name are sent to the other endpoint. If the token is refused, the \
            connection is closed.",
        params: &[
            required(TOKEN, Type::String),
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
        description: "Get the name of this server, its version and the version of its protocol.",
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
    Method {
        namespace: TUNNEL_PROXY,
        name: "RegisterServer",
        description: "Register this connection as a server, to which many clients can attach under \
            its serverUuid. On success all data after the response is SLIP in both directions: \
            frames of a socket address (16 bit, big-endian) and data, where address 0 is this proxy \
            (JSON). If the registration is refused, the connection is closed. With flowControl, \
            clientWindow is the number of bytes that may be sent to each client before \
            ClientReceived reports that they were taken; each frame (of at most 64 KiB) counts for \
            its data and 128 bytes.",
        params: &[
            required("serverName", Type::String),
            required("serverUuid", Type::Uuid),
            optional(TOKEN, Type::String, None),
            optional("flowControl", Type::Bool, None),
        ],
        returns: &[
            required("tunnelProxyError", TUNNEL_PROXY_ERROR),
            required("slipEnabled", Type::Bool),
            optional("clientWindow", Type::UInt, None),
        ],
        call: |params| Call::Register(Register::gateway(params)),
    },
    Method {
        namespace: TUNNEL_PROXY,
        name: "RegisterClient",
        description: "Attach this connection as a client to the server that has registered under \
            serverUuid. On success all data after the response is from that server or for it. If \
            the registration is refused, the connection is closed.",
        params: &[
            required("clientName", Type::String),
            required("clientUuid", Type::Uuid),
            required("serverUuid", Type::Uuid),
            optional(TOKEN, Type::String, None),
        ],
        returns: &[required("tunnelProxyError", TUNNEL_PROXY_ERROR)],
        call: |params| Call::Register(Register::app(params)),
    },
    Method {
        namespace: TUNNEL_PROXY,
        name: "DisconnectClient",
        description: "Close the client with this socket address. For registered servers only.",
        params: &[required("socketAddress", Type::UInt)],
        returns: &[required("tunnelProxyError", TUNNEL_PROXY_ERROR)],
        call: |params| Call::DisconnectClient { address: take_uint(params, "socketAddress") },
    },
    Method {
        namespace: TUNNEL_PROXY,
        name: "Ping",
        description: "Get the timestamp back. A registered server that sends nothing for too long \
            (by default a minute) is closed; this call prevents that.",
        params: &[required("timestamp", Type::UInt)],
        returns: &[required("timestamp", Type::UInt)],
        call: |params| Call::Ping { timestamp: take_uint(params, "timestamp") },
    },
];

const AUTHENTICATION: &str = "Authentication";
const TUNNEL_PROXY: &str = "TunnelProxy";
const TUNNEL_PROXY_ERROR: Type = Type::Ref("TunnelProxyError");
pub(super) const TOKEN: &str = "token";

struct Notification {
    /// Whether it belongs to the tunnel proxy.
    tunnel_proxy: bool,
    name: &'static str,
    description: &'static str,
    params: &'static [Param],
}

pub(crate) const ESTABLISHED_GENERATION_1: &str = "Tunnel.Established";
pub(crate) const ESTABLISHED_GENERATION_2: &str = "RemoteProxy.TunnelEstablished";
pub(crate) const CLIENT_CONNECTED: &str = "TunnelProxy.ClientConnected";
pub(crate) const CLIENT_DISCONNECTED: &str = "TunnelProxy.ClientDisconnected";
pub(crate) const CLIENT_RECEIVED: &str = "TunnelProxy.ClientReceived";

const NOTIFICATIONS: &[Notification] = &[
    Notification {
        tunnel_proxy: false,
        name: ESTABLISHED_GENERATION_2,
        description: "The tunnel is established. This is the last message from the server: all data \
            after it is from the other endpoint, which has this name and uuid. Sent to connections \
            that authenticated with uuid and name.",
        params: &[required("name", Type::String), required("uuid", Type::String)],
    },
    Notification {
        tunnel_proxy: false,
        name: ESTABLISHED_GENERATION_1,
        description: "The tunnel is established. This is the last message from the server: all data \
            after it is from the other endpoint. Sent to connections that authenticated without \
            uuid and name.",
        params: &[],
    },
    Notification {
        tunnel_proxy: true,
        name: CLIENT_CONNECTED,
        description: "A client has attached to this server. Frames from and for it have this \
            socketAddress from now on. Sent to registered servers.",
        params: &[
            required("clientName", Type::String),
            required("clientUuid", Type::Uuid),
            required("clientPeerAddress", Type::String),
            required("socketAddress", Type::UInt),
        ],
    },
    Notification {
        tunnel_proxy: true,
        name: CLIENT_DISCONNECTED,
        description: "The client with this socketAddress has left. Sent to registered servers.",
        params: &[required("socketAddress", Type::UInt)],
    },
    Notification {
        tunnel_proxy: true,
        name: CLIENT_RECEIVED,
        description: "The client with this socketAddress has taken byteCount more bytes, counted as \
            for clientWindow. Sent to servers that registered with flowControl.",
        params: &[required("socketAddress", Type::UInt), required("byteCount", Type::UInt)],
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
            NO_ERROR,
            TunnelProxyError::InvalidUuid.label(),
            TunnelProxyError::InternalServerError.label(),
            TunnelProxyError::ServerNotFound.label(),
            TunnelProxyError::ForbiddenCall.label(),
            TunnelProxyError::AlreadyRegistered.label(),
            TunnelProxyError::NotRegistered.label(),
            TunnelProxyError::UnknownSocketAddress.label(),
        ],
    ),
];

impl Offered {
    /// The methods that may be called.
    pub(super) fn methods(self) -> impl Iterator<Item = &'static Method> {
        METHODS.iter().filter(move |method| match method.namespace {
            AUTHENTICATION => self.authentication,
            TUNNEL_PROXY => self.tunnel_proxy,
            _ => true,
        })
    }

    pub(super) fn namespaces(self) -> Vec<&'static str> {
        let mut names: Vec<_> = self.methods().map(|method| method.namespace).collect();
        names.dedup();
        names
    }

    /// The params of a method, with a token where one is demanded.
    pub(super) fn params(self, method: &Method) -> Vec<Param> {
        let demanded = match method.name {
            "RegisterServer" => self.token_for_gateways,
            "RegisterClient" => self.token_for_apps,
            _ => false,
        };
        let with_token = |param: &Param| Param {
            optional: param.optional && !(demanded && param.name == TOKEN),
            ..*param
        };
        method.params.iter().map(with_token).collect()
    }
}

impl Type {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::String => "String",
            Self::Uuid => "Uuid",
            Self::UInt => "UInt",
            Self::Bool => "Bool",
            Self::Object => "Object",
            Self::Ref(name) => name,
        }
    }

    pub(super) fn fits(self, value: &Value) -> bool {
        match self {
            Self::String | Self::Uuid => value.is_string(),
            Self::UInt => value.is_u64(),
            Self::Bool => value.is_boolean(),
            Self::Object => value.is_object(),
            Self::Ref(name) => value.as_str().is_some_and(|value| {
                ENUMS
                    .iter()
                    .any(|(enum_name, values)| *enum_name == name && values.contains(&value))
            }),
        }
    }
}

/// The params of the response to `Hello`.
pub(super) fn hello(server: &ServerInfo, offered: Offered) -> Value {
    let version = if offered.tunnel_proxy { API_VERSION_TUNNEL_PROXY } else { API_VERSION };
    json!({
        "server": "nymea-remoteproxy",
        "name": server.name,
        "version": server.version,
        "apiVersion": version,
    })
}

/// The params of the response to `Introspect`.
pub(super) fn introspection(offered: Offered) -> Value {
    let methods: Map<_, _> = offered
        .methods()
        .map(|method| {
            let name = format!("{}.{}", method.namespace, method.name);
            let description = json!({
                "description": method.description,
                "params": described(&offered.params(method)),
                "returns": described(method.returns),
            });
            (name, description)
        })
        .collect();
    let notifications: Map<_, _> = NOTIFICATIONS
        .iter()
        .filter(|notification| offered.tunnel_proxy || !notification.tunnel_proxy)
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
#[path = "methods_tests.rs"]
mod tests;
