//! From a request to the call that it makes, with its params checked against their description in
//! `methods`.

use serde_json::{Map, Value};
use uuid::Uuid;

use super::message::{Refusal, Request};
use super::methods::{Offered, Param, TOKEN};
use super::terms::{Generation, Identity};
use super::token::Token;
use super::tunnel_proxy::{App, Gateway, Role, RoleKind, parse_uuid};

/// A request that may be carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Call {
    Hello,
    Introspect,
    Authenticate(Authenticate),
    Register(Register),
    DisconnectClient { address: u64 },
    Ping { timestamp: u64 },
}

/// The params of `TunnelProxy.RegisterServer` or `TunnelProxy.RegisterClient`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Register {
    pub kind: RoleKind,
    /// `None` if a UUID is none.
    pub role: Option<Role>,
    pub token: Option<Token>,
}

/// The params of `Authentication.Authenticate`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Authenticate {
    pub token: Token,
    pub nonce: Option<String>,
    pub generation: Generation,
    pub identity: Identity,
}

/// Finds the method of a request and checks its params.
pub(super) fn resolve(request: &mut Request, offered: Offered) -> Result<Call, Refusal> {
    let refuse = |error: String| Refusal::new(request.id, error);
    let in_namespace = || offered.methods().filter(|method| method.namespace == request.namespace);
    if in_namespace().next().is_none() {
        let namespaces = offered.namespaces().join(", ");
        return Err(refuse(format!("No such namespace. There are {namespaces}")));
    }
    let Some(method) = in_namespace().find(|method| method.name == request.method) else {
        let names: Vec<_> = in_namespace().map(|method| method.name).collect();
        let names = names.join(", ");
        return Err(refuse(format!("No such method. This namespace has {names}")));
    };
    let faults = faults_of(&offered.params(method), &request.params);
    if !faults.is_empty() {
        return Err(refuse(format!("Invalid params: {}", faults.join("; "))));
    }
    Ok((method.call)(&mut request.params))
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

impl Authenticate {
    /// From params that [`faults_of`] has found faultless.
    pub(super) fn from_params(params: &mut Map<String, Value>) -> Self {
        let mut take = |name: &str| take_text(params, name);
        let token = Token::new(take(TOKEN).unwrap_or_default());
        let nonce = take("nonce");
        let (generation, identity) = match (take("uuid"), take("name")) {
            (Some(uuid), Some(name)) => (Generation::Two, Identity { uuid, name }),
            _ => (Generation::One, Identity::default()),
        };
        Self { token, nonce, generation, identity }
    }
}

impl Register {
    /// From params that [`faults_of`] has found faultless.
    pub(super) fn gateway(params: &mut Map<String, Value>) -> Self {
        let name = take_text(params, "serverName").unwrap_or_default();
        let flow_control = params.remove("flowControl") == Some(Value::Bool(true));
        let role = take_uuid(params, "serverUuid")
            .map(|uuid| Role::Gateway(Gateway { uuid, name, flow_control }));
        Self { kind: RoleKind::Gateway, role, token: take_token(params) }
    }

    /// From params that [`faults_of`] has found faultless.
    pub(super) fn app(params: &mut Map<String, Value>) -> Self {
        let name = take_text(params, "clientName").unwrap_or_default();
        let role = match (take_uuid(params, "clientUuid"), take_uuid(params, "serverUuid")) {
            (Some(uuid), Some(gateway)) => Some(Role::App(App { uuid, name, gateway })),
            _ => None,
        };
        Self { kind: RoleKind::App, role, token: take_token(params) }
    }
}

fn take_text(params: &mut Map<String, Value>, name: &str) -> Option<String> {
    match params.remove(name) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    }
}

fn take_token(params: &mut Map<String, Value>) -> Option<Token> {
    take_text(params, TOKEN).map(Token::new)
}

fn take_uuid(params: &mut Map<String, Value>, name: &str) -> Option<Uuid> {
    take_text(params, name).as_deref().and_then(parse_uuid)
}

/// Of a param that [`faults_of`] has found to be there.
pub(super) fn take_uint(params: &mut Map<String, Value>, name: &str) -> u64 {
    params.remove(name).and_then(|value| value.as_u64()).unwrap_or_default()
}
