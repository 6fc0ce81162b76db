#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used)] // reads files only
//! The arrows between the crates, and habits that every file keeps.

use std::fs;
use std::path::{Path, PathBuf};

const CRATES: [&str; 6] = ["actors", "cluster", "node", "simulator", "chaos", "tests"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn sources(dir: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(dir) else { return found };
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            found.push((path, text));
        }
    }
    found.sort();
    found
}

/// Code without comments; strings stay.
fn code(text: &str) -> String {
    let lines = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// Whether a path starts at `name`: `name::…`, and not `other_name::` or `self::name::`.
fn names(code: &str, name: &str) -> bool {
    let wanted = format!("{name}::");
    code.match_indices(&wanted).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
    })
}

/// The `[dependencies]` of a crate that are crates of ours. Tests and build scripts may use more.
fn depends_on(name: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap();
    let section = text.split("\n[dependencies]").nth(1).unwrap_or_default();
    let section = section.split("\n[").next().unwrap();
    let keys = section.lines().filter_map(|line| line.split(['.', ' ', '=']).next());
    keys.filter(|key| CRATES.contains(key)).map(str::to_owned).collect()
}

#[test]
fn arrows_between_crates_point_down() {
    for (name, allowed) in [
        ("actors", &[][..]),
        ("cluster", &["actors"]),
        ("simulator", &["actors"]),
        ("chaos", &["actors", "simulator"]),
        ("node", &["actors", "cluster", "simulator", "chaos"]),
    ] {
        let found = depends_on(name);
        let wrong: Vec<_> = found
            .iter()
            .filter(|other| !allowed.contains(&other.as_str()))
            .collect();
        assert!(
            wrong.is_empty(),
            "{name} depends on {wrong:?}; DESIGN.md §3 allows {allowed:?}"
        );
    }
}

#[test]
fn simulator_and_chaos_know_ids_and_wire_formats_only() {
    for name in ["simulator", "chaos"] {
        for (path, text) in sources(&root().join(name).join("src")) {
            let code = code(&text);
            for (at, _) in code.match_indices("actors::") {
                let rest = &code[at + "actors::".len()..];
                let fine =
                    ["id", "wire"].iter().any(|module| rest.starts_with(module)) || starts_with_allowed_list(rest);
                assert!(fine, "{}: actors::{}", path.display(), rest.lines().next().unwrap());
            }
        }
    }
}

/// `{id::…, wire::…}`
fn starts_with_allowed_list(rest: &str) -> bool {
    let Some(list) = rest.strip_prefix('{') else {
        return false;
    };
    list.trim_start().starts_with("id") || list.trim_start().starts_with("wire")
}

/// Whether a file may name a library.
type IsAllowed = fn(&str) -> bool;

#[test]
fn libraries_are_named_where_the_design_says() {
    let allowed: [(&str, IsAllowed); 4] = [
        ("openraft", |path| path.starts_with("cluster/")),
        ("rocksdb", |path| {
            path.starts_with("cluster/src/storage/") || path.starts_with("cluster/tests/storage/")
        }),
        ("chaos", |path| {
            path.starts_with("chaos/") || path.starts_with("node/src/cli/") || path.starts_with("tests/")
        }),
        ("simulator", |path| {
            ["chaos/", "simulator/", "node/src/cli/", "tests/"]
                .iter()
                .any(|place| path.starts_with(place))
        }),
    ];
    for name in CRATES {
        for (path, text) in sources(&root().join(name)) {
            let short = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            let code = code(&text);
            for (library, is_allowed) in &allowed {
                assert!(is_allowed(&short) || !names(&code, library), "{short} names {library}");
            }
        }
    }
}

#[test]
fn files_open_with_what_they_are_for() {
    for name in CRATES {
        for (path, text) in sources(&root().join(name)) {
            let first = text.lines().find(|line| !line.starts_with("#!["));
            let says = first.is_some_and(|line| line.starts_with("//! "));
            assert!(says, "{} does not open with //!", path.display());
        }
    }
}

#[test]
fn nothing_is_left_for_later() {
    for name in CRATES {
        for (path, text) in sources(&root().join(name).join("src")) {
            let code = code(&text);
            for macro_name in ["todo", "unimplemented", "dbg"] {
                assert!(
                    !code.contains(&format!("{macro_name}!(")),
                    "{}: {macro_name}!",
                    path.display()
                );
            }
        }
    }
}

/// The table of metrics names exactly what the program declares.
#[test]
fn metrics_are_documented() {
    let read = |path| fs::read_to_string(root().join(path)).unwrap();
    // The gateway keeps the list of its own.
    let declared = read("node/src/observe/metrics.rs") + &read("node/src/gateway/metrics.rs");
    let documented = fs::read_to_string(root().join("docs/reference/metrics.md")).unwrap();
    let table = documented
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let mut count = 0;
    for name in table {
        assert!(
            declared.contains(&format!("\"{name}\"")),
            "{name} is documented, and not declared"
        );
        count += 1;
    }
    assert!(count > 20, "only {count} metrics are in the table");
}
