//! What clients send to the state machines, with what it leads to written down beside it, so that
//! the model has nothing to parse.

use uuid::Uuid;

pub(crate) const UUID: Uuid = Uuid::from_u128(0xABCD_0000_0000_0000_0000_0000_0000_00EF);

/// Something that a client sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    Hello,
    Introspect,
    One,
    Two,
    RegisterServer {
        valid: bool,
        token: bool,
    },
    RegisterClient {
        valid: bool,
        token: bool,
    },
    Ping,
    Disconnect(u64),
    /// Framed, but refused by itself: the text, the id of the answer and what that begins with.
    Bad(&'static str, i64, &'static str),
    /// The same, but only where the tunnel proxy is there.
    BadForTunnelProxy(&'static str, &'static str),
    Space,
    Garbage,
    TooLarge,
    Unfinished,
}

const ITEMS: &[Item] = &[
    Item::Hello,
    Item::Introspect,
    Item::One,
    Item::Two,
    Item::RegisterServer { valid: true, token: false },
    Item::RegisterServer { valid: true, token: true },
    Item::RegisterServer { valid: false, token: true },
    Item::RegisterClient { valid: true, token: false },
    Item::RegisterClient { valid: true, token: true },
    Item::RegisterClient { valid: false, token: false },
    Item::Ping,
    Item::Disconnect(0),
    Item::Disconnect(3),
    Item::Disconnect(0xFFFE),
    Item::Disconnect(0xFFFF),
    Item::Disconnect(u64::MAX),
    Item::Bad("{]", -1, "Failed to parse JSON data"),
    Item::Bad("{}", -1, "Error parsing command. Missing 'id'"),
    Item::Bad(r#"{"id":"}{","method":"A.B"}"#, -1, "Error parsing command. Missing 'id'"),
    Item::Bad(r#"{"id":4}"#, 4, "Error parsing method"),
    Item::Bad(r#"{"id":4,"method":"A"}"#, 4, "Error parsing method"),
    Item::Bad(r#"{"id":4,"method":"A.B"}"#, 4, "No such namespace"),
    Item::Bad(r#"{"id":4,"method":"RemoteProxy.B"}"#, 4, "No such method"),
    Item::Bad(
        r#"{"id":4,"method":"RemoteProxy.Hello","params":{"\\\"}":[]}}"#,
        4,
        "Invalid params: '",
    ),
    Item::Bad(
        r#"{"id":4,"method":"RemoteProxy.Hello","params":[]}"#,
        4,
        "Invalid params: 'params'",
    ),
    Item::BadForTunnelProxy(r#"{"id":4,"method":"TunnelProxy.B"}"#, "No such method"),
    Item::BadForTunnelProxy(
        r#"{"id":4,"method":"TunnelProxy.Ping","params":{"timestamp":-1}}"#,
        "Invalid params: 'timestamp' must be of type UInt",
    ),
    Item::Space,
    Item::Garbage,
    Item::TooLarge,
    Item::Unfinished,
];

impl Item {
    pub(crate) fn pick(byte: u8) -> Self {
        ITEMS[usize::from(byte) % ITEMS.len()]
    }

    pub(crate) fn text(self) -> String {
        let uuid = |valid| if valid { UUID.to_string() } else { Uuid::nil().to_string() };
        let token = |token| if token { r#","token":"t""# } else { "" };
        match self {
            Self::Hello => r#" {"id":1,"method":"RemoteProxy.Hello"}"#.into(),
            Self::Introspect => "{\"id\":2,\"method\":\"RemoteProxy.Introspect\"}\r\n".into(),
            Self::One => {
                "{\"id\":3,\"method\":\"Authentication.Authenticate\",\"params\":{\"token\":\"t\"}}\n"
                    .into()
            }
            Self::Two => r#"{"id":3,"method":"Authentication.Authenticate","params":{"token":"t","uuid":"{AAAA}","name":"}"}}"#.into(),
            Self::RegisterServer { valid, token: with } => format!(
                r#"{{"id":5,"method":"TunnelProxy.RegisterServer","params":{{"serverName":"{{","serverUuid":"{{{}}}"{}}}}}"#,
                uuid(valid),
                token(with),
            ),
            Self::RegisterClient { valid, token: with } => format!(
                "{{\"id\":6,\"method\":\"TunnelProxy.RegisterClient\",\"params\":{{\"clientName\":\"\",\"clientUuid\":\"{}\",\"serverUuid\":\"{}\"{}}}}}\n",
                UUID,
                uuid(valid).to_uppercase(),
                token(with),
            ),
            Self::Ping => {
                r#"{"id":9,"method":"TunnelProxy.Ping","params":{"timestamp":18446744073709551615}}"#
                    .into()
            }
            Self::Disconnect(address) => format!(
                r#"{{"id":8,"method":"TunnelProxy.DisconnectClient","params":{{"socketAddress":{address}}}}}"#
            ),
            Self::Bad(text, ..) | Self::BadForTunnelProxy(text, _) => text.into(),
            Self::Space => " \r\n\t".into(),
            Self::Garbage => "\n]".into(),
            Self::TooLarge => format!(r#"{{"id":1,"x":"{}"#, "x".repeat(10 * 1024)),
            Self::Unfinished => r#"{"id":1,"#.into(),
        }
    }

    pub(crate) fn id(self) -> i64 {
        match self {
            Self::Hello => 1,
            Self::Introspect => 2,
            Self::One | Self::Two => 3,
            Self::BadForTunnelProxy(..) => 4,
            Self::RegisterServer { .. } => 5,
            Self::RegisterClient { .. } => 6,
            Self::Disconnect(_) => 8,
            Self::Ping => 9,
            Self::Bad(_, id, _) => id,
            Self::Space | Self::Garbage | Self::TooLarge | Self::Unfinished => -1,
        }
    }

    pub(crate) fn is_of_tunnel_proxy(self) -> bool {
        self.text().contains("TunnelProxy.")
    }

    /// The number of bytes of the text before something happens. `None`: only the end makes a fault.
    fn effect(self, text: &str) -> Option<usize> {
        match self {
            Self::Space | Self::Unfinished => None,
            Self::TooLarge => Some(10 * 1024 + 1),
            _ => Some(text.trim_end().len()),
        }
    }
}

/// Some items as one text, and how much of it has come.
pub(crate) struct Reader {
    pub(crate) text: String,
    effects: Vec<(usize, Item)>,
    at: usize,
    /// Up to where all has had its effect.
    pub(crate) done: usize,
}

impl Reader {
    pub(crate) fn new(items: &[Item]) -> Self {
        let (mut text, mut effects) = (String::new(), Vec::new());
        for item in items {
            let its = item.text();
            effects.extend(item.effect(&its).map(|behind| (text.len() + behind, *item)));
            text += &its;
        }
        Self { text, effects, at: 0, done: 0 }
    }

    /// Takes all up to `cut`: gives where that begins.
    pub(crate) fn takes(&mut self, cut: usize) -> usize {
        std::mem::replace(&mut self.at, cut)
    }

    /// What has its effect next, of what has been taken.
    pub(crate) fn next(&mut self) -> Option<Item> {
        let (behind, item) = *self.effects.first().filter(|(behind, _)| *behind <= self.at)?;
        self.effects.remove(0);
        self.done = behind;
        Some(item)
    }

    /// Whether something has been taken that had no effect.
    pub(crate) fn has_more(&self) -> bool {
        self.has_data(self.done)
    }

    pub(crate) fn has_data(&self, from: usize) -> bool {
        !self.text[from..self.at].trim().is_empty()
    }
}
