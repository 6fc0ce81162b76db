//! What a command line changes in a scenario. The changed text is what is run, kept and sent to
//! workers, so that a run can be repeated from its directory alone.

use std::path::{Path, PathBuf};

use toml_edit::{value, Array, DocumentMut, Item, Table};

/// `None`, or empty: as the file says.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    pub cluster: Option<PathBuf>,
    pub mqtt: Vec<String>,
    pub ws: Vec<String>,
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
        if self.broker {
            self.telemetry_only(&mut document);
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
        if self.broker {
            target["kind"] = value("mqtt");
            for key in ["cluster", "token", "token_env", "http"] {
                target.remove(key);
            }
            // Addresses of a Holdfast are of no use where others are given.
            if !self.mqtt.is_empty() {
                target.remove("ws");
            }
        }
        for (key, list) in [("mqtt", &self.mqtt), ("ws", &self.ws), ("http", &self.http)] {
            if !list.is_empty() {
                target[key] = value(list.iter().collect::<Array>());
            }
        }
    }

    /// What any broker can do of the scenario: nobody operates it, devices that would speak HTTP
    /// speak MQTT 5, and where no WebSocket address is known, those of WebSocket use TCP.
    fn telemetry_only(&self, document: &mut DocumentMut) {
        document.remove("operator");
        let target = document.get("target").and_then(Item::as_table_like);
        let has_ws = target
            .and_then(|target| target.get("ws")?.as_array())
            .is_some_and(|list| !list.is_empty());
        let mut moves = vec![("http", "mqtt5")];
        if !has_ws {
            moves.extend([("mqtt5-ws", "mqtt5"), ("mqtt311-ws", "mqtt311")]);
        }
        let Some(fleets) = document.get_mut("fleet").and_then(Item::as_array_of_tables_mut) else {
            return;
        };
        for fleet in fleets.iter_mut() {
            let Some(protocols) = fleet.get_mut("protocols").and_then(Item::as_table_like_mut) else {
                continue;
            };
            for (from, to) in &moves {
                let weight = |item: Option<&Item>| item.and_then(Item::as_integer).unwrap_or(0);
                let Some(moved) = protocols.remove(from) else { continue };
                let sum = weight(Some(&moved)) + weight(protocols.get(to));
                protocols.insert(to, value(sum));
            }
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
        assert!(scenario.target.ws.is_empty() && scenario.operator.desired_rate == 0.0);
        // Comments of the file stay.
        assert!(text.contains("# devices connect"));
    }

    /// The file that drives a Holdfast drives any broker: what only a Holdfast can do is left out.
    #[test]
    fn a_broker_gets_the_telemetry_of_any_scenario() {
        let text = "name = \"x\"\noperator = { read_rate = 1 }\n[target]\nws = [\"h:2\"]\nhttp = [\"h:3\"]\ntoken_env = \"T\"\n\
                    [[fleet]]\nname = \"a\"\nprofile = \"constant\"\ncount = 2\nprotocols = { mqtt5 = 1, http = 2, mqtt311-ws = 3 }\n\
                    [[fleet]]\nname = \"b\"\nprofile = \"gateway\"\ncount = 1\n[[phase]]\nkind = \"steady\"\nduration = \"1s\"\n";
        let protocols = |overrides: Overrides| {
            let changed = overrides.apply(text, Path::new("/x.toml")).unwrap();
            let loaded = super::super::parse(Path::new("/x.toml"), changed).unwrap();
            assert!(loaded.scenario.target.http.is_empty());
            let weights = loaded.scenario.fleet[0].protocols.iter();
            weights
                .map(|(p, w)| format!("{}={w}", p.name()))
                .collect::<Vec<_>>()
                .join(" ")
        };
        let broker = |ws: Vec<String>| Overrides {
            broker: true,
            mqtt: vec!["b:1".into()],
            ws,
            ..Default::default()
        };
        assert_eq!(protocols(broker(vec![])), "mqtt5=3 mqtt311=3");
        assert_eq!(protocols(broker(vec!["b:2".into()])), "mqtt5=3 mqtt311-ws=3");
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
