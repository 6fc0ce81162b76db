//! From a key to its line, and from a place in the text to its key. Keys are written as
//! `fleet[1].count`.

use toml_edit::{Document, Item, Table, Value};

pub struct Locator<'a> {
    text: &'a str,
    document: Option<Document<&'a str>>,
}

/// One key of the document, with where it and its value stand.
struct Entry {
    path: String,
    start: usize,
    end: usize,
}

impl<'a> Locator<'a> {
    pub fn new(text: &'a str) -> Self {
        Self {
            text,
            document: Document::parse(text).ok(),
        }
    }

    /// The line of the key, or of the nearest one above it that exists; 1 when there is none.
    pub fn line(&self, path: &str) -> usize {
        let entries = self.entries();
        let mut wanted = path;
        loop {
            if let Some(entry) = entries.iter().find(|entry| entry.path == wanted) {
                return line_of(self.text, entry.start);
            }
            match wanted.rfind(['.', '[']) {
                Some(at) => wanted = &wanted[..at],
                None => return 1,
            }
        }
    }

    /// The innermost key whose text holds `offset`.
    pub fn key_at(&self, offset: usize) -> Option<String> {
        let holding = self
            .entries()
            .into_iter()
            .filter(|entry| (entry.start..=entry.end).contains(&offset));
        holding.max_by_key(|entry| entry.path.len()).map(|entry| entry.path)
    }

    fn entries(&self) -> Vec<Entry> {
        let mut found = Vec::new();
        if let Some(document) = &self.document {
            table(document.as_table(), "", &mut found);
        }
        found
    }
}

fn join(path: &str, key: &str) -> String {
    match path {
        "" => key.to_owned(),
        _ => format!("{path}.{key}"),
    }
}

fn table(table: &Table, path: &str, found: &mut Vec<Entry>) {
    for (key, item) in table.iter() {
        let path = join(path, key);
        let key_span = table.key(key).and_then(|key| key.span());
        let spans = [key_span, item.span()];
        push(&path, &spans, found);
        match item {
            Item::Table(below) => self::table(below, &path, found),
            Item::ArrayOfTables(rows) => {
                for (at, row) in rows.iter().enumerate() {
                    let path = format!("{path}[{at}]");
                    push(&path, &[row.span()], found);
                    self::table(row, &path, found);
                }
            }
            Item::Value(below) => value(below, &path, found),
            Item::None => {}
        }
    }
}

fn value(value: &Value, path: &str, found: &mut Vec<Entry>) {
    match value {
        Value::InlineTable(below) => {
            for (key, item) in below.iter() {
                let path = join(path, key);
                let key_span = below.key(key).and_then(|key| key.span());
                push(&path, &[key_span, item.span()], found);
                self::value(item, &path, found);
            }
        }
        Value::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                let path = format!("{path}[{at}]");
                push(&path, &[item.span()], found);
                self::value(item, &path, found);
            }
        }
        _ => {}
    }
}

fn push(path: &str, spans: &[Option<std::ops::Range<usize>>], found: &mut Vec<Entry>) {
    let known = || spans.iter().flatten();
    let (Some(start), Some(end)) = (known().map(|s| s.start).min(), known().map(|s| s.end).max()) else {
        return;
    };
    found.push(Entry {
        path: path.to_owned(),
        start,
        end,
    });
}

pub fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "name = \"x\"\n\n[run]\nthreads = 2\n\n[[fleet]]\nname = \"a\"\n[[fleet]]\nname = \"b\"\nprotocols = { mqtt5 = 1 }\n";

    #[test]
    fn keys_have_lines() {
        let locator = Locator::new(TEXT);
        for (key, line) in [
            ("name", 1),
            ("run.threads", 4),
            ("run.nothing", 3),
            ("fleet[0].name", 7),
            ("fleet[1].name", 9),
            ("fleet[1].protocols.mqtt5", 10),
            ("absent", 1),
        ] {
            assert_eq!(locator.line(key), line, "{key}");
        }
    }

    #[test]
    fn places_have_keys() {
        let locator = Locator::new(TEXT);
        let at = |needle: &str| locator.key_at(TEXT.find(needle).unwrap());
        assert_eq!(at("2\n").as_deref(), Some("run.threads"));
        assert_eq!(at("\"b\"").as_deref(), Some("fleet[1].name"));
    }
}
