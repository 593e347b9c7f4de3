//! What fills a logbook from `tracing`, and log lines as JSON.
//!
//! A span with the fields `graph`, `key` and `attempt` says to which task lines belong; an event may
//! have the fields itself.

use std::fmt::{self, Debug, Write};
use std::sync::Arc;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::{LookupSpan, Scope};

use crate::book::Logbook;
use crate::line::{Level, Line, now_micros};
use crate::secrets::{HIDDEN, is_secret_name};

/// Writes events into a logbook.
#[derive(Debug)]
pub struct LogbookLayer {
    book: Arc<Logbook>,
}

impl LogbookLayer {
    /// Writes into this one.
    pub fn new(book: Arc<Logbook>) -> Self {
        Self { book }
    }
}

/// To which task a line belongs.
#[derive(Debug, Clone, Default)]
struct Place {
    graph: String,
    key: String,
    attempt: u32,
}

impl Place {
    /// Fills in what is not known yet.
    fn complete_from(&mut self, other: &Self) {
        if self.graph.is_empty() {
            self.graph.clone_from(&other.graph);
        }
        if self.key.is_empty() {
            self.key.clone_from(&other.key);
        }
        if self.attempt == 0 {
            self.attempt = other.attempt;
        }
    }

    fn complete_from_scope<S>(&mut self, scope: Option<Scope<'_, S>>)
    where
        S: for<'a> LookupSpan<'a>,
    {
        for span in scope.into_iter().flatten() {
            if let Some(place) = span.extensions().get::<Place>() {
                self.complete_from(place);
            }
        }
    }

    /// Whether the field is one of these; it is kept then.
    fn take(&mut self, field: &str, value: impl FnOnce() -> String) -> bool {
        match field {
            "graph" => self.graph = value(),
            "key" => self.key = value(),
            "attempt" => self.attempt = value().parse().unwrap_or(0),
            _ => return false,
        }
        true
    }
}

impl Visit for Place {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field.name(), || value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.take(field.name(), || format!("{value:?}"));
    }
}

/// An event's own fields.
#[derive(Default)]
struct Fields {
    place: Place,
    message: String,
    others: Vec<(&'static str, Value)>,
}

impl Fields {
    fn of(event: &Event<'_>) -> Self {
        let mut fields = Self::default();
        event.record(&mut fields);
        fields
    }

    fn add(&mut self, field: &Field, value: Value) {
        let name = field.name();
        let text = || match &value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        if name == "message" {
            self.message = text();
        } else if !self.place.take(name, text) {
            let value = if is_secret_name(name) {
                HIDDEN.into()
            } else {
                value
            };
            self.others.push((name, value));
        }
    }

    /// The message and the fields, as people read them.
    fn text(&self) -> String {
        let mut text = self.message.clone();
        for (name, value) in &self.others {
            let space = if text.is_empty() { "" } else { " " };
            // Writing into memory cannot fail.
            let _ = match value {
                Value::String(value) => write!(text, "{space}{name}={value}"),
                value => write!(text, "{space}{name}={value}"),
            };
        }
        text
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.add(field, format!("{value:?}").into());
    }
}

fn level(of: tracing::Level) -> Level {
    match of {
        tracing::Level::ERROR => Level::Error,
        tracing::Level::WARN => Level::Warn,
        tracing::Level::INFO => Level::Info,
        _ => Level::Debug,
    }
}

impl<S> Layer<S> for LogbookLayer
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let mut place = Place::default();
            attributes.record(&mut place);
            span.extensions_mut().replace(place);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(place) = span.extensions_mut().get_mut::<Place>()
        {
            values.record(place);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::of(event);
        fields.place.complete_from_scope(context.event_scope(event));
        let text = fields.text();
        let Place {
            graph,
            key,
            attempt,
        } = fields.place;
        self.book.add(Line {
            time_micros: now_micros(),
            level: level(*event.metadata().level()),
            target: event.metadata().target().to_owned(),
            text,
            graph,
            key,
            attempt,
        });
    }
}

/// Log lines as JSON objects: `timestamp`, `level`, `target`, `message`, then `graph`, `key` and
/// `attempt` where there is one, then the other fields. What spans say of a task is known only if
/// a [`LogbookLayer`] is there too.
#[derive(Debug, Default)]
pub struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::of(event);
        fields.place.complete_from_scope(context.event_scope());
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let mut line = Map::new();
        let metadata = event.metadata();
        line.insert("timestamp".to_owned(), time.into());
        line.insert("level".to_owned(), metadata.level().as_str().into());
        line.insert("target".to_owned(), metadata.target().into());
        line.insert("message".to_owned(), fields.message.into());
        let Place {
            graph,
            key,
            attempt,
        } = fields.place;
        for (name, value) in [("graph", graph), ("key", key)] {
            if !value.is_empty() {
                line.insert(name.to_owned(), value.into());
            }
        }
        if attempt > 0 {
            line.insert("attempt".to_owned(), attempt.into());
        }
        for (name, value) in fields.others {
            line.insert(name.to_owned(), value);
        }
        writeln!(writer, "{}", Value::Object(line))
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Mutex;

    use tracing::subscriber::with_default;
    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::registry;

    use super::*;
    use crate::book::Cursor;
    use crate::ring::Bounds;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The lines of the book, and those of the JSON form.
    fn logged(work: impl FnOnce()) -> (Vec<Line>, Vec<Value>) {
        let book = Arc::new(Logbook::default());
        let written = Written::default();
        let writer = written.clone();
        let json = tracing_subscriber::fmt::layer()
            .event_format(JsonLines)
            .with_writer(move || writer.clone());
        let subscriber = registry()
            .with(json)
            .with(LogbookLayer::new(Arc::clone(&book)));
        with_default(subscriber, work);
        let bounds = Bounds {
            items_max: 100,
            bytes_max: 100_000,
        };
        let lines = book.take(&mut Cursor::default(), bounds).lines;
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        let json = text.lines().map(|line| serde_json::from_str(line).unwrap());
        (lines, json.collect())
    }

    #[test]
    fn lines_know_their_task() {
        let (lines, json) = logged(|| {
            let run = tracing::info_span!("run", graph = 7, key = "a\"b", attempt = 2_u32);
            run.in_scope(|| {
                tracing::info_span!("inner", other = 1).in_scope(|| {
                    tracing::warn!(bytes = 5, error = %"broken", "it is slow");
                });
            });
            tracing::info!(graph = 8, key = %"c", attempt = 1, "said by the event");
            tracing::error!("alone");
        });
        let places: Vec<_> = lines
            .iter()
            .map(|line| (line.graph.as_str(), line.key.as_str(), line.attempt))
            .collect();
        assert_eq!(places, [("7", "a\"b", 2), ("8", "c", 1), ("", "", 0)]);
        assert_eq!(lines[0].text, "it is slow bytes=5 error=broken");
        assert_eq!(lines[0].level, Level::Warn);
        assert!(lines[0].target.starts_with("oxidask_logbook"));
        assert_eq!(json[0]["message"], "it is slow");
        assert_eq!(json[0]["graph"], "7");
        assert_eq!(json[0]["key"], "a\"b");
        assert_eq!(json[0]["attempt"], 2);
        assert_eq!(json[0]["bytes"], 5);
        assert_eq!(json[0]["level"], "WARN");
        assert!(json[0]["timestamp"].as_str().unwrap().ends_with('Z'));
        assert_eq!(json[1]["key"], "c");
        let alone = json[2].as_object().unwrap();
        assert!(!alone.contains_key("key") && !alone.contains_key("attempt"));
    }

    #[test]
    fn fields_that_are_secrets_are_hidden() {
        let (lines, json) = logged(|| tracing::info!(token = "abcdefgh", "a call"));
        assert_eq!(lines[0].text, "a call token=***");
        assert_eq!(json[0]["token"], "***");
    }
}
