//! Log lines as JSON objects, one for each event, with the same names whatever the event is:
//! `timestamp`, `level`, `target`, `message`, and where there are such, `connection_id`,
//! `client_address`, `trace_id` and `tunnel_id`. All other fields are members beside them.

use std::fmt::{self, Debug};
use std::time::SystemTime;

use nymea_remoteproxy::printable::{LONGEST_TEXT, PlainJson};
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormattedFields};
use tracing_subscriber::registry::{LookupSpan, Scope, SpanRef};

/// Names that are no event's to use.
const RESERVED: [&str; 3] = ["timestamp", "level", "target"];

/// The format; spans must have their fields as [`JsonFields`].
pub(super) struct JsonLines;

impl<S> FormatEvent<S, JsonFields> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let time = humantime::format_rfc3339_micros(SystemTime::now());
        let metadata = event.metadata();
        let mut line = Line::default();
        line.put("timestamp", time.to_string().into());
        line.put("level", metadata.level().as_str().into());
        line.put("target", metadata.target().into());
        for span in context.event_scope().into_iter().flat_map(Scope::from_root) {
            line.put_fields_of(&span);
        }
        event.record(&mut line);
        writeln!(writer, "{}", PlainJson(&line.0.to_string()))
    }
}

/// The members of an object, in their order.
#[derive(Default)]
struct Line(Members);

impl Line {
    fn put(&mut self, name: &str, value: Value) {
        self.0.put(name, value);
    }

    fn put_fields_of<S: for<'a> LookupSpan<'a>>(&mut self, span: &SpanRef<'_, S>) {
        let extensions = span.extensions();
        let Some(fields) = extensions.get::<FormattedFields<JsonFields>>() else { return };
        let Ok(fields) = serde_json::from_str::<Map<String, Value>>(fields) else { return };
        for (field, value) in fields {
            match (span.name(), field.as_str()) {
                (name, "id") => self.put(&format!("{name}_id"), value),
                (_, "client_addr") => self.put("client_address", value),
                (_, field) => self.put_field(field, value),
            }
        }
    }

    fn put_field(&mut self, field: &str, value: Value) {
        let value = shortened(value);
        match field {
            "tunnel" => self.put("tunnel_id", value),
            field if RESERVED.contains(&field) => self.put(&format!("field_{field}"), value),
            field => self.put(field, value),
        }
    }
}

/// A text that others chose may be very long.
fn shortened(value: Value) -> Value {
    match value {
        Value::String(mut text) => {
            if let Some((end, _)) = text.char_indices().nth(LONGEST_TEXT) {
                text.truncate(end);
                text.push('…');
            }
            Value::String(text)
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            value
        }
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.put_field(field.name(), format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put_field(field.name(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put_field(field.name(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put_field(field.name(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put_field(field.name(), value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put_field(field.name(), value.into());
    }
}

#[derive(Default)]
struct Members(Vec<(String, Value)>);

impl Members {
    /// Adds a member. A later one of the same name, nearer to the event, replaces it.
    fn put(&mut self, name: &str, value: Value) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => *known = value,
            None => self.0.push((name.to_owned(), value)),
        }
    }
}

impl fmt::Display for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (index, (name, value)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{}:{value}", Value::from(name.as_str()))?;
        }
        f.write_str("}")
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use nymea_remoteproxy::printable::Printable;
    use serde_json::json;
    use tracing::field::{Empty, display};
    use tracing::{info, info_span, warn};
    use tracing_subscriber::fmt::layer;
    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::registry;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The lines that something logs.
    fn logged(what: impl FnOnce()) -> Vec<Value> {
        let text = written(what);
        text.lines().map(|line| serde_json::from_str(line).expect("a JSON object")).collect()
    }

    fn written(what: impl FnOnce()) -> String {
        let written = Written::default();
        let writer = written.clone();
        let layer = layer()
            .fmt_fields(JsonFields::new())
            .event_format(JsonLines)
            .with_ansi(false)
            .with_writer(move || writer.clone());
        tracing::subscriber::with_default(registry().with(layer), what);
        let bytes = written.0.lock().expect("no panic").clone();
        String::from_utf8(bytes).expect("UTF-8")
    }

    #[test]
    fn identifiers_of_spans_and_events_have_their_names() {
        let lines = logged(|| {
            let connection =
                info_span!("connection", id = 7, client_addr = "a:1", trace_id = Empty);
            connection.record("trace_id", display("0af7"));
            let _entered = connection.enter();
            info!(tunnel = %"t1", bytes = 12_u64, fine = true, share = 0.5, "it {}", "stands");
        });
        let [line] = &lines[..] else { panic!("one line: {lines:?}") };
        let expected = [
            ("connection_id", json!(7)),
            ("client_address", json!("a:1")),
            ("trace_id", json!("0af7")),
            ("tunnel_id", json!("t1")),
            ("bytes", json!(12)),
            ("fine", json!(true)),
            ("share", json!(0.5)),
            ("message", json!("it stands")),
            ("level", json!("INFO")),
        ];
        for (name, value) in expected {
            assert_eq!(line[name], value, "{name}");
        }
        let time = line["timestamp"].as_str().expect("a text");
        assert!(humantime::parse_rfc3339(time).is_ok(), "{time}");
    }

    #[test]
    fn nothing_breaks_a_line_and_nothing_hides_what_it_is() {
        let lines = logged(|| {
            warn!(level = "mine", odd = "a\n\"b\"\u{1b}[31m\0", "first\nsecond");
            info!("plain");
        });
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["level"], "WARN");
        assert_eq!(lines[0]["field_level"], "mine");
        assert_eq!(lines[0]["odd"], "a\n\"b\"\u{1b}[31m\0");
        assert_eq!(lines[0]["message"], "first\nsecond");
        assert_eq!(lines[1].as_object().map(Map::len), Some(4));
    }

    #[test]
    fn a_terminal_that_shows_the_lines_is_safe_and_nothing_is_changed() {
        let odd = "c1 \u{9b}31m \u{85} \u{2028} \u{202e} tag \u{e0041}";
        let lines = logged(|| info!(odd, long = "ü".repeat(5000), "x"));
        assert_eq!(lines[0]["odd"], odd);
        let long = lines[0]["long"].as_str().map(|long| long.chars().count());
        assert_eq!(long, Some(LONGEST_TEXT + 1));
        let written = written(|| info!(odd, "{odd}"));
        let plain = |character: char| character == '\n' || Printable::is_plain(character);
        assert!(written.chars().all(plain), "{written:?}");
    }

    #[test]
    fn what_is_nearer_wins() {
        let lines = logged(|| {
            let outer = info_span!("outer", place = "outer", id = 1).entered();
            let inner = info_span!("inner", place = "inner", id = 2).entered();
            info!("from both");
            drop(inner);
            info!(place = "event", "from one");
            drop(outer);
        });
        assert_eq!((&lines[0]["place"], &lines[1]["place"]), (&json!("inner"), &json!("event")));
        assert_eq!((&lines[0]["outer_id"], &lines[0]["inner_id"]), (&json!(1), &json!(2)));
    }
}
