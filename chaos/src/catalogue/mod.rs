//! Every fault there is: what it does, by which mechanism, what it needs, how it heals.
//!
//! One file per family. An entry only describes; `deed` carries out, and every deed knows its
//! undoing. Drills are checked against this table, so that a mistyped name or parameter is found
//! before anything is broken.

mod clients;
mod clock;
mod disk;
mod load;
mod network;
mod operator;
mod process;

use serde::Serialize;

/// How a fault is brought about. Recorded with each fault of a drill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mechanism {
    /// Signals to the node's process, and starting it again.
    Signal,
    /// A lease inside the node, which expires on a clock that no fault touches.
    Lease,
    /// A TCP proxy between clients and the node.
    Proxy,
    /// Damage to files of a node that does not run.
    Files,
    /// A library preloaded into the nodes, which knows what was synced.
    Preload,
    /// The operator's HTTP API and command line.
    Operator,
    /// The simulated fleet itself.
    Fleet,
}

impl Mechanism {
    pub fn name(self) -> &'static str {
        match self {
            Self::Signal => "signal",
            Self::Lease => "lease",
            Self::Proxy => "proxy",
            Self::Files => "files",
            Self::Preload => "preload",
            Self::Operator => "operator",
            Self::Fleet => "fleet",
        }
    }
}

/// What a fault may be aimed at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    Node,
    /// Between a node and others.
    Link,
    /// Between clients and a node.
    Clients,
    /// A share of the fleet.
    Cohort,
    Cluster,
}

impl Scope {
    pub fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Link => "link",
            Self::Clients => "clients",
            Self::Cohort => "cohort",
            Self::Cluster => "cluster",
        }
    }
}

/// What a parameter may be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Sort {
    /// A whole number from … to ….
    Number(i64, i64),
    /// A share, 0 to 1.
    Share,
    Word(&'static [&'static str]),
    /// A node's id, or `*` for all others.
    Peer,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Param {
    pub name: &'static str,
    pub sort: Sort,
    /// As in TOML; `None`: must be given.
    pub default: Option<&'static str>,
    pub about: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Entry {
    pub id: &'static str,
    pub family: &'static str,
    pub does: &'static str,
    pub mechanism: Mechanism,
    pub scope: Scope,
    pub needs: &'static str,
    pub heals: &'static str,
    pub params: &'static [Param],
    /// Which test proves that it bites.
    pub proof: &'static str,
}

/// All faults, by family.
pub fn all() -> impl Iterator<Item = &'static Entry> {
    [
        process::FAULTS,
        network::FAULTS,
        clients::FAULTS,
        disk::FAULTS,
        clock::FAULTS,
        load::FAULTS,
        operator::FAULTS,
    ]
    .into_iter()
    .flatten()
}

pub fn find(id: &str) -> Option<&'static Entry> {
    all().find(|entry| entry.id == id)
}

/// The name nearest to a mistyped one, if any is near.
pub fn nearest(id: &str) -> Option<&'static str> {
    let distance = |a: &str, b: &str| {
        let mut row: Vec<usize> = (0..=b.len()).collect();
        for (i, left) in a.bytes().enumerate() {
            let mut before = row[0];
            row[0] = i + 1;
            for (j, right) in b.bytes().enumerate() {
                let change = before + usize::from(left != right);
                before = row[j + 1];
                row[j + 1] = change.min(row[j] + 1).min(before + 1);
            }
        }
        row[b.len()]
    };
    let near = all().map(|entry| (distance(id, entry.id), entry.id)).min();
    near.filter(|(far, _)| *far <= id.len() / 2).map(|(_, id)| id)
}

impl Param {
    /// Why `value` is not what this parameter takes.
    pub fn refuse(&self, value: &toml::Value) -> Option<String> {
        match (self.sort, value) {
            (Sort::Number(low, high), toml::Value::Integer(number)) => {
                (!(low..=high).contains(number)).then(|| format!("{number} is not within {low}..={high}"))
            }
            (Sort::Number(..), _) => Some("must be a whole number".into()),
            (Sort::Share, toml::Value::Float(_) | toml::Value::Integer(_)) => {
                let share = value
                    .as_float()
                    .or(value.as_integer().map(|n| n as f64))
                    .unwrap_or(-1.0);
                (!(0.0..=1.0).contains(&share)).then(|| format!("{share} is not within 0..=1"))
            }
            (Sort::Share, _) => Some("must be a share, 0 to 1".into()),
            (Sort::Word(words), toml::Value::String(word)) => {
                (!words.contains(&word.as_str())).then(|| format!("{word:?} is none of {}", words.join(", ")))
            }
            (Sort::Word(words), _) => Some(format!("must be one of {}", words.join(", "))),
            (Sort::Peer, toml::Value::Integer(id)) if *id > 0 => None,
            (Sort::Peer, toml::Value::String(all)) if all == "*" => None,
            (Sort::Peer, _) => Some("must be a node's id, or \"*\"".into()),
        }
    }

    /// The default as a value; `None` where there is none.
    pub fn fallback(&self) -> Option<toml::Value> {
        let text = format!("v = {}", self.default?);
        toml::from_str::<toml::Table>(&text).ok()?.remove("v")
    }
}

impl Entry {
    /// What is wrong with `given`: parameter and reason.
    pub fn refuse(&self, given: &toml::Table) -> Vec<(String, String)> {
        let known = || {
            self.params
                .iter()
                .map(|param| param.name)
                .collect::<Vec<_>>()
                .join(", ")
        };
        let mut found = Vec::new();
        for (name, value) in given {
            match self.params.iter().find(|param| param.name == name) {
                None if self.params.is_empty() => {
                    found.push((name.clone(), format!("{} takes no parameters", self.id)))
                }
                None => found.push((name.clone(), format!("{} knows {}", self.id, known()))),
                Some(param) => found.extend(param.refuse(value).map(|why| (name.clone(), why))),
            }
        }
        for param in self
            .params
            .iter()
            .filter(|p| p.default.is_none() && !given.contains_key(p.name))
        {
            found.push((param.name.to_owned(), format!("{} needs it: {}", self.id, param.about)));
        }
        found
    }

    /// `given` with the defaults of what is left out.
    pub fn fill(&self, given: &toml::Table) -> toml::Table {
        let mut whole = given.clone();
        for param in self.params {
            if let (false, Some(value)) = (whole.contains_key(param.name), param.fallback()) {
                whole.insert(param.name.to_owned(), value);
            }
        }
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_whole_and_their_defaults_fit() {
        let mut names = std::collections::BTreeSet::new();
        for entry in all() {
            assert!(names.insert(entry.id), "{} twice", entry.id);
            for text in [entry.does, entry.needs, entry.heals, entry.proof] {
                assert!(!text.is_empty(), "{} does not say everything", entry.id);
            }
            for param in entry.params {
                if let Some(value) = param.fallback() {
                    assert_eq!(param.refuse(&value), None, "{}.{}", entry.id, param.name);
                } else {
                    assert!(
                        param.default.is_none(),
                        "{}.{}: {:?}",
                        entry.id,
                        param.name,
                        param.default
                    );
                }
            }
        }
        assert!(names.len() >= 50, "{}", names.len());
    }

    #[test]
    fn mistakes_are_named() {
        let table = |text: &str| toml::from_str::<toml::Table>(text).unwrap();
        let drop = find("link.drop").unwrap();
        assert_eq!(drop.refuse(&table("percent = 20")), []);
        assert_eq!(drop.refuse(&table("percent = 200"))[0].0, "percent");
        assert!(drop.refuse(&table("precent = 20"))[0].1.contains("percent"));
        assert!(drop.refuse(&table("direction = \"up\""))[0].1.contains("both"));
        assert_eq!(drop.fill(&table("percent = 3"))["direction"].as_str(), Some("both"));
        assert_eq!(nearest("proces.kill"), Some("process.kill"));
        assert_eq!(nearest("zzzzzzzzz"), None);
    }
}
