//! Reads keys out of one TOML text and the environment, and remembers where each one stood.
//!
//! Knows syntax, positions, types and ranges. What a key means, and which keys contradict each
//! other, is decided by [`super::load`]. Every key that was asked for is remembered, so the caller
//! of this file is the schema: what nobody asked for is unknown.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml_edit::{Document, Item, TableLike, Value};

use super::duration;

/// Prefix of the variables that override keys: `HOLDFAST_RAFT_HEARTBEAT_MS=200`.
pub const ENV_PREFIX: &str = "HOLDFAST_";

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A line of the file, from 1.
    Line(usize),
    /// An environment variable.
    Variable(String),
    /// Nothing set it; the file as a whole is to blame.
    Nowhere,
}

/// One thing that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub file: PathBuf,
    pub place: Place,
    /// `section.key`; empty when the text is not TOML at all.
    pub key: String,
    pub reason: String,
}

impl fmt::Display for Problem {
    /// `file:line: key: reason`, or the variable's name in place of file and line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Line(line) => write!(f, "{}:{line}: ", self.file.display())?,
            Place::Variable(name) => write!(f, "environment variable {name}: ")?,
            Place::Nowhere => write!(f, "{}: ", self.file.display())?,
        }
        if self.key.is_empty() {
            f.write_str(&self.reason)
        } else {
            write!(f, "{}: {}", self.key, self.reason)
        }
    }
}

/// A key the schema knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownKey {
    pub section: &'static str,
    pub name: &'static str,
    /// As TOML text; `None`: it has none.
    pub default: Option<String>,
    /// What was given, as TOML text, and where; `None`: nothing was.
    pub given: Option<(String, Place)>,
}

pub struct Reader<'a> {
    file: &'a Path,
    text: &'a str,
    document: Document<&'a str>,
    environment: BTreeMap<String, String>,
    known: Vec<KnownKey>,
    problems: Vec<Problem>,
}

/// One element of an array of tables, such as a member.
pub struct Row {
    pub line: usize,
    pub values: BTreeMap<String, (Value, usize)>,
}

impl<'a> Reader<'a> {
    /// # Errors
    /// The text is not TOML; says where and why.
    pub fn new(file: &'a Path, text: &'a str, environment: BTreeMap<String, String>) -> Result<Self, Problem> {
        match Document::parse(text) {
            Ok(document) => Ok(Self {
                file,
                text,
                document,
                environment,
                known: Vec::new(),
                problems: Vec::new(),
            }),
            Err(error) => Err(Problem {
                file: file.to_owned(),
                place: error
                    .span()
                    .map_or(Place::Nowhere, |span| Place::Line(line_of(text, span.start))),
                key: String::new(),
                reason: format!("not TOML: {}", error.message().lines().collect::<Vec<_>>().join("; ")),
            }),
        }
    }

    /// A required text, or an empty one beside a recorded problem.
    pub fn text(&mut self, section: &'static str, name: &'static str) -> String {
        match self.optional_text(section, name) {
            Some(text) => text,
            None => {
                self.missing(section, name);
                String::new()
            }
        }
    }

    pub fn text_or(&mut self, section: &'static str, name: &'static str, default: &str) -> String {
        let found = self.optional_text(section, name);
        self.set_default(format!("{default:?}"));
        found.unwrap_or_else(|| default.to_owned())
    }

    pub fn optional_text(&mut self, section: &'static str, name: &'static str) -> Option<String> {
        self.know(section, name, None);
        let (value, place) = self.find(section, name, true)?;
        match value.as_str() {
            Some(text) if !text.trim().is_empty() => Some(text.to_owned()),
            Some(_) => {
                self.wrong(section, name, place, "is empty".to_owned());
                None
            }
            None => {
                self.wrong_type(section, name, place, &value, "text in quotes");
                None
            }
        }
    }

    pub fn boolean(&mut self, section: &'static str, name: &'static str, default: bool) -> bool {
        self.know(section, name, Some(default.to_string()));
        let Some((value, place)) = self.find(section, name, false) else {
            return default;
        };
        value.as_bool().unwrap_or_else(|| {
            self.wrong_type(section, name, place, &value, "true or false");
            default
        })
    }

    /// Texts of an array; of a variable, separated by commas. Empty when the key is not there.
    pub fn texts(&mut self, section: &'static str, name: &'static str) -> Vec<String> {
        self.know(section, name, None);
        let Some((value, place)) = self.find(section, name, true) else {
            return Vec::new();
        };
        if let Some(text) = value.as_str() {
            return text.split(',').map(|part| part.trim().to_owned()).collect();
        }
        let items = value
            .as_array()
            .map(|array| array.iter().map(|item| item.as_str().map(str::to_owned)));
        match items.and_then(Iterator::collect) {
            Some(texts) => texts,
            None => {
                self.wrong_type(
                    section,
                    name,
                    place,
                    &value,
                    "an array of texts, such as [\"127.0.0.1:8080\"]",
                );
                Vec::new()
            }
        }
    }

    /// As [`Self::integer`]; `None` when the key is not there.
    pub fn optional_integer(
        &mut self,
        section: &'static str,
        name: &'static str,
        range: RangeInclusive<u64>,
    ) -> Option<u64> {
        self.know(section, name, None);
        let (value, place) = self.find(section, name, false)?;
        let number = value.as_integer().and_then(|number| u64::try_from(number).ok());
        if number.is_some_and(|number| range.contains(&number)) {
            return number;
        }
        if value.as_integer().is_none() {
            self.wrong_type(section, name, place, &value, "a whole number");
        } else {
            let reason = format!(
                "{} is out of range, {}..={} is allowed",
                value.as_integer().unwrap_or_default(),
                range.start(),
                range.end()
            );
            self.wrong(section, name, place, reason);
        }
        Some(*range.start())
    }

    /// A whole number within `range`; `default` beside a recorded problem.
    pub fn integer(
        &mut self,
        section: &'static str,
        name: &'static str,
        default: Option<u64>,
        range: RangeInclusive<u64>,
    ) -> u64 {
        self.know(section, name, default.map(|number| number.to_string()));
        let fallback = default.unwrap_or(*range.start());
        let Some((value, place)) = self.find(section, name, false) else {
            if default.is_none() {
                self.missing(section, name);
            }
            return fallback;
        };
        let Some(number) = value.as_integer() else {
            self.wrong_type(section, name, place, &value, "a whole number");
            return fallback;
        };
        match u64::try_from(number) {
            Ok(number) if range.contains(&number) => number,
            _ => {
                let reason = format!(
                    "{number} is out of range, {}..={} is allowed",
                    range.start(),
                    range.end()
                );
                self.wrong(section, name, place, reason);
                fallback
            }
        }
    }

    /// A duration such as `"500ms"`, within `range`.
    pub fn duration(
        &mut self,
        section: &'static str,
        name: &'static str,
        default: Duration,
        range: RangeInclusive<Duration>,
    ) -> Duration {
        self.know(section, name, Some(format!("{:?}", duration::show(default))));
        let Some((value, place)) = self.find(section, name, true) else {
            return default;
        };
        let Some(text) = value.as_str() else {
            self.wrong_type(section, name, place, &value, "a duration such as \"10s\" or \"500ms\"");
            return default;
        };
        match duration::parse(text) {
            Ok(found) if range.contains(&found) => found,
            Ok(_) => {
                let (low, high) = (duration::show(*range.start()), duration::show(*range.end()));
                self.wrong(
                    section,
                    name,
                    place,
                    format!("{text} is out of range, {low}..={high} is allowed"),
                );
                default
            }
            Err(reason) => {
                self.wrong(section, name, place, reason);
                default
            }
        }
    }

    /// Whether a key that is known here was left out.
    pub fn is_absent(&mut self, section: &'static str, name: &'static str) -> bool {
        self.know(section, name, None);
        !self.environment.contains_key(&variable_name(section, name))
            && self.section(section).and_then(|table| table.get(name)).is_none()
    }

    /// An array of tables (`[[section.name]]` or inline). Required; empty beside a problem.
    pub fn rows(&mut self, section: &'static str, name: &'static str) -> Vec<Row> {
        self.know(section, name, None);
        let variable = variable_name(section, name);
        if let Some(text) = self.environment.remove(&variable) {
            return match text.parse::<Value>().ok().as_ref().and_then(Value::as_array) {
                Some(array) => {
                    let rows = self.inline_rows(section, name, array);
                    self.note(section, name, rows_text(&rows), Place::Variable(variable));
                    rows
                }
                None => {
                    let reason = "must be a TOML array of tables, such as [{ id = 1, … }]".to_owned();
                    self.wrong(section, name, Place::Variable(variable), reason);
                    Vec::new()
                }
            };
        }
        let item = self.section(section).and_then(|table| table.get(name)).cloned();
        match item {
            Some(Item::ArrayOfTables(tables)) => {
                let rows: Vec<Row> = tables
                    .iter()
                    .map(|table| self.row(table, table.span().map_or(0, |span| span.start)))
                    .collect();
                let place = rows.first().map_or(Place::Nowhere, |row| Place::Line(row.line));
                self.note(section, name, rows_text(&rows), place);
                rows
            }
            Some(Item::Value(Value::Array(array))) => {
                let rows = self.inline_rows(section, name, &array);
                let place = self.place(section, name);
                self.note(section, name, rows_text(&rows), place);
                rows
            }
            Some(_) => {
                let place = self.place(section, name);
                self.wrong(section, name, place, "must be an array of tables".to_owned());
                Vec::new()
            }
            None => {
                self.missing(section, name);
                Vec::new()
            }
        }
    }

    fn inline_rows(&mut self, section: &'static str, name: &'static str, array: &toml_edit::Array) -> Vec<Row> {
        let mut rows = Vec::new();
        for value in array {
            let start = value.span().map_or(0, |span| span.start);
            match value.as_inline_table() {
                Some(table) => rows.push(self.row(table, start)),
                None => {
                    let place = Place::Line(line_of(self.text, start));
                    self.wrong(section, name, place, "each element must be a table".to_owned());
                }
            }
        }
        rows
    }

    fn row(&self, table: &dyn TableLike, start: usize) -> Row {
        let line = line_of(self.text, start);
        let values = table.iter().filter_map(|(key, item)| {
            let value = item.as_value()?.clone();
            let at = value.span().map_or(line, |span| line_of(self.text, span.start));
            Some((key.to_owned(), (value, at)))
        });
        Row {
            line,
            values: values.collect(),
        }
    }

    /// Where a key was set; the file as a whole when it was not.
    pub fn place(&self, section: &str, name: &str) -> Place {
        let variable = variable_name(section, name);
        if self.environment.contains_key(&variable) {
            return Place::Variable(variable);
        }
        let Some(table) = self.section(section) else {
            return Place::Nowhere;
        };
        let span = table
            .key(name)
            .and_then(toml_edit::Key::span)
            .or_else(|| table.get(name).and_then(Item::span));
        span.map_or(Place::Nowhere, |span| Place::Line(line_of(self.text, span.start)))
    }

    /// Records what is wrong with a key, at the place where it was set.
    pub fn refuse(&mut self, section: &str, name: &str, reason: impl Into<String>) {
        let place = self.place(section, name);
        self.wrong(section, name, place, reason.into());
    }

    pub fn refuse_line(&mut self, line: usize, key: &str, reason: impl Into<String>) {
        self.problems.push(Problem {
            file: self.file.to_owned(),
            place: Place::Line(line),
            key: key.to_owned(),
            reason: reason.into(),
        });
    }

    /// Refuses what nobody asked for, in the file and among the variables.
    ///
    /// Returns the known keys in the order they were asked for, and every problem found, in the
    /// order of the file.
    pub fn finish(mut self) -> (Vec<KnownKey>, Vec<Problem>) {
        self.unknown_in_file();
        self.unknown_in_environment();
        self.problems.sort_by_key(|problem| match &problem.place {
            Place::Line(line) => *line,
            Place::Nowhere => usize::MAX - 1,
            Place::Variable(_) => usize::MAX,
        });
        (self.known, self.problems)
    }

    fn unknown_in_file(&mut self) {
        let sections: Vec<&str> = self.known.iter().map(|key| key.section).collect();
        let mut found = Vec::new();
        for (section, item) in self.document.iter() {
            let start = |table: &dyn TableLike, name: &str| {
                table
                    .key(name)
                    .and_then(toml_edit::Key::span)
                    .map_or(0, |span| span.start)
            };
            let Some(table) = item.as_table_like().filter(|_| sections.contains(&section)) else {
                let hint = nearest(section, sections.iter().copied(), "section");
                found.push((start(self.document.as_table(), section), section.to_owned(), hint));
                continue;
            };
            let names: Vec<&str> = self
                .known
                .iter()
                .filter(|key| key.section == section)
                .map(|key| key.name)
                .collect();
            for (name, _) in table.iter().filter(|(name, _)| !names.contains(name)) {
                let hint = nearest(name, names.iter().copied(), "key");
                found.push((start(table, name), format!("{section}.{name}"), hint));
            }
        }
        for (start, key, reason) in found {
            self.refuse_line(line_of(self.text, start), &key, reason);
        }
    }

    fn unknown_in_environment(&mut self) {
        let known: Vec<String> = self
            .known
            .iter()
            .map(|key| variable_name(key.section, key.name))
            .collect();
        let sections: Vec<String> = self.known.iter().map(|key| variable_name(key.section, "")).collect();
        let stray: Vec<String> = self
            .environment
            .keys()
            .filter(|name| !known.contains(name))
            .cloned()
            .collect();
        for name in stray {
            // Other variables with the prefix (HOLDFAST_DIR, HOLDFAST_TOKEN, …) belong to the CLI.
            if sections.iter().any(|section| name.starts_with(section.as_str())) {
                let reason = nearest(&name, known.iter().map(String::as_str), "key");
                self.problems.push(Problem {
                    file: self.file.to_owned(),
                    place: Place::Variable(name),
                    key: String::new(),
                    reason,
                });
            }
        }
    }

    fn find(&mut self, section: &str, name: &str, as_text: bool) -> Option<(Value, Place)> {
        let variable = variable_name(section, name);
        if let Some(text) = self.environment.get(&variable) {
            let value = match text.parse::<Value>() {
                Ok(value) if !as_text || value.is_str() => value,
                _ => Value::from(text.as_str()),
            };
            let place = Place::Variable(variable);
            self.note(section, name, bare(&value), place.clone());
            return Some((value, place));
        }
        let value = self.section(section)?.get(name)?.as_value().cloned();
        let place = self.place(section, name);
        if value.is_none() {
            self.wrong(section, name, place.clone(), "must be a value, not a table".to_owned());
        }
        let value = value?;
        self.note(section, name, bare(&value), place.clone());
        Some((value, place))
    }

    fn section(&self, section: &str) -> Option<&dyn TableLike> {
        self.document.get(section)?.as_table_like()
    }

    fn know(&mut self, section: &'static str, name: &'static str, default: Option<String>) {
        self.known.push(KnownKey {
            section,
            name,
            default,
            given: None,
        });
    }

    /// Remembers what was given for a key.
    fn note(&mut self, section: &str, name: &str, text: String, place: Place) {
        let known = self.known.iter_mut().rev();
        for key in known.filter(|key| key.section == section && key.name == name).take(1) {
            key.given = Some((text.clone(), place.clone()));
        }
    }

    fn set_default(&mut self, default: String) {
        if let Some(last) = self.known.last_mut() {
            last.default = Some(default);
        }
    }

    pub fn missing(&mut self, section: &str, name: &str) {
        // A key that is there with a wrong value was reported already.
        let key = format!("{section}.{name}");
        if !self.problems.iter().any(|problem| problem.key == key) {
            self.wrong(
                section,
                name,
                Place::Nowhere,
                "is missing and has no default".to_owned(),
            );
        }
    }

    fn wrong_type(&mut self, section: &str, name: &str, place: Place, value: &Value, wanted: &str) {
        self.wrong(
            section,
            name,
            place,
            format!("is {}, must be {wanted}", value.type_name()),
        );
    }

    fn wrong(&mut self, section: &str, name: &str, place: Place, reason: String) {
        self.problems.push(Problem {
            file: self.file.to_owned(),
            place,
            key: format!("{section}.{name}"),
            reason,
        });
    }
}

/// A value as TOML, without the comment beside it.
fn bare(value: &Value) -> String {
    let mut value = value.clone();
    value.decor_mut().clear();
    value.to_string()
}

fn rows_text(rows: &[Row]) -> String {
    let row = |row: &Row| {
        let fields = row
            .values
            .iter()
            .map(|(name, (value, _))| format!("{name} = {}", bare(value)));
        format!("{{ {} }}", fields.collect::<Vec<_>>().join(", "))
    };
    format!("[{}]", rows.iter().map(row).collect::<Vec<_>>().join(", "))
}

fn variable_name(section: &str, name: &str) -> String {
    format!("{ENV_PREFIX}{}_{}", section.to_uppercase(), name.to_uppercase())
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text
        .as_bytes()
        .iter()
        .take(offset)
        .filter(|byte| **byte == b'\n')
        .count()
}

/// `unknown key`, with the most similar known name when one is near enough to be meant.
pub fn nearest<'n>(name: &str, known: impl Iterator<Item = &'n str>, what: &str) -> String {
    let near = known
        .map(|candidate| (distance(name, candidate), candidate))
        .min()
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4);
    match near {
        Some((_, candidate)) => format!("unknown {what}; did you mean `{candidate}`?"),
        None => format!("unknown {what}"),
    }
}

/// Edits between two names (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
