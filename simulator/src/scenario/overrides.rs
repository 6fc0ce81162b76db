//! What a command line changes in a scenario. The changed text is what is run, kept and sent to
//! workers, so that a run can be repeated from its directory alone.

use std::path::{Path, PathBuf};

use toml_edit::{value, Array, DocumentMut, Item, Table};

/// `None`, or empty: as the file says.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    pub cluster: Option<PathBuf>,
    pub mqtt: Vec<String>,
    pub http: Vec<String>,
    /// Any broker: telemetry only.
    pub broker: bool,
    pub seed: Option<u64>,
    pub workers: Option<u16>,
    pub threads: Option<u16>,
    pub compression: Option<f64>,
    pub closed: bool,
    pub metrics: Option<String>,
    pub no_audit: bool,
}

impl Overrides {
    /// The scenario with its changes, and with the paths in it made absolute.
    ///
    /// # Errors
    /// The text is not TOML.
    pub fn apply(&self, text: &str, path: &Path) -> Result<String, toml_edit::TomlError> {
        let mut document: DocumentMut = text.parse()?;
        let base = path.parent().unwrap_or(Path::new("."));
        let absolute = |file: &str| {
            let joined = base.join(file);
            std::path::absolute(&joined).unwrap_or(joined).display().to_string()
        };
        if let Some(seed) = self.seed {
            document["seed"] = value(i64::try_from(seed).unwrap_or(i64::MAX));
        }
        if let Some(compression) = self.compression {
            document["compression"] = value(compression);
        }
        self.target(table(&mut document, "target"), &absolute);
        let run = table(&mut document, "run");
        for (key, number) in [("workers", self.workers), ("threads", self.threads)] {
            if let Some(number) = number {
                run[key] = value(i64::from(number));
            }
        }
        if self.closed {
            run["loop"] = value("closed");
        }
        if let Some(address) = &self.metrics {
            run["metrics"] = value(address.as_str());
        }
        if self.no_audit {
            table(&mut document, "audit")["enabled"] = value(false);
        }
        if let Some(fleets) = document.get_mut("fleet").and_then(Item::as_array_of_tables_mut) {
            for fleet in fleets.iter_mut() {
                let replay = fleet.get_mut("replay").and_then(Item::as_table_like_mut);
                let file = replay.and_then(|replay| replay.get_mut("file"));
                if let Some(file) = file {
                    if let Some(name) = file.as_str().map(&absolute) {
                        *file = value(name);
                    }
                }
            }
        }
        Ok(document.to_string())
    }

    fn target(&self, target: &mut Table, absolute: &dyn Fn(&str) -> String) {
        if let Some(cluster) = &self.cluster {
            let here = std::path::absolute(cluster).unwrap_or_else(|_| cluster.clone());
            target["cluster"] = value(here.display().to_string());
            // What the file says of another cluster is of no use now.
            for key in ["mqtt", "ws", "http"] {
                target.remove(key);
            }
        } else if let Some(cluster) = target.get("cluster").and_then(Item::as_str).map(absolute) {
            target["cluster"] = value(cluster);
        }
        for (key, list) in [("mqtt", &self.mqtt), ("http", &self.http)] {
            if !list.is_empty() {
                target[key] = value(list.iter().collect::<Array>());
            }
        }
        if self.broker {
            target["kind"] = value("mqtt");
            target.remove("cluster");
        }
    }
}

/// A table of the document, made when it is not there.
fn table<'a>(document: &'a mut DocumentMut, name: &str) -> &'a mut Table {
    let entry = document.entry(name).or_insert_with(toml_edit::table);
    if entry.as_table().is_none() {
        // An inline table becomes one of its own, so that keys can be added.
        let inline = std::mem::take(entry).into_table().unwrap_or_default();
        *entry = Item::Table(inline);
    }
    entry.as_table_mut().expect("it was just made a table")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_in_the_text() {
        let overrides = Overrides {
            mqtt: vec!["h:1".into()],
            broker: true,
            seed: Some(9),
            workers: Some(2),
            closed: true,
            no_audit: true,
            ..Default::default()
        };
        let text = overrides
            .apply(super::super::STARTER, Path::new("/tmp/x.toml"))
            .unwrap();
        let scenario: super::super::Scenario = toml::from_str(&text).unwrap();
        assert_eq!((scenario.seed, scenario.run.workers), (9, 2));
        assert_eq!(scenario.target.mqtt, ["h:1"]);
        assert_eq!(scenario.run.mode, super::super::LoopMode::Closed);
        assert!(!scenario.audit.enabled);
        // Comments of the file stay.
        assert!(text.contains("# devices connect"));
    }

    #[test]
    fn paths_become_absolute() {
        let text =
            "name = \"x\"\ntarget = { cluster = \"hf\" }\n[[fleet]]\nname = \"a\"\nreplay = { file = \"t.csv\" }\n";
        let changed = Overrides::default().apply(text, Path::new("/data/s.toml")).unwrap();
        assert!(
            changed.contains("\"/data/hf\"") && changed.contains("\"/data/t.csv\""),
            "{changed}"
        );
    }
}
