//! Loads settings: defaults, overridden by a TOML file (or one of the original server),
//! by the environment and by flags.
//!
//! Every fault is found, not just the first, and says which key it is about, where that was set
//! and what was expected. The known keys and the kinds of their values are those of
//! [`Config::default`], written as JSON: there is no other list of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

use config::{Environment, File, FileFormat, Map, Source, Value, ValueKind};
use serde_json::{Value as Json, json};

use super::legacy::{Legacy, Listener, is_ini};
use super::{Config, listen};

const PREFIX: &str = "REMOTEPROXY";
const SEPARATOR: &str = "__";
/// The origin of values from environment variables, as named by the `config` crate.
const ENVIRONMENT: &str = "the environment";

/// A setting given by a flag of the command line.
#[derive(Clone, Debug)]
pub struct Override {
    /// The setting, as in `server.port`.
    pub key: &'static str,
    /// The value, written as in an environment variable.
    pub value: String,
    /// The flag, as in `--port`.
    pub flag: &'static str,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the configuration file {} cannot be read", .file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("the configuration file {} is not valid TOML", .file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// The error of the parser, with the line.
        #[source]
        source: config::ConfigError,
    },
    /// Settings that are wrong, in alphabetical order.
    #[error("{}", list(.0))]
    Invalid(Vec<Fault>),
}

/// A fault in a configuration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// The setting, as in `timeouts.waiting`.
    pub key: String,
    /// The origin of the value: a file, an environment variable or a flag; unknown for a default.
    pub origin: Option<String>,
    /// The problem, and the expected value.
    pub problem: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Some(origin) => write!(f, "{} (from {origin}): {}", self.key, self.problem),
            None => write!(f, "{}: {}", self.key, self.problem),
        }
    }
}

fn list(faults: &[Fault]) -> String {
    let lines: Vec<_> = faults.iter().map(ToString::to_string).collect();
    match &lines[..] {
        [one] => format!("invalid configuration: {one}"),
        many => format!("invalid configuration:\n  {}", many.join("\n  ")),
    }
}

impl Config {
    /// Reads the settings from `file`, the environment of the process and `flags`.
    pub fn load(file: Option<&Path>, flags: Vec<Override>) -> Result<Self, ConfigError> {
        let variables = std::env::vars_os().map(|(name, value)| {
            (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
        });
        Self::load_from(file, variables, flags)
    }

    /// [`load`](Self::load) with the environment as an argument.
    pub fn load_from(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: Vec<Override>,
    ) -> Result<Self, ConfigError> {
        let text = match file {
            Some(path) => fs::read_to_string(path)
                .map_err(|source| ConfigError::Unreadable { file: path.into(), source })?,
            None => String::new(),
        };
        let legacy = if is_ini(&text) { Some(Legacy::read(&text)) } else { None };
        let mut reading = Reading::new(file);
        let text = if let Some(legacy) = &legacy {
            reading.listeners(&legacy.listeners);
            ""
        } else {
            &text
        };
        let settings = legacy.iter().flat_map(|legacy| &legacy.settings);
        for (section, value) in merge(file, text, settings, environment, flags)? {
            reading.section(&section, value);
        }
        let warnings = legacy.map_or_else(Vec::new, |legacy| legacy.warnings);
        reading.finish().map(|config| Self { warnings, ..config })
    }
}

/// Merges all sources into one tree. Each value keeps its origin.
fn merge<'a>(
    file: Option<&Path>,
    text: &str,
    legacy: impl Iterator<Item = &'a (String, String)>,
    environment: impl IntoIterator<Item = (String, String)>,
    flags: Vec<Override>,
) -> Result<Map<String, Value>, ConfigError> {
    let file = file.unwrap_or("".as_ref());
    let environment = Environment::with_prefix(PREFIX)
        .separator(SEPARATOR)
        .source(Some(environment.into_iter().collect()));
    let mut sources = config::Config::builder()
        .add_source(File::from_str(text, FileFormat::Toml))
        .add_source(environment);
    let refused = |source| ConfigError::Syntax { file: file.into(), source };
    for (key, value) in legacy {
        let value = Value::new(Some(&file.display().to_string()), value.as_str());
        sources = sources.set_default(key, value).map_err(refused)?;
    }
    for Override { key, value, flag } in flags {
        let value = Value::new(Some(&flag.to_owned()), value);
        sources = sources.set_override(key, value).map_err(refused)?;
    }
    sources.build().and_then(|merged| merged.collect()).map_err(refused)
}

/// The settings as far as they have been read.
struct Reading<'a> {
    file: Option<&'a Path>,
    /// All settings, first with their defaults.
    settings: Json,
    origins: BTreeMap<String, String>,
    faults: Vec<Fault>,
}

impl<'a> Reading<'a> {
    fn new(file: Option<&'a Path>) -> Self {
        let settings = json!(Config::default());
        Self { file, settings, origins: BTreeMap::new(), faults: Vec::new() }
    }

    /// Adds the listeners from a file of the original server.
    fn listeners(&mut self, listeners: &[Listener]) {
        let listen = listeners.iter().map(|listener| match listener {
            Listener::WebSocket { address, tls } => {
                json!({ "kind": "websocket", "address": address, "tls": tls })
            }
            Listener::Tcp { address, tls } => {
                json!({ "kind": "tcp", "address": address, "tls": tls })
            }
            Listener::Unix { path } => json!({ "kind": "unix", "path": path }),
        });
        let origin = self.file.unwrap_or("".as_ref()).display().to_string();
        self.listen(listen.collect(), &origin);
    }

    /// `[[listen]]`, in place of what was there.
    fn listen(&mut self, sections: Vec<Json>, origin: &str) {
        for (at, section) in sections.iter().enumerate() {
            let read = serde_json::from_value::<listen::Listen>(section.clone());
            let name = listen::name(at);
            match read {
                Ok(_) => drop(self.origins.insert(name, origin.into())),
                Err(error) => self.fault(name, origin.into(), error.to_string()),
            }
        }
        self.settings["listen"] = sections.into();
    }

    fn section(&mut self, section: &str, value: Value) {
        let origin = self.origin(section, &value);
        if section == "listen" {
            if let Some(sections) = list_of(value) {
                return self.listen(sections, &origin);
            }
            let problem = "expected [[listen]] sections; in an environment variable a JSON array, \
                           as in [{\"kind\":\"tcp\",\"address\":\"127.0.0.1:2213\"}]";
            return self.fault(section.into(), origin, problem.into());
        }
        if self.settings.get(section).is_none() {
            let problem =
                format!("unknown section, expected one of {}", names_in(&self.settings).join(", "));
            return self.fault(section.into(), origin, problem);
        }
        let ValueKind::Table(values) = value.kind else {
            let problem =
                format!("expected a section with {}", names_in(&self.settings[section]).join(", "));
            return self.fault(section.into(), origin, problem);
        };
        for (name, value) in values {
            self.setting(section, &name, value);
        }
    }

    fn setting(&mut self, section: &str, name: &str, value: Value) {
        let key = format!("{section}.{name}");
        let origin = self.origin(&key, &value);
        let known = names_in(&self.settings[section]).join(", ");
        let Some(slot) = self.settings[section].get_mut(name) else {
            let problem = format!("unknown setting, expected one of {known}");
            return self.fault(key, origin, problem);
        };
        match typed(value, slot).and_then(|value| {
            let alone = json!({ section: { name: value } });
            serde_json::from_value::<Config>(alone)?;
            Ok(value)
        }) {
            Ok(value) => {
                *slot = value;
                self.origins.insert(key, origin);
            }
            Err(error) => self.fault(key, origin, error.to_string()),
        }
    }

    fn origin(&self, key: &str, value: &Value) -> String {
        if let ValueKind::Table(values) = &value.kind
            && let Some((name, value)) = values.iter().next()
        {
            return self.origin(&format!("{key}.{name}"), value);
        }
        match (value.origin(), self.file) {
            (Some(ENVIRONMENT), _) => {
                let path = key.to_uppercase().replace('.', SEPARATOR);
                format!("{PREFIX}{SEPARATOR}{path}")
            }
            (Some(flag), _) => flag.into(),
            (None, Some(file)) => file.display().to_string(),
            (None, None) => ENVIRONMENT.into(),
        }
    }

    /// Settings that have no effect because there are `[[listen]]` sections.
    fn contradictions(&self, config: &Config) -> Vec<Fault> {
        let settings = [
            ("server.address", "which say where to listen"),
            ("server.port", "which say where to listen"),
            ("tls.enabled", "each of which has a tls of its own"),
        ];
        let is_set =
            |(key, _): &(&str, &str)| !config.listen.is_empty() && self.origins.contains_key(*key);
        let fault = |(key, why)| {
            let problem =
                format!("has no effect beside the [[listen]] sections, {why}; leave it out");
            Fault { key: String::from(key), origin: None, problem }
        };
        settings.into_iter().filter(is_set).map(fault).collect()
    }

    fn fault(&mut self, key: String, origin: String, problem: String) {
        self.faults.push(Fault { key, origin: Some(origin), problem });
    }

    /// Reports values of the wrong type first, and only then values that are not valid.
    fn finish(mut self) -> Result<Config, ConfigError> {
        if self.faults.is_empty() {
            let settings = std::mem::take(&mut self.settings);
            let config: Config = serde_json::from_value(settings)
                .map_err(|error| ConfigError::Invalid(vec![whole(&error)]))?;
            self.faults = config.faults();
            self.faults.extend(self.contradictions(&config));
            if self.faults.is_empty() {
                return Ok(config);
            }
            for fault in &mut self.faults {
                fault.origin = self.origins.remove(&fault.key);
            }
        }
        self.faults.sort();
        Err(ConfigError::Invalid(self.faults))
    }
}

/// The sections of a list.
fn list_of(value: Value) -> Option<Vec<Json>> {
    match value.try_deserialize().ok()? {
        Json::Array(sections) => Some(sections),
        Json::String(text) => serde_json::from_str(&text).ok(),
        _ => None,
    }
}

/// A host name may resolve when it is read alone and no longer a moment later.
fn whole(error: &serde_json::Error) -> Fault {
    Fault { key: "configuration".into(), origin: None, problem: error.to_string() }
}

/// Variables and flags are texts; what is a number or a boolean by default is meant as one.
fn typed(value: Value, default: &Json) -> Result<Json, serde_json::Error> {
    use serde::de::Error;

    let is_text = value.origin().is_some();
    let value: Json = value.try_deserialize().map_err(serde_json::Error::custom)?;
    Ok(match (&value, default) {
        (Json::String(text), Json::Bool(_) | Json::Number(_)) if is_text => {
            match serde_json::from_str(text) {
                Ok(scalar @ (Json::Bool(_) | Json::Number(_))) => scalar,
                _ => value,
            }
        }
        _ => value,
    })
}

fn names_in(table: &Json) -> Vec<&str> {
    table.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect()
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
